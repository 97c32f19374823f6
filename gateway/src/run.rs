//! A gateway as the command line asks for it: brokers, keys, ports and probes around the routes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use ebb_queue::{Missing, OpenOptions, Payloads, Queue, Results, SystemClock};
use ebb_telemetry::{Gate, GateKind, Health, Service};
use futures::future::BoxFuture;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use crate::config::{GatewayArgs, Plan};
use crate::connections::Welcome;
use crate::metrics::Metrics;
use crate::models::{Model, ModelPlan, Models};
use crate::routes::{Parts, router};
use crate::wanted::Canceller;
use crate::{connections, files, readiness, reload};

/// How long those have to hear it who are told that the gateway ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Between two tries to reach a broker that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest between two tries of one that refuses: what is wrong is mended by hand.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Serves until `stop` is cancelled, and then answers who waits, as long as the grace period lasts.
///
/// # Errors
/// When the arguments are wrong, before a port is bound; when a port cannot be had, or a broker
/// refuses.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn run(args: GatewayArgs, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(gateway(args, stop))
}

async fn gateway(args: GatewayArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let Plan { models, keys, ids, payloads, missing } = args.check()?;
    let registry = Registry::new();
    let metrics = Metrics::registered(&registry)?;
    ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
    let version = env!("CARGO_PKG_VERSION");
    let service = Service { name: "ebb-gateway", version, instance: None };
    let traces = args.trace.start(&service)?;
    let health = Health::new();
    let (brokers, serving) =
        (health.gate("brokers", GateKind::Ready), health.gate("serving", GateKind::Ready));
    let welcome = welcome(&args);
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener
        .with_context(|| format!("--listen: {} cannot be had; use another port", args.listen))?;
    // Ends when this function does: the probes answer until the last request is.
    let _probes =
        ebb_telemetry::serve_at("--admin-listen", args.admin_listen, health, registry).await?;
    let options = options(&args, missing);
    let models: Models = models.into_iter().map(Model::new).collect();
    let opened = tokio::select! { biased;
        opened = open(&models, &options, payloads.as_ref()) => opened?,
        () = stop.cancelled() => return Ok(()),
    };
    let mut company = opened;
    company.push(tokio::spawn(readiness::keep(models.clone(), brokers, metrics.clone())));
    let keys = keys.map(|(path, keys)| {
        reload::tell_unknown(&keys, &models);
        let sender = watch::Sender::new(Arc::new(keys));
        let keys = sender.subscribe();
        let (models, metrics) = (models.clone(), metrics.clone());
        company.push(tokio::spawn(reload::follow(path, args.reload, sender, models, metrics)));
        keys
    });
    let _company: Vec<_> = company.into_iter().map(AbortOnDropHandle::new).collect();
    let closing = CancellationToken::new();
    let (canceller, cancels) = Canceller::start(&metrics, args.limits().max_in_flight);
    let parts = Parts {
        models,
        keys,
        is_local: args.is_local(),
        ids,
        canceller,
        limits: args.limits(),
        clock: Arc::new(SystemClock),
        metrics: metrics.clone(),
        traces: traces.clone(),
        closing: closing.clone(),
    };
    info!(address = %listener.local_addr()?, "the gateway listens");
    let pages = (router(parts), (welcome, metrics.clone()));
    serve(listener, pages, (&args, &serving), &stop, &closing).await;
    // Of those that were cut off, too.
    cancelled(cancels, &metrics).await;
    traces.flush().await;
    info!("the gateway ends");
    Ok(())
}

/// Lets the jobs be cancelled that nobody waits for, as far as that takes no long time.
async fn cancelled(mut cancels: AbortOnDropHandle<()>, metrics: &Metrics) {
    if tokio::time::timeout(FAREWELL, &mut cancels).await.is_ok() {
        return;
    }
    let before = metrics.uncancelled.get();
    cancels.abort();
    // What is left counts once it is dropped.
    cancels.await.ok();
    let n_jobs = metrics.uncancelled.get() - before;
    warn!(n_jobs, "jobs that nobody waits for are not cancelled and go on, up to their deadlines");
}

/// Who is let in, as far as there may be as many files as that needs.
fn welcome(args: &GatewayArgs) -> Welcome {
    let welcome = args.welcome();
    Welcome { max_connections: files::make_room(welcome.max_connections), ..welcome }
}

fn options(args: &GatewayArgs, missing: Missing) -> OpenOptions {
    let (worker, connect_timeout) = ("gateway".to_owned(), args.connect_timeout);
    OpenOptions { worker, missing, connect_timeout, ..OpenOptions::default() }
}

/// Answers requests until `stop` is cancelled, and sees those out that are there then.
async fn serve(
    listener: TcpListener,
    (pages, welcome): (Router, (Welcome, Metrics)),
    (args, serving): (&GatewayArgs, &Gate),
    stop: &CancellationToken,
    closing: &CancellationToken,
) {
    serving.open();
    let drained = CancellationToken::new();
    let served = tokio::spawn(connections::serve(listener, pages, welcome, drained.clone()));
    stop.cancelled().await;
    serving.close("the gateway ends");
    let linger = args.linger.min(args.grace);
    if !linger.is_zero() {
        info!("the gateway is not ready any more; requests that come all the same are answered");
        tokio::time::sleep(linger).await;
    }
    drained.cancel();
    info!("no more requests are taken; who waits is answered");
    see_out(served, args.grace.saturating_sub(linger), closing).await;
}

/// Lets those be answered who wait, for so long, and tells the others that the gateway ends.
async fn see_out(
    served: tokio::task::JoinHandle<()>,
    grace: Duration,
    closing: &CancellationToken,
) {
    let mut served = AbortOnDropHandle::new(served);
    if tokio::time::timeout(grace, &mut served).await.is_ok() {
        return;
    }
    closing.cancel();
    if tokio::time::timeout(FAREWELL, served).await.is_err() {
        warn!("some requests were cut off");
    }
}

/// Opens the queues. What is only away is waited for in the background, so that the other models are
/// served meanwhile.
async fn open(
    models: &Models,
    options: &OpenOptions,
    payloads: Option<&Payloads>,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<()>>> {
    let opened = models.all().iter().map(async |model| {
        let opened = opened(&model.plan, options, payloads).await;
        (model, opened)
    });
    let mut absent = Vec::new();
    for (model, opened) in futures::future::join_all(opened).await {
        match opened {
            Ok(queue) => model.open(queue),
            Err(error) if error.kind().heals() => {
                warn!(model = %model.plan.name, %error, "the broker is away or full; trying again");
                let (plan, options) = (model.plan.clone(), options.clone());
                let payloads = payloads.cloned();
                let open = async move || self::opened(&plan, &options, payloads.as_ref()).await;
                absent.push(tokio::spawn(await_broker(Arc::clone(model), open)));
            }
            Err(error) => {
                return Err(error).with_context(|| format!("model {}", model.plan.name));
            }
        }
    }
    Ok(absent)
}

async fn opened(
    plan: &ModelPlan,
    options: &OpenOptions,
    payloads: Option<&Payloads>,
) -> ebb_queue::Result<Queue> {
    let results = match &plan.results {
        None => None,
        Some(url) => Some(Results(ebb_queue::open(url, options.clone()).await?)),
    };
    let payloads = payloads.cloned();
    ebb_queue::open(&plan.url, OpenOptions { results, payloads, ..options.clone() }).await
}

/// Opens the queue of a model whose broker was not there at the start, once it is and lets us.
async fn await_broker(model: Arc<Model>, open: impl AsyncFn() -> ebb_queue::Result<Queue>) {
    let mut pause = PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let error = match open().await {
            Ok(queue) => {
                info!(model = %model.plan.name, "the broker answers");
                return model.open(queue);
            }
            Err(error) => error,
        };
        let is_refused = !error.kind().heals();
        model.refused(is_refused);
        if is_refused {
            pause = (2 * pause).min(LONGEST_PAUSE);
            let (kind, seconds) = (error.kind(), pause.as_secs());
            error!(model = %model.plan.name, %error, %kind, seconds, "the broker refuses; trying again later");
        } else {
            pause = PAUSE;
            warn!(model = %model.plan.name, %error, "the broker is away or full; trying again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ebb_queue::memory::MemoryQueue;
    use ebb_queue::{Behavior, Error, ErrorKind};
    use tokio::time::Instant;

    use super::*;

    fn model() -> Arc<Model> {
        Arc::new(Model::of_tests("m", None))
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_refuses_is_asked_less_and_less_and_whoever_comes_is_told() {
        let (model, n_tries) = (model(), AtomicUsize::new(0));
        let open = async || {
            let kind = match n_tries.fetch_add(1, Ordering::Relaxed) {
                0 | 10 => ErrorKind::Unavailable,
                1 => ErrorKind::Full,
                2..10 => ErrorKind::Denied,
                _ => {
                    let options = OpenOptions::default();
                    return Ok(Arc::new(MemoryQueue::new(&Behavior::default(), options)) as Queue);
                }
            };
            Err(Error::new(kind, "no"))
        };
        let start = Instant::now();
        let told = |model: &Model| model.queue().err().map(|refusal| refusal.refused.code);
        let looks = async {
            let mut said = Vec::new();
            while model.opened().is_none() {
                said.push((start.elapsed().as_secs(), told(&model)));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            said
        };
        let (said, ()) = tokio::join!(looks, await_broker(Arc::clone(&model), open));
        let at = |second| said.iter().find(|(at, _)| *at > second).unwrap().1;
        assert_eq!(at(1), Some("broker_unavailable"));
        assert_eq!(at(2), Some("broker_unavailable"), "one that is full does not refuse");
        for second in [4, 100] {
            assert_eq!(at(second), Some("broker_refuses"), "after {second} s");
        }
        // Of eight refusals: 2, 4, 8, 16, 32, and then a minute each.
        assert_eq!(start.elapsed().as_secs(), 3 + 62 + 3 * 60 + 1);
        assert_eq!(said.last().unwrap().1, Some("broker_unavailable"), "it was away again");
        assert_eq!(told(&model), None);
    }
}
