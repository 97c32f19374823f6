//! Deletes dead letters of the intake that are older than its `dead_ttl`: no worker looks there.

use ebb_queue::{Queue, Retention};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Looks until it is stopped; a step that has begun ends before. `chance` is a number in `[0, 1)`.
pub(crate) async fn keep(
    (name, intake): (String, Queue),
    chance: f64,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut retention = Retention::new(name);
    let mut pause = Retention::first_pause(chance);
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let look = retention.look(&*intake, || stop.is_cancelled()).await;
        metrics.dead_looks.inc();
        metrics.dead_purged.inc_by(look.n_purged);
        if look.has_failed {
            metrics.broker_errors.with_label_values(&["purge_old"]).inc();
        }
        pause = retention.pause();
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;
    use std::time::Duration;

    use ebb_queue::faulty::{Faults, Faulty};
    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Backlog, Behavior, Broker, Job, OpenOptions, Timestamp, TokioClock};
    use tokio::time::{sleep, timeout};

    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    /// A queue with one dead letter.
    async fn dead() -> MemoryQueue {
        let clock = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let options = OpenOptions { clock, ..OpenOptions::default() };
        let behavior = Behavior { dead_ttl: Some(TTL), ..Behavior::default() };
        let queue = MemoryQueue::new(&behavior, options);
        queue.publish(vec![Job::new("{}", Timestamp::UNIX_EPOCH)]).await.unwrap();
        let dead = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
        queue.settle(&[dead.reject("refused")]).await.unwrap();
        queue
    }

    #[tokio::test(start_paused = true)]
    async fn old_dead_letters_of_the_intake_are_deleted_and_counted() {
        let (queue, metrics) = (dead().await, Metrics::default());
        let intake = ("jobs".to_owned(), Arc::new(queue.clone()) as Queue);
        let keep = keep(intake, 0.0, metrics.clone(), CancellationToken::new());
        let mut keep = std::pin::pin!(keep);
        assert!(timeout(TTL - TTL / 10, &mut keep).await.is_err());
        assert_eq!((metrics.dead_looks.get(), metrics.dead_purged.get()), (5, 0));
        assert!(timeout(TTL / 2, &mut keep).await.is_err());
        assert_eq!((metrics.dead_purged.get(), queue.depth().await.unwrap().dead), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_has_begun_ends_before_a_split_does() {
        let (queue, metrics) = (dead().await, Metrics::default());
        sleep(TTL).await;
        let faults = Faults { delay: Duration::from_secs(10), ..Faults::NONE };
        let slow = Arc::new(Faulty::new(Arc::new(queue.clone()), faults, 1)) as Queue;
        let stop = CancellationToken::new();
        let kept = keep(("jobs".to_owned(), slow), 0.0, metrics.clone(), stop.clone());
        let kept = tokio::spawn(kept);
        sleep(Retention::first_pause(0.0) + Duration::from_millis(1)).await;
        assert_eq!(queue.depth().await.unwrap().dead, 1, "it has begun and not ended");
        stop.cancel();
        timeout(Duration::from_secs(11), kept).await.unwrap().unwrap();
        assert_eq!((metrics.dead_purged.get(), queue.depth().await.unwrap().dead), (1, 0));
    }
}
