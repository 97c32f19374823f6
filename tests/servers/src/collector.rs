//! A collector of spans that keeps what it gets: OTLP over gRPC, on a thread of its own.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{Error, Result};

/// How long a test waits for spans.
const PATIENCE: Duration = Duration::from_secs(20);

/// A span as it came, ids in hex.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Who made it: the attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// What it is called.
    pub name: String,
    /// What it is to others, in lower case.
    pub kind: String,
    /// Its trace.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// Its parent; empty where it has none.
    pub parent: String,
    /// The spans it is linked to.
    pub links: Vec<String>,
    /// What is said of it.
    pub fields: BTreeMap<String, String>,
    /// Whether what it stands for failed.
    pub failed: bool,
    /// When it began and ended, in nanoseconds since 1970.
    pub time: (u64, u64),
}

/// A running collector; stopped when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _stop: oneshot::Sender<()>,
}

impl Collector {
    /// Starts one on a free port of the loopback.
    ///
    /// # Errors
    /// When no port or no thread is to be had.
    pub fn start() -> Result<Self> {
        Self::start_on(([127, 0, 0, 1], 0).into())
    }

    /// The same at this address.
    ///
    /// # Errors
    /// When the address or a thread is not to be had.
    pub fn start_on(address: SocketAddr) -> Result<Self> {
        let failed = |error: std::io::Error| Error::because("collector of spans", error);
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::default();
        let service = TraceServiceServer::new(Keeper(Arc::clone(&seen)));
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let incoming = TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::select! {
                served = server.serve_with_incoming(incoming) => served.map_err(std::io::Error::other),
                // However the collector ends, its connections do, too.
                _ = stopped => Ok(()),
            }
        };
        let thread = std::thread::Builder::new().name("collector".to_owned());
        thread.spawn(move || runtime.block_on(serve)).map_err(failed)?;
        Ok(Self { address, seen, _stop: stop })
    }

    /// Where it is, for `--otlp-endpoint`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far, in the order in which they came.
    #[must_use]
    pub fn spans(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the spans so far have an answer for `look`.
    ///
    /// # Panics
    /// When they have none for too long; shows the spans.
    #[track_caller]
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&[Seen]) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            let spans = self.spans();
            if let Some(answer) = look(&spans) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} never came; these did: {spans:#?}");
            #[allow(clippy::disallowed_methods, reason = "this is the thread of a test")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Keeper(Arc<Mutex<Vec<Seen>>>);

#[tonic::async_trait]
impl TraceService for Keeper {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> std::result::Result<Response<ExportTraceServiceResponse>, Status> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let resource = fields(&resource.attributes);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            all.extend(spans.map(|span| seen(&span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn seen(span: &Span, resource: &BTreeMap<String, String>) -> Seen {
    let kind = span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_lowercase();
    debug_assert_ne!(span.kind(), SpanKind::Unspecified);
    let failed = span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    Seen {
        resource: resource.clone(),
        name: span.name.clone(),
        kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        fields: fields(&span.attributes),
        failed,
        time: (span.start_time_unix_nano, span.end_time_unix_nano),
    }
}

fn fields(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let field = |field: &KeyValue| (field.key.clone(), words(field.value.as_ref()));
    attributes.iter().map(field).collect()
}

fn words(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
        text
    })
}
