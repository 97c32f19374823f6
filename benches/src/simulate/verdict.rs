//! What is asked of mode `slo`, per trace: the objective where one who knows all arrivals reaches
//! it, for little more than that one needs and for less than a queue length needs.
//!
//! A queue length is compared in four ways: the cheapest that reaches the objective, and the cheapest
//! that reaches as much as `slo` does (to a tenth of a percent); of all, and of those in a
//! ScaledObject with the defaults. For each trace that is what somebody would choose who knew the
//! trace; for all together, the one setting that does so on each of them, which is what somebody can
//! choose who does not know what will come.

use serde::Serialize;

use super::outcome::Outcome;
use crate::report::rounded;

/// What came of one trace under each policy, by name.
pub(crate) type Outcomes = [(String, Outcome)];

/// The answer for one trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) trace: String,
    pub(crate) oracle_attainment: f64,
    pub(crate) slo_attainment: f64,
    pub(crate) reached: Reached,
    /// GPU-seconds of `slo` over those of the oracle.
    pub(crate) over_oracle: f64,
    /// Against the cheapest queue length that reaches the objective on this trace.
    pub(crate) cheapest: Option<Saving>,
    /// Against the cheapest of those with KEDA's and Kubernetes' defaults.
    pub(crate) cheapest_default: Option<Saving>,
    /// Against the cheapest that reaches as much as `slo` does.
    pub(crate) cheapest_same: Option<Saving>,
    /// Against the cheapest of those with the defaults.
    pub(crate) cheapest_same_default: Option<Saving>,
}

/// Shares of the GPU-seconds of another setting that are not needed; below zero where more are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Saving {
    pub(crate) setting: String,
    /// By `slo`.
    pub(crate) slo: f64,
    /// By the oracle: more than this nobody is known to save.
    pub(crate) oracle: f64,
}

/// Whether `slo` reaches the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reached {
    /// It does.
    Yes,
    /// It does not, and neither does the oracle.
    Neither,
    /// It does not, and the oracle does.
    No,
}

/// The answer for all traces together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Overall {
    /// Against the cheapest queue length that reaches the objective on every trace.
    pub(crate) cheapest: Option<Saving>,
    /// Against the cheapest of those with the defaults.
    pub(crate) cheapest_default: Option<Saving>,
    /// Against the cheapest that reaches as much as `slo` does on every trace.
    pub(crate) cheapest_same: Option<Saving>,
    /// Against the cheapest of those with the defaults.
    pub(crate) cheapest_same_default: Option<Saving>,
    /// GPU-seconds of `slo` over those of the oracle, of all traces.
    pub(crate) over_oracle: f64,
}

impl Reached {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Neither => "neither",
            Self::No => "no",
        }
    }
}

/// The policy that is judged, the one that knows all, what the built-in ones' names begin with, and
/// how a setting with the defaults ends.
const JUDGED: &str = "slo";
const ORACLE: &str = "oracle";
const LENGTHS: [&str; 2] = ["unacked-", "ready-"];
const DEFAULT: &str = "/default";

impl Verdict {
    /// None where one of the two was not run.
    pub(crate) fn of(trace: &str, outcomes: &Outcomes, share: f64) -> Option<Self> {
        let (slo, oracle) = (named(outcomes, JUDGED)?, named(outcomes, ORACLE)?);
        let reached = match (slo.attainment() >= share, oracle.attainment() >= share) {
            (true, _) => Reached::Yes,
            (false, false) => Reached::Neither,
            (false, true) => Reached::No,
        };
        let (one, wanted, same) = ([outcomes], [share], [as_told(slo.attainment())]);
        Some(Self {
            trace: trace.to_owned(),
            oracle_attainment: rounded(oracle.attainment(), 4),
            slo_attainment: rounded(slo.attainment(), 4),
            reached,
            over_oracle: rounded(slo.gpu_seconds() / oracle.gpu_seconds(), 3),
            cheapest: Saving::on(&one, &wanted, |_| true),
            cheapest_default: Saving::on(&one, &wanted, is_default),
            cheapest_same: Saving::on(&one, &same, |_| true),
            cheapest_same_default: Saving::on(&one, &same, is_default),
        })
    }
}

impl Overall {
    /// None where one of the two was not run, or there is one trace only.
    pub(crate) fn of(traces: &[&Outcomes], share: f64) -> Option<Self> {
        let (slo, oracle) = (total(traces, JUDGED)?, total(traces, ORACLE)?);
        let wanted = vec![share; traces.len()];
        let reached = |outcomes: &&Outcomes| Some(as_told(named(outcomes, JUDGED)?.attainment()));
        let same = traces.iter().map(reached).collect::<Option<Vec<f64>>>()?;
        (traces.len() > 1).then(|| Self {
            cheapest: Saving::on(traces, &wanted, |_| true),
            cheapest_default: Saving::on(traces, &wanted, is_default),
            cheapest_same: Saving::on(traces, &same, |_| true),
            cheapest_same_default: Saving::on(traces, &same, is_default),
            over_oracle: rounded(slo / oracle, 3),
        })
    }
}

impl Saving {
    /// Against the queue length, of those that count, with the fewest GPU-seconds among those that
    /// reach so much on each trace.
    fn on(traces: &[&Outcomes], shares: &[f64], counts: impl Fn(&str) -> bool) -> Option<Self> {
        let reaches = |setting: &str| {
            let reached = |(outcomes, share): (&&Outcomes, &f64)| {
                named(outcomes, setting).is_some_and(|outcome| outcome.attainment() >= *share)
            };
            traces.iter().zip(shares).all(reached)
        };
        let settings = traces.first()?.iter().map(|(setting, _)| setting.as_str());
        let lengths = settings.filter(|setting| {
            let is_length = LENGTHS.iter().any(|length| setting.starts_with(length));
            is_length && counts(setting) && reaches(setting)
        });
        let costs = lengths.filter_map(|setting| Some((setting, total(traces, setting)?)));
        let (setting, cost) = costs.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let saved = |policy| Some(rounded(1.0 - total(traces, policy)? / cost, 3));
        Some(Self { setting: setting.to_owned(), slo: saved(JUDGED)?, oracle: saved(ORACLE)? })
    }
}

fn is_default(setting: &str) -> bool {
    setting.ends_with(DEFAULT)
}

/// An attainment as the tables have it: a job of thousands makes no difference.
fn as_told(attainment: f64) -> f64 {
    (attainment * 1000.0).floor() / 1000.0
}

fn named<'a>(outcomes: &'a Outcomes, policy: &str) -> Option<&'a Outcome> {
    outcomes.iter().find(|(name, _)| name == policy).map(|(_, outcome)| outcome)
}

/// GPU-seconds of a policy on all traces.
fn total(traces: &[&Outcomes], policy: &str) -> Option<f64> {
    traces.iter().map(|outcomes| named(outcomes, policy).map(Outcome::gpu_seconds)).sum()
}
