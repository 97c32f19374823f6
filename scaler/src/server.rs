//! The service on a port: HTTP/2 as KEDA needs it, health, reflection, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ebb_proto::keda::external_scaler_server::ExternalScalerServer;
use ebb_queue::Missing;
use ebb_telemetry::{GateKind, Health, Traces};
use futures::future::BoxFuture;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::client::Clients;
use crate::config::ScalerArgs;
use crate::connection::{HANDSHAKE, Welcome, incoming, of_one_address};
use crate::explain::{Explain, page};
use crate::figures::QueueFigures;
use crate::health::Checks;
use crate::limits::MAX_MESSAGE;
use crate::metrics::Metrics;
use crate::profiles::Profiles;
use crate::readiness::standings;
use crate::reflection::First;
use crate::service::Service;
use crate::site::{Connect, Site};
use crate::tls::Tls;
use crate::unread::{Bounded, READ};
use crate::watch::Observers;

/// All objects with one address share one connection, and each push trigger parks two streams
/// on it; hyper's own limit of 200 would stall calls that have no deadline. So many are left for
/// calls beside the streams that `--max-streams` allows.
const MAX_CALLS: u32 = 45_536;

/// Bytes that a call may send before they are read: a message, and no less than what a client may
/// send before it knows of a limit.
const STREAM_WINDOW: u32 = 64 << 10;

/// The same for all calls of a connection. It lets a crowd of small ones arrive at once: a connection
/// whose unread small frames add up to half of its window is taken for an attack and closed.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// How long a scaler that is to end goes on to take connections: until then whoever sends them here has
/// seen that it is not ready. Less than the two seconds after which KEDA opens its streams again, so
/// that it does so elsewhere.
const LEAVING: Duration = Duration::from_secs(1);
/// And never more than this part of its grace.
const PART_OF_LEAVING: u32 = 5;

/// Finds connections whose other end has gone without a word.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);

/// A scaler that has its ports and waits to be served.
pub struct Scaler {
    args: ScalerArgs,
    profiles: Profiles,
    tls: Option<Tls>,
    traces: Traces,
    connect: Arc<dyn Connect>,
    grpc: TcpListener,
    http: Option<TcpListener>,
}

impl std::fmt::Debug for Scaler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scaler").field("grpc", &self.grpc).finish_non_exhaustive()
    }
}

/// Runs a scaler until `stop` is cancelled.
///
/// # Errors
/// When the arguments contradict each other or a port cannot be had.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn run(args: ScalerArgs, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move { Scaler::bind(args).await?.serve(stop).await })
}

impl Scaler {
    /// Checks the arguments, reads the files and takes the ports; no broker is asked for anything.
    ///
    /// # Errors
    /// When the arguments contradict each other, a file is not as it should be, or a port cannot
    /// be had.
    pub fn bind(args: ScalerArgs) -> BoxFuture<'static, anyhow::Result<Self>> {
        let missing = if args.no_create { Missing::Refuse } else { Missing::Create };
        Self::bind_with(args, Arc::new(Site::new(missing)))
    }

    /// The same with queues from elsewhere; URLs only say which.
    ///
    /// # Errors
    /// As [`Scaler::bind`].
    // Boxed for what `run` is boxed for.
    #[inline(never)]
    pub fn bind_with(
        args: ScalerArgs,
        connect: Arc<dyn Connect>,
    ) -> BoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(Self::take_ports(args, connect))
    }

    async fn take_ports(args: ScalerArgs, connect: Arc<dyn Connect>) -> anyhow::Result<Self> {
        args.check()?;
        let profiles = args.source().load()?;
        let tls = args.tls.files()?.map(Tls::load).transpose()?;
        let service = ebb_telemetry::Service {
            name: "ebb-scaler",
            version: env!("CARGO_PKG_VERSION"),
            instance: None,
        };
        let traces = args.trace.start(&service)?;
        let listen = async |flag, address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.with_context(|| format!("{flag}: {address} cannot be had; use another port"))
        };
        let grpc = listen("--listen", args.listen).await?;
        let http = match args.http_listen {
            Some(address) => Some(listen("--http-listen", address).await?),
            None => None,
        };
        Ok(Self { args, profiles, tls, traces, connect, grpc, http })
    }

    /// The address for KEDA.
    ///
    /// # Errors
    /// When the system will not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// The address for probes and metrics, if there is one.
    ///
    /// # Errors
    /// When the system will not tell.
    pub fn http_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.http.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// Serves until `stop` is cancelled, then ends streams, connections and observers in order.
    ///
    /// # Errors
    /// When a listener fails.
    // Boxed for what `run` is boxed for.
    #[inline(never)]
    pub fn serve(self, stop: CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(self.answer(stop))
    }

    async fn answer(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { args, profiles, tls, traces, connect, grpc, http } = self;
        let registry = Registry::new();
        ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
        let metrics = Metrics::register(&registry)?;
        // Ends observers and probes, also when this future is dropped.
        let closing = CancellationToken::new();
        let _closing = closing.clone().drop_guard();
        let (told, profiles) = watch::channel(Arc::new(profiles));
        let outlets = (metrics.clone(), traces.clone());
        let observers = Observers::new(connect, profiles.clone(), &args, outlets, closing.clone());
        let explain = Explain::default();
        let figures =
            QueueFigures::new(observers.clone(), profiles.clone(), explain.clone(), args.keep)?;
        registry.register(Box::new(figures))?;
        let service = Service::new(
            profiles.clone(),
            observers.clone(),
            explain.clone(),
            metrics.clone(),
            &args,
        );
        let (reporter, router) = router(service.clone(), &args).await?;
        let health = Health::new();
        // No broker is part of this: without it KEDA still needs the last known good.
        let gate = health.gate("grpc", GateKind::Ready);
        gate.open();
        describe(&health, profiles.clone(), observers.clone());
        let probes = http.as_ref().map(TcpListener::local_addr).transpose()?;
        announce(&profiles.borrow(), grpc.local_addr()?, probes, tls.is_some());

        let goaway = CancellationToken::new();
        let welcome = welcome(&args, tls.as_ref(), metrics.clone());
        let calls =
            router.serve_with_incoming_shutdown(incoming(grpc, welcome), goaway.cancelled());
        let more = page::router(explain, observers.clone(), args.keep);
        let probes = serve_probes(http, health, registry, more, closing.clone());
        let wind_down = async {
            stop.cancelled().await;
            gate.close("shutting down");
            reporter.set_service_status("", ServingStatus::NotServing).await;
            reporter.set_not_serving::<Served>().await;
            leave(&service, args.grace, &goaway).await;
        };
        let ended = tokio::select! {
            ended = calls => ended.context("--listen: the listener failed"),
            () = probes => Ok(()),
            () = follow(&args, told, tls, metrics) => Ok(()),
            () = wind_down => Ok(()),
        };
        closing.cancel();
        observers.join().await;
        traces.flush().await;
        tracing::info!("scaler stopped");
        ended
    }
}

/// Ends streams and then connections, and returns when there is no more time for it.
async fn leave(service: &Service, grace: Duration, goaway: &CancellationToken) {
    // Streams end before connections: one that is cut off makes KEDA come back ever later.
    // A client that reads nothing never lets go of its own; the others are still to be told
    // that their connections end.
    let begun = Instant::now();
    drop(timeout_at(begun + grace / 2, service.drain()).await);
    // New connections are taken until then, and streams on them end at once.
    sleep_until(begun + LEAVING.min(grace / PART_OF_LEAVING)).await;
    goaway.cancel();
    sleep_until(begun + grace).await;
    tracing::warn!("connections are cut: their other ends did not let go in time");
}

/// Keeps configuration and certificates as they are on disk; never ends.
async fn follow(
    args: &ScalerArgs,
    profiles: watch::Sender<Arc<Profiles>>,
    tls: Option<Tls>,
    metrics: Metrics,
) {
    let certificates = async {
        match tls {
            Some(tls) => tls.follow(args.reload, metrics.clone()).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(args.source().follow(args.reload, profiles, metrics.clone()), certificates);
}

/// Lists the profiles and how they are on `/readyz`.
fn describe(health: &Health, profiles: watch::Receiver<Arc<Profiles>>, observers: Observers) {
    health.describe(move || {
        let profiles = Arc::clone(&profiles.borrow());
        let standings =
            standings(&profiles, &observers.views(), Instant::now(), observers.max_age());
        let line = |(name, standing)| format!("profile {name}: {standing}\n");
        standings.into_iter().map(line).collect()
    });
}

fn welcome(args: &ScalerArgs, tls: Option<&Tls>, metrics: Metrics) -> Welcome {
    Welcome {
        tls: tls.map(Tls::config),
        handshake: HANDSHAKE,
        max_connections: args.max_connections,
        max_streams: args.max_streams,
        clients: Clients::new(args.max_streams_per_client, of_one_address(args.max_connections)),
        metrics,
    }
}

fn announce(profiles: &Profiles, listen: SocketAddr, http: Option<SocketAddr>, encrypted: bool) {
    let brokers = profiles.by_name.values().map(|profile| profile.url.to_string());
    let brokers = brokers.collect::<Vec<_>>().join(",");
    let profiles = profiles.by_name.keys().cloned().collect::<Vec<_>>().join(",");
    let http = http.map(tracing::field::display);
    tracing::info!(profiles, brokers, %listen, encrypted, http, "scaler started");
}

type Served = ExternalScalerServer<Service>;

/// The services behind one port, and the switch of their health.
async fn router(service: Service, args: &ScalerArgs) -> anyhow::Result<(HealthReporter, Router)> {
    let reporter = HealthReporter::new();
    reporter.set_serving::<Served>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(ebb_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let max_streams = u32::try_from(args.max_streams).unwrap_or(u32::MAX).saturating_add(MAX_CALLS);
    let router = Server::builder()
        .max_concurrent_streams(max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(max_streams as usize))
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .max_connection_age(args.connection_max_age)
        // Streams that have begun live on, and so does what KEDA asks for in less time.
        .timeout(READ)
        .add_service(Bounded(
            ExternalScalerServer::new(service).max_decoding_message_size(MAX_MESSAGE),
        ))
        .add_service(Bounded(Checks::of(&reporter).max_decoding_message_size(MAX_MESSAGE)))
        .add_service(Bounded(First(reflection().build_v1()?)))
        .add_service(Bounded(First(reflection().build_v1alpha()?)));
    Ok((reporter, router))
}

async fn serve_probes(
    http: Option<TcpListener>,
    health: Health,
    registry: Registry,
    more: axum::Router,
    stop: CancellationToken,
) {
    match http {
        Some(http) => ebb_telemetry::serve_with(http, health, registry, more, stop).await,
        None => stop.cancelled().await,
    }
}
