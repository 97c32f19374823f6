//! A consumer that stays, and fetches jobs ahead of who asks for them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::fetched::Fetched;
use super::names::Lane;
use super::session::Session;
use crate::{Result, Timestamp};

/// When nothing has come for so long, nothing is on its way.
const QUIET: Duration = Duration::from_millis(50);

/// A consumer that stays.
pub(super) struct Standing {
    pub(super) lane: Lane,
    pub(super) prefetch: usize,
    session: Arc<Session>,
    consumer: Consumer,
}

impl Standing {
    pub(super) async fn begin(
        session: &Arc<Session>,
        (lane, queue): (Lane, &str),
        prefetch: usize,
    ) -> Result<Self> {
        let consuming = consume(&session.work, queue, prefetch);
        let consumer = session.patiently("consume jobs", consuming).await?;
        Ok(Self { lane, prefetch, session: session.clone(), consumer })
    }

    pub(super) fn read(&self, delivery: Delivery, now: Timestamp) -> Fetched {
        Fetched::read(delivery, self.lane, &self.session, now)
    }

    /// The next delivery, none when the consumer ended. May be dropped and asked again.
    ///
    /// The broker ends one by itself where its queue is gone, or, from 4.3 on, where a job was held for longer
    /// than its consumer_timeout. That job is others' then, and the broker does not say which it is: so nobody
    /// holds any of this session any more.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        let next = self.consumer.next().await.and_then(std::result::Result::ok);
        if next.is_none() {
            self.session.give_up();
        }
        next
    }

    /// Ends it, also where it was ended before; what is on its way comes still.
    pub(super) async fn end(&mut self, came: &mut Vec<Delivery>) -> Result<()> {
        // What a quorum queue has on its way when a consumer goes comes back to it, and is counted
        // as a delivery that failed: all of it is awaited first.
        loop {
            match timeout(QUIET, self.next()).await {
                Ok(Some(delivery)) => came.push(delivery),
                // The broker ended it, which the client says once: another end would be awaited for ever.
                Ok(None) => return Ok(()),
                Err(_) => break,
            }
        }
        let options = BasicCancelOptions::default();
        let cancelled = self.session.work.basic_cancel(self.consumer.tag(), options);
        self.session.patiently("cancel a consumer", cancelled).await?;
        while let Some(Ok(delivery)) = self.consumer.next().await {
            came.push(delivery);
        }
        Ok(())
    }
}

/// The next delivery of a consumer that stays, none when it ended; never, where there is none.
pub(super) async fn next(standing: Option<&mut Standing>) -> Option<Delivery> {
    match standing {
        Some(standing) => standing.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn consume(channel: &Channel, queue: &str, n: usize) -> lapin::Result<Consumer> {
    let prefetch = u16::try_from(n).unwrap_or(u16::MAX);
    // Said in one breath: the broker takes them in this order.
    let limit = channel.basic_qos(prefetch, BasicQosOptions::default());
    let (queue, tag) = (ShortString::from(queue), ShortString::default());
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue, tag, options, FieldTable::default());
    let ((), consumer) = tokio::try_join!(limit, consumer)?;
    Ok(consumer)
}

#[cfg(test)]
mod tests {
    use lapin::options::QueueDeleteOptions;
    use tokio::time::sleep;

    use super::super::kit::{block_on, opened};
    use super::*;
    use crate::{Broker, Job, Priority};

    #[test]
    fn a_consumer_that_the_broker_ended_behind_what_it_handed_over_ends_with_all_of_that() {
        block_on(async {
            let name = "ended-behind";
            let queue = opened(name).await;
            let jobs = (0..3).map(|_| Job::new("x", Timestamp::now())).collect();
            queue.publish(jobs).await.unwrap();
            let session = queue.core().session().await.unwrap();
            let lane = (Lane::New(Priority::Normal), name);
            let mut standing = Standing::begin(&session, lane, 10).await.unwrap();
            while session.counts_of_lanes(&[name.to_owned()]).await.unwrap() != [0] {
                sleep(Duration::from_millis(20)).await;
            }
            let channel = session.intake.create_channel().await.unwrap();
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
            // Here before anybody reads what came before it.
            sleep(Duration::from_secs(1)).await;
            let mut came = Vec::new();
            let ended = timeout(Duration::from_secs(10), standing.end(&mut came)).await;
            ended.expect("its end is waited for again").unwrap();
            assert_eq!(came.len(), 3);
        });
    }
}
