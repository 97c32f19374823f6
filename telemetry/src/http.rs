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

use crate::{Health, guests};

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
        let served =
            serve_with(listener, health, registry, Router::new(), CancellationToken::new());
        Ok(Some(AbortOnDropHandle::new(tokio::spawn(served))))
    })
}

/// Serves the probes and the metrics, with pages of the process's own beside them, until `stop` is
/// cancelled.
///
/// A probe answers 200 `ok`, or 503 with a line for each closed gate; `/readyz` then tells what
/// was given to [`Health::describe`]. Clients that are slow, or too many, keep no other from an answer:
/// see `guests`.
// Boxed here: an `async fn` is compiled in each crate that awaits it, with all that it awaits.
#[inline(never)]
pub fn serve_with(
    listener: TcpListener,
    health: Health,
    registry: Registry,
    more: Router,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
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
    Box::pin(guests::serve(listener, pages, stop))
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::GateKind;

    async fn get_page(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
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
        server.await.unwrap();
    }

    async fn served() -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, registry, more) = (Health::new(), Registry::new(), Router::new());
        let served = serve_with(listener, health, registry, more, CancellationToken::new());
        (address, AbortOnDropHandle::new(tokio::spawn(served)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_no_whole_request_is_cut_off() {
        let (address, _server) = served().await;
        let part = "GET /livez HTTP/1.1\r\nhost: te";
        let whole = "GET /livez HTTP/1.1\r\nhost: test\r\n\r\n";
        for said in ["", part, &format!("{whole}{part}")] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let read = async { while matches!(stream.read(&mut [0; 512]).await, Ok(1..)) {} };
            let ended = tokio::time::timeout(Duration::from_secs(3600), read).await;
            ended.unwrap_or_else(|_| panic!("who said {said:?} is waited for"));
        }
    }

    /// Asks for a page, and keeps the connection.
    async fn ask_again(stream: &mut TcpStream) {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut page = Vec::new();
        while !page.ends_with(b"ok\n") {
            assert_ne!(stream.read_buf(&mut page).await.unwrap(), 0, "it is closed");
        }
    }

    #[tokio::test]
    async fn probes_are_answered_however_many_connections_say_nothing() {
        let (address, _server) = served().await;
        let mut asks = TcpStream::connect(address).await.unwrap();
        let mut silent = Vec::new();
        for _ in 1..guests::MOST {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        ask_again(&mut asks).await;
        assert!(get_page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        // The one had to go for it who has asked for nothing for longest.
        let soon = Duration::from_secs(5);
        let read = tokio::time::timeout(soon, silent[0].read(&mut [0; 8])).await;
        assert!(!matches!(read.expect("it is closed before it is late"), Ok(1..)));
        let at_once = Duration::from_millis(50);
        for stays in [&mut silent[1], &mut asks] {
            let read = tokio::time::timeout(at_once, stays.read(&mut [0; 8])).await;
            read.expect_err("it stays");
        }
        ask_again(&mut asks).await;
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_told_with_its_flag() {
        // Nobody else takes it once it is free again.
        let port = ebb_servers::Port::draw().unwrap();
        let taken = TcpListener::bind(("127.0.0.1", port.number())).await.unwrap();
        let address = taken.local_addr().unwrap();
        let at = || serve_at("--listen", Some(address), Health::new(), Registry::new());
        let told = at().await.unwrap_err().to_string();
        assert_eq!(told, format!("--listen: {address} cannot be had; use another port"));
        drop(taken);
        let served = at().await.unwrap().unwrap();
        assert!(get_page(address, "/livez").await.starts_with("HTTP/1.1 200"));
        served.abort();
        assert!(served.await.unwrap_err().is_cancelled());
        assert!(TcpStream::connect(address).await.is_err());
    }
}
