//! `ebb scaler` as a process of its own, as it is deployed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_scaler::ScalerArgs;
use ebb_servers::Watched;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tonic::transport::Channel;

use crate::broker::Place;
use crate::process::{after, command, cpu_time, end, peak_mib, tail, watch};

/// What a scaler says instead of an address that it does not have.
pub(crate) const NOWHERE: &str = "none";

/// A scaler that runs; gone when it is dropped.
pub(crate) struct ScalerProcess {
    process: Watched,
    address: String,
    /// Where its metrics are, if it has any.
    http: Option<String>,
}

impl ScalerProcess {
    /// Starts it on the broker of a place, with these flags beside those that name free ports.
    pub(crate) async fn start(
        ebb: &Path,
        place: &Place,
        flags: &[&str],
        log: PathBuf,
    ) -> anyhow::Result<Self> {
        let mut command = command(ebb, place);
        command.args(["scaler", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        command.args(flags);
        Self::listening(command, &log).await
    }

    /// Starts the subcommand of this binary that answers as a scaler does, with nothing behind it.
    pub(crate) async fn bare(log: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let threads = ScalerArgs::default().threads;
        command.arg("bare-scaler").env("TOKIO_WORKER_THREADS", threads.to_string());
        Self::listening(command, log).await
    }

    /// Starts a scaler and waits until it says where it listens.
    async fn listening(command: Command, log: &Path) -> anyhow::Result<Self> {
        let mut process = watch(&command, log)?;
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            let words = std::fs::read_to_string(log).unwrap_or_default();
            let found = (after(&words, "listen="), after(&words, "http="));
            if let (Some(address), Some(http)) = found {
                let http = (http != NOWHERE).then_some(http);
                return Ok(Self { process, address, http });
            }
            if let Some(status) = process.ended()? {
                bail!("the scaler ended before it listened ({status}): {}", tail(log));
            }
            ensure!(Instant::now() < limit, "the scaler is mute after 30 s: {}", tail(log));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Where it is called.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A client on a connection of its own.
    pub(crate) async fn client(&self) -> anyhow::Result<ExternalScalerClient<Channel>> {
        client(&self.address).await
    }

    /// How often it has looked at a queue so far, well or not.
    pub(crate) async fn looks(&self) -> anyhow::Result<f64> {
        let Some(http) = &self.http else { return Ok(0.0) };
        let page = metrics(http).await.context("the scaler's metrics cannot be read")?;
        let counts = ["scaler_looks_total", "scaler_look_errors_total"];
        let of_looks = |line: &&str| counts.iter().any(|count| line.starts_with(count));
        let lines = page.lines().filter(of_looks);
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The most memory it has had at once, in MiB; not a number where the system does not tell.
    pub(crate) fn peak_mib(&self) -> f64 {
        peak_mib(self.process.pid()).unwrap_or(f64::NAN)
    }

    /// The processor time that it has used.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time(self.process.pid()).unwrap_or_default()
    }

    /// Ends it in peace.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        end(self.process).await
    }
}

/// A client of the scaler there, on a connection of its own.
pub(crate) async fn client(address: &str) -> anyhow::Result<ExternalScalerClient<Channel>> {
    let client = ExternalScalerClient::connect(format!("http://{address}")).await;
    client.with_context(|| format!("the scaler does not answer on {address}"))
}

async fn metrics(http: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(http).await?;
    let request = "GET /metrics HTTP/1.1\r\nHost: scaler\r\nConnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    connection.read_to_string(&mut page).await?;
    Ok(page)
}
