//! How many messages wait in queues of the broker, and whether it knows.
//!
//! The broker asks the leader of a quorum queue on behalf of whoever asks it, and says that the queue is
//! empty where that does not answer in time: a 0 that took as long is no answer.

use std::time::Duration;

use futures::future::try_join_all;
use lapin::options::{BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::Instant;

/// How long the broker waits for the leader of a quorum queue (`rabbit_quorum_queue:stat/1`).
const STALL: Duration = Duration::from_millis(250);
/// From one answer to the next, where it may have waited: here the one may come late, and the next on its
/// heels.
const GAP: Duration = Duration::from_millis(125);

/// What the broker says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) n_messages: u64,
    pub(super) is_known: bool,
}

/// Asks for the messages that wait in each of these queues, one after the other. The channel is one that the
/// broker closes when a queue is missing, so nothing else is done on it.
pub(super) async fn ask(
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
