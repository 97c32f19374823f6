//! `ebb-split`: the split alone, as it runs in a pod.

use clap::Parser;
use ebb_split::SplitArgs;
use ebb_telemetry::LogArgs;
use tokio::signal::unix::{SignalKind, signal};
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
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    ebb_telemetry::init_logging(&cli.log).map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    let (mut term, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let run = ebb_split::run(cli.split, stop.clone());
    tokio::pin!(run);
    tokio::select! {
        ended = &mut run => return ended,
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    run.await
}
