//! Who deletes dead letters that are older than `dead_ttl`, workers and splits alike, looks for them in
//! this way.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tracing::{debug, info, warn};

use crate::{Broker, Elsewhere, Error, ErrorKind, Purged, Result};

/// Soon after the start: a pool that is at zero most of the time has short-lived workers. Those that
/// start together do not look together.
const FIRST: Duration = Duration::from_secs(5);
const SPREAD: Duration = Duration::from_secs(30);
/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(60);
/// The same where a right is missing: only somebody who gives it will help.
const DENIED: Duration = Duration::from_secs(3600);
/// Steps that follow each other at most: a long backlog of dead letters waits for the next look.
const STEPS: usize = 20;

/// The looks for old dead letters of one queue.
#[derive(Debug)]
pub struct Retention {
    queue: String,
    is_denied: bool,
    has_told_of_left: bool,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// How many letters were deleted.
    pub n_purged: u64,
    /// Whether it ended with an error, which is told.
    pub has_failed: bool,
}

impl Retention {
    /// The looks at the queue of this name.
    #[must_use]
    pub fn new(queue: impl Into<String>) -> Self {
        Self { queue: queue.into(), is_denied: false, has_told_of_left: false }
    }

    /// How long to wait before the first look; `chance` is a number in `[0, 1)`.
    #[must_use]
    pub fn first_pause(chance: f64) -> Duration {
        FIRST + SPREAD.mul_f64(chance)
    }

    /// How long to wait before the next one.
    #[must_use]
    pub fn pause(&self) -> Duration {
        if self.is_denied { DENIED } else { PERIOD }
    }

    /// Deletes what is too old, until there is no more, or between two steps somebody stops it. Nothing
    /// else waits for it or depends on it, so an error is told and no more, a panic among them: who looks
    /// next may be luckier, and would not look at all.
    pub async fn look(&mut self, broker: &dyn Broker, is_stopped: impl Fn() -> bool) -> Look {
        let (queue, was_denied) = (&*self.queue, std::mem::take(&mut self.is_denied));
        let mut look = Look { n_purged: 0, has_failed: false };
        for _ in 0..STEPS {
            // Bodies in a store of payloads go along where the handle has it.
            match step(broker).await {
                Ok(purged) => {
                    look.n_purged += purged.n_jobs;
                    let n_left = purged.n_left;
                    if n_left > 0 && !std::mem::replace(&mut self.has_told_of_left, true) {
                        warn!(
                            %queue, n_left,
                            "dead letters older than dead_ttl stay, since their bodies lie in a store \
                             that was not given; give --payloads to a worker, or to ebb dlq purge"
                        );
                    }
                    if purged.n_jobs == 0 || is_stopped() {
                        break;
                    }
                }
                Err(error) => {
                    look.has_failed = true;
                    self.is_denied = error.kind() == ErrorKind::Denied;
                    match (self.is_denied, was_denied) {
                        (true, true) => debug!(%queue, %error, "a right is missing still"),
                        (true, false) => warn!(
                            %queue, %error,
                            "old dead letters are not deleted, since a right is missing; \
                             docs/security.md names those that dead_ttl needs. The next look is in an \
                             hour"
                        ),
                        (false, _) => warn!(%queue, %error, "old dead letters were not deleted"),
                    }
                    break;
                }
            }
        }
        if look.n_purged > 0 {
            info!(%queue, look.n_purged, "dead letters older than dead_ttl were deleted");
        }
        look
    }
}

async fn step(broker: &dyn Broker) -> Result<Purged> {
    let step = AssertUnwindSafe(broker.purge_old(Elsewhere::Leave)).catch_unwind().await;
    step.unwrap_or_else(|panic| {
        let words = format!("it panicked: {}", words_of(&*panic));
        Err(Error::new(ErrorKind::Internal, words))
    })
}

fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("without a word")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use super::*;
    use crate::faulty::{Faults, Faulty};
    use crate::memory::MemoryQueue;
    use crate::{Backlog, Behavior, Clock, Job, OpenOptions, Timestamp};

    #[test]
    fn those_that_start_together_do_not_look_together() {
        assert_eq!(Retention::first_pause(0.0), FIRST);
        assert_eq!(Retention::first_pause(0.5), FIRST + SPREAD / 2);
    }

    #[derive(Debug)]
    struct NoClock;

    impl Clock for NoClock {
        fn now(&self) -> Timestamp {
            panic!("there is no time")
        }
    }

    #[tokio::test]
    async fn a_look_that_panics_has_failed_and_another_follows() {
        let options = OpenOptions { clock: Arc::new(NoClock), ..OpenOptions::default() };
        let queue = MemoryQueue::new(&Behavior::default(), options);
        let mut retention = Retention::new("jobs");
        let look = retention.look(&queue, || false).await;
        assert_eq!(look, Look { n_purged: 0, has_failed: true });
        assert_eq!(retention.pause(), PERIOD);
    }

    #[tokio::test]
    async fn who_lacks_a_right_looks_once_an_hour_until_it_is_given() {
        let behavior = Behavior { dead_ttl: Some(Duration::ZERO), ..Behavior::default() };
        let queue = MemoryQueue::new(&behavior, OpenOptions::default());
        queue.publish(vec![Job::new("{}", Timestamp::now())]).await.unwrap();
        let dead = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
        queue.settle(&[dead.reject("bad")]).await.unwrap();
        let faults = Faults { fail_before: 1.0, kind: ErrorKind::Denied, ..Faults::NONE };
        let denied = Faulty::new(Arc::new(queue.clone()), faults, 1);
        let mut retention = Retention::new("jobs");
        assert_eq!(retention.pause(), PERIOD);
        for _ in 0..2 {
            let look = retention.look(&denied, || false).await;
            assert_eq!(look, Look { n_purged: 0, has_failed: true });
            assert_eq!(retention.pause(), DENIED);
        }
        let look = retention.look(&queue, || false).await;
        assert_eq!(look, Look { n_purged: 1, has_failed: false });
        assert_eq!((retention.pause(), queue.depth().await.unwrap().dead), (PERIOD, 0));
    }
}
