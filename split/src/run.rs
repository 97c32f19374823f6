//! A split as the command line asks for it: broker and probes around the loop.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ebb_queue::{
    Clock, ErrorKind, Moved, OpenOptions, Phase, Queue, QueueUrl, Results, SystemClock,
    WorkerStatus,
};
use ebb_telemetry::{GateKind, Health};
use futures::future::BoxFuture;
use prometheus::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::config::{Plan, SplitArgs};
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::place::keeps_records;
use crate::reload;
use crate::retention;
use crate::splitter::{Open, Parts, Splitter};
use crate::weights::Weights;

/// From one report to the next.
const REPORT: Duration = Duration::from_secs(1);

/// How long a split waits for the end of a step that deletes old dead letters.
const FAREWELL: Duration = Duration::from_secs(1);

/// Between two tries to reach a broker that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Splits until `stop` is cancelled, then gives back what has not gone on.
///
/// # Errors
/// When the arguments are wrong, before a port is bound; when a port cannot be had, or the broker
/// refuses.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn run(args: SplitArgs, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(split(args, stop))
}

async fn split(args: SplitArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let Plan { queue, results, weights, file, missing } = args.check()?;
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry)?;
    ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    let health = Health::new();
    let gate = health.gate("broker", GateKind::Ready);
    // Ends when this function does: the probes answer until the last job is settled.
    let _probes = ebb_telemetry::serve_at("--listen", args.listen, health, registry).await?;
    info!(queue = %queue, %weights, by = %args.by, "split starts");
    let worker = name();
    let connect_timeout = args.connect_timeout;
    let mut options =
        OpenOptions { worker: worker.clone(), missing, connect_timeout, ..OpenOptions::default() };
    let results = match results {
        None => None,
        Some(url) => match connect(&url, &options, &stop).await.context("--results")? {
            None => return Ok(()),
            store => store,
        },
    };
    // The records of where jobs went lie with the jobs, wherever their answers are.
    options.moved = Moved::Show;
    let records = keeps_records(&queue);
    options.results = results.clone().filter(|_| !records).map(Results);
    let Some(intake) = connect(&queue, &options, &stop).await.context("--queue")? else {
        return Ok(());
    };
    let Some(queues) = targets(&queue, &weights, &options, &stop).await? else { return Ok(()) };
    let weights = watch::Sender::new(Arc::new(weights));
    let parts = Parts {
        intake: Arc::clone(&intake),
        results,
        keeps_records: records,
        open: opener(queue.clone(), options),
        weights: weights.subscribe(),
        by: args.by,
        when_full: args.when_full,
        window: args.window,
        body_memory: args.body_memory,
        grace: args.grace,
        clock: Arc::new(SystemClock),
        metrics: metrics.clone(),
        gate,
    };
    let leases = Leases::default();
    let (cleaned, ends) = ((queue.queue.clone(), Arc::clone(&intake)), stop.clone());
    let cleaner = tokio::spawn(retention::keep(cleaned, rand::random(), metrics.clone(), ends));
    let cleaner = AbortOnDropHandle::new(cleaner);
    let mut company = vec![
        tokio::spawn(leases.clone().keep(Arc::clone(&intake), metrics.clone())),
        tokio::spawn(report(Arc::clone(&intake), worker, leases.clone(), metrics.clone())),
    ];
    let follow = |path| reload::follow((path, queue.queue), args.reload, weights, metrics.clone());
    company.extend(file.map(|path| tokio::spawn(follow(path))));
    let _company: Vec<_> = company.into_iter().map(AbortOnDropHandle::new).collect();
    Splitter::new(parts, leases, queues).run(stop.clone()).await;
    stop.cancel();
    see_out(cleaner).await;
    info!(n_jobs = metrics.age.get_sample_count(), "split ends");
    Ok(())
}

/// Lets a step that deletes old dead letters end, for so long.
async fn see_out(cleaner: AbortOnDropHandle<()>) {
    if tokio::time::timeout(FAREWELL, cleaner).await.is_err() {
        warn!("a step that deletes old dead letters was cut off");
    }
}

/// Opens the queues that have a weight, by name; `None` when stopped meanwhile.
async fn targets(
    intake: &QueueUrl,
    weights: &Weights,
    options: &OpenOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Vec<(String, Queue)>>> {
    let mut queues = Vec::new();
    for name in weights.queues() {
        let url = intake.with_queue(name)?;
        let opened = connect(&url, options, stop).await.with_context(|| format!("--to {name}"))?;
        let Some(opened) = opened else { return Ok(None) };
        queues.push((name.to_owned(), opened));
    }
    Ok(Some(queues))
}

/// Opens the other queues of a broker.
fn opener(url: QueueUrl, options: OpenOptions) -> Open {
    Arc::new(move |name: String| {
        let (url, options) = (url.clone(), options.clone());
        Box::pin(async move { ebb_queue::open(&url.with_queue(&name)?, options).await })
    })
}

/// Opens a queue, and waits for a broker that is not there yet; `None` when stopped meanwhile.
async fn connect(
    url: &QueueUrl,
    options: &OpenOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Queue>> {
    loop {
        let opened = tokio::select! { biased;
            () = stop.cancelled() => return Ok(None),
            opened = ebb_queue::open(url, options.clone()) => opened,
        };
        match opened {
            Ok(queue) => return Ok(Some(queue)),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                warn!(%error, "the broker does not answer; trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! { biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Tells the intake that somebody is at work there, until it is dropped.
async fn report(intake: Queue, id: String, leases: Leases, metrics: Metrics) {
    loop {
        let n_held = leases.n_held() as u64;
        let status = WorkerStatus {
            id: id.clone(),
            pod: id.clone(),
            phase: if n_held > 0 { Phase::Busy } else { Phase::Idle },
            in_flight: n_held,
            slots: 0,
            completed: metrics.age.get_sample_count(),
            failed: 0,
            batch_time: None,
            cold_start: Vec::new(),
            first_result: None,
            model: "split".to_owned(),
            at: SystemClock.now(),
        };
        if let Err(error) = intake.report(&status).await {
            debug!(%error, "the status was not reported");
        }
        tokio::time::sleep(REPORT).await;
    }
}

/// Who this is in the history of jobs: the host, and chance.
fn name() -> String {
    let chance = uuid::Uuid::now_v7().simple().to_string();
    format!("split-{}-{}", ebb_telemetry::host(), &chance[20..])
}

#[cfg(test)]
mod tests {
    use ebb_queue::OpenOptions;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_broker_that_takes_a_connection_and_never_answers() {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", broker.local_addr().unwrap()).parse().unwrap();
        let options =
            OpenOptions { connect_timeout: Duration::from_secs(60), ..OpenOptions::default() };
        let (stop, begun) = (CancellationToken::new(), Instant::now());
        let stopped = async {
            // It reads nothing of what comes.
            let _connected = broker.accept().await.unwrap();
            stop.cancel();
        };
        let (opened, ()) = tokio::join!(connect(&url, &options, &stop), stopped);
        assert!(opened.unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}
