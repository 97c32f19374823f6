//! How many messages wait in queues of the broker, and whether it knows.
//!
//! The broker asks the leader of a quorum queue on behalf of whoever asks it, and says that the queue is
//! empty where that does not answer in time: a 0 that took as long is no answer.

use std::time::Duration;

use futures::future::try_join_all;
use lapin::options::{BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::errors;
use super::session::{PATIENCE, Session};
use crate::Result;

/// How long the broker waits for the leader of a quorum queue (`rabbit_quorum_queue:stat/1`).
const STALL: Duration = Duration::from_millis(250);
/// From one answer to the next, where it may have waited: here the one may come late, and the next on its
/// heels.
const GAP: Duration = Duration::from_millis(125);
/// How often, and for how long, a queue is asked again that the broker cannot tell of.
const TRIES: usize = 3;
const TRYING: Duration = Duration::from_secs(2);

/// What the broker says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    n_messages: u64,
    is_known: bool,
}

/// What becomes of a count that the broker does not know.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unknown {
    /// It is asked for again, and then there is none.
    IsAnError,
    /// It is 0, and holds up none of the others, for who publishes.
    IsNone,
}

impl Session {
    /// How many messages wait in each of these queues, counted in this order.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where the broker does not know it of one of
    /// them and that is an error.
    pub(super) async fn counts(&self, queues: &[String], unknown: Unknown) -> Result<Vec<u64>> {
        if matches!(unknown, Unknown::IsNone) {
            return Ok(as_told(&self.ask(&self.probe_of_room, queues).await?));
        }
        let mut counts = self.ask(&self.probe, queues).await?;
        let end = Instant::now() + TRYING;
        for _ in 0..TRIES {
            let Some(nth) = counts.iter().position(|count| !count.is_known) else { break };
            if Instant::now() >= end {
                break;
            }
            // All that follow as well: the order says that no job is overlooked on its way.
            counts.truncate(nth);
            counts.extend(self.ask(&self.probe, &queues[nth..]).await?);
        }
        let known = counts.iter().map(|count| count.is_known.then_some(count.n_messages));
        known.collect::<Option<_>>().ok_or_else(|| errors::late("count what waits"))
    }

    /// The same of lanes, as far as the broker says, for who takes from them.
    pub(super) async fn counts_of_lanes(&self, queues: &[String]) -> Result<Vec<u64>> {
        Ok(as_told(&self.ask(&self.probe_of_lanes, queues).await?))
    }

    /// Whether messages wait in a lane, as far as the broker says.
    pub(super) async fn has_any(&self, queue: &str) -> bool {
        let counts = self.counts_of_lanes(&[queue.to_owned()]).await;
        counts.is_ok_and(|counts| counts.iter().any(|n_messages| *n_messages > 0))
    }

    /// How many messages wait in a queue as far as the broker says, or none where it is missing.
    pub(super) async fn count_if_there(&self, queue: String) -> Result<Option<u64>> {
        let mut probe = self.probe.lock().await;
        let asked = ask(&mut probe, &self.intake, std::slice::from_ref(&queue));
        let counted = timeout(PATIENCE, asked).await;
        match counted.map_err(|_| errors::late("count what waits"))? {
            Ok(counts) => Ok(counts.first().map(|count| count.n_messages)),
            Err(error) if errors::is_missing(&error) => Ok(None),
            Err(error) => Err(errors::op(&error, "count what waits")),
        }
    }

    async fn ask(&self, probe: &Mutex<Option<Channel>>, queues: &[String]) -> Result<Vec<Count>> {
        // Whoever asks before us has a patience of its own.
        let mut probe = probe.lock().await;
        let asked = ask(&mut probe, &self.intake, queues);
        self.patiently_for(patience(queues.len()), "count what waits", asked).await
    }
}

/// How long the broker may take to tell of so many queues: it may wait for each of them.
fn patience(n_queues: usize) -> Duration {
    PATIENCE + STALL * u32::try_from(n_queues).unwrap_or(u32::MAX)
}

fn as_told(counts: &[Count]) -> Vec<u64> {
    counts.iter().map(|count| count.n_messages).collect()
}

/// Asks for the messages that wait in each of these queues, one after the other. The channel is one that the
/// broker closes when a queue is missing, so nothing else is done on it.
async fn ask(
    kept: &mut Option<Channel>,
    connection: &Connection,
    queues: &[String],
) -> lapin::Result<Vec<Count>> {
    let channel = opened(kept, connection).await?;
    let begin = Instant::now();
    // Answered at once, so that the first count has something to be measured from.
    let first = async {
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        lapin::Result::Ok(Instant::now())
    };
    let counts = queues.iter().map(async |queue| {
        let options = QueueDeclareOptions::durable().passive();
        let found = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        let n_messages = found.await?.message_count();
        lapin::Result::Ok((u64::from(n_messages), Instant::now()))
    });
    // All in one breath; the broker answers in that order.
    let (first_at, counts) = futures::try_join!(first, try_join_all(counts))?;
    Ok(told(begin, first_at, counts))
}

/// The channel that is kept there, opened again where the broker closed it.
pub(super) async fn opened<'a>(
    kept: &'a mut Option<Channel>,
    connection: &Connection,
) -> lapin::Result<&'a Channel> {
    let channel = match kept.take().filter(|channel| channel.status().connected()) {
        Some(channel) => channel,
        None => connection.create_channel().await?,
    };
    Ok(kept.insert(channel))
}

/// What answers are worth that came at these moments, the first of them after another one.
fn told(begin: Instant, first_at: Instant, answers: Vec<(u64, Instant)>) -> Vec<Count> {
    let mut before = first_at;
    let counts = answers.into_iter().map(|(n_messages, at)| {
        let gap = at - std::mem::replace(&mut before, at);
        let is_known = n_messages > 0 || at - begin < STALL || gap < GAP;
        Count { n_messages, is_known }
    });
    counts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of the answers is known that came after so many milliseconds.
    fn known(first: u64, answers: &[(u64, u64)]) -> Vec<bool> {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let answers = answers.iter().map(|(n_messages, millis)| (*n_messages, at(*millis)));
        told(begin, at(first), answers.collect()).iter().map(|count| count.is_known).collect()
    }

    #[test]
    fn a_nothing_that_took_as_long_as_the_broker_waits_for_a_queue_is_not_known() {
        assert_eq!(known(1, &[(0, 2), (0, 253), (0, 254), (7, 600)]), [true, false, true, true]);
        assert_eq!(known(1, &[(0, 251)]), [false]);
        // The answer before it may have been held up on its way.
        assert_eq!(known(1, &[(0, 100), (0, 252)]), [true, false]);
    }

    #[test]
    fn a_broker_that_is_far_away_or_slow_with_everything_is_believed() {
        assert_eq!(known(400, &[(0, 400), (0, 401)]), [true; 2]);
        assert_eq!(known(90, &[(0, 180), (0, 270), (0, 360)]), [true; 3]);
        assert_eq!(known(100, &[(0, 249)]), [true]);
    }
}
