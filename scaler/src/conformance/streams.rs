//! The two streams that KEDA opens for an `external-push` trigger.

use std::time::Duration;

use ebb_proto::keda::GetMetricSpecResponse;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};

use super::Plan;
use super::calls::Seen;
use super::keda::{Keda, told};
use super::report::Findings;
use super::rule::{PUSH_CALM, PUSH_FIRST, PUSH_STAYS, SPECS_AGREE, SPECS_FIRST, SPECS_SOME};

/// What is at once for a stream that opens.
const AT_ONCE: Duration = Duration::from_secs(2);
/// How often `true` may be repeated.
const TRUES_PER_S: f64 = 2.0;

/// Which streams there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Push {
    /// StreamIsActive opens, and stays open.
    pub(super) activity: bool,
    /// It speaks as soon as it is open.
    pub(super) speaks: bool,
    /// StreamMetricSpec opens.
    pub(super) specs: bool,
}

pub(super) async fn examine(
    keda: &Keda,
    plan: &Plan,
    seen: &Seen,
    findings: &mut Findings,
) -> Push {
    let heard = Heard::listen(keda, plan.listen).await;
    let activity = heard.refused.is_none() && heard.ended.is_none();
    let speaks = heard.first.is_some();
    match &heard.refused {
        None => judge_activity(keda, seen, &heard, findings).await,
        Some(status) if status.code() == Code::Unimplemented => findings.skip(
            &[&PUSH_FIRST, &PUSH_CALM, &PUSH_STAYS],
            "there is no StreamIsActive: triggers of type external, not external-push",
        ),
        Some(status) => {
            findings.judge(&PUSH_FIRST, Err(told(status)));
            findings.skip(&[&PUSH_CALM, &PUSH_STAYS], "the stream does not open");
        }
    }
    let specs = specs(keda, seen, findings).await;
    Push { activity, speaks, specs }
}

/// What one stream of activity said.
struct Heard {
    /// It did not open.
    refused: Option<Status>,
    first: Option<bool>,
    first_after: Duration,
    /// How often `true` came after the first word.
    trues: usize,
    /// When it ended, and how.
    ended: Option<(Duration, Option<Status>)>,
    listened: Duration,
}

impl Heard {
    /// Opens a stream and waits for its first word; from there on listens for a while.
    async fn listen(keda: &Keda, span: Duration) -> Self {
        let begun = Instant::now();
        let mut until = begun + keda.patience;
        let mut heard = Self {
            refused: None,
            first: None,
            first_after: Duration::ZERO,
            trues: 0,
            ended: None,
            listened: span,
        };
        let mut stream = match timeout_at(until, keda.pushes()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(status)) => return Self { refused: Some(status), ..heard },
            // A server that opens a stream with its first word, and has none.
            Err(_) => return heard,
        };
        while let Ok(word) = timeout_at(until, stream.message()).await {
            match word {
                Ok(Some(word)) if heard.first.is_some() => heard.trues += usize::from(word.result),
                Ok(Some(word)) => {
                    heard.first = Some(word.result);
                    heard.first_after = begun.elapsed();
                    until = Instant::now() + span;
                }
                Ok(None) => return Self { ended: Some((begun.elapsed(), None)), ..heard },
                Err(status) if heard.first.is_none() && status.code() == Code::Unimplemented => {
                    return Self { refused: Some(status), ..heard };
                }
                Err(status) => {
                    return Self { ended: Some((begun.elapsed(), Some(status))), ..heard };
                }
            }
        }
        heard
    }
}

async fn judge_activity(keda: &Keda, seen: &Seen, heard: &Heard, findings: &mut Findings) {
    // Only a state that holds before and after is one that the stream must have told.
    let after = keda.active().await.ok();
    let state = seen.active.filter(|before| after == Some(*before));
    let millis = heard.first_after.as_secs_f64() * 1e3;
    match (heard.first, state) {
        (Some(first), Some(state)) if first != state => findings
            .judge(&PUSH_FIRST, Err(format!("{first} on the stream, {state} from IsActive"))),
        (Some(first), _) => {
            findings.judge(&PUSH_FIRST, Ok(format!("{first} after {millis:.1} ms")));
        }
        (None, _) if heard.ended.is_some() => {
            findings.skip(&[&PUSH_FIRST], "the stream ended before it said anything");
        }
        (None, Some(true)) => findings.judge(
            &PUSH_FIRST,
            Err(format!("nothing for {:?}, though IsActive says true", keda.patience)),
        ),
        (None, _) => findings.skip(
            &[&PUSH_FIRST],
            "it is inactive and the stream is silent; put work into the queue to see more",
        ),
    }

    let limit = (heard.listened.as_secs_f64() * TRUES_PER_S).ceil() as usize;
    let words = format!("{} times in {:?}", heard.trues, heard.listened);
    match heard.first {
        Some(true) if heard.trues > limit => findings.judge(&PUSH_CALM, Err(words)),
        Some(true) => findings.judge(&PUSH_CALM, Ok(words)),
        _ => findings.skip(&[&PUSH_CALM], "it is not active; put work into the queue to see it"),
    }

    let stays = match &heard.ended {
        None => Ok(format!("still open after {}", span(heard.first_after + heard.listened))),
        Some((after, None)) => Err(format!("it ended with OK after {}", span(*after))),
        Some((after, Some(status))) => {
            Err(format!("it broke after {}: {}", span(*after), told(status)))
        }
    };
    findings.judge(&PUSH_STAYS, stays);
}

fn span(span: Duration) -> String {
    format!("{:.1} s", span.as_secs_f64())
}

/// Judges the stream of metrics; true when there is one.
async fn specs(keda: &Keda, seen: &Seen, findings: &mut Findings) -> bool {
    let begun = Instant::now();
    let first = timeout(AT_ONCE, async { keda.streamed_specs().await?.message().await }).await;
    let millis = begun.elapsed().as_secs_f64() * 1e3;
    let rest = [&SPECS_SOME, &SPECS_AGREE];
    let (verdict, why) = match first {
        Ok(Ok(Some(specs))) => {
            findings.judge(&SPECS_FIRST, Ok(format!("after {millis:.1} ms")));
            judge_specs(&specs, seen, findings);
            return true;
        }
        Ok(Ok(None)) => (Err("it ended without a message".to_owned()), "nothing was streamed"),
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            (Ok("UNIMPLEMENTED, so KEDA asks with GetMetricSpec".to_owned()), "UNIMPLEMENTED")
        }
        Ok(Err(status)) => (Err(told(&status)), "nothing was streamed"),
        Err(_) => (Err(format!("nothing for {AT_ONCE:?}")), "nothing was streamed"),
    };
    findings.judge(&SPECS_FIRST, verdict);
    findings.skip(&rest, why);
    false
}

fn judge_specs(streamed: &GetMetricSpecResponse, seen: &Seen, findings: &mut Findings) {
    let streamed = &streamed.metric_specs;
    if streamed.is_empty() {
        findings.judge(&SPECS_SOME, Err("an empty list".to_owned()));
        return findings.skip(&[&SPECS_AGREE], "an empty list was streamed");
    }
    findings.judge(&SPECS_SOME, Ok(format!("{} metric", streamed.len())));
    match seen.steady() {
        Ok(spec) if streamed.first() == Some(spec) => {
            findings.judge(&SPECS_AGREE, Ok(format!("both {:?}", spec.metric_name)));
        }
        Ok(spec) => {
            let words = format!("{streamed:?} on the stream, {spec:?} from GetMetricSpec");
            findings.judge(&SPECS_AGREE, Err(words));
        }
        Err(why) => findings.skip(&[&SPECS_AGREE], why),
    }
}
