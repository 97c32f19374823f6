//! A worker as the command line asks for it: broker, probes and model around a pipeline.

use std::sync::Arc;

use anyhow::Context;
use ebb_queue::{ErrorKind, OpenOptions, Queue, QueueUrl, Results, SystemClock, Warning};
use ebb_telemetry::{GateKind, Health, Service, Traces};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::config::{Plan, WorkerArgs};
use crate::gpu;
use crate::metrics::Metrics;
use crate::models::{self, Site};
use crate::shared::{Pauses, Summary};

/// Runs a worker until `stop` is cancelled, then drains it within the grace period.
///
/// # Errors
/// When the arguments are wrong, before a port is bound; when a port, the broker or the model is
/// not to be had; when the device fails for good.
pub async fn run(args: WorkerArgs, stop: CancellationToken) -> anyhow::Result<Summary> {
    let threads = std::num::NonZeroUsize::new(args.threads);
    let trace = args.trace.clone();
    let plan = args.check()?;
    limit_threads(threads)?;
    let instance = Some(plan.settings.worker.clone());
    let version = env!("CARGO_PKG_VERSION");
    let traces = trace.start(&Service { name: "ebb-worker", version, instance })?;
    let worked = work(plan, traces.clone(), stop).await;
    // Also after an error: its spans are those that somebody will look for.
    traces.flush().await;
    worked
}

async fn work(plan: Plan, traces: Traces, stop: CancellationToken) -> anyhow::Result<Summary> {
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry)?;
    ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    let health = Health::new();
    // Closed before the first probe comes; the pipeline opens them.
    let _closed = (health.gate("model", GateKind::Startup), health.gate("broker", GateKind::Ready));
    // These end when this function does: the probes answer until the last job is settled.
    let _gpus = plan.listen.and_then(|_| gpu::watch(registry.clone()));
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
    let Plan {
        queue, results, alerts, model, settings, missing, connect_timeout, payloads, ..
    } = plan;
    let threads = settings.decode_threads;
    info!(worker = %settings.worker, model = %settings.model, queue = %queue, threads, "worker starts");
    metrics.info.with_label_values(&[queue.queue.as_str(), &settings.model]).set(1);
    let worker = settings.worker.clone();
    let mut options = OpenOptions { worker, missing, connect_timeout, ..OpenOptions::default() };
    if let Some(url) = results {
        let store = connect(&url, &options, &metrics, &stop).await.context("--results")?;
        let Some(store) = store else { return Ok(Summary::default()) };
        options.results = Some(Results(store));
    }
    options.payloads = payloads;
    let broker = connect(&queue, &options, &metrics, &stop).await.context("--queue")?;
    let Some(broker) = broker else { return Ok(Summary::default()) };
    let alerts = if model.alerts() {
        connect(&alerts, &options, &metrics, &stop).await.context("--alerts")?
    } else {
        Some(Arc::clone(&broker))
    };
    let Some(alerts) = alerts else { return Ok(Summary::default()) };
    let clock = Arc::new(SystemClock);
    let results = Arc::clone(&broker);
    let site = Site { broker, results, alerts, settings, clock, metrics, health, traces };
    let summary = models::work(model, site, stop).await?;
    info!(summary.completed, summary.failed, summary.released, summary.left, "worker ends");
    Ok(summary)
}

/// Opens a queue, and waits for a broker that is not there yet; `None` when stopped meanwhile.
async fn connect(
    url: &QueueUrl,
    options: &OpenOptions,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Queue>> {
    let mut pauses = Pauses::default();
    loop {
        let pause = match ebb_queue::open(url, options.clone()).await {
            Ok(queue) => {
                tell_warnings(url, &queue, metrics).await;
                return Ok(Some(queue));
            }
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

/// Says where a setting of the broker is weaker than our promises.
async fn tell_warnings(url: &QueueUrl, queue: &Queue, metrics: &Metrics) {
    match queue.info().await {
        Ok(info) => {
            info!(queue = %url, broker = info.broker, version = info.version, "connected");
            for Warning { code, text } in info.warnings {
                warn!(queue = %url, code, "{text}");
                metrics.broker_warnings.with_label_values(&[code]).set(1);
            }
        }
        Err(error) => warn!(queue = %url, %error, "the broker does not tell how it is set"),
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
