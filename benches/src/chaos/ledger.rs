//! What was seen of each job, and whether the promises held. Pure.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use ebb_queue::{DeadLetter, FailureKind, JobResult, Outcome};
use serde::Serialize;

use super::MAX_ATTEMPTS;
use super::plan::{Fate, PlannedJob};

/// The first sight of each job's completed result, and whether it stayed as it was.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sights: HashMap<String, Sight>,
    /// Of each job to which a promise was broken, what there is of it at the end.
    pub(super) broken: Vec<String>,
}

#[derive(Debug)]
struct Sight {
    mark: u64,
    changed: bool,
}

/// How many jobs ended in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Tally {
    /// Jobs with a completed result.
    pub(super) done: usize,
    /// Dead letters.
    pub(super) dead: usize,
    /// Those among them that could have succeeded: their workers were killed too often.
    pub(super) exhausted: usize,
    /// Those among them that could have succeeded too, and were given up for anything else.
    pub(super) wronged: usize,
    /// Jobs with neither.
    pub(super) lost: usize,
    /// Jobs with both.
    pub(super) both: usize,
    /// Jobs whose completed result changed or vanished after it was first seen.
    pub(super) overwritten: usize,
    /// Completed results that are not the answer to their job.
    pub(super) wrong: usize,
}

impl Ledger {
    /// Takes note of a result: the first completed one of a job counts, others must be the same.
    pub(super) fn see(&mut self, result: &JobResult) {
        let Some(mark) = mark(result) else { return };
        let id = result.id.as_str();
        match self.sights.get_mut(id) {
            Some(sight) => sight.changed |= sight.mark != mark,
            None => {
                self.sights.insert(id.to_owned(), Sight { mark, changed: false });
            }
        }
    }

    /// Compares what was seen with what is there `at_the_end`, job by job, with its dead letters.
    pub(super) fn close<'a>(
        &mut self,
        at_the_end: impl IntoIterator<Item = (&'a PlannedJob, Option<JobResult>, &'a [DeadLetter])>,
    ) -> Tally {
        let mut tally = Tally::default();
        for (job, result, letters) in at_the_end {
            let before = tally.n_broken();
            let completed = result.filter(|result| result.outcome.is_completed());
            if let Some(result) = &completed {
                self.see(result);
                tally.wrong += usize::from(!answers(job, result));
            }
            let is_dead = !letters.is_empty();
            if is_dead && completed.is_none() && job.fate == Fate::Fine {
                match letters.iter().all(died_with_its_workers) {
                    true => tally.exhausted += 1,
                    false => tally.wronged += 1,
                }
            }
            let sight = self.sights.get(&job.id);
            let vanished = sight.is_some() && completed.is_none();
            let changed = sight.is_some_and(|sight| sight.changed);
            tally.overwritten += usize::from(vanished || changed);
            match (completed.is_some(), is_dead) {
                (true, false) => tally.done += 1,
                (true, true) => tally.both += 1,
                (false, true) => tally.dead += 1,
                (false, false) => tally.lost += 1,
            }
            if tally.n_broken() > before {
                self.broken.push(format!("{}: {completed:?}, {sight:?}, {letters:?}", job.id));
            }
        }
        tally
    }
}

impl Tally {
    /// Whether every promise held.
    pub(super) fn promises_held(&self) -> bool {
        self.n_broken() == 0
    }

    fn n_broken(&self) -> usize {
        self.lost + self.both + self.overwritten + self.wrong + self.wronged
    }
}

/// Whether each attempt ended with the worker that had it. The last line of the history is that of the
/// worker that found them spent.
fn died_with_its_workers(letter: &DeadLetter) -> bool {
    let Some((_, attempts)) = letter.history.split_last() else { return false };
    letter.kind == FailureKind::Attempts
        && attempts.len() >= MAX_ATTEMPTS
        && attempts.iter().all(|attempt| attempt.what.starts_with("lease expired"))
}

/// One attempt's answer and no other's: the attempt and the moment tell two equal answers apart.
fn mark(result: &JobResult) -> Option<u64> {
    let Outcome::Completed { content_type, body } = &result.outcome else {
        return None;
    };
    let mut hasher = DefaultHasher::new();
    (result.attempt, result.finished_at.as_nanosecond()).hash(&mut hasher);
    (content_type, body).hash(&mut hasher);
    Some(hasher.finish())
}

/// Whether this is what an echo says to this job.
fn answers(job: &PlannedJob, result: &JobResult) -> bool {
    let Outcome::Completed { body, .. } = &result.outcome else {
        return false;
    };
    // The closing quote keeps job 1 apart from job 10.
    let text = format!("{}\"", job.text);
    job.fate == Fate::Fine && String::from_utf8_lossy(body).contains(&text)
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Attempt, Job, Timestamp};

    use super::super::plan::{Plan, Sizes};
    use super::*;

    fn jobs() -> Vec<PlannedJob> {
        let sizes = Sizes { n_jobs: 12, n_kills: 0, n_restarts: 0, poison: 0.0, max_job_ms: 0 };
        Plan::draw(sizes, 5).jobs
    }

    fn result(job: &PlannedJob, attempt: u32, text: &str) -> JobResult {
        let body = format!("{{\"output\": \"{text}\"}}").into();
        JobResult {
            id: job.id.parse().unwrap(),
            attempt,
            outcome: Outcome::Completed { content_type: ebb_queue::JSON.to_owned(), body },
            finished_at: Timestamp::UNIX_EPOCH,
            queue: None,
        }
    }

    /// What a worker says that finds all attempts spent, or one that tells of the last of them.
    const SPENT: &str = "all 5 attempts are spent; the last one ended with its worker or its lease";
    const KILLED: &str = "lease expired, held by chaos-7";

    fn letter(kind: FailureKind, history: &[&str]) -> DeadLetter {
        let at = Timestamp::UNIX_EPOCH;
        let line =
            |(attempt, what): (u32, &&str)| Attempt { attempt, at, what: (*what).to_owned() };
        DeadLetter {
            job: Job::new("{}", at),
            attempts: u32::try_from(history.len()).unwrap(),
            kind,
            reason: history.last().copied().unwrap_or_default().to_owned(),
            died_at: at,
            history: (1..).zip(history).map(line).collect(),
        }
    }

    /// The letter of a job whose workers were all killed.
    fn exhausted() -> DeadLetter {
        letter(FailureKind::Attempts, &[KILLED, KILLED, KILLED, KILLED, KILLED, SPENT])
    }

    fn check(
        job: &PlannedJob,
        seen: &[JobResult],
        end: Option<JobResult>,
        dead: &[DeadLetter],
    ) -> Tally {
        let mut ledger = Ledger::default();
        seen.iter().for_each(|result| ledger.see(result));
        ledger.close([(job, end, dead)])
    }

    #[test]
    fn a_job_is_done_or_dead_and_not_neither_or_both() {
        let job = &jobs()[1];
        let answer = result(job, 1, &job.text);
        let none = Tally::default();
        let done = check(job, std::slice::from_ref(&answer), Some(answer.clone()), &[]);
        assert_eq!(done, Tally { done: 1, ..none });
        assert!(done.promises_held());
        let dead = check(job, &[], None, &[exhausted()]);
        assert_eq!(dead, Tally { dead: 1, exhausted: 1, ..none });
        assert!(dead.promises_held());
        let bad = PlannedJob { fate: Fate::Garbled, ..job.clone() };
        let invalid = letter(FailureKind::Invalid, &["body is no request"]);
        assert_eq!(check(&bad, &[], None, &[invalid]), Tally { dead: 1, ..none });
        let lost = check(job, &[], None, &[]);
        assert_eq!(lost, Tally { lost: 1, ..none });
        assert!(!lost.promises_held());
        let both = check(job, &[], Some(answer), &[exhausted()]);
        assert_eq!(both, Tally { both: 1, ..none });
        assert!(!both.promises_held());
    }

    #[test]
    fn a_job_that_could_have_succeeded_is_wronged_unless_its_workers_died_in_each_attempt() {
        let job = &jobs()[1];
        let failed = "attempt 5 of 5 failed: the model says no";
        for (kind, history) in [
            (FailureKind::Invalid, &["body is no request"][..]),
            (FailureKind::Invalid, &[KILLED, KILLED, KILLED, KILLED, KILLED, "no request"]),
            (FailureKind::Attempts, &[KILLED, KILLED, KILLED, KILLED, failed]),
            (FailureKind::Attempts, &[KILLED, "no", KILLED, KILLED, KILLED, SPENT]),
            (FailureKind::Attempts, &[KILLED, SPENT]),
            (FailureKind::Attempts, &[]),
        ] {
            let letters = [letter(kind, history)];
            let wronged = check(job, &[], None, &letters);
            assert_eq!(wronged, Tally { dead: 1, wronged: 1, ..Tally::default() }, "{letters:?}");
            assert!(!wronged.promises_held());
        }
        // The worker that found them spent was killed as well, before it could say so.
        let often = letter(FailureKind::Attempts, &[&[KILLED; 6][..], &[SPENT]].concat());
        assert!(check(job, &[], None, &[often]).promises_held());
        // Of two letters of a job each counts.
        let letters = [exhausted(), letter(FailureKind::Lost, &["body is gone"])];
        assert_eq!(check(job, &[], None, &letters).wronged, 1);
    }

    #[test]
    fn what_there_is_of_a_job_is_told_where_a_promise_was_broken() {
        let jobs = jobs();
        let mut ledger = Ledger::default();
        let letters = [letter(FailureKind::Lost, &["body is gone"])];
        let fine = (&jobs[1], Some(result(&jobs[1], 1, &jobs[1].text)), &[][..]);
        ledger.close([fine, (&jobs[2], None, &letters[..])]);
        let [told] = ledger.broken.as_slice() else { panic!("{:?}", ledger.broken) };
        assert!(told.starts_with(&jobs[2].id) && told.contains("body is gone"), "{told}");
    }

    #[test]
    fn a_result_that_changes_or_vanishes_is_overwritten_even_if_the_answer_is_the_same() {
        let job = &jobs()[1];
        let first = result(job, 1, &job.text);
        let second = result(job, 2, &job.text);
        let seen = std::slice::from_ref(&first);
        assert_eq!(check(job, seen, Some(first.clone()), &[]).overwritten, 0);
        assert_eq!(check(job, seen, Some(second.clone()), &[]).overwritten, 1);
        let both = [first.clone(), second];
        assert_eq!(check(job, &both, Some(first.clone()), &[]).overwritten, 1);
        assert_eq!(check(job, seen, None, &[exhausted()]).overwritten, 1);
    }

    #[test]
    fn an_answer_to_another_job_is_wrong() {
        let jobs = jobs();
        let other = result(&jobs[1], 1, &jobs[11].text);
        assert_eq!(check(&jobs[1], &[], Some(other), &[]).wrong, 1);
        let failing = PlannedJob { fate: Fate::Fails, ..jobs[1].clone() };
        let answer = result(&failing, 1, &failing.text);
        assert_eq!(check(&failing, &[], Some(answer), &[]).wrong, 1);
    }
}
