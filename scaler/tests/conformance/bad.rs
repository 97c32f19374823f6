//! A scaler that does one thing wrong.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_proto::keda::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use ebb_scaler::conformance::Hand;
use futures::Stream;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    NoSpec,
    TwoSpecs,
    SpecFails,
    TargetOfZero,
    TargetWithoutInteger,
    NameInCapitals,
    NameWithPrefix,
    TargetThatCounts,
    NoValue,
    TwoValues,
    ValueFails,
    ValueOfAnother,
    ValueNotANumber,
    ValueBelowZero,
    ValueWithoutInteger,
    ValueWithStaleInteger,
    AnyMetric,
    ActivityFails,
    InactiveThroughout,
    Slow,
    RefusesKedasKeys,
    RefusesFromEnv,
    NonsenseIsUnknown,
    NonsenseIsTaken,
    PushIsSilent,
    PushIsWrong,
    PushTicks,
    PushEnds,
    PushBreaks,
    SpecsAreSilent,
    SpecsAreUnknown,
    SpecsAreEmpty,
    SpecsDiffer,
    OneAtATime,
    FewStreams,
    NeverForgets,
    BreaksStreams,
    CutsConnections,
    Lingers,
    /// Faults that are none: what KEDA can live with.
    IntegersOnly,
    NoStreams,
}

/// The scaler; ends with it.
pub(crate) struct Bad {
    pub(crate) address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
    stopping: CancellationToken,
    ended: Arc<AtomicBool>,
    /// How many streams are open.
    open: watch::Sender<usize>,
    fault: Fault,
}

impl Bad {
    pub(crate) fn start(fault: Fault) -> Self {
        Self::start_with(fault, None)
    }

    pub(crate) fn start_with(fault: Fault, tls: Option<ServerTlsConfig>) -> Self {
        // Of its own, so that it can go as a process goes.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let ended = Arc::new(AtomicBool::new(false));
        let open = watch::Sender::new(0);
        let service = Service {
            fault,
            stopping: stopping.clone(),
            n_specs: Arc::default(),
            n_streams: Arc::default(),
            open: open.clone(),
            turn: Arc::default(),
        };
        let (stop, end) = (stopping.clone(), Arc::clone(&ended));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let streams = if fault == Fault::FewStreams { 30 } else { 10_000 };
            let goaway = async move {
                stop.cancelled().await;
                if fault == Fault::CutsConnections {
                    // Never, however long the cut takes.
                    std::future::pending::<()>().await;
                }
                // The streams first.
                sleep(Duration::from_millis(400)).await;
            };
            let mut server = Server::builder().max_concurrent_streams(streams);
            if let Some(tls) = tls {
                server = server.tls_config(tls).unwrap();
            }
            let served = server
                .add_service(ExternalScalerServer::new(service))
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), goaway);
            served.await.unwrap();
            if fault != Fault::Lingers {
                end.store(true, Ordering::SeqCst);
            }
        });
        Self { address, runtime: Mutex::new(Some(runtime)), stopping, ended, open, fault }
    }
}

impl Hand for Bad {
    fn stop(&self) -> io::Result<()> {
        self.stopping.cancel();
        if self.fault == Fault::CutsConnections {
            let runtime = self.runtime.lock().unwrap().take().unwrap();
            let (ended, mut open) = (Arc::clone(&self.ended), self.open.subscribe());
            std::thread::spawn(move || {
                runtime.block_on(async {
                    drop(open.wait_for(|n_open| *n_open == 0).await);
                    // The runtime's one thread sends their ends before it sees that this is over.
                    sleep(Duration::from_secs(1)).await;
                });
                runtime.shutdown_background();
                ended.store(true, Ordering::SeqCst);
            });
        }
        Ok(())
    }

    fn gone(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Service {
    fault: Fault,
    stopping: CancellationToken,
    n_specs: Arc<AtomicUsize>,
    n_streams: Arc<AtomicUsize>,
    open: watch::Sender<usize>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Counts a stream while it is there.
struct Open(watch::Sender<usize>);

impl Open {
    fn count(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|n_open| *n_open += 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|n_open| *n_open -= 1);
    }
}

const NAME: &str = "jobs-waiting";
const DRAINED: &str = "the stream is over";
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// What all calls have in common: they take time, and read the metadata.
    async fn begin(&self, object: &ScaledObjectRef) -> Result<(), Status> {
        if self.fault == Fault::OneAtATime {
            let _turn = self.turn.lock().await;
            sleep(Duration::from_millis(20)).await;
        }
        let invalid = |key: &str| Err(Status::invalid_argument(format!("{key} is not known")));
        for key in object.scaler_metadata.keys() {
            match (key.as_str(), self.fault) {
                ("unsafeSsl", Fault::RefusesKedasKeys)
                | ("queueFromEnv", Fault::RefusesFromEnv) => return invalid(key),
                ("queue" | "queueFromEnv", _)
                | ("scalerAddress" | "enableTLS" | "unsafeSsl", _)
                | ("caCert" | "tlsClientCert" | "tlsClientKey", _)
                | (_, Fault::NonsenseIsTaken) => {}
                (_, Fault::NonsenseIsUnknown) => return Err(Status::unknown("panic: nil map")),
                _ => return invalid(key),
            }
        }
        Ok(())
    }

    fn spec(&self) -> MetricSpec {
        let n = self.n_specs.fetch_add(1, Ordering::SeqCst);
        let (name, int, float) = match self.fault {
            Fault::TargetOfZero => (NAME, 0, 0.0),
            Fault::TargetWithoutInteger => (NAME, 0, 0.5),
            Fault::TargetThatCounts => (NAME, n as i64 + 1, n as f64 + 1.0),
            Fault::NameInCapitals => ("Jobs_Waiting", 5, 5.0),
            Fault::NameWithPrefix => ("s0-jobs", 5, 5.0),
            Fault::IntegersOnly => (NAME, 5, 0.0),
            _ => (NAME, 5, 5.0),
        };
        MetricSpec { metric_name: name.to_owned(), target_size: int, target_size_float: float }
    }

    fn specs(&self) -> Vec<MetricSpec> {
        match self.fault {
            Fault::NoSpec => Vec::new(),
            Fault::TwoSpecs => vec![self.spec(), self.spec()],
            _ => vec![self.spec()],
        }
    }

    fn value(&self, name: &str) -> MetricValue {
        let (int, float) = match self.fault {
            Fault::ValueNotANumber => (0, f64::NAN),
            Fault::ValueBelowZero => (-3, -3.0),
            Fault::ValueWithoutInteger => (0, 7.5),
            Fault::ValueWithStaleInteger => (9, 0.0),
            Fault::IntegersOnly => (8, 0.0),
            _ => (8, 7.5),
        };
        let name = if self.fault == Fault::ValueOfAnother { "jobs-dead" } else { name };
        MetricValue { metric_name: name.to_owned(), metric_value: int, metric_value_float: float }
    }

    fn active(&self) -> bool {
        self.fault != Fault::InactiveThroughout
    }

    /// Ends with the server, as the server ends streams.
    async fn over<T>(&self) -> Option<Result<T, Status>> {
        self.stopping.cancelled().await;
        (self.fault == Fault::BreaksStreams).then(|| Err(Status::unavailable(DRAINED)))
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        self.begin(request.get_ref()).await?;
        if self.fault == Fault::ActivityFails {
            return Err(Status::internal("no"));
        }
        Ok(Response::new(IsActiveResponse { result: self.active() }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        self.begin(request.get_ref()).await?;
        if self.fault == Fault::NoStreams {
            return Err(Status::unimplemented("no"));
        }
        let n = self.n_streams.fetch_add(1, Ordering::SeqCst);
        if self.fault == Fault::NeverForgets && n > 100 {
            return Err(Status::resource_exhausted("too many streams"));
        }
        let (service, open) = (self.clone(), Open::count(&self.open));
        Ok(Response::new(Box::pin(async_stream::stream! {
            let _open = open;
            let say = |result| Ok(IsActiveResponse { result });
            match service.fault {
                Fault::PushIsSilent => {}
                Fault::PushIsWrong => yield say(false),
                _ => yield say(service.active()),
            }
            match service.fault {
                Fault::PushEnds => return,
                Fault::PushBreaks => yield Err(Status::internal("no")),
                _ => {}
            }
            let mut ticks = interval(Duration::from_millis(50));
            loop {
                tokio::select! {
                    over = service.over() => {
                        if let Some(over) = over {
                            yield over;
                        }
                        return;
                    }
                    _ = ticks.tick(), if service.fault == Fault::PushTicks => yield say(true),
                }
            }
        })))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        self.begin(request.get_ref()).await?;
        if self.fault == Fault::SpecFails {
            return Err(Status::unavailable("no broker"));
        }
        Ok(Response::new(GetMetricSpecResponse { metric_specs: self.specs() }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        self.begin(&scaled_object_ref.unwrap()).await?;
        if self.fault == Fault::Slow {
            sleep(Duration::from_millis(1600)).await;
        }
        if self.fault == Fault::ValueFails {
            return Err(Status::unavailable("no broker"));
        }
        if metric_name != self.spec().metric_name && self.fault != Fault::AnyMetric {
            return Err(Status::not_found("no such metric"));
        }
        let value = self.value(&metric_name);
        let metric_values = match self.fault {
            Fault::NoValue => Vec::new(),
            Fault::TwoValues => vec![value.clone(), value],
            _ => vec![value],
        };
        Ok(Response::new(GetMetricsResponse { metric_values }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        self.begin(request.get_ref()).await?;
        match self.fault {
            Fault::NoStreams => return Err(Status::unimplemented("no")),
            Fault::SpecsAreUnknown => return Err(Status::unknown("no")),
            _ => {}
        }
        let (service, open) = (self.clone(), Open::count(&self.open));
        Ok(Response::new(Box::pin(async_stream::stream! {
            let _open = open;
            let mut metric_specs = vec![service.spec()];
            match service.fault {
                Fault::SpecsAreEmpty => metric_specs.clear(),
                Fault::SpecsDiffer => metric_specs[0].target_size_float = 4.5,
                _ => {}
            }
            if service.fault != Fault::SpecsAreSilent {
                yield Ok(GetMetricSpecResponse { metric_specs });
            }
            if let Some(over) = service.over().await {
                yield over;
            }
        })))
    }
}
