//! The worker, alone in a binary.

use clap::Parser;
use ebb_telemetry::LogArgs;
use ebb_worker::WorkerArgs;
use tokio::signal::unix::{SignalKind, signal};
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signalled = stop.clone();
    let signals = async move {
        for n_signals in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if n_signals > 0 {
                warn!("a second signal: exiting now, what is held comes back by its lease");
                return;
            }
            info!("a signal: draining");
            signalled.cancel();
        }
    };
    tokio::select! {
        ended = ebb_worker::run(cli.worker, stop) => ended.map(drop),
        () = signals => std::process::exit(130),
    }
}
