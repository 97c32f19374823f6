//! The three calls of a poll, in KEDA's order: GetMetricSpec, GetMetrics, IsActive.

use std::error::Error;
use std::time::Duration;

use ebb_proto::keda::{MetricSpec, MetricValue};
use tokio::time::Instant;
use tonic::Status;

use super::Plan;
use super::keda::{Keda, told};
use super::numbers::{self, Fields};
use super::report::{Findings, Times};
use super::rule::{
    ACTIVITY, EXPECTED_ACTIVITY, IN_TIME, METRIC_NAME, ONE_SPEC, ONE_VALUE, SAME_SPEC, TARGET,
    VALUE_FIELDS, VALUE_NAME, VALUE_NUMBER, WRONG_METRIC,
};

/// Half of what the HPA leaves for all three.
pub(super) const TRIPLE: Duration = Duration::from_millis(1500);
/// Polls that are timed.
const POLLS: usize = 20;
/// How often the same question is asked.
const REPEATS: usize = 5;

/// What the later rules stand on.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The first metric that was answered.
    pub(super) spec: Option<MetricSpec>,
    /// Whether it was the same each time.
    same: bool,
    /// What IsActive said.
    pub(super) active: Option<bool>,
    polls: Vec<Duration>,
}

impl Seen {
    /// The metric, if other answers can be compared with it; else why not.
    pub(super) fn steady(&self) -> Result<&MetricSpec, &'static str> {
        let spec = self.spec.as_ref().ok_or("there is no metric to compare with")?;
        self.same.then_some(spec).ok_or("the metric is not the same twice")
    }

    pub(super) fn metric(&self) -> &str {
        self.spec.as_ref().map_or("", |spec| &spec.metric_name)
    }

    pub(super) fn times(&self) -> Option<Times> {
        Times::of(&self.polls)
    }

    /// The slowest poll.
    pub(super) fn slowest(&self) -> Duration {
        self.polls.iter().max().copied().unwrap_or_default()
    }
}

pub(super) async fn examine(keda: &Keda, plan: &Plan, findings: &mut Findings) -> Seen {
    let mut seen = Seen::default();
    specs(keda, &mut seen, findings).await;
    match seen.spec.clone() {
        Some(spec) => values(keda, &spec, findings).await,
        None => findings.skip(
            &[&ONE_VALUE, &VALUE_NAME, &VALUE_NUMBER, &VALUE_FIELDS, &WRONG_METRIC],
            "there is no metric to ask for",
        ),
    }
    let active = keda.active().await;
    seen.active = active.as_ref().ok().copied();
    findings.judge(&ACTIVITY, active.map(|active| active.to_string()).map_err(|e| told(&e)));
    match seen.active {
        _ if !plan.expect_active => findings.skip(
            &[&EXPECTED_ACTIVITY],
            "nobody said that there is work; put some into the queue and use --expect-active",
        ),
        None => findings.skip(&[&EXPECTED_ACTIVITY], "IsActive does not answer"),
        Some(true) => findings.judge(&EXPECTED_ACTIVITY, Ok("active".to_owned())),
        Some(false) => findings.judge(&EXPECTED_ACTIVITY, Err("inactive".to_owned())),
    }
    let in_time = time(keda, &mut seen).await;
    findings.judge(&IN_TIME, in_time);
    seen
}

async fn specs(keda: &Keda, seen: &mut Seen, findings: &mut Findings) {
    let specs = keda.specs().await;
    let answered = match &specs {
        Ok(specs) if specs.len() == 1 => Ok(format!("{:?}", specs[0].metric_name)),
        Ok(specs) => Err(format!("{} metrics", specs.len())),
        Err(status) => Err(told(status)),
    };
    findings.judge(&ONE_SPEC, answered);
    let specs = specs.unwrap_or_default();
    let Some(spec) = specs.first() else {
        findings.skip(&[&TARGET, &METRIC_NAME, &SAME_SPEC], "there is no metric");
        return;
    };
    let target = numbers::target(target_of(spec));
    findings.judge(&TARGET, target.map(|target| target.to_string()));
    let name = numbers::metric_name(&spec.metric_name);
    findings.judge(&METRIC_NAME, name.map(|()| spec.metric_name.clone()));
    let same = same(keda, &specs).await;
    seen.same = same.is_ok();
    seen.spec = Some(spec.clone());
    findings.judge(&SAME_SPEC, same);
}

/// Asks again, the last time on another connection.
async fn same(keda: &Keda, first: &[MetricSpec]) -> Result<String, String> {
    let other = keda.again().await.map_err(|status| told(&status))?;
    for (n, keda) in [keda; REPEATS].into_iter().chain([&other]).enumerate() {
        let specs = keda.specs().await.map_err(|status| told(&status))?;
        if specs != first {
            return Err(format!("{specs:?} at answer {}, {first:?} at the first", n + 2));
        }
    }
    Ok(format!("{} times", REPEATS + 2))
}

async fn values(keda: &Keda, spec: &MetricSpec, findings: &mut Findings) {
    let values = keda.values(&spec.metric_name).await;
    let answered = match &values {
        Ok(values) if values.len() == 1 => Ok("one".to_owned()),
        Ok(values) => Err(format!("{} values", values.len())),
        Err(status) => Err(told(status)),
    };
    findings.judge(&ONE_VALUE, answered);
    match values.unwrap_or_default().first() {
        Some(value) => judge_value(value, spec, findings),
        None => findings.skip(&[&VALUE_NAME, &VALUE_NUMBER, &VALUE_FIELDS], "there is no value"),
    }
    let other = format!("{}-of-nobody", spec.metric_name);
    findings.judge(
        &WRONG_METRIC,
        match keda.values(&other).await {
            Ok(values) => Err(format!("{other} is answered with {} values", values.len())),
            Err(status) if is_silence(&status) => Err(told(&status)),
            Err(status) => Ok(told(&status)),
        },
    );
}

fn judge_value(value: &MetricValue, spec: &MetricSpec, findings: &mut Findings) {
    let named = match value.metric_name == spec.metric_name {
        true => Ok(value.metric_name.clone()),
        false => Err(format!("{:?} for {:?}", value.metric_name, spec.metric_name)),
    };
    findings.judge(&VALUE_NAME, named);
    let fields = Fields { float: value.metric_value_float, int: value.metric_value };
    let number = numbers::value(fields).map(|()| fields.number().to_string());
    let is_number = number.is_ok();
    findings.judge(&VALUE_NUMBER, number);
    if !is_number {
        return findings.skip(&[&VALUE_FIELDS], "the value is not a number");
    }
    let agree = numbers::value_fields(fields, target_of(spec).int_only());
    let words = || format!("float {}, integer {}", fields.float, fields.int);
    findings.judge(&VALUE_FIELDS, agree.map(|()| words()));
}

/// Polls in a row; those that fail take their time as well.
async fn time(keda: &Keda, seen: &mut Seen) -> Result<String, String> {
    for _ in 0..POLLS {
        let took = poll(keda, seen.metric()).await.0;
        seen.polls.push(took);
        if took >= TRIPLE {
            return Err(format!("{:.1} s", took.as_secs_f64()));
        }
    }
    let times =
        seen.times().map(|Times { p50_ms, max_ms }| format!("{p50_ms} ms, at most {max_ms} ms"));
    Ok(times.unwrap_or_default())
}

/// One look of KEDA's polling loop: how long it took, and a call that nobody answered.
pub(super) async fn poll(keda: &Keda, metric: &str) -> (Duration, Option<Status>) {
    let begun = Instant::now();
    let answers =
        [keda.specs().await.err(), keda.values(metric).await.err(), keda.active().await.err()];
    (begun.elapsed(), answers.into_iter().flatten().find(is_silence))
}

/// Whether a status is our own, because no answer came or the connection broke.
pub(super) fn is_silence(status: &Status) -> bool {
    status.code() == tonic::Code::DeadlineExceeded || status.source().is_some()
}

fn target_of(spec: &MetricSpec) -> Fields {
    Fields { float: spec.target_size_float, int: spec.target_size }
}
