//! `/livez`, `/readyz`, `/startupz` and `/metrics` over HTTP.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::Health;

/// Takes the address that `flag` names, if it names one, and serves the probes and the metrics there
/// until the handle is dropped.
///
/// # Errors
/// When the address cannot be had.
// Boxed for what `serve_with` is boxed for.
#[inline(never)]
pub fn serve_at(
    flag: &str,
    address: Option<SocketAddr>,
    health: Health,
    registry: Registry,
) -> BoxFuture<'_, anyhow::Result<Option<AbortOnDropHandle<()>>>> {
    Box::pin(async move {
        let Some(address) = address else { return Ok(None) };
        let listener = TcpListener::bind(address).await;
        let listener = listener
            .with_context(|| format!("{flag}: {address} cannot be had; use another port"))?;
        tracing::info!(address = %listener.local_addr()?, "probes and metrics");
        let served = serve(listener, health, registry, CancellationToken::new());
        let served = tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%error, "probes and metrics are not served any more");
            }
        });
        Ok(Some(AbortOnDropHandle::new(served)))
    })
}

/// Serves the probes and the metrics until `stop` is cancelled.
///
/// A probe answers 200 `ok`, or 503 with a line for each closed gate; `/readyz` then tells what
/// was given to [`Health::describe`].
///
/// # Errors
/// When the listener fails.
pub fn serve(
    listener: TcpListener,
    health: Health,
    registry: Registry,
    stop: CancellationToken,
) -> BoxFuture<'static, std::io::Result<()>> {
    serve_with(listener, health, registry, Router::new(), stop)
}

/// The same, with pages of the process's own beside them.
///
/// # Errors
/// When the listener fails.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn serve_with(
    listener: TcpListener,
    health: Health,
    registry: Registry,
    more: Router,
    stop: CancellationToken,
) -> BoxFuture<'static, std::io::Result<()>> {
    let probes = Router::new()
        .route("/livez", get(|State(health): State<Health>| async move { answer(health.live()) }))
        .route("/readyz", get(ready))
        .route(
            "/startupz",
            get(|State(health): State<Health>| async move { answer(health.started()) }),
        )
        .with_state(health);
    let metrics = Router::new().route("/metrics", get(metrics)).with_state(registry);
    let pages = probes.merge(metrics).merge(more);
    let served = axum::serve(listener, pages).with_graceful_shutdown(stop.cancelled_owned());
    Box::pin(served.into_future())
}

/// Readiness, and what the parts of the process have to say about themselves.
async fn ready(State(health): State<Health>) -> Response {
    let details = health.details();
    match health.ready() {
        Ok(()) => format!("ok\n{details}").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n{details}")).into_response(),
    }
}

fn answer(health: Result<(), String>) -> Response {
    match health {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

async fn metrics(State(registry): State<Registry>) -> Response {
    let mut page = Vec::new();
    match TextEncoder::new().encode(&registry.gather(), &mut page) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::GateKind;

    async fn get_page(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    #[tokio::test]
    async fn probes_follow_the_gates_and_metrics_are_in_text_form() {
        let health = Health::new();
        let gate = health.gate("model", GateKind::Startup);
        let registry = Registry::new();
        crate::build_info(&registry, "1.2.3").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        health.describe(|| "part: well\n".to_owned());
        let more = Router::new().route("/more", get(|| async { "more" }));
        let server = tokio::spawn(serve_with(listener, health, registry, more, stop.clone()));

        assert!(get_page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let page = get_page(address, "/startupz").await;
        assert!(page.starts_with("HTTP/1.1 503") && page.contains("model: not yet"), "{page}");
        gate.open();
        let page = get_page(address, "/readyz").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.ends_with("ok\npart: well\n"), "{page}");
        assert!(get_page(address, "/more").await.ends_with("more"));
        let page = get_page(address, "/metrics").await;
        assert!(page.contains("build_info{version=\"1.2.3\"} 1"), "{page}");

        stop.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_told_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let at = || serve_at("--listen", Some(address), Health::new(), Registry::new());
        let told = at().await.unwrap_err().to_string();
        assert_eq!(told, format!("--listen: {address} cannot be had; use another port"));
        drop(taken);
        let served = at().await.unwrap().unwrap();
        assert!(get_page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        served.abort();
        assert!(served.await.unwrap_err().is_cancelled());
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
