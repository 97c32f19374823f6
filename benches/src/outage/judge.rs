//! Whether what was told during an outage is what may be told.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;
use tokio::time::Instant;
use tonic::Code;

use crate::report::rounded;

/// An answer, when the call began, and when it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
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
}

/// An answer that was begun in time may come a little later.
const SLACK: Duration = Duration::from_millis(500);

impl Record {
    pub(super) fn judge(&self, outage: Outage) -> Findings {
        let mut findings = Findings { answers: self.0.len(), ..Findings::default() };
        let mut last_error = None;
        for answer in &self.0 {
            match answer.told {
                Told::Spec(code) => findings.spec_errors += usize::from(code.is_some()),
                Told::Value { value: 0.0, .. } => findings.zeros += 1,
                Told::Value { value, right } => {
                    findings.wrong += usize::from(right.is_some_and(|right| value != right));
                }
                Told::Activity(active) => findings.inactive += usize::from(!active),
                Told::Broken => findings.broken_streams += 1,
                Told::Unknown(Code::Unavailable) if answer.at >= outage.dying => {
                    let after = seconds(answer.at, outage.died);
                    findings.unavailable_s.get_or_insert(after);
                    last_error = Some(answer.at);
                }
                Told::Unknown(_) => findings.other_errors += 1,
            }
            if matches!(answer.told, Told::Value { .. } | Told::Activity(_)) {
                findings.note_state(answer, outage);
            }
        }
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
        let (recovered, limit) = (self.recovered_s.unwrap_or_default(), recovery.as_secs_f64());
        ensure!(recovered <= limit, "good answers were back only after {recovered} s");
        Ok(())
    }
}

fn seconds(later: Instant, earlier: Instant) -> f64 {
    rounded(later.saturating_duration_since(earlier).as_secs_f64(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was told at which second; the broker is killed at 9 and dead from 10 to 40; 5 s count.
    fn findings(told: &[(u64, Told)]) -> Findings {
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let answer = |&(at, told)| Answer { asked: second(at), at: second(at), told };
        let (dying, died, back) = (second(9), second(10), second(40));
        let outage = Outage { dying, died, back, max_age: Duration::from_secs(5) };
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
        ] {
            let error = findings(&[(at, told)]).check(RECOVERY).expect_err(words).to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let busy = Told::Value { value: 41.0, right: None };
        assert!(findings(&[(12, busy), (45, GONE)]).check(RECOVERY).is_ok());
    }
}
