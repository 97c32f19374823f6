//! The service on a port: HTTP/2 as KEDA needs it, health, reflection, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ebb_proto::keda::external_scaler_server::ExternalScalerServer;
use ebb_queue::{Missing, QueueUrl};
use ebb_telemetry::{GateKind, Health};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::ScalerArgs;
use crate::metrics::{Metrics, QueueFigures};
use crate::observe::{Connect, Site};
use crate::service::Service;
use crate::watch::Observers;

/// All objects with one address share one connection, and each push trigger parks two streams
/// on it; hyper's own limit of 200 would stall calls that have no deadline.
const MAX_STREAMS: u32 = 65_536;

/// Lets a crowd of small calls arrive at once: a connection whose unread small frames add up to
/// half of its window is taken for an attack and closed.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Finds connections whose other end has gone without a word.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(10);

/// A scaler that has its ports and waits to be served.
pub struct Scaler {
    args: ScalerArgs,
    broker: QueueUrl,
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
pub async fn run(args: ScalerArgs, stop: CancellationToken) -> anyhow::Result<()> {
    Scaler::bind(args).await?.serve(stop).await
}

impl Scaler {
    /// Checks the arguments and takes the ports; the broker is not asked for anything yet.
    ///
    /// # Errors
    /// When the arguments contradict each other or a port cannot be had.
    pub async fn bind(args: ScalerArgs) -> anyhow::Result<Self> {
        let broker = args.check()?.clone();
        let missing = if args.no_create { Missing::Refuse } else { Missing::Create };
        Self::bind_with(args, Arc::new(Site { broker, missing })).await
    }

    /// The same with queues from elsewhere; `--queue` only names the default one.
    ///
    /// # Errors
    /// As [`Scaler::bind`].
    pub async fn bind_with(args: ScalerArgs, connect: Arc<dyn Connect>) -> anyhow::Result<Self> {
        let broker = args.check()?.clone();
        let listen = async |flag, address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.with_context(|| format!("{flag}: {address} cannot be had; use another port"))
        };
        let grpc = listen("--listen", args.listen).await?;
        let http = match args.http_listen {
            Some(address) => Some(listen("--http-listen", address).await?),
            None => None,
        };
        Ok(Self { args, broker, connect, grpc, http })
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
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { args, broker, connect, grpc, http } = self;
        let registry = Registry::new();
        ebb_telemetry::build_info(&registry, env!("CARGO_PKG_VERSION"))?;
        let metrics = Metrics::register(&registry)?;
        // Ends observers and probes, also when this future is dropped.
        let closing = CancellationToken::new();
        let _closing = closing.clone().drop_guard();
        let observers = Observers::new(connect, &args, metrics.clone(), closing.clone());
        registry.register(Box::new(QueueFigures::new(observers.clone())?))?;
        let service = Service::new(broker.clone(), observers.clone(), metrics, &args);
        let (reporter, router) = router(service.clone()).await?;
        let health = Health::new();
        // The broker is not part of this: without it KEDA still needs the last known good.
        let gate = health.gate("grpc", GateKind::Ready);
        gate.open();
        let probes = http.as_ref().map(TcpListener::local_addr).transpose()?;
        let probes = probes.map(tracing::field::display);
        tracing::info!(%broker, listen = %grpc.local_addr()?, http = probes, "scaler started");

        let goaway = CancellationToken::new();
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        let calls = router.serve_with_incoming_shutdown(incoming, goaway.cancelled());
        let probes = serve_probes(http, health, registry, closing.clone());
        let wind_down = async {
            stop.cancelled().await;
            gate.close("shutting down");
            reporter.set_service_status("", ServingStatus::NotServing).await;
            reporter.set_not_serving::<Served>().await;
            // Streams end before connections: one that is cut off makes KEDA come back ever later.
            let end = Instant::now() + args.grace;
            drop(timeout_at(end, service.drain()).await);
            goaway.cancel();
            sleep_until(end).await;
            tracing::warn!("connections are cut: their other ends did not let go in time");
        };
        let ended = tokio::select! {
            ended = calls => ended.context("--listen: the listener failed"),
            ended = probes => ended.context("--http-listen: the listener failed"),
            () = wind_down => Ok(()),
        };
        closing.cancel();
        observers.join().await;
        tracing::info!("scaler stopped");
        ended
    }
}

type Served = ExternalScalerServer<Service>;

/// The services behind one port, and the switch of their health.
async fn router(service: Service) -> anyhow::Result<(HealthReporter, Router)> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<Served>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(ebb_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .add_service(ExternalScalerServer::new(service))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok((reporter, router))
}

async fn serve_probes(
    http: Option<TcpListener>,
    health: Health,
    registry: Registry,
    stop: CancellationToken,
) -> io::Result<()> {
    if let Some(http) = http {
        return ebb_telemetry::serve(http, health, registry, stop).await;
    }
    stop.cancelled().await;
    Ok(())
}
