//! `ebb-split`: the split alone, as it runs in a pod.

use std::process::ExitCode;

use clap::Parser;
use ebb_split::SplitArgs;
use ebb_telemetry::{LogArgs, Stop};
use tokio_util::sync::CancellationToken;

/// Splits the jobs of one queue over others by weight, until SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "ebb-split", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    ebb_telemetry::exit_code(split(Cli::parse()).await, ebb_queue::Error::exit_code)
}

async fn split(cli: Cli) -> anyhow::Result<()> {
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    ebb_split::run(cli.split, stop).await
}
