//! `ebb-gateway`: the gateway alone, as it runs in a pod.

use std::process::ExitCode;

use clap::Parser;
use ebb_gateway::GatewayArgs;
use ebb_telemetry::{LogArgs, Stop};
use tokio_util::sync::CancellationToken;

/// Takes jobs over HTTP and answers with their results, until SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "ebb-gateway", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    ebb_telemetry::exit_code(gateway(Cli::parse()).await, ebb_queue::Error::exit_code)
}

async fn gateway(cli: Cli) -> anyhow::Result<()> {
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    ebb_gateway::run(cli.gateway, stop).await
}
