//! What each process needs beside its work: logs, traces, health, metrics, connections that keep nobody
//! waiting, signals, exit codes, files that are read again; nothing of the domain.

mod exit;
mod guests;
mod health;
mod host;
mod http;
mod log;
mod reload;
mod signals;
mod stall;
mod talk;
mod text;
mod trace;

pub use exit::{exit_code, in_words, trouble};
pub use health::{Gate, GateKind, Health};
pub use host::host;
pub use http::{serve_at, serve_with};
pub use log::{LogArgs, LogFormat, init_logging};
pub use reload::{Condition, follow};
pub use signals::Stop;
pub use talk::{Heard, Hears, Patience, Talk, accept};
pub use text::{Key, Text, TextError, Value, edits};
pub use trace::{
    KeyValue, NewSpan, Service, Span, SpanContext, SpanKind, TraceArgs, TraceError, TraceId,
    Traces, read_traceparent, trace_of, traceparent,
};

/// Registers `build_info{version}`, which is always 1.
///
/// # Errors
/// When the registry has it already.
pub fn build_info(registry: &prometheus::Registry, version: &str) -> prometheus::Result<()> {
    let opts = prometheus::opts!("build_info", "Always 1; the version is the label.");
    let gauge = prometheus::IntGauge::with_opts(opts.const_label("version", version))?;
    gauge.set(1);
    registry.register(Box::new(gauge))
}
