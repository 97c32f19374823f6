//! `ebb-scaler`: the scaler alone, as it runs in a pod.

use std::process::ExitCode;

use clap::Parser;
use ebb_scaler::ScalerArgs;
use ebb_telemetry::{LogArgs, Stop};
use tokio_util::sync::CancellationToken;

/// Tells KEDA how many replicas a queue wants, and whether it may have none.
#[derive(Debug, Parser)]
#[command(name = "ebb-scaler", version)]
struct Cli {
    #[command(flatten)]
    scaler: ScalerArgs,
    #[command(flatten)]
    log: LogArgs,
}

fn main() -> ExitCode {
    ebb_telemetry::exit_code(start(Cli::parse()), ebb_queue::Error::exit_code)
}

fn start(cli: Cli) -> anyhow::Result<()> {
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    cli.scaler.runtime()?.block_on(serve(cli.scaler))
}

async fn serve(args: ScalerArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    ebb_scaler::run(args, stop).await
}
