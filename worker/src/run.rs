//! A worker as the command line asks for it: broker, probes and model around a pipeline.

use std::sync::Arc;

use anyhow::Context;
use ebb_queue::{ErrorKind, OpenOptions, Queue, QueueUrl, Results, SystemClock, Warning};
use ebb_telemetry::{Gate, GateKind, Health, Service, Traces};
use futures::future::{BoxFuture, try_join_all};
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Plan, WorkerArgs};
use crate::gpu;
use crate::metrics::Metrics;
use crate::models;
use crate::pauses::{Failed, Pauses};
use crate::pipeline::{Error, Pipeline};
use crate::serve::QueuePlan;
use crate::served::{ModelParts, QueueParts};
use crate::shared::{Parts, Summary};

/// Runs a worker until `stop` is cancelled, then drains it within the grace period.
///
/// # Errors
/// When the arguments are wrong, before a port is bound; when a port, the broker or the model is
/// not to be had; when the device fails for good.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn run(
    args: WorkerArgs,
    stop: CancellationToken,
) -> BoxFuture<'static, anyhow::Result<Summary>> {
    Box::pin(start(args, stop))
}

async fn start(args: WorkerArgs, stop: CancellationToken) -> anyhow::Result<Summary> {
    let threads = std::num::NonZeroUsize::new(args.threads);
    let (trace, device) = (args.trace.clone(), args.device.clone());
    let Some(plan) = read(&stop, move || args.check()).await? else {
        return Ok(Summary::default());
    };
    limit_threads(threads)?;
    if let Some(dir) = device.keep_kernels()? {
        info!(dir = %dir.display(), "kernels are kept");
    }
    let instance = Some(plan.settings.worker.clone());
    let version = env!("CARGO_PKG_VERSION");
    let traces = trace.start(&Service { name: "ebb-worker", version, instance })?;
    let worked = work(plan, traces.clone(), stop).await;
    // Also after an error: its spans are those that somebody will look for.
    traces.flush().await;
    worked
}

async fn work(plan: Plan, traces: Traces, stop: CancellationToken) -> anyhow::Result<Summary> {
    // The models load while their tokenizers are read and the brokers are called.
    let seat = move || models::seat(&plan.queues, plan.options).map(|models| (plan, models));
    let Some((plan, models)) = read(&stop, seat).await? else { return Ok(Summary::default()) };
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry)?.with_tenants(plan.tenant_labels);
    ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    let health = Health::new();
    // Closed before the first probe comes; the pipeline opens the second.
    let model = health.gate("model", GateKind::Startup);
    let _broker = health.gate("broker", GateKind::Ready);
    // These end when this function does: the probes answer until the last job is settled.
    let _gpus = plan.listen.and_then(|_| gpu::watch(registry.clone()));
    let served = ebb_telemetry::serve_at("--listen", plan.listen, health.clone(), registry);
    let _probes = served.await?;
    announce(&plan);
    show(&plan, &metrics);
    let queues = tokio::select! {
        queues = open(&plan, &metrics, &stop) => queues?,
        why = lost(&models, model) => return Err(Error::Device(why).into()),
    };
    let Some(queues) = queues else { return Ok(Summary::default()) };
    let named = plan.queues.into_iter().zip(models);
    let queues = queues.into_iter().zip(named).map(|((broker, alerts), (plan, models))| {
        let results = Arc::clone(&broker);
        QueueParts {
            name: plan.url.queue.to_string(),
            model: plan.words,
            broker,
            results,
            alerts,
            models,
        }
    });
    let pipeline = Pipeline::new(Parts {
        queues: queues.collect(),
        settings: plan.settings,
        clock: Arc::new(SystemClock),
        seed: rand::random(),
        metrics,
        health,
        traces,
    });
    let summary = pipeline.run(stop).await?;
    info!(summary.completed, summary.failed, summary.released, summary.left, "worker ends");
    Ok(summary)
}

/// What is made of files; `None` when stopped meanwhile. Whoever reads them is not waited for then: a
/// volume that hangs may never answer.
async fn read<T: Send + 'static>(
    stop: &CancellationToken,
    make: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Option<T>> {
    let made = tokio::task::spawn_blocking(make);
    tokio::select! { biased;
        made = made => made.context("the files of a model were not read to their end")?.map(Some),
        () = stop.cancelled() => Ok(None),
    }
}

fn announce(plan: &Plan) {
    let (worker, threads) = (&plan.settings.worker, plan.settings.decode_threads);
    for QueuePlan { url, words, .. } in &plan.queues {
        info!(%worker, model = %words, queue = %url, threads, "worker starts");
    }
    if plan.shares_answers() {
        warn!("--results has the answers of all queues: no two jobs may have the same id");
    }
}

/// Why the models cannot be loaded, if so. A start is over when they are, wherever the broker is: a
/// new process would not find it sooner, and would have to load them again.
async fn lost(models: &[Vec<ModelParts>], gate: Gate) -> String {
    let device = models.iter().flatten().next().map(|model| model.device.clone());
    match device.expect("a queue has a model").ready().await {
        Ok(_) => {
            gate.open();
            std::future::pending().await
        }
        Err(why) => why,
    }
}

/// One series of `worker_info` for a worker, so that all its figures can be joined with it.
fn show(plan: &Plan, metrics: &Metrics) {
    let joined = |words: &dyn Fn(&QueuePlan) -> String| {
        plan.queues.iter().map(words).collect::<Vec<_>>().join(",")
    };
    let queues = joined(&|plan| plan.url.queue.to_string());
    let models = joined(&|plan| plan.words.clone());
    metrics.info.with_label_values(&[&queues, &models]).set(1);
}

/// Opens the queues, each with where its alerts go; `None` when stopped meanwhile.
async fn open(
    plan: &Plan,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Vec<(Queue, Queue)>>> {
    let mut options = OpenOptions {
        worker: plan.settings.worker.clone(),
        missing: plan.missing,
        connect_timeout: plan.connect_timeout,
        ..OpenOptions::default()
    };
    if let Some(url) = &plan.results {
        let store = connect(url, &options, metrics, stop).await.context("--results")?;
        let Some(store) = store else { return Ok(None) };
        options.results = Some(Results(store));
    }
    options.payloads.clone_from(&plan.payloads);
    // All at the same time: each may have to wait for its broker.
    let queues = plan.queues.iter().map(async |QueuePlan { url, .. }| {
        connect(url, &options, metrics, stop).await.with_context(|| plan.flag_of(url))
    });
    let alarms = plan.queues.iter().map(QueuePlan::alerts).collect::<Vec<_>>();
    let alerts = async {
        match alarms.contains(&true) {
            true => connect(&plan.alerts, &options, metrics, stop).await.context("--alerts"),
            false => Ok(None),
        }
    };
    let (queues, alerts) = tokio::try_join!(try_join_all(queues), alerts)?;
    let with_alerts = queues.into_iter().zip(alarms).map(|(queue, has_alarms)| {
        let queue = queue?;
        let own = if has_alarms { alerts.clone()? } else { Arc::clone(&queue) };
        Some((queue, own))
    });
    Ok(with_alerts.collect())
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
        let opened = async {
            let queue = ebb_queue::open(url, options.clone()).await?;
            tell_warnings(url, &queue, metrics).await;
            Ok::<_, ebb_queue::Error>(queue)
        };
        let opened = tokio::select! { biased;
            () = stop.cancelled() => return Ok(None),
            opened = opened => opened,
        };
        let error = match opened {
            Ok(queue) => return Ok(Some(queue)),
            Err(error) => error,
        };
        let pause = pauses.next(Failed::with(error.kind()), rand::random());
        // What cannot be right is wrong at the first try; a refusal may be one of a broker that comes back.
        if error.kind() == ErrorKind::Invalid || pauses.are_over() {
            return Err(error.into());
        }
        let does = if error.kind().heals() { "does not answer" } else { "refuses" };
        warn!(queue = %url, %error, "the broker {does}; trying again");
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
