//! `ebb-bench`: one binary, a subcommand per question; every figure in the README comes from here.

mod awake;
mod batching;
mod broker;
mod calls;
mod chaos;
#[cfg(feature = "cpu")]
mod encoder;
mod gateway;
#[cfg(feature = "cpu")]
mod generate;
#[cfg(feature = "cpu")]
mod gpu;
mod notify;
mod outage;
mod overhead;
#[cfg(feature = "cpu")]
mod peers;
mod process;
mod report;
mod rounds;
mod scaler;
mod simulate;
mod streams;
#[cfg(feature = "cpu")]
mod vectors;
#[cfg(feature = "cpu")]
mod weights;

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use ebb_telemetry::Stop;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Ebb and tries to break its promises
///
/// Each subcommand starts what it needs, cleans up after itself, and prints a table. Exits with 1
/// when a promise is broken; a slow figure breaks none.
#[derive(Debug, Parser)]
#[command(name = "ebb-bench", version)]
struct Cli {
    /// Print one JSON object on one line instead of a table
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Overhead(overhead::Args),
    Chaos(chaos::Args),
    Notify(notify::Args),
    Scaler(calls::Args),
    Streams(streams::Args),
    Outage(outage::Args),
    Gateway(gateway::Args),
    Simulate(simulate::Args),
    Batching(batching::Args),
    #[cfg(feature = "cpu")]
    Encoder(encoder::EncoderArgs),
    #[cfg(feature = "cpu")]
    Generate(generate::Args),
    #[cfg(feature = "cpu")]
    Gpu(Box<gpu::Args>),
    #[command(hide = true)]
    Bare(overhead::BareArgs),
    #[command(hide = true)]
    BareScaler,
    #[command(hide = true)]
    Spin,
    #[command(hide = true)]
    Publisher(notify::PublisherArgs),
    #[command(hide = true)]
    Answerer(gateway::AnswererArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::progress(format_args!("ebb-bench: {error:#}"));
            #[cfg(feature = "cpu")]
            if error.is::<gpu::Unfit>() {
                // As `ebb` ends where something is not to be had.
                return ExitCode::from(69);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let mut stop = Stop::listen()?;
        // What a bench started ends with it: processes and files go when it is dropped.
        tokio::select! {
            ended = bench(cli) => ended,
            () = stop.wait() => bail!("interrupted"),
        }
    });
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_background();
    ended
}

async fn bench(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Overhead(args) => overhead::run(&args, cli.json).await,
        Command::Chaos(args) => chaos::run(&args, cli.json).await,
        Command::Notify(args) => notify::run(&args, cli.json).await,
        Command::Scaler(args) => calls::run(&args, cli.json).await,
        Command::Streams(args) => streams::run(&args, cli.json).await,
        Command::Outage(args) => outage::run(&args, cli.json).await,
        Command::Gateway(args) => gateway::run(&args, cli.json).await,
        Command::Simulate(args) => apart(move || simulate::run(&args, cli.json)).await,
        Command::Batching(args) => apart(move || batching::run(&args, cli.json)).await,
        #[cfg(feature = "cpu")]
        Command::Encoder(args) => {
            let folder = tempfile::tempdir().context("no room for what peers write")?;
            let path = folder.path().to_owned();
            apart(move || encoder::run(args, &path, cli.json)).await
        }
        #[cfg(feature = "cpu")]
        Command::Generate(args) => {
            let folder = tempfile::tempdir().context("no room for a model")?;
            let path = folder.path().to_owned();
            apart(move || generate::run(&args, &path, cli.json)).await
        }
        #[cfg(feature = "cpu")]
        Command::Gpu(args) => gpu::run(*args, cli.json).await,
        Command::Bare(args) => overhead::bare(&args).await,
        Command::BareScaler => calls::bare().await,
        Command::Spin => awake::spin().await,
        Command::Publisher(args) => notify::publish(&args).await,
        Command::Answerer(args) => gateway::answer(&args).await,
    }
}

/// Runs what keeps processors busy without ever waiting, apart from the task that hears signals.
///
/// It cannot be interrupted and ends with the process, so that nothing of it is dropped: whoever calls
/// this holds what has to be removed from the disk.
async fn apart(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(work).await.context("the bench failed")?
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_a_question_says_what_it_does_and_can_be_set_from_the_environment() {
        for question in Cli::command().get_subcommands().filter(|question| !question.is_hide_set())
        {
            for flag in question.get_arguments().filter(|flag| !flag.is_global_set()) {
                let name = format!("{} --{}", question.get_name(), flag.get_id());
                assert!(flag.get_help().is_some(), "{name} has no help");
                assert!(flag.get_env().is_some(), "{name} has no environment variable");
            }
        }
    }
}
