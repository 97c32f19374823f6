//! What was found: a verdict for each rule.

use std::time::Duration;

use serde::Serialize;

use super::rule::{RULES, Rule};

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It is broken.
    Failed,
    /// It could not be judged.
    Skipped,
}

/// A rule, the verdict, and what it rests on.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The rule.
    #[serde(flatten)]
    pub rule: &'static Rule,
    /// The verdict.
    pub verdict: Verdict,
    /// What was seen, or why nothing could be.
    pub seen: String,
}

/// How long GetMetricSpec, GetMetrics and IsActive took together, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// The middle one.
    pub p50_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// The outcome of an examination.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Who was examined.
    pub address: String,
    /// How many rules hold.
    pub passed: usize,
    /// How many are broken.
    pub failed: usize,
    /// How many could not be judged.
    pub skipped: usize,
    /// How long KEDA's three calls took; `None` when the first of them was never answered.
    pub triple: Option<Times>,
    /// One for each rule, in the order of [`RULES`].
    pub rules: Vec<Finding>,
}

impl Report {
    pub(super) fn new(address: &str, triple: Option<Times>, findings: Findings) -> Self {
        let mut rules = findings.0;
        rules.sort_by_key(|finding| RULES.iter().position(|rule| *rule == finding.rule));
        let n = |verdict| rules.iter().filter(|finding| finding.verdict == verdict).count();
        Self {
            address: address.to_owned(),
            passed: n(Verdict::Passed),
            failed: n(Verdict::Failed),
            skipped: n(Verdict::Skipped),
            triple,
            rules,
        }
    }

    /// The rules with this verdict.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Finding> {
        self.rules.iter().filter(move |finding| finding.verdict == verdict)
    }
}

/// The verdicts so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    fn note(&mut self, rule: &'static Rule, verdict: Verdict, seen: String) {
        self.0.push(Finding { rule, verdict, seen });
    }

    /// Passed with what was seen, or failed with what was seen instead.
    pub(super) fn judge(&mut self, rule: &'static Rule, seen: Result<String, String>) {
        match seen {
            Ok(seen) => self.note(rule, Verdict::Passed, seen),
            Err(seen) => self.note(rule, Verdict::Failed, seen),
        }
    }

    pub(super) fn skip(&mut self, rules: &[&'static Rule], why: &str) {
        rules.iter().for_each(|rule| self.note(rule, Verdict::Skipped, why.to_owned()));
    }
}

impl Times {
    /// Of at least one.
    pub(super) fn of(times: &[Duration]) -> Option<Self> {
        let mut millis: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        millis.sort_by(f64::total_cmp);
        let rounded = |millis: f64| (millis * 100.0).round() / 100.0;
        let max_ms = rounded(*millis.last()?);
        Some(Self { p50_ms: rounded(millis[(millis.len() - 1) / 2]), max_ms })
    }
}
