//! Whether it is to be believed that nothing waits. On a cluster a server that stood still takes itself
//! for the leader until it reads that another was elected meanwhile, and answers by what it knew before.
//! Nobody else need be asked to tell: it answered nobody while it stood still.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::read::FOLLOWED;
use crate::{Error, ErrorKind, Result};

/// Nothing is said to wait only after other looks, each so long after the one before: an arrival is heard
/// before the replicas have its job.
const OTHER_LOOKS: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
];
/// Who leads for so long, without having stood still, has read by then what came before.
const AWAKE: Duration = Duration::from_secs(1);
/// Until then the looks are so far apart.
const APART: Duration = Duration::from_millis(100);

/// What the answers to a handle tell of whoever leads.
#[derive(Debug, Default)]
pub(super) struct Awake(Mutex<Option<Answers>>);

/// Answers of one leader, none of them so late that another may have been elected before it.
#[derive(Debug)]
struct Answers {
    leader: String,
    since: Instant,
    /// When what was answered last was asked.
    asked: Instant,
}

impl Awake {
    /// Looks, and looks again while nobody is sure of what is seen and whoever leads may not know better;
    /// with how long it waited in between.
    ///
    /// # Errors
    /// Those of the look, and [`ErrorKind::Unavailable`] where the answers come so late that it never is
    /// known.
    pub(super) async fn look<T, F: Future<Output = Result<T>>>(
        &self,
        once: impl Fn() -> F,
        leader: impl Fn(&T) -> &str,
        is_sure: impl Fn(&T) -> bool,
    ) -> Result<(T, Duration)> {
        let (begin, mut waited) = (Instant::now(), Duration::ZERO);
        let mut pauses = OTHER_LOOKS.into_iter();
        loop {
            let asked = Instant::now();
            let seen = once().await.inspect_err(|_| *self.answers() = None)?;
            let awake = self.note(leader(&seen), asked, Instant::now());
            if is_sure(&seen) {
                return Ok((seen, waited));
            }
            let pause = match pauses.next() {
                Some(pause) => pause,
                None if awake >= AWAKE => return Ok((seen, waited)),
                None if begin.elapsed() > AWAKE + FOLLOWED => {
                    let words = "the NATS servers answer too late to know that nothing waits";
                    return Err(Error::new(ErrorKind::Unavailable, words));
                }
                None => APART,
            };
            let rest = Instant::now();
            sleep(pause).await;
            waited += rest.elapsed();
        }
    }

    /// An answer came now to what was asked then; tells how long whoever gave it has been awake.
    fn note(&self, leader: &str, asked: Instant, now: Instant) -> Duration {
        let mut answers = self.answers();
        match &mut *answers {
            Some(known) if known.leader == leader && now < known.asked + FOLLOWED => {
                known.asked = known.asked.max(asked);
                now - known.since
            }
            _ => {
                *answers = Some(Answers { leader: leader.to_owned(), since: now, asked });
                Duration::ZERO
            }
        }
    }

    fn answers(&self) -> MutexGuard<'_, Option<Answers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    /// What is seen, and by whom, at each look from the first on; and after how long it is believed.
    async fn believed(
        awake: &Awake,
        looks: impl Fn(u32) -> (&'static str, u64),
    ) -> (u64, Duration) {
        let (begin, n_looks) = (Instant::now(), Cell::new(0));
        let once = || async {
            sleep(MOMENT).await;
            n_looks.set(n_looks.get() + 1);
            Ok(looks(n_looks.get()))
        };
        let ((_, n_jobs), waited) =
            awake.look(once, |seen| seen.0, |seen| seen.1 > 0).await.unwrap();
        assert_eq!(waited, begin.elapsed() - MOMENT * n_looks.get());
        (n_jobs, begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_believed_at_once_of_those_alone_who_did_not_stand_still() {
        let awake = Awake::default();
        let nothing = |_| ("n0", 0);
        let (n_jobs, first) = believed(&awake, nothing).await;
        assert!(n_jobs == 0 && first >= AWAKE, "{first:?}");
        for pause in [Duration::from_secs(1), FOLLOWED - 10 * MOMENT] {
            sleep(pause).await;
            let (n_jobs, next) = believed(&awake, nothing).await;
            assert!(n_jobs == 0 && next < AWAKE / 5, "{next:?}");
        }
        // Nobody knows what it did meanwhile.
        sleep(FOLLOWED).await;
        assert!(believed(&awake, nothing).await.1 >= AWAKE);
        // One that answered a moment ago, and then not for long.
        let late = || async {
            sleep(FOLLOWED).await;
            Ok(())
        };
        awake.look(late, |()| "n0", |()| true).await.unwrap();
        assert!(believed(&awake, nothing).await.1 >= AWAKE);
        // Another leads.
        assert!(believed(&awake, |_| ("n1", 0)).await.1 >= AWAKE);
        assert!(believed(&awake, |_| ("n1", 0)).await.1 < AWAKE / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_believed_at_once_and_seen_by_a_later_look() {
        let awake = Awake::default();
        assert_eq!(believed(&awake, |_| ("n0", 7)).await, (7, MOMENT));
        // It goes on for a while before it reads that another was elected.
        let stale = |nth| if nth < 9 { ("n0", 0) } else { ("n1", 2) };
        sleep(FOLLOWED).await;
        assert_eq!(believed(&awake, stale).await.0, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_too_late_is_never_believed_and_a_failure_begins_anew() {
        let awake = Awake::default();
        let late = || async {
            sleep(FOLLOWED).await;
            Ok(())
        };
        let error = awake.look(late, |()| "n0", |()| false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let nothing = |_| ("n0", 0);
        believed(&awake, nothing).await;
        let broken = || async { Err::<(), _>(Error::new(ErrorKind::Unavailable, "no leader")) };
        awake.look(broken, |()| "n0", |()| true).await.unwrap_err();
        assert!(believed(&awake, nothing).await.1 >= AWAKE);
    }
}
