//! `ebb scaler`: runs the scaler, tries its configuration, or examines one.

use anyhow::Result;
use clap::{Args, Subcommand};
use ebb_scaler::{Scaler, ScalerArgs};
use ebb_telemetry::Stop;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::commands::{check, conformance};
use crate::exit::{Exit, of_service};
use crate::options::default_queue;
use crate::output::Output;

/// The scaler, or a question about one.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = HELP)]
pub(crate) struct ScalerCommand {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    scaler: ScalerArgs,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
enum Command {
    /// Try a configuration: connect by every profile, and tell what each trigger of a ScaledObject
    /// would be answered now
    #[command(after_help = check::HELP)]
    Check(check::CheckFlags),
    /// Examine a scaler, ours or another, as KEDA would call it, and say which rules it breaks
    #[command(after_long_help = conformance::HELP)]
    Conformance(Box<conformance::ConformanceArgs>),
}

const HELP: &str = "\
Examples:
  ebb scaler --queue nats://broker
  ebb scaler --config scaler.toml --no-create
  ebb scaler --config scaler.toml --tls-cert tls.crt --tls-key tls.key --tls-client-ca ca.crt
  ebb scaler check --config scaler.toml --scaledobject pool.yaml";

impl ScalerCommand {
    /// Whether it runs until it is told to stop.
    pub(crate) fn serves(&self) -> bool {
        self.command.is_none()
    }

    /// The runtime that it asks for.
    pub(crate) fn runtime(&self) -> Result<Runtime> {
        self.scaler.runtime()
    }
}

/// Runs the command.
///
/// # Errors
/// When a flag is wrong, a port cannot be had, or nobody answers who is to be examined.
pub(crate) async fn run(command: ScalerCommand, output: Output) -> Result<Exit> {
    match command.command {
        None => serve(command.scaler).await,
        Some(Command::Check(flags)) => check::run(flags, output).await,
        Some(Command::Conformance(args)) => conformance::run(*args, output).await,
    }
}

async fn serve(mut args: ScalerArgs) -> Result<Exit> {
    // An embedded queue has threads, and with huge pages each of them would hold 2 MiB for a few
    // kilobytes: 175 MiB for fifty queues instead of 57.
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay as they are");
    }
    if args.queue.is_none() && args.config.is_none() {
        args.queue = Some(default_queue()?);
    }
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    let scaler = Scaler::bind(args).await.map_err(of_service)?;
    scaler.serve(stop).await?;
    Ok(Exit::Done)
}
