//! The worker, alone in a binary.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use ebb_telemetry::{LogArgs, Stop};
use ebb_worker::WorkerArgs;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Runs one worker until SIGTERM: receives jobs, batches them, runs a model, stores results.
#[derive(Debug, Parser)]
#[command(name = "ebb-worker", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
    #[command(flatten)]
    log: LogArgs,
}

fn main() -> ExitCode {
    ebb_telemetry::exit_code(start(Cli::parse()), ebb_worker::Error::exit_code)
}

fn start(cli: Cli) -> anyhow::Result<()> {
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    let runtime = Runtime::new().context("cannot start the runtime")?;
    let ended = runtime.block_on(work(cli));
    // A file that cannot be read, or a body that takes for ever, must not outlive the grace period.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn work(cli: Cli) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut signal = Stop::listen()?;
    let signalled = stop.clone();
    let signals = async move {
        signal.wait().await;
        info!("a signal: draining");
        signalled.cancel();
        signal.wait().await;
        warn!("a second signal: exiting now, what is held comes back by its lease");
    };
    tokio::select! {
        ended = ebb_worker::run(cli.worker, stop) => ended.map(drop),
        () = signals => std::process::exit(130),
    }
}
