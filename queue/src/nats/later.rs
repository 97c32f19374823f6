//! What time alone makes ready or kills: the subjects of such jobs tell when.

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::NatsQueue;
use super::api::in_order;
use super::awake::Glance;
use super::ending::Ending;
use super::entry::{Entry, Origin};
use super::names::{Place, moment_of, tick_now};
use super::read::Kept;
use super::receive::CLEARING;
use crate::owed;
use crate::{Error, ErrorKind, Failure, Priority, Result, Timestamp};

/// Looks are this far apart at the least, where nothing is known to have changed.
const PAUSE: Duration = Duration::from_secs(1);
/// A longer list of subjects is read less often: so many a second.
const SUBJECTS_PER_SECOND: usize = 5000;
/// Subjects whose jobs are moved in one go.
const IN_ONE_GO: usize = 512;
/// Jobs that are moved at the same time: of fewer subjects more of each.
const AT_ONCE: usize = 64;

/// All jobs that wait or run, by the subjects that they lie on.
#[derive(Debug, Clone)]
pub(super) struct Survey {
    /// When it was true, by the server's clock.
    pub(super) server_now: Timestamp,
    /// Who says so, and how the stream stood.
    pub(super) glance: Glance,
    /// All of these.
    pub(super) total: u64,
    pub(super) places: Vec<(Place, String, u64)>,
}

/// How jobs are moved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// The replies of those that died are told by then.
    told_by: Instant,
    /// What is left at this end is left.
    end: Option<Instant>,
    /// Jobs of one subject that are moved at the same time.
    at_once: usize,
}

impl Pace {
    /// For so many subjects at a time, of jobs with such a lease; to the end if need be.
    pub(super) fn new(n_subjects: usize, lease: Duration, end: Option<Instant>) -> Self {
        let at_once = (AT_ONCE / n_subjects.max(1)).max(1);
        Self { told_by: owed::sending_ends(lease), end, at_once }
    }
}

/// What a handle knows of the jobs that wait for their moment.
#[derive(Debug, Default)]
pub(super) struct Later {
    /// How often something was put there.
    n_disturbed: AtomicU64,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    looked: Instant,
    /// How often something had been put there before that look.
    n_disturbed: u64,
    n_subjects: usize,
    /// Due moment, and the subject.
    due: Vec<(i64, String)>,
    /// The same of those that failed to be moved, the least lately tried first: they hold up no other.
    stuck: Vec<(i64, String)>,
    /// Deadline, and the subject, of those that will be dead before they are due.
    deadlines: Vec<(u64, String)>,
}

impl Known {
    /// Keeps behind the others those that are still there of what could not be moved before.
    fn take_stuck(&mut self, before: Vec<(i64, String)>) {
        let all: HashSet<_> = before.iter().cloned().collect();
        let there: HashSet<_> = self.due.extract_if(.., |one| all.contains(one)).collect();
        self.stuck = before.into_iter().filter(|one| there.contains(one)).collect();
    }
}

impl Later {
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was put there: the next look is not put off.
    pub(super) fn disturb(&self) {
        self.n_disturbed.fetch_add(1, Ordering::AcqRel);
    }

    /// How long until the next known moment: past ones have jobs that no look had time for. Those that
    /// could not be moved are tried again with each look, and ask for none.
    pub(super) fn until_due(&self, now: Timestamp) -> Option<Duration> {
        let known = self.known();
        let Known { due, deadlines, .. } = known.as_ref()?;
        let deadlines = deadlines.iter().map(|(tick, _)| moment_of(*tick).as_millisecond());
        let next = due.iter().map(|(due, _)| *due).chain(deadlines).min()?;
        let millis = next.saturating_sub(now.as_millisecond()).max(1);
        Some(Duration::from_millis(millis.cast_unsigned()))
    }

    /// Whether no look is due. One that fails, or that nobody waits for to its end, is due again.
    fn is_fresh(&self) -> bool {
        let n_disturbed = self.n_disturbed.load(Ordering::Acquire);
        self.known().as_ref().is_some_and(|known| {
            let seconds = known.n_subjects / SUBJECTS_PER_SECOND;
            let pause = PAUSE * u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
            known.n_disturbed == n_disturbed && known.looked.elapsed() < pause
        })
    }

    /// Takes the subjects whose moment has come.
    fn ripe(&self, now: Timestamp) -> Ripe<'_> {
        let (millis, tick) = (now.as_millisecond(), tick_now(now));
        let (due, stuck, deadlines) = (Vec::new(), Vec::new(), Vec::new());
        let mut ripe = Ripe { later: self, due, stuck, deadlines };
        if let Some(known) = self.known().as_mut() {
            known.due.sort_unstable();
            let n_due = known.due.partition_point(|(due, _)| *due <= millis).min(IN_ONE_GO);
            ripe.due = known.due.drain(..n_due).collect();
            let n_stuck = known.stuck.len().min(IN_ONE_GO - n_due);
            ripe.due.extend(known.stuck.drain(..n_stuck));
            let all = mem::take(&mut known.deadlines).into_iter();
            (ripe.deadlines, known.deadlines) = all.partition(|(deadline, _)| *deadline <= tick);
        }
        ripe
    }
}

/// Subjects whose moment has come; what is not moved when this is dropped is known again.
struct Ripe<'a> {
    later: &'a Later,
    due: Vec<(i64, String)>,
    /// Those of them that failed to be moved.
    stuck: Vec<(i64, String)>,
    deadlines: Vec<(u64, String)>,
}

impl Ripe<'_> {
    fn subjects(&self) -> Vec<String> {
        let due = self.due.iter().map(|(_, subject)| subject);
        due.chain(self.deadlines.iter().map(|(_, subject)| subject)).cloned().collect()
    }

    /// Learns what became of these in their order, and forgets those of which nothing is left.
    fn learn(&mut self, moved: &[Result<bool>]) {
        let (of_due, of_deadlines) = moved.split_at(self.due.len());
        for (one, moved) in mem::take(&mut self.due).into_iter().zip(of_due) {
            match moved {
                Ok(true) => {}
                Ok(false) => self.due.push(one),
                Err(_) => self.stuck.push(one),
            }
        }
        let mut of_deadlines = of_deadlines.iter();
        self.deadlines.retain(|_| !matches!(of_deadlines.next(), Some(Ok(true))));
    }
}

impl Drop for Ripe<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.later.known().as_mut() {
            known.due.append(&mut self.due);
            known.stuck.append(&mut self.stuck);
            known.deadlines.append(&mut self.deadlines);
        }
    }
}

impl NatsQueue {
    /// Counts the jobs by subject.
    pub(super) async fn survey(&self) -> Result<Survey> {
        let shared = &*self.shared;
        let names = &shared.names;
        // All subjects: bare messages lie on the one that the others begin with.
        let info = shared.api.subjects(&names.jobs, ">").await?;
        let info = info.ok_or_else(|| self.is_gone())?;
        shared.meet_stream(info.created);
        let (server_now, glance) = (info.ts.unwrap_or_else(|| self.now()), info.glance());
        let mut places = Vec::new();
        for (subject, n_jobs) in info.state.subjects.unwrap_or_default() {
            if let Some(place) = names.place(&subject) {
                places.push((place, subject, n_jobs));
            }
        }
        // What has no place is seen by no worker.
        let total = places.iter().map(|(_, _, n_jobs)| n_jobs).sum();
        Ok(Survey { server_now, glance, total, places })
    }

    /// The stream was deleted under us.
    pub(super) fn is_gone(&self) -> Error {
        let words = format!(
            "the stream {} is gone from its NATS server; make it anew by `ebb queue init`",
            self.shared.names.jobs
        );
        Error::new(ErrorKind::Unavailable, words)
    }

    /// Puts into their lanes the delayed jobs whose moment has come, and buries those that died
    /// waiting for it; what it has no time for the next look does. Any worker may: doing so twice has
    /// the effect of one.
    pub(super) async fn move_due(&self) -> Result<()> {
        let later = &self.shared.later;
        if !later.is_fresh() {
            self.look_later().await?;
        }
        let mut ripe = later.ripe(self.now());
        let subjects = ripe.subjects();
        let end = Some(Instant::now() + CLEARING);
        let pace = Pace::new(subjects.len(), self.shared.behavior.lease, end);
        let moved = self.move_subjects(&subjects, pace).await?;
        ripe.learn(&moved);
        gravest(moved)
    }

    /// Moves the jobs of these subjects, and tells of each whether none is left. One that fails leaves the
    /// others to their end: they may be between two steps of what belongs together. Once the server is gone
    /// none begins.
    pub(super) async fn move_subjects(
        &self,
        subjects: &[String],
        pace: Pace,
    ) -> Result<Vec<Result<bool>>> {
        until_gone(subjects.iter().map(|subject| self.move_subject(subject, pace))).await
    }

    async fn look_later(&self) -> Result<()> {
        // First: what is put there from now on asks for another look.
        let n_disturbed = self.shared.later.n_disturbed.load(Ordering::Acquire);
        let survey = self.survey().await?;
        let mut known = Known {
            looked: Instant::now(),
            n_disturbed,
            n_subjects: survey.places.len(),
            due: Vec::new(),
            stuck: Vec::new(),
            deadlines: Vec::new(),
        };
        for (place, subject, _) in survey.places {
            if let Place::Later(due, deadline) = place {
                known.deadlines.extend(deadline.map(|deadline| (deadline, subject.clone())));
                known.due.push((due, subject));
            }
        }
        let mut before = self.shared.later.known();
        known.take_stuck(before.take().map(|before| before.stuck).unwrap_or_default());
        *before = Some(known);
        Ok(())
    }

    /// The same for the jobs of one subject; whether none is left.
    async fn move_subject(&self, subject: &str, pace: Pace) -> Result<bool> {
        let shared = &*self.shared;
        let (mut seq, mut failed) = (1, None);
        loop {
            if pace.end.is_some_and(|end| Instant::now() >= end) {
                return failed.map_or(Ok(false), Err);
            }
            let mut page = Vec::new();
            while page.len() < pace.at_once
                && let Some(kept) = shared.api.next(&shared.names.jobs, seq, subject).await?
            {
                seq = kept.seq + 1;
                page.push(kept);
            }
            let is_last = page.len() < pace.at_once;
            // One that fails leaves the others where they are to go, in their order.
            let moves =
                page.into_iter().map(async |kept| Ok(self.move_one(kept, pace.told_by).await));
            for moved in in_order(moves.collect()).await? {
                match moved {
                    Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                    Err(error) => failed = Some(error),
                    Ok(()) => {}
                }
            }
            if is_last {
                return failed.map_or(Ok(true), Err);
            }
        }
    }

    async fn move_one(&self, kept: Kept, told_by: Instant) -> Result<()> {
        let shared = &*self.shared;
        let ending = Ending { seq: kept.seq, delivered: 1, told_by };
        let (entry, wrong) = self.entry_of(&kept);
        let may_go = match self.ends_waiting(&entry, wrong, ending).await? {
            Some(may_go) => may_go,
            None if self.put_back(&entry, kept.seq, None).await?.is_none() => {
                let why = Failure::invalid("it cannot be put where workers look");
                self.bury(&entry, ending, why).await?
            }
            None => true,
        };
        if may_go {
            shared.api.delete(&shared.names.jobs, kept.seq).await?;
        }
        Ok(())
    }

    pub(super) fn entry_of(&self, kept: &Kept) -> (Entry, Option<Error>) {
        let priority = match self.shared.names.place(&kept.subject) {
            Some(Place::Lane(lane, _)) => lane.priority,
            _ => Priority::default(),
        };
        let origin =
            Origin { created: self.shared.created(), seq: kept.seq, at: kept.at, priority };
        Entry::read(&kept.headers, kept.body.clone(), origin)
    }
}

/// Goes on with these until one finds the server gone: those that have begun end, and of the others
/// something is left.
async fn until_gone<F>(moves: impl Iterator<Item = F>) -> Result<Vec<Result<bool>>>
where
    F: Future<Output = Result<bool>>,
{
    let is_gone = &AtomicBool::new(false);
    let moves = moves.map(|moving| async move {
        if is_gone.load(Ordering::Acquire) {
            return Ok(Ok(false));
        }
        let moved = moving.await;
        if moved.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
            is_gone.store(true, Ordering::Release);
        }
        Ok(moved)
    });
    in_order(moves.collect()).await
}

/// What failed of these; that the server is gone before all else.
pub(super) fn gravest(moved: Vec<Result<bool>>) -> Result<()> {
    let failed = moved.into_iter().filter_map(Result::err);
    failed.min_by_key(|error| error.kind() != ErrorKind::Unavailable).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_move_begins_once_the_server_is_gone() {
        const LATE: Duration = Duration::from_secs(4);
        let begin = Instant::now();
        let moves = (0..100_000).map(async |nth| {
            if nth < 3 {
                return Err(Error::new(ErrorKind::Internal, "of this job"));
            }
            tokio::time::sleep(LATE).await;
            Err(Error::new(ErrorKind::Unavailable, "no answer"))
        });
        let moved = until_gone(moves).await.unwrap();
        assert!(begin.elapsed() < 2 * LATE, "{:?}", begin.elapsed());
        assert_eq!(moved.len(), 100_000);
        assert!(matches!(moved.last(), Some(Ok(false))));
        assert_eq!(gravest(moved).unwrap_err().kind(), ErrorKind::Unavailable);
        gravest(vec![Ok(true), Ok(false)]).unwrap();
    }

    fn known(later: &Later, due: &[(i64, &str)], deadlines: &[(u64, &str)]) {
        *later.known() = Some(of(later, due, deadlines));
    }

    fn of(later: &Later, due: &[(i64, &str)], deadlines: &[(u64, &str)]) -> Known {
        Known {
            looked: Instant::now(),
            n_disturbed: later.n_disturbed.load(Ordering::Acquire),
            n_subjects: 2,
            due: due.iter().map(|(at, subject)| (*at, (*subject).to_owned())).collect(),
            stuck: Vec::new(),
            deadlines: deadlines.iter().map(|(at, subject)| (*at, (*subject).to_owned())).collect(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_moved_to_its_end_is_known_again() {
        let (later, now) = (Later::default(), Timestamp::from_second(1).unwrap());
        known(&later, &[(900, "b"), (5000, "later"), (500, "a")], &[(9, "dead"), (99, "alive")]);
        let mut ripe = later.ripe(now);
        assert_eq!(ripe.subjects(), ["a", "b", "dead"]);
        assert!(later.ripe(now).subjects().is_empty(), "one look has them");
        ripe.learn(&[Ok(true), Ok(false), Ok(true)]);
        // As where nobody waits for the look any more.
        drop(ripe);
        let mut rest = later.ripe(now);
        assert_eq!(rest.subjects(), ["b"]);
        rest.learn(&[Ok(true)]);
        drop(rest);
        assert!(later.ripe(now).subjects().is_empty());
        assert_eq!(later.until_due(now), Some(Duration::from_secs(4)));
        // Of the other the deadline comes in 8.9 s.
        known(&later, &[(10_900, "b")], &[(99, "alive")]);
        assert_eq!(later.until_due(now), Some(Duration::from_millis(8900)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_moved_is_tried_again_behind_all_others() {
        const MANY: i64 = 3 * IN_ONE_GO as i64 / 2;
        let (later, now) = (Later::default(), Timestamp::from_second(1).unwrap());
        let names: Vec<_> = (0..MANY).map(|nth| (nth, format!("stuck-{nth:03}"))).collect();
        let mut due: Vec<_> = names.iter().map(|(at, name)| (*at, &**name)).collect();
        let fail = |mut ripe: Ripe<'_>| {
            let failed = |_| Err(Error::new(ErrorKind::Full, "no room"));
            let subjects = ripe.subjects();
            ripe.learn(&subjects.iter().map(failed).collect::<Vec<_>>());
            subjects
        };
        known(&later, &due, &[]);
        assert_eq!(fail(later.ripe(now))[0], "stuck-000");
        let second = fail(later.ripe(now));
        assert_eq!((&*second[0], second.len()), ("stuck-512", IN_ONE_GO));
        // All of them are tried in turn, and none hurries the next look.
        assert_eq!(fail(later.ripe(now))[0], "stuck-256");
        assert_eq!(later.until_due(now), None);
        // Of those that a survey sees again, too, and of no others.
        due.push((999, "small"));
        let mut anew = of(&later, &due[1..], &[]);
        anew.take_stuck(later.known().take().unwrap().stuck);
        *later.known() = Some(anew);
        let ripe = fail(later.ripe(now));
        assert_eq!((&*ripe[0], &*ripe[1], ripe.len()), ("small", "stuck-001", IN_ONE_GO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_was_not_carried_out_is_due_again() {
        let later = Later::default();
        assert!(!later.is_fresh());
        known(&later, &[], &[]);
        assert!(later.is_fresh());
        later.disturb();
        assert!(!later.is_fresh() && !later.is_fresh());
        known(&later, &[], &[]);
        assert!(later.is_fresh());
        tokio::time::advance(PAUSE).await;
        assert!(!later.is_fresh());
    }
}
