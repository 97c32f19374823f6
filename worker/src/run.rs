//! A worker as the command line asks for it: broker, probes and model around a pipeline.

use std::sync::Arc;

use anyhow::Context;
use ebb_queue::{ErrorKind, OpenOptions, Payloads, Queue, QueueUrl, SystemClock};
use ebb_telemetry::{GateKind, Health};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::config::{Plan, WorkerArgs};
use crate::metrics::Metrics;
use crate::models::{self, Site};
use crate::shared::{Pauses, Settings, Summary};

/// Runs a worker until `stop` is cancelled, then drains it within the grace period.
///
/// # Errors
/// When the arguments are wrong, before a port is bound; when a port, the broker or the model is
/// not to be had; when the device fails for good.
pub async fn run(args: WorkerArgs, stop: CancellationToken) -> anyhow::Result<Summary> {
    let threads = std::num::NonZeroUsize::new(args.threads);
    let plan = args.check()?;
    limit_threads(threads)?;
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry)?;
    ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    let health = Health::new();
    // Closed before the first probe comes; the pipeline opens them.
    let _closed = (health.gate("model", GateKind::Startup), health.gate("broker", GateKind::Ready));
    // Ends when this function does: the probes answer until the last job is settled.
    let _probes = match plan.listen {
        None => None,
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("--listen {address}"))?;
            info!(address = %listener.local_addr()?, "probes and metrics");
            let until_the_end = CancellationToken::new();
            let probes = ebb_telemetry::serve(listener, health.clone(), registry, until_the_end);
            Some(AbortOnDropHandle::new(tokio::spawn(probes)))
        }
    };
    let Plan { queue, results, payloads, alerts, model, settings, .. } = plan;
    info!(worker = %settings.worker, model = %settings.model, queue = %queue, "worker starts");
    let Some(broker) = connect(&queue, &settings, &payloads, &stop).await.context("--queue")?
    else {
        return Ok(Summary::default());
    };
    let results = match results.filter(|url| *url != queue) {
        Some(url) => connect(&url, &settings, &payloads, &stop).await.context("--results")?,
        None => Some(Arc::clone(&broker)),
    };
    let alerts = if model.alerts() {
        connect(&alerts, &settings, &payloads, &stop).await.context("--alerts")?
    } else {
        Some(Arc::clone(&broker))
    };
    let (Some(results), Some(alerts)) = (results, alerts) else {
        return Ok(Summary::default());
    };
    let clock = Arc::new(SystemClock);
    let site = Site { broker, results, alerts, settings, clock, metrics, health };
    let summary = models::work(model, site, stop).await?;
    info!(summary.completed, summary.failed, summary.released, summary.left, "worker ends");
    Ok(summary)
}

/// Opens a queue, and waits for a broker that is not there yet; `None` when stopped meanwhile.
async fn connect(
    url: &QueueUrl,
    settings: &Settings,
    payloads: &Option<Payloads>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Queue>> {
    let mut pauses = Pauses::default();
    loop {
        let worker = settings.worker.clone();
        let payloads = payloads.clone();
        let options = OpenOptions { worker, payloads, ..OpenOptions::default() };
        let pause = match ebb_queue::open(url, options).await {
            Ok(queue) => return Ok(Some(queue)),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                warn!(%error, "the broker does not answer; trying again");
                pauses.next(rand::random())
            }
            Err(error) => return Err(error.into()),
        };
        tokio::select! { biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(feature = "cpu")]
fn limit_threads(threads: Option<std::num::NonZeroUsize>) -> anyhow::Result<()> {
    threads.map_or(Ok(()), ebb_model::use_threads).context("--threads")
}

#[cfg(not(feature = "cpu"))]
fn limit_threads(_: Option<std::num::NonZeroUsize>) -> anyhow::Result<()> {
    // Echo computes nothing.
    Ok(())
}
