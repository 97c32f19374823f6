//! From finished spans to the collector: a bounded queue, a thread, and few words about trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tonic::transport::{Channel, ClientTlsConfig};
use tracing::{info, warn};

use super::TraceError;
use super::target::Target;

/// Spans that wait to be exported, at most; further ones are lost.
const MOST: usize = 8192;

/// What a host that does not even refuse gets.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a collector may take for a batch.
const ANSWER: Duration = Duration::from_secs(10);

/// How many spans wait, and how many will never be seen.
#[derive(Debug, Default)]
pub(super) struct Queue {
    n_waiting: AtomicUsize,
    n_lost: AtomicU64,
}

impl Queue {
    /// Spans that were not exported.
    pub(super) fn n_lost(&self) -> u64 {
        self.n_lost.load(Relaxed)
    }

    /// Takes a place; false when there is none.
    fn enter(&self) -> bool {
        let has_room = self.n_waiting.fetch_add(1, Relaxed) < MOST;
        if !has_room {
            self.n_waiting.fetch_sub(1, Relaxed);
            if self.n_lost.fetch_add(1, Relaxed) == 0 {
                warn!(most = MOST, "spans are lost: more come than the collector takes");
            }
        }
        has_room
    }
}

/// The way to a collector, and what waits on it; connects when the first spans are finished.
pub(super) fn processor(target: &Target) -> Result<(Bounded, Arc<Queue>), TraceError> {
    let tls = |error| TraceError::Tls(target.from, error);
    let mut endpoint =
        Channel::builder(target.url.clone()).connect_timeout(CONNECT).timeout(ANSWER);
    if target.is_encrypted() {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots()).map_err(tls)?;
    }
    let exporter = OtlpExporter::builder()
        .with_tonic()
        .with_channel(endpoint.connect_lazy())
        .build()
        .map_err(|error| TraceError::Settings(target.from, error))?;
    let queue = Arc::new(Queue::default());
    let exporter =
        Watched { exporter, queue: Arc::clone(&queue), is_failing: AtomicBool::new(false) };
    let config = BatchConfigBuilder::default().with_max_queue_size(MOST).build();
    let inner = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok((Bounded { inner, queue: Arc::clone(&queue) }, queue))
}

/// Counts what does not fit, and says so once.
#[derive(Debug)]
pub(super) struct Bounded {
    inner: BatchSpanProcessor,
    queue: Arc<Queue>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.queue.enter() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Says once that a collector does not take spans, and once that it does again.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    queue: Arc<Queue>,
    is_failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let n_spans = spans.len();
        let exported = self.exporter.export(spans).await;
        self.queue.n_waiting.fetch_sub(n_spans, Relaxed);
        let was_failing = self.is_failing.swap(exported.is_err(), Relaxed);
        match &exported {
            Ok(()) if was_failing => info!("spans are exported again"),
            Ok(()) => {}
            Err(error) => {
                self.queue.n_lost.fetch_add(n_spans as u64, Relaxed);
                if !was_failing {
                    warn!(%error, "spans are lost: the collector does not take them");
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
