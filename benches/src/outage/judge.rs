//! Whether what was told during an outage is what may be told.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Code;

use super::witness::PATIENCE;
use crate::report::rounded;

/// An answer, when the call began, and when it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// The number of the queue.
    pub(super) queue: usize,
    pub(super) asked: Instant,
    pub(super) at: Instant,
    pub(super) told: Told,
}

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Told {
    /// The metric, or the code in its place.
    Spec(Option<Code>),
    /// The value, and the one that is right; none where any but 0 is.
    Value { value: f64, right: Option<f64> },
    /// Whether it is active, which is always right.
    Activity(bool),
    /// No value, or no activity.
    Unknown(Code),
    /// Nothing at all, for as long as KEDA waits.
    Nothing,
    /// A stream ended.
    Broken,
}

/// All that was told.
#[derive(Debug, Default)]
pub(super) struct Record(pub(super) Vec<Answer>);

/// When the broker was away, and how long its last state may count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    /// When it was killed: errors may be told from here on.
    pub(super) dying: Instant,
    /// When it was dead for certain: nobody has seen its state since.
    pub(super) died: Instant,
    pub(super) back: Instant,
    pub(super) max_age: Duration,
    /// The queues that are asked about, and after what time it is each one's turn again.
    pub(super) n_queues: usize,
    pub(super) turn: Duration,
}

/// What is wrong with it, and the times from the broker's death or its return.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct Findings {
    pub(super) answers: usize,
    pub(super) zeros: usize,
    pub(super) inactive: usize,
    pub(super) wrong: usize,
    pub(super) spec_errors: usize,
    /// How long after its death the last state was told.
    pub(super) known_s: Option<f64>,
    /// When it was first said that nothing is known.
    pub(super) unavailable_s: Option<f64>,
    /// States that were told when they counted no more.
    pub(super) too_late: usize,
    /// Errors other than UNAVAILABLE, or before the broker was killed.
    pub(super) other_errors: usize,
    /// How long after its return the last error was told; 0 when none was.
    pub(super) recovered_s: Option<f64>,
    pub(super) broken_streams: usize,
    /// Calls that had no answer, at any time.
    pub(super) unanswered: usize,
    /// Queues of which nothing was told while it was away.
    pub(super) untold_queues: usize,
    /// How long after its death the last state of every queue was told, and how long it had to be;
    /// nothing where it was away for less than a state counts.
    pub(super) all_known_s: Option<f64>,
    pub(super) due_s: Option<f64>,
}

/// An answer that was begun in time may come a little later.
const SLACK: Duration = Duration::from_millis(500);
/// A state counts from the look that saw it, which was some time before the broker died.
const LOOK: Duration = Duration::from_secs(2);

impl Record {
    pub(super) fn judge(&self, outage: Outage) -> Findings {
        let mut findings = Findings { answers: self.0.len(), ..Findings::default() };
        let mut last_error = None;
        // Of each queue: when anything was told while the broker was away, and when a state was.
        let mut away = vec![(None, None); outage.n_queues];
        for answer in &self.0 {
            match answer.told {
                Told::Spec(code) => findings.spec_errors += usize::from(code.is_some()),
                Told::Value { value: 0.0, .. } => findings.zeros += 1,
                Told::Value { value, right } => {
                    findings.wrong += usize::from(right.is_some_and(|right| value != right));
                }
                Told::Activity(active) => findings.inactive += usize::from(!active),
                Told::Broken => findings.broken_streams += 1,
                Told::Nothing => findings.unanswered += 1,
                Told::Unknown(Code::Unavailable) if answer.at >= outage.dying => {
                    let after = seconds(answer.at, outage.died);
                    findings.unavailable_s.get_or_insert(after);
                    last_error = Some(answer.at);
                }
                Told::Unknown(_) => findings.other_errors += 1,
            }
            let is_state = matches!(answer.told, Told::Value { .. } | Told::Activity(_));
            if is_state {
                findings.note_state(answer, outage);
            }
            if is_state || matches!(answer.told, Told::Unknown(_)) {
                note_away(&mut away[answer.queue], is_state, answer.at, outage);
            }
        }
        findings.note_queues(&away, outage);
        let last_error = last_error.unwrap_or(outage.back).max(outage.back);
        findings.recovered_s = Some(seconds(last_error, outage.back));
        findings
    }
}

impl Findings {
    /// A state between death and return comes from memory.
    fn note_state(&mut self, answer: &Answer, outage: Outage) {
        if !(outage.died..outage.back).contains(&answer.at) {
            return;
        }
        let after = seconds(answer.at, outage.died);
        self.known_s = Some(self.known_s.map_or(after, |known| known.max(after)));
        let late = answer.asked > outage.died + outage.max_age + SLACK;
        self.too_late += usize::from(late);
    }

    /// What every queue was told.
    fn note_queues(&mut self, away: &[Away], outage: Outage) {
        // Each was asked at least once while the broker was away, and its answer is there or late.
        let had_turn = outage.back - outage.died > outage.turn + PATIENCE;
        let untold = away.iter().filter(|(told, _)| had_turn && told.is_none());
        self.untold_queues = untold.count();
        let states = away.iter().map(|(_, state)| *state);
        // None is less than any.
        self.all_known_s = states.min().flatten().map(|state| seconds(state, outage.died));
        let is_long = outage.back - outage.died >= outage.max_age;
        let due = outage.max_age.saturating_sub(LOOK + outage.turn);
        self.due_s = is_long.then(|| rounded(due.as_secs_f64(), 2));
    }

    /// Whether all promises were kept, and good answers back so soon after the broker.
    pub(super) fn check(&self, recovery: Duration) -> anyhow::Result<()> {
        for (n, what) in [
            (self.zeros, "values of 0"),
            (self.inactive, "times inactive"),
            (self.wrong, "wrong values"),
            (self.spec_errors, "errors from GetMetricSpec"),
            (self.too_late, "states that were too old"),
            (self.other_errors, "errors other than UNAVAILABLE"),
            (self.broken_streams, "broken streams"),
        ] {
            ensure!(n == 0, "{n} {what} were told");
        }
        let unanswered = self.unanswered;
        ensure!(unanswered == 0, "{unanswered} calls were not answered within {PATIENCE:?}");
        let untold = self.untold_queues;
        ensure!(untold == 0, "of {untold} queues nothing was told while the broker was away");
        if let Some(due) = self.due_s {
            let known = self.all_known_s.unwrap_or_default();
            ensure!(known >= due, "a state was known for {known} s, and has to be for {due} s");
        }
        let (recovered, limit) = (self.recovered_s.unwrap_or_default(), recovery.as_secs_f64());
        ensure!(recovered <= limit, "good answers were back only after {recovered} s");
        Ok(())
    }
}

/// Of a queue, while the broker was away: when anything was told last, and when a state was.
type Away = (Option<Instant>, Option<Instant>);

fn note_away((told, state): &mut Away, is_state: bool, at: Instant, outage: Outage) {
    if (outage.died..outage.back).contains(&at) {
        *told = (*told).max(Some(at));
        *state = (*state).max(is_state.then_some(at));
    }
}

fn seconds(later: Instant, earlier: Instant) -> f64 {
    rounded(later.saturating_duration_since(earlier).as_secs_f64(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was told at which second of the only queue; the broker is killed at 9 and dead from 10
    /// to 40; 5 s count.
    fn findings(told: &[(u64, Told)]) -> Findings {
        let told: Vec<_> = told.iter().map(|&(at, told)| (0, at, told)).collect();
        findings_of(1, 40, &told)
    }

    /// The same of several queues, with the second when the broker is back.
    fn findings_of(n_queues: usize, back: u64, told: &[(usize, u64, Told)]) -> Findings {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let answer = |&(queue, at, told)| Answer { queue, asked: second(at), at: second(at), told };
        let outage = Outage {
            dying: second(9),
            died: second(10),
            back: second(back),
            max_age: Duration::from_secs(5),
            n_queues,
            turn: Duration::ZERO,
        };
        Record(told.iter().map(answer).collect()).judge(outage)
    }

    const GOOD: Told = Told::Value { value: 7.0, right: Some(7.0) };
    const RECOVERY: Duration = Duration::from_secs(5);
    const GONE: Told = Told::Unknown(Code::Unavailable);

    #[test]
    fn a_state_counts_for_a_while_and_then_nothing_is_known() {
        let told = [(9, GOOD), (12, GOOD), (14, Told::Activity(true)), (16, GONE), (42, GONE)];
        let found = findings(&[&told[..], &[(16, Told::Spec(None)), (43, GOOD)]].concat());
        let expected = Findings {
            answers: 7,
            known_s: Some(4.0),
            unavailable_s: Some(6.0),
            recovered_s: Some(2.0),
            all_known_s: Some(4.0),
            due_s: Some(3.0),
            ..Findings::default()
        };
        assert_eq!(found, expected);
        assert!(found.check(RECOVERY).is_ok());
    }

    #[test]
    fn each_thing_that_must_not_be_told_is_found() {
        for (at, told, words) in [
            (12, Told::Value { value: 0.0, right: Some(7.0) }, "values of 0"),
            (12, Told::Value { value: 0.0, right: None }, "values of 0"),
            (12, Told::Value { value: 6.0, right: Some(7.0) }, "wrong values"),
            (41, Told::Activity(false), "inactive"),
            (12, Told::Spec(Some(Code::Unavailable)), "GetMetricSpec"),
            (16, GOOD, "too old"),
            (12, Told::Unknown(Code::Internal), "other than UNAVAILABLE"),
            (8, GONE, "other than UNAVAILABLE"),
            (20, Told::Broken, "broken streams"),
            (46, GONE, "back only after 6 s"),
            (8, Told::Nothing, "not answered"),
            (12, Told::Nothing, "not answered"),
            (41, Told::Nothing, "not answered"),
        ] {
            // Beside what makes a good run of the rest.
            let error = findings(&[(14, GOOD), (at, told)]).check(RECOVERY).expect_err(words);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        let busy = Told::Value { value: 41.0, right: None };
        assert!(findings(&[(14, busy), (45, GONE)]).check(RECOVERY).is_ok());
    }

    #[test]
    fn a_scaler_that_tells_nothing_while_the_broker_is_away_has_not_passed() {
        for told in [&[][..], &[(9, GOOD), (41, GOOD)], &[(20, Told::Spec(None))]] {
            let error = findings(told).check(RECOVERY).expect_err("nothing was told").to_string();
            assert!(error.contains("nothing was told"), "{error}");
        }
        let error = findings_of(2, 40, &[(0, 14, GOOD)]).check(RECOVERY).expect_err("of one queue");
        assert!(error.to_string().contains("of 1 queues nothing was told"), "{error}");
        assert!(findings_of(2, 12, &[(0, 11, GOOD)]).check(RECOVERY).is_ok(), "2 s are too short");
    }

    #[test]
    fn a_scaler_that_forgets_at_once_has_not_passed_unless_the_broker_was_back_as_soon() {
        let forgets = [(0, 10, GONE), (0, 12, GOOD), (1, 11, GOOD), (1, 14, GONE)];
        let error = findings_of(2, 40, &forgets).check(RECOVERY).expect_err("it forgets");
        assert!(error.to_string().contains("known for 1 s, and has to be for 3 s"), "{error}");
        let error = findings(&[(12, GONE)]).check(RECOVERY).expect_err("it knows nothing");
        assert!(error.to_string().contains("known for 0 s"), "{error}");
        assert!(findings_of(2, 14, &forgets).check(RECOVERY).is_ok(), "4 s are less than 5");
    }
}
