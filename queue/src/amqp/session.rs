//! One connection to the broker while it lasts, with a channel for each use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicNackOptions, BasicPublishOptions, BasicRejectOptions,
    ConfirmSelectOptions,
};
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};

use super::confirms::{Address, Arrival, Confirms, WINDOW};
use super::connect::{Pair, Version};
use super::counts::opened;
use super::errors;
use super::tags::{Acks, Tags};
use crate::delivery::note;
use crate::{Error, ErrorKind, Result};

/// How long the broker may take for anything; then the connection is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a session that is over waits for its copies of jobs to end, and then for each connection.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often to look whether the broker still takes messages; it tells nobody but the client.
const BLOCKED_LOOK: Duration = Duration::from_millis(20);

/// A message to be published.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
    /// Whether it must meet a queue.
    pub(super) must_arrive: bool,
}

/// What became of messages.
#[derive(Debug)]
pub(super) struct Posted {
    /// Of each, whether it is on the disks of the broker, as far as is known.
    pub(super) is_stored: Vec<bool>,
    /// Why one of them is not.
    pub(super) failed: Option<Error>,
}

/// Two connections and their channels; when anything breaks, all of it is made anew.
#[derive(Debug)]
pub(super) struct Session {
    /// Tells this one from those before.
    pub(super) epoch: u64,
    pub(super) version: Version,
    pub(super) intake: Connection,
    outlet: Connection,
    /// Deliveries come and are acknowledged here.
    pub(super) work: Channel,
    press: Channel,
    /// For what may be lost. The broker closes it when nothing is there that it could be said to.
    voice: Mutex<Option<Channel>>,
    /// For counts.
    pub(super) probe: Mutex<Option<Channel>>,
    /// The same for who publishes, and does not wait for who counts all.
    pub(super) probe_of_room: Mutex<Option<Channel>>,
    /// The same of the lanes for who takes from them, and does not wait for who counts all.
    pub(super) probe_of_lanes: Mutex<Option<Channel>>,
    confirms: Confirms,
    /// The broker closes a channel on which a tag is acknowledged after one that included it.
    turn_to_ack: Mutex<()>,
    tags: std::sync::Mutex<Tags>,
    /// Held while the broker may send copies of jobs, whose queue goes with the connection.
    pub(super) copies: Mutex<()>,
    is_broken: AtomicBool,
    broke: Notify,
}

impl Session {
    pub(super) async fn new(epoch: u64, pair: Pair) -> Result<Self> {
        let Pair { intake, outlet, version } = pair;
        let failed = |error| errors::op(&error, "open a channel");
        let work = intake.create_channel().await.map_err(failed)?;
        let press = outlet.create_channel().await.map_err(failed)?;
        press.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        Ok(Self {
            epoch,
            version,
            intake,
            outlet,
            work,
            press,
            voice: Mutex::default(),
            probe: Mutex::default(),
            probe_of_room: Mutex::default(),
            probe_of_lanes: Mutex::default(),
            confirms: Confirms::new(),
            turn_to_ack: Mutex::default(),
            tags: std::sync::Mutex::default(),
            copies: Mutex::default(),
            is_broken: AtomicBool::new(false),
            broke: Notify::new(),
        })
    }

    /// Gives the connection up, so that it is made anew.
    pub(super) fn give_up(&self) {
        self.is_broken.store(true, Ordering::SeqCst);
        self.broke.notify_one();
    }

    /// Why the session is over, if it is.
    pub(super) fn end(&self) -> Option<String> {
        // Whoever gives it up may only have met what comes of these.
        for connection in [&self.intake, &self.outlet] {
            if !connection.status().connected() {
                return Some("the connection was closed".to_owned());
            }
        }
        if !self.work.status().connected() || !self.press.status().connected() {
            return Some("the broker closed a channel".to_owned());
        }
        let is_broken = self.is_broken.load(Ordering::SeqCst);
        is_broken.then(|| "the broker did not answer, or ended a consumer".to_owned())
    }

    /// Waits a moment, or until somebody gives the session up.
    pub(super) async fn rest(&self, span: Duration) {
        // Both mean to look again.
        timeout(span, self.broke.notified()).await.ok();
    }

    /// Closes both connections in order, as far as the broker answers.
    pub(super) async fn shut(&self) {
        timeout(FAREWELL, self.copies.lock()).await.ok();
        for connection in [&self.intake, &self.outlet] {
            // What does not close in time is closed by being dropped.
            timeout(FAREWELL, connection.close(200, "bye".into())).await.ok();
        }
    }

    /// Whether the broker takes no messages for want of memory or disk.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.outlet.status().blocked() {
            let words = "RabbitMQ takes no messages because it is short of memory or disk; see \
                         rabbitmq-diagnostics alarms";
            return Err(Error::new(ErrorKind::Unavailable, words));
        }
        Ok(())
    }

    /// Waits until the broker takes no messages.
    pub(super) async fn blocked(&self) {
        while !self.outlet.status().blocked() {
            sleep(BLOCKED_LOOK).await;
        }
    }

    /// Awaits something the broker does, for as long as our patience lasts. What it does not answer then may
    /// be done all the same, so the session is given up, and with it what nobody here knows of.
    pub(super) async fn patiently<T>(
        &self,
        what: &str,
        op: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        self.patiently_for(PATIENCE, what, op).await
    }

    /// The same for as long as this.
    pub(super) async fn patiently_for<T>(
        &self,
        patience: Duration,
        what: &str,
        op: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        let done = self.within(patience, what, op).await;
        done.unwrap_or_else(|| {
            self.give_up();
            Err(errors::late(what))
        })
    }

    /// The same of what goes out: a broker that takes no messages answers to none of it.
    async fn patiently_out<T>(
        &self,
        what: &str,
        op: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        let done = self.within(PATIENCE, what, op).await;
        done.unwrap_or_else(|| {
            self.check_open()?;
            self.give_up();
            Err(errors::late(what))
        })
    }

    /// What came of it, if anything did in that time.
    async fn within<T>(
        &self,
        patience: Duration,
        what: &str,
        op: impl Future<Output = lapin::Result<T>>,
    ) -> Option<Result<T>> {
        let done = timeout(patience, op).await.ok()?;
        Some(done.map_err(|error| {
            if self.end().is_some() {
                self.broke.notify_one();
            }
            errors::op(&error, what)
        }))
    }

    /// Publishes messages and returns when all of them are on the disks of the broker. None is
    /// published after one that it refused, but for those on their way together.
    pub(super) async fn publish(&self, messages: Vec<Message>) -> Result<()> {
        self.post_up_to_a_refusal(messages).await.failed.map_or(Ok(()), Err)
    }

    /// The same, and says which of them are there.
    pub(super) async fn post_up_to_a_refusal(&self, messages: Vec<Message>) -> Posted {
        self.post_while(messages, Option::is_none).await
    }

    /// Publishes messages and says which of them are on the disks of the broker. One that it refuses
    /// leaves the others to their end.
    pub(super) async fn post(&self, messages: Vec<Message>) -> Posted {
        self.post_while(messages, |_| true).await
    }

    async fn post_while(&self, messages: Vec<Message>, on: fn(&Option<Error>) -> bool) -> Posted {
        let (mut is_stored, mut failed) = (vec![false; messages.len()], None);
        let mut messages = messages.into_iter();
        for part in is_stored.chunks_mut(WINDOW) {
            if !on(&failed) {
                break;
            }
            let window = messages.by_ref().take(WINDOW).collect();
            match self.post_window(window, part).await {
                Ok(refusal) => refusal.into_iter().for_each(|error| note(&mut failed, error)),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        Posted { is_stored, failed }
    }

    /// The same for as many as may be on their way together; why one was refused, if one was.
    async fn post_window(
        &self,
        window: Vec<Message>,
        is_stored: &mut [bool],
    ) -> Result<Option<Error>> {
        self.check_open()?;
        let mut refusal = None;
        let storing = async {
            let arrivals = self.send(window).await?.into_iter().enumerate();
            let arrivals =
                arrivals.map(async |(nth, arrival)| lapin::Result::Ok((nth, arrival.await?)));
            let mut arrivals: FuturesUnordered<_> = arrivals.collect();
            while let Some((nth, arrival)) = arrivals.try_next().await? {
                match refused(arrival) {
                    None => is_stored[nth] = true,
                    Some(error) => note(&mut refusal, error),
                }
            }
            Ok(())
        };
        self.patiently_out("store jobs", storing).await?;
        Ok(refusal)
    }

    async fn send(
        &self,
        messages: Vec<Message>,
    ) -> lapin::Result<Vec<impl Future<Output = lapin::Result<Arrival>> + use<>>> {
        let _turn = self.confirms.turn().await;
        let mut sent = Vec::with_capacity(messages.len());
        for message in messages {
            let Message { exchange, key, properties, body, must_arrive } = message;
            let options =
                BasicPublishOptions { mandatory: must_arrive, ..BasicPublishOptions::default() };
            let address = Address { exchange, key, must_arrive };
            let (exchange, key) = (address.exchange.as_str().into(), address.key.as_str().into());
            let confirm = self.press.basic_publish(exchange, key, options, &body, properties);
            sent.push(self.confirms.watch(address, confirm.await?).await);
        }
        Ok(sent)
    }

    /// Says something that may be lost.
    pub(super) async fn say(&self, message: Message) -> Result<()> {
        self.check_open()?;
        let Message { exchange, key, properties, body, must_arrive: _ } = message;
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let options = BasicPublishOptions::default();
        let saying = async {
            let mut voice = self.voice.lock().await;
            let channel = opened(&mut voice, &self.outlet).await?;
            channel.basic_publish(exchange, key, options, &body, properties).await
        };
        tokio::select! {
            biased;
            said = self.patiently_out("say what we hold", saying) => said.map(drop),
            // It is said once the broker takes messages again.
            () = self.blocked() => self.check_open(),
        }
    }

    /// Tells the broker that deliveries of this session are done.
    pub(super) async fn ack(&self, tags: &[u64]) -> Result<()> {
        let _turn = self.turn_to_ack.lock().await;
        let Acks { up_to, single } = self.tags().settle(tags);
        let multiple = up_to.map(|tag| (tag, true));
        let acks = multiple.into_iter().chain(single.into_iter().map(|tag| (tag, false)));
        // Said in one breath: whoever does not wait for it has said it all, as it is noted.
        let acked =
            acks.map(|(tag, multiple)| self.work.basic_ack(tag, BasicAckOptions { multiple }));
        self.patiently("acknowledge jobs", try_join_all(acked)).await.map(drop)
    }

    /// Whether the broker was told so of any delivery of this session.
    pub(super) fn has_settled(&self) -> bool {
        self.tags().are_touched()
    }

    /// Gives deliveries of this session back as they are, each with whether it is to be charged. On the broker
    /// each counts as a lost attempt, so this is for when nothing better can be done: what is rejected counts on
    /// every version, and what is nacked not from 4.3 on.
    pub(super) async fn requeue(&self, deliveries: &[(u64, bool)]) -> Result<()> {
        let _turn = self.turn_to_ack.lock().await;
        for (tag, is_charged) in deliveries {
            let back = async {
                if *is_charged {
                    let options = BasicRejectOptions { requeue: true };
                    return self.work.basic_reject(*tag, options).await;
                }
                let options = BasicNackOptions { requeue: true, multiple: false };
                self.work.basic_nack(*tag, options).await
            };
            self.patiently("take jobs back", back).await?;
        }
        let tags: Vec<u64> = deliveries.iter().map(|(tag, _)| *tag).collect();
        // Not before: else they could be acknowledged along with others.
        self.tags().settle(&tags);
        Ok(())
    }

    fn tags(&self) -> std::sync::MutexGuard<'_, Tags> {
        self.tags.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Why a message is not stored, if it is not.
fn refused(arrival: Arrival) -> Option<Error> {
    match arrival {
        Arrival::Stored => None,
        Arrival::Refused => {
            // It says the same where another queue that was to get a copy has gone in that moment.
            let words = "RabbitMQ refused a job, which may be stored all the same: its queue is full \
                         or has lost its servers, or another that was to get a copy has just gone";
            Some(Error::new(ErrorKind::Full, words).in_doubt())
        }
        Arrival::Homeless(key) => {
            let words = format!("RabbitMQ knows no queue for {key:?}");
            let remedy = "was it deleted? open the queue anew to create it";
            Some(Error::new(ErrorKind::Incompatible, format!("{words}; {remedy}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::kit::{block_on, opened};
    use super::super::parcel;
    use super::super::standing::consume;
    use crate::{Broker, Job, Timestamp};

    #[test]
    fn a_session_that_is_given_up_since_its_connection_was_closed_says_so() {
        block_on(async {
            let queue = opened("why").await;
            let session = queue.core().session().await.unwrap();
            session.intake.close(200, "closed".into()).await.unwrap();
            session.give_up();
            assert_eq!(session.end().as_deref(), Some("the connection was closed"));
        });
    }

    #[test]
    fn what_is_given_back_and_not_to_be_charged_counts_as_no_attempt_where_the_broker_can_tell() {
        block_on(async {
            let queue = opened("given-back").await;
            queue.publish(vec![Job::new("x", Timestamp::now())]).await.unwrap();
            let session = queue.core().session().await.unwrap();
            let mut consumer = consume(&session.work, "given-back", 1).await.unwrap();
            let is_able = session.version.number >= (4, 3);
            let mut one = consumer.next().await.unwrap().unwrap();
            for (is_charged, n_attempts) in [(true, 1), (false, if is_able { 1 } else { 2 })] {
                session.requeue(&[(one.delivery_tag, is_charged)]).await.unwrap();
                one = consumer.next().await.unwrap().unwrap();
                let n_crashes = parcel::crashes(&one.properties, one.redelivered, &session.version);
                assert_eq!(n_crashes, n_attempts, "{is_charged}");
            }
        });
    }
}
