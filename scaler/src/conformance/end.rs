//! How the scaler ends: its streams, its connections, its process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Status, Streaming};

use super::goaway::Idle;
use super::keda::{Keda, told};
use super::report::Findings;
use super::rule::{END_GOAWAY, END_IN_TIME, END_OK};
use super::streams::Push;
use super::{Hand, Plan};

/// Between two looks at a process that is to end.
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn examine(
    plan: &Plan,
    hand: Option<&dyn Hand>,
    push: Push,
    findings: &mut Findings,
) {
    let rules = [&END_OK, &END_GOAWAY, &END_IN_TIME];
    let Some(hand) = hand else {
        return findings.skip(&rules, "it needs a hand on the server; use --signal PID");
    };
    let keda = match Keda::connect(plan).await {
        Ok(keda) => keda,
        Err(error) => return findings.skip(&rules, &error.to_string()),
    };
    let streams = Streams::open(&keda, push).await;
    let idle = match plan.papers {
        None => Some(Idle::connect(&plan.address, plan.patience).await),
        Some(_) => None,
    };
    if let Err(error) = hand.stop() {
        return findings.skip(&rules, &format!("the server cannot be told to end: {error}"));
    }
    let stopped = Instant::now();
    let end = stopped + plan.grace;

    match streams {
        Ok(streams) if streams.is_empty() => {
            findings.skip(&[&END_OK], "there are no streams that stay open");
        }
        Ok(streams) => findings.judge(&END_OK, streams.end(end).await),
        Err(status) => findings.skip(&[&END_OK], &format!("no stream opens: {}", told(&status))),
    }
    drop(keda);
    match idle {
        None => findings.skip(&[&END_GOAWAY], "it is looked for on plain connections only"),
        Some(Err(error)) => findings.judge(&END_GOAWAY, Err(error.to_string())),
        Some(Ok(idle)) => {
            let left = end.saturating_duration_since(Instant::now()).max(LOOK);
            findings.judge(
                &END_GOAWAY,
                match idle.told(left).await {
                    Ok(true) => Ok("GOAWAY".to_owned()),
                    Ok(false) => Err("the connection was cut".to_owned()),
                    Err(_) => Err(format!("nothing for {:?}", plan.grace)),
                },
            );
        }
    }
    while !hand.gone() && Instant::now() < end {
        sleep(LOOK).await;
    }
    let ended = match hand.gone() {
        true => Ok(format!("within {:.1} s", stopped.elapsed().as_secs_f64())),
        false => Err(format!("it still runs after {:?}", plan.grace)),
    };
    findings.judge(&END_IN_TIME, ended);
}

/// One of each kind.
struct Streams {
    activity: Option<Streaming<ebb_proto::keda::IsActiveResponse>>,
    specs: Option<Streaming<ebb_proto::keda::GetMetricSpecResponse>>,
}

impl Streams {
    async fn open(keda: &Keda, push: Push) -> Result<Self, Status> {
        let late = |_| Status::deadline_exceeded("it does not open");
        let limit = Instant::now() + keda.patience;
        let activity = match push.activity {
            true => Some(timeout_at(limit, keda.pushes()).await.map_err(late)??),
            false => None,
        };
        let specs = match push.specs {
            true => Some(timeout_at(limit, keda.streamed_specs()).await.map_err(late)??),
            false => None,
        };
        Ok(Self { activity, specs })
    }

    fn is_empty(&self) -> bool {
        self.activity.is_none() && self.specs.is_none()
    }

    /// Hears all out.
    async fn end(self, limit: Instant) -> Result<String, String> {
        let begun = Instant::now();
        if let Some(stream) = self.activity {
            hear_out(stream, limit).await.map_err(|words| format!("StreamIsActive: {words}"))?;
        }
        if let Some(stream) = self.specs {
            hear_out(stream, limit).await.map_err(|words| format!("StreamMetricSpec: {words}"))?;
        }
        Ok(format!("OK after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3))
    }
}

async fn hear_out<T>(mut stream: Streaming<T>, limit: Instant) -> Result<(), String> {
    let end = async {
        while stream.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    match timeout_at(limit, end).await {
        Ok(ended) => ended.map_err(|status| told(&status)),
        Err(_) => Err("it goes on".to_owned()),
    }
}
