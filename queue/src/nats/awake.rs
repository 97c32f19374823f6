//! Whether it is to be believed that nothing waits. On a cluster a server that stood still takes itself
//! for the leader until it reads that another was elected meanwhile, and answers by what it knew before.
//! Nobody else need be asked to tell: it answered nobody while it stood still.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::read::FOLLOWED;
use crate::{Error, ErrorKind, Result};

/// Nothing is said to wait only after glances, each so long after the one before: an arrival is heard
/// before the replicas have its job.
const GLANCES: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
];
/// Who leads for so long, without having stood still, has read by then what came before.
const AWAKE: Duration = Duration::from_secs(1);
/// Until then the glances are so far apart.
const APART: Duration = Duration::from_millis(100);
/// Beside a look that takes long, and between looks, they are so far apart: it is known all the while that
/// whoever leads does not stand still.
const PERIOD: Duration = Duration::from_secs(2);

/// What the answers to a handle tell of whoever leads.
#[derive(Debug, Default)]
pub(super) struct Awake(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    answers: Option<Answers>,
    /// Nobody was sure of what the last look saw.
    is_idle: bool,
}

/// Answers of one leader, none of them so late that another may have been elected before it.
#[derive(Debug)]
struct Answers {
    leader: String,
    since: Instant,
    /// When what was answered last was asked.
    asked: Instant,
}

/// The least that can be asked: a look may list a million jobs, and this is as cheap as for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glance {
    /// Who answered.
    pub(super) leader: String,
    /// Others than before where anything came or went.
    pub(super) state: [u64; 3],
}

/// What a look brought.
#[derive(Debug)]
pub(super) struct Looked<T> {
    pub(super) seen: T,
    /// How long ago that was; nothing came or went since.
    pub(super) age: Duration,
    /// How long the look waited between its questions.
    pub(super) waited: Duration,
}

impl Awake {
    /// Looks, and looks again where glances show that anything came or went, until somebody is sure of
    /// what is seen or whoever leads is known to know it.
    ///
    /// # Errors
    /// Those of the looks and glances, and [`ErrorKind::Unavailable`] where the answers come so late that
    /// it never is known.
    pub(super) async fn look<T, F, G>(
        &self,
        once: impl Fn() -> F,
        glance: impl Fn() -> G,
        at_a_glance: impl Fn(&T) -> Glance,
        is_sure: impl Fn(&T) -> bool,
    ) -> Result<Looked<T>>
    where
        F: Future<Output = Result<T>>,
        G: Future<Output = Result<Glance>>,
    {
        let (mut waited, mut unsure) = (Duration::ZERO, Duration::ZERO);
        let mut pauses = GLANCES.into_iter();
        loop {
            let asked = Instant::now();
            let seen = self.look_once(once(), &glance).await?;
            let (before, at) = (at_a_glance(&seen), Instant::now());
            let awake = self.note(&before.leader, asked, at);
            let is_sure = is_sure(&seen);
            self.known().is_idle = !is_sure;
            if is_sure {
                return Ok(Looked { seen, age: Duration::ZERO, waited });
            }
            let mut is_known = awake >= AWAKE;
            loop {
                let pause = match pauses.next() {
                    Some(pause) => pause,
                    None if is_known => return Ok(Looked { seen, age: at.elapsed(), waited }),
                    None if unsure > AWAKE + FOLLOWED => return Err(too_late()),
                    None => APART,
                };
                let rest = Instant::now();
                sleep(pause).await;
                waited += rest.elapsed();
                let (now, awake) = self.glance(glance()).await?;
                unsure += rest.elapsed();
                if now.state != before.state {
                    break;
                }
                is_known = awake >= AWAKE;
            }
        }
    }

    /// A look, with glances beside it where it takes long.
    async fn look_once<T, G: Future<Output = Result<Glance>>>(
        &self,
        once: impl Future<Output = Result<T>>,
        glance: impl Fn() -> G,
    ) -> Result<T> {
        let mut once = pin!(once);
        loop {
            if let Ok(seen) = timeout(PERIOD, &mut once).await {
                return seen.inspect_err(|_| self.known().answers = None);
            }
            self.glance(glance()).await?;
        }
    }

    /// A glance, and how long whoever answered had been awake when it was asked.
    async fn glance(
        &self,
        glance: impl Future<Output = Result<Glance>>,
    ) -> Result<(Glance, Duration)> {
        let asked = Instant::now();
        let seen = glance.await.inspect_err(|_| self.known().answers = None)?;
        let awake = self.note(&seen.leader, asked, Instant::now());
        Ok((seen, awake))
    }

    /// Glances now and then as long as the last look saw nothing, so that the next need not wait long.
    /// Never ends.
    pub(super) async fn keep<G>(&self, glance: impl Fn() -> G)
    where
        G: Future<Output = Result<Glance>>,
    {
        loop {
            let rest = self.known().rest();
            if !rest.is_zero() {
                sleep(rest).await;
            } else if let Err(error) = self.glance(glance()).await {
                tracing::debug!(%error, "not looked at");
                sleep(PERIOD).await;
            }
        }
    }

    /// An answer came now to what was asked then; tells how long whoever gave it had been awake when it
    /// was asked: when it was given nobody knows, and it may have been at once.
    fn note(&self, leader: &str, asked: Instant, now: Instant) -> Duration {
        let answers = &mut self.known().answers;
        match answers {
            Some(known) if known.leader == leader && now < known.asked + FOLLOWED => {
                known.asked = known.asked.max(asked);
                asked.saturating_duration_since(known.since)
            }
            _ => {
                *answers = Some(Answers { leader: leader.to_owned(), since: now, asked });
                Duration::ZERO
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Until the next glance between two looks; zero where it is due.
    fn rest(&self) -> Duration {
        match &self.answers {
            Some(answers) if self.is_idle => PERIOD.saturating_sub(answers.asked.elapsed()),
            _ => PERIOD,
        }
    }
}

fn too_late() -> Error {
    let words = "the NATS servers answer too late to know that nothing waits";
    Error::new(ErrorKind::Unavailable, words)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn glance((leader, n_jobs): &(&str, u64)) -> Glance {
        Glance { leader: (*leader).to_owned(), state: [*n_jobs, 0, 0] }
    }

    /// What is seen, and by whom, at each look and glance from the first on; after how long it is
    /// believed, and after how many looks.
    async fn believed(
        awake: &Awake,
        looks: impl Fn(u32) -> (&'static str, u64),
    ) -> (u64, Duration, u32) {
        let (begin, n_asked, n_looks) = (Instant::now(), Cell::new(0), Cell::new(0));
        let ask = || async {
            sleep(MOMENT).await;
            n_asked.set(n_asked.get() + 1);
            Ok(looks(n_asked.get()))
        };
        let once = || async {
            n_looks.set(n_looks.get() + 1);
            ask().await
        };
        let at_a_glance = || async { Ok(glance(&ask().await?)) };
        let looked = awake.look(once, at_a_glance, glance, |seen| seen.1 > 0).await;
        let Looked { seen, waited, .. } = looked.unwrap();
        assert_eq!(waited, begin.elapsed() - MOMENT * n_asked.get());
        (seen.1, begin.elapsed(), n_looks.get())
    }

    /// Who answers so late.
    async fn after<T>(span: Duration, answer: T) -> Result<T> {
        sleep(span).await;
        Ok(answer)
    }

    fn nothing(_: u32) -> (&'static str, u64) {
        ("n0", 0)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_believed_at_once_of_those_alone_who_did_not_stand_still() {
        let awake = Awake::default();
        let (n_jobs, first, n_looks) = believed(&awake, nothing).await;
        assert!((n_jobs, n_looks) == (0, 1) && first >= AWAKE, "{first:?} {n_looks}");
        for pause in [Duration::from_secs(1), FOLLOWED - 10 * MOMENT] {
            sleep(pause).await;
            let (n_jobs, next, n_looks) = believed(&awake, nothing).await;
            assert!((n_jobs, n_looks) == (0, 1) && next < AWAKE / 5, "{next:?} {n_looks}");
        }
        // Nobody knows what it did meanwhile.
        sleep(FOLLOWED).await;
        assert!(believed(&awake, nothing).await.1 >= AWAKE);
        // One that answered a moment ago, and then not for long.
        let (late, sure) = (|| after(FOLLOWED, ("n0", 0)), |_: &_| true);
        let silent = || after(FOLLOWED, glance(&("n0", 0)));
        awake.look(late, silent, glance, sure).await.unwrap();
        assert!(believed(&awake, nothing).await.1 >= AWAKE);
        // Another leads.
        assert!(believed(&awake, |_| ("n1", 0)).await.1 >= AWAKE);
        assert!(believed(&awake, |_| ("n1", 0)).await.1 < AWAKE / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_believed_at_once_and_seen_by_a_later_look() {
        let awake = Awake::default();
        assert_eq!(believed(&awake, |_| ("n0", 7)).await, (7, MOMENT, 1));
        // It goes on for a while before it reads that another was elected.
        let stale = |nth| if nth < 9 { ("n0", 0) } else { ("n1", 2) };
        sleep(FOLLOWED).await;
        let (n_jobs, span, n_looks) = believed(&awake, stale).await;
        assert!((n_jobs, n_looks) == (2, 2) && span < AWAKE, "{span:?} {n_looks}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_the_last_glance_takes_is_none_in_which_whoever_leads_was_awake() {
        let (awake, n_asked) = (Awake::default(), Cell::new(0));
        let n_last = 1 + GLANCES.len();
        let ask = || {
            n_asked.set(n_asked.get() + 1);
            let nth = n_asked.get();
            // It stands still behind its answer, and another is elected meanwhile.
            after(if nth == n_last { AWAKE } else { MOMENT }, ("n0", 2 * u64::from(nth > n_last)))
        };
        let at_a_glance = || async { Ok(glance(&ask().await?)) };
        let looked = awake.look(ask, at_a_glance, glance, |seen| seen.1 > 0).await.unwrap();
        assert_eq!(looked.seen, ("n0", 2));
    }

    /// Whether it is believed after all that nothing waits where a look takes so long, and something that
    /// is not ready comes all the time or not.
    async fn is_believed(look: Duration, comes: bool) -> bool {
        let awake = Awake::default();
        let n_asked = Cell::new(0);
        let state = || {
            n_asked.set(n_asked.get() + u64::from(comes));
            Glance { leader: "n0".to_owned(), state: [n_asked.get(), 0, 0] }
        };
        let at_a_glance = || async { after(MOMENT, state()).await };
        let once = || async { after(look, state()).await };
        awake.look(once, at_a_glance, Clone::clone, |_| false).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn looks_that_take_long_are_believed_where_glances_are_answered() {
        for millis in [1, 90, 900, 2_900, 3_100, 9_000] {
            for comes in [false, true] {
                assert!(
                    is_believed(Duration::from_millis(millis), comes).await,
                    "{millis} {comes}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn between_looks_that_see_nothing_whoever_leads_is_kept_known_to_be_awake() {
        const REST: Duration = Duration::from_secs(60);
        let (awake, n_glances) = (Awake::default(), Cell::new(0));
        let at_a_glance = || async {
            n_glances.set(n_glances.get() + 1);
            after(MOMENT, glance(&("n0", 0))).await
        };
        let keep = || timeout(REST, awake.keep(at_a_glance));
        keep().await.unwrap_err();
        assert_eq!(n_glances.get(), 0, "nobody looks");
        believed(&awake, nothing).await;
        keep().await.unwrap_err();
        assert!((25..=30).contains(&n_glances.replace(0)), "{n_glances:?}");
        assert!(believed(&awake, nothing).await.1 < AWAKE / 5);
        believed(&awake, |_| ("n0", 1)).await;
        keep().await.unwrap_err();
        assert_eq!(n_glances.get(), 0, "what waits needs no glance");
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_too_late_is_never_believed_and_a_failure_begins_anew() {
        let awake = Awake::default();
        let silent = || after(FOLLOWED, glance(&("n0", 0)));
        let (late, unsure) = (|| after(FOLLOWED, ("n0", 0)), |_: &_| false);
        let error = awake.look(late, silent, glance, unsure).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let fails = || async { Err(Error::new(ErrorKind::Unavailable, "no leader")) };
        let broken = || async { Err(Error::new(ErrorKind::Unavailable, "no leader")) };
        for (once_fails, unsure) in [(true, true), (false, false)] {
            believed(&awake, nothing).await;
            let error = match once_fails {
                true => awake.look(broken, silent, glance, |_| unsure).await.unwrap_err(),
                false => awake.look(late, fails, glance, |_| unsure).await.unwrap_err(),
            };
            assert_eq!(error.to_string(), "no leader");
            assert!(believed(&awake, nothing).await.1 >= AWAKE);
        }
    }
}
