//! `ebb gateway`: takes jobs over HTTP.

use anyhow::Result;
use ebb_gateway::GatewayArgs;
use ebb_telemetry::Stop;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, of_service};
use crate::options::default_queue;

pub(crate) const HELP: &str = "\
Examples:
  ebb gateway --model minilm
  ebb gateway --queue 'nats://broker?queue=chat' --model smol --timeout 10m
  ebb gateway --config gateway.toml --keys keys.toml --id-secret-file id-secret \\
    --listen 0.0.0.0:8000 --admin-listen 0.0.0.0:8080";

/// Runs the command.
///
/// # Errors
/// When a flag is wrong, a port cannot be had, or a broker refuses.
pub(crate) async fn run(mut args: GatewayArgs) -> Result<Exit> {
    if args.queue.is_none() && args.config.is_none() {
        args.queue = Some((&default_queue()?).into());
    }
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    ebb_gateway::run(args, stop).await.map_err(of_service)?;
    Ok(Exit::Done)
}
