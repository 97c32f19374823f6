//! The figures as rows and as tables.

use serde::Serialize;

use super::outcome::Outcome;
use super::verdict::{Overall, Saving, Verdict};
use crate::report::{Table, rounded};

/// One policy on one trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) trace: String,
    pub(crate) policy: String,
    /// Share of the jobs that ended within the objective.
    pub(crate) attainment: f64,
    /// Pod time from start to end, loading and draining included.
    pub(crate) gpu_seconds: f64,
    /// The same over the device time that no policy can do without.
    pub(crate) gpu_over_least: f64,
    pub(crate) p50_wait_s: f64,
    pub(crate) p95_wait_s: f64,
    pub(crate) p99_wait_s: f64,
    /// Pods started.
    pub(crate) churn: usize,
    /// Executions cut off by the end of a grace.
    pub(crate) killed: usize,
    /// Jobs that were not done two hours after the last came.
    pub(crate) undone: usize,
}

impl Row {
    pub(crate) fn new(trace: &str, policy: &str, outcome: &Outcome, least: f64) -> Self {
        let waits = outcome.waits();
        let wait = |share| rounded(crate::report::percentile(&waits, share), 1);
        Self {
            trace: trace.to_owned(),
            policy: policy.to_owned(),
            attainment: rounded(outcome.attainment(), 4),
            gpu_seconds: rounded(outcome.gpu_seconds(), 0),
            gpu_over_least: rounded(outcome.gpu_seconds() / least, 2),
            p50_wait_s: wait(0.5),
            p95_wait_s: wait(0.95),
            p99_wait_s: wait(0.99),
            churn: outcome.n_starts,
            killed: outcome.n_killed,
            undone: outcome.n_undone(),
        }
    }
}

pub(crate) fn rows(rows: &[Row]) -> Table {
    let mut table = Table::new([
        "trace",
        "policy",
        "attainment %",
        "GPU-seconds",
        "over the least",
        "wait p50 s",
        "p95 s",
        "p99 s",
        "starts",
        "killed",
    ]);
    for row in rows {
        table.row([
            row.trace.clone(),
            row.policy.clone(),
            format!("{:.1}", row.attainment * 100.0),
            format!("{:.0}", row.gpu_seconds),
            format!("{:.2}", row.gpu_over_least),
            format!("{:.1}", row.p50_wait_s),
            format!("{:.1}", row.p95_wait_s),
            format!("{:.1}", row.p99_wait_s),
            row.churn.to_string(),
            row.killed.to_string(),
        ]);
    }
    table
}

/// The last row, of one setting for all traces.
const ALL: &str = "all, one setting";

/// A saving in three cells: against what, and the percent that `slo` and the oracle save.
fn cells(saving: Option<&Saving>) -> [String; 3] {
    // Adding zero takes the sign from a zero.
    let percent = |share: f64| format!("{:.0}", (share * 100.0).round() + 0.0);
    match saving {
        Some(it) => [it.setting.clone(), percent(it.slo), percent(it.oracle)],
        None => ["-".to_owned(), "-".to_owned(), "-".to_owned()],
    }
}

/// What is asked of `slo`, and what it saves.
pub(crate) fn verdicts(verdicts: &[Verdict], overall: Option<&Overall>) -> Table {
    let mut table = Table::new([
        "trace",
        "oracle %",
        "slo %",
        "reached",
        "slo / oracle",
        "cheapest length",
        "slo saves %",
        "oracle saves %",
        "cheapest that reaches as much",
        "slo saves %",
        "oracle saves %",
    ]);
    for verdict in verdicts {
        let [setting, slo, oracle] = cells(verdict.cheapest.as_ref());
        let [same, slo_same, oracle_same] = cells(verdict.cheapest_same.as_ref());
        table.row([
            verdict.trace.clone(),
            format!("{:.1}", verdict.oracle_attainment * 100.0),
            format!("{:.1}", verdict.slo_attainment * 100.0),
            verdict.reached.word().to_owned(),
            format!("{:.2}", verdict.over_oracle),
            setting,
            slo,
            oracle,
            same,
            slo_same,
            oracle_same,
        ]);
    }
    if let Some(overall) = overall {
        let [setting, slo, oracle] = cells(overall.cheapest.as_ref());
        let [same, slo_same, oracle_same] = cells(overall.cheapest_same.as_ref());
        let over = format!("{:.2}", overall.over_oracle);
        let dash = || "-".to_owned();
        let (all, none) = (ALL.to_owned(), [dash(), dash(), dash()]);
        let [a, b, c] = none;
        table.row([all, a, b, c, over, setting, slo, oracle, same, slo_same, oracle_same]);
    }
    table
}

/// The same savings, of the lengths in a ScaledObject with the defaults.
pub(crate) fn defaults(verdicts: &[Verdict], overall: Option<&Overall>) -> Table {
    let mut table = Table::new([
        "trace",
        "cheapest with defaults",
        "slo saves %",
        "oracle saves %",
        "cheapest with defaults that reaches as much",
        "slo saves %",
        "oracle saves %",
    ]);
    let mut row = |trace: &str, wanted: Option<&Saving>, same: Option<&Saving>| {
        let [setting, slo, oracle] = cells(wanted);
        let [same, slo_same, oracle_same] = cells(same);
        table.row([trace.to_owned(), setting, slo, oracle, same, slo_same, oracle_same]);
    };
    for verdict in verdicts {
        let same = verdict.cheapest_same_default.as_ref();
        row(&verdict.trace, verdict.cheapest_default.as_ref(), same);
    }
    if let Some(overall) = overall {
        let same = overall.cheapest_same_default.as_ref();
        row(ALL, overall.cheapest_default.as_ref(), same);
    }
    table
}
