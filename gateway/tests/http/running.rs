//! A gateway as it is run, with ports, on a queue in a file.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use ebb_gateway::GatewayArgs;
use ebb_queue::QueueUrl;
use ebb_servers::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) gateway: GatewayArgs,
}

/// How long anything may take: far longer than it does, since tests share few processors.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that runs until it is stopped.
pub(crate) struct Running {
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    pub(crate) stop: CancellationToken,
    gateway: JoinHandle<anyhow::Result<()>>,
    _ports: [Port; 2],
}

impl Running {
    /// A gateway of this queue that is ready.
    pub(crate) async fn start(url: &QueueUrl, more: &[&str]) -> Self {
        let ports = [Port::draw().unwrap(), Port::draw().unwrap()];
        let [listen, admin] = ports.each_ref().map(at);
        let own = ["gateway", "--queue", &url.to_string(), "--listen", &listen.to_string()];
        let flags = own.into_iter().chain(more.iter().copied()).chain(["--admin-listen"]);
        let flags = flags.map(str::to_owned).chain([admin.to_string()]);
        let stop = CancellationToken::new();
        let gateway = tokio::spawn(ebb_gateway::run(Cli::parse_from(flags).gateway, stop.clone()));
        let begun = Instant::now();
        while !is_ready(admin).await {
            assert!(!gateway.is_finished(), "it ends: {:?}", gateway.await);
            assert!(begun.elapsed() < PATIENCE, "it is never ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { listen, admin, stop, gateway, _ports: ports }
    }

    /// Stops it, and waits until it says that it is not ready any more.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        let begun = Instant::now();
        while is_ready(self.admin).await {
            assert!(begun.elapsed() < PATIENCE, "it stays ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The figure of a metric as its page shows it.
    pub(crate) async fn figure(&self, series: &str) -> f64 {
        let metrics = ask(self.admin, page("/metrics")).await.unwrap();
        let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(series));
        let figure = lines.find_map(|rest| rest.strip_prefix(' '));
        figure.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    }

    /// Waits until a metric has this figure.
    pub(crate) async fn becomes(&self, series: &str, expected: f64) {
        let begun = Instant::now();
        loop {
            let figure = self.figure(series).await;
            if figure == expected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{series} stays {figure}, and not {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it lets nobody new in.
    pub(crate) async fn refuses(&self) {
        let begun = Instant::now();
        while ask(self.listen, page("/v1/models")).await.is_ok() {
            assert!(begun.elapsed() < PATIENCE, "who is new is let in");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for its end.
    pub(crate) async fn ends(self) {
        let ended = tokio::time::timeout(PATIENCE, self.gateway).await;
        ended.expect("it ends").unwrap().unwrap();
    }
}

pub(crate) fn at(port: &Port) -> SocketAddr {
    ([127, 0, 0, 1], port.number()).into()
}

/// Sends a request on a connection of its own, and reads the response to its end.
pub(crate) async fn ask(address: SocketAddr, request: String) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

pub(crate) fn page(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

/// Whether it says so; where nobody listens, it does not.
async fn is_ready(admin: SocketAddr) -> bool {
    ask(admin, page("/readyz")).await.is_ok_and(|page| page.starts_with("HTTP/1.1 200"))
}
