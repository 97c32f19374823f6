//! The tree of commands, and the way from a command to an exit code.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use ebb_gateway::GatewayArgs;
use ebb_model::pull;
use ebb_telemetry::{LogArgs, LogFormat, Stop, in_words};

use ebb_worker::WorkerArgs;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::commands::{cancel, dlq, enqueue, gateway, model, queue, result, scaler, split, up};
#[cfg(feature = "cpu")]
use crate::commands::{train, warm};
use crate::demo;
use crate::exit::{EXIT_CODES, Exit, of_service, usage};
use crate::options::default_queue;
use crate::output::{Output, note};

/// AI inference from a queue, on a pool of workers that ebbs to zero
#[derive(Debug, Parser)]
#[command(name = "ebb", version, max_term_width = 100, after_help = after_help())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print JSON instead of words; what runs until it is stopped writes its log as JSON
    // Behind the command's own flags, however many commands there are.
    #[arg(long, global = true, env = "EBB_JSON", hide_env_values = true, display_order = 900)]
    #[arg(value_parser = BoolishValueParser::new())]
    json: bool,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See all of it work: jobs in, workers from none to many to none, results out, a verdict
    Demo(Box<demo::DemoArgs>),
    /// Run scaler, autoscaler and workers on this machine until Ctrl-C
    Up(Box<up::UpArgs>),
    /// Run one worker until SIGTERM: receives jobs, batches them, runs a model, stores results
    Worker(Box<WorkerCommand>),
    /// Run the scaler that tells KEDA how many workers a queue wants, or examine one
    Scaler(Box<scaler::ScalerCommand>),
    /// Pass jobs on to the queues of several versions by weight, or compare the versions
    Split(Box<split::SplitCommand>),
    /// Take jobs over HTTP and answer with their results, by OpenAI's API too, until SIGTERM
    #[command(after_help = gateway::HELP)]
    Gateway(Box<GatewayArgs>),
    /// Put jobs on the queue, and wait for their results if asked to
    Enqueue(Box<enqueue::EnqueueArgs>),
    /// Print the result of a job, now or as it comes
    Result(result::ResultArgs),
    /// Cancel jobs whose answers nobody wants any more
    Cancel(cancel::CancelArgs),
    /// Make the queue, look at it, or empty it
    #[command(subcommand, after_long_help = queue::URLS)]
    Queue(queue::Command),
    /// Read, put back or delete the jobs that failed for good
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Fetch a model, or say what one is
    #[command(subcommand)]
    Model(model::Command),
    /// Make a model from data of your own
    #[cfg(feature = "cpu")]
    #[command(subcommand)]
    Train(train::Command),
}

/// A worker, and who may stop it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = WORKER_HELP)]
struct WorkerCommand {
    #[cfg(feature = "cpu")]
    #[command(subcommand)]
    command: Option<warm::Command>,

    #[command(flatten)]
    worker: WorkerArgs,

    /// Stop as on SIGTERM when standard input ends: with a pipe from whoever started this worker,
    /// it does not outlive them, however they end
    #[arg(long, env = "EBB_STOP_WITH_STDIN", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    stop_with_stdin: bool,
}

const WORKER_HELP: &str = "\
Examples:
  ebb worker --model sentinel
  ebb worker --model sentence-transformers/all-MiniLM-L6-v2 --queue 'nats://broker?queue=embeddings'
  ebb worker --serve embeddings=models/minilm,chat=models/smol --queue redis://broker
  ebb worker --model models/minilm --queue 'amqp://ebb@rabbit?password_file=/run/secrets/rabbit' \\
    --results redis://redis --no-create --listen 0.0.0.0:8080";

fn after_help() -> String {
    let logs = "Logs begin at `warn`, for `ebb worker`, `ebb scaler`, `ebb split` and `ebb gateway` at \
                `info`.";
    let spans =
        "A SPAN or TIME is such as 250ms, 30s, 5m, 1h30m or 1d; a number alone is of seconds.";
    format!("{EXIT_CODES}\n\n{logs}\n\n{spans}")
}

/// Runs a command to its end.
#[must_use]
pub fn run(mut cli: Cli) -> ExitCode {
    if cli.json {
        cli.log.format = LogFormat::Json;
    }
    let ended = start(cli);
    let exit = match ended {
        Ok(exit) => exit,
        Err(error) => {
            let exit = Exit::of(&error);
            if exit != Exit::Done {
                note(format!("error: {}", in_words(&error)));
            }
            exit
        }
    };
    exit.into()
}

fn start(cli: Cli) -> Result<Exit> {
    ebb_telemetry::init_logging(&cli.log).map_err(usage)?;
    let runtime = match &cli.command {
        Command::Scaler(command) if command.serves() => command.runtime()?,
        _ => Runtime::new().context("cannot start the runtime")?,
    };
    let ended = runtime.block_on(execute(cli.command, Output { json: cli.json }));
    // A read of standard input that nobody waits for any more must not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn execute(command: Command, output: Output) -> Result<Exit> {
    match command {
        Command::Demo(args) => demo::run(*args, output).await,
        Command::Up(args) => up::run(*args, output).await,
        Command::Worker(args) => worker(*args, output).await,
        Command::Scaler(command) => scaler::run(*command, output).await,
        Command::Split(command) => split::run(*command, output).await,
        Command::Gateway(args) => gateway::run(*args).await,
        Command::Enqueue(args) => enqueue::run(*args, output).await,
        Command::Result(args) => result::run(args, output).await,
        Command::Cancel(args) => cancel::run(args, output).await,
        Command::Queue(command) => queue::run(command, output).await,
        Command::Dlq(command) => dlq::run(command, output).await,
        Command::Model(command) => model::run(command, output).await,
        #[cfg(feature = "cpu")]
        Command::Train(command) => train::run(command, output).await,
    }
}

impl WorkerCommand {
    /// Whether it runs until it is told to stop.
    fn serves(&self) -> bool {
        #[cfg(feature = "cpu")]
        let is_asked = self.command.is_some();
        #[cfg(not(feature = "cpu"))]
        let is_asked = false;
        !is_asked
    }
}

async fn worker(command: WorkerCommand, output: Output) -> Result<Exit> {
    #[cfg(feature = "cpu")]
    if let Some(warm::Command::Warm(args)) = command.command {
        return warm::run(*args, output).await;
    }
    #[cfg(not(feature = "cpu"))]
    let _nothing_to_print = output;
    let WorkerCommand { mut worker, stop_with_stdin, .. } = command;
    if worker.queue.is_none() {
        worker.queue = Some((&default_queue()?).into());
    }
    // A worker wants a directory; a model that was pulled has one.
    let models = worker.serve.iter_mut().map(|entry| &mut entry.model);
    for model in models.chain(&mut worker.model) {
        if !Path::new(model).exists()
            && let Some(dir) = pull::here(model)?
        {
            *model = dir.display().to_string();
        }
    }
    let stop = CancellationToken::new();
    tokio::spawn(Stop::listen()?.cancel(stop.clone()));
    if stop_with_stdin {
        let stop = stop.clone();
        // A thread of its own: the runtime would wait for a read that never returns.
        let watch = move || {
            let mut stdin = std::io::stdin().lock();
            let mut ignored = [0; 64];
            while stdin.read(&mut ignored).is_ok_and(|n_read| n_read > 0) {}
            stop.cancel();
        };
        std::thread::Builder::new().name("stdin".into()).spawn(watch)?;
    }
    ebb_worker::run(worker, stop).await.map_err(of_service)?;
    Ok(Exit::Done)
}

impl Cli {
    /// Reads the command line; logs of commands that end by themselves begin at `warn`.
    #[must_use]
    pub fn read() -> Self {
        use clap::{CommandFactory, FromArgMatches, parser::ValueSource};
        let matches = Self::command().get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let service = match &cli.command {
            Command::Scaler(command) => command.serves(),
            Command::Split(command) => command.serves(),
            Command::Worker(command) => command.serves(),
            Command::Gateway(_) => true,
            _ => false,
        };
        let given = matches.value_source("level") != Some(ValueSource::DefaultValue);
        if !service && !given {
            cli.log.level = "warn".to_owned();
        }
        cli
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    /// The long help of a command, named by its path below `ebb`.
    fn help(path: &[&str]) -> String {
        let arguments = ["ebb"].iter().chain(path).chain(&["--help"]);
        let error = Cli::command().term_width(100).try_get_matches_from(arguments).unwrap_err();
        // Who runs the tests has settings of their own, which help would show.
        error.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_help_of_each_command_suffices_to_operate_it() {
        let paths: [&[&str]; 22] = [
            &["demo"],
            &["up"],
            &["enqueue"],
            &["result"],
            &["cancel"],
            &["scaler", "conformance"],
            &["scaler", "check"],
            &["split", "compare"],
            &["queue"],
            &["queue", "depth"],
            &["queue", "init"],
            &["queue", "info"],
            &["queue", "workers"],
            &["queue", "purge"],
            &["dlq"],
            &["dlq", "list"],
            &["dlq", "show"],
            &["dlq", "redrive"],
            &["dlq", "purge"],
            &["model"],
            &["model", "pull"],
            &["model", "info"],
        ];
        for path in paths {
            let name = format!("help-{}", [&["ebb"], path].concat().join("-"));
            insta::assert_snapshot!(name, help(path));
        }
    }

    #[test]
    fn what_stands_behind_the_flags_is_shown_as_it_is_written() {
        let mut open = vec![Cli::command()];
        let mut n_texts = 0;
        while let Some(command) = open.pop() {
            let texts = [command.get_after_help(), command.get_after_long_help()];
            for text in texts.into_iter().flatten().map(ToString::to_string) {
                n_texts += 1;
                let name = command.get_name();
                // The first indent is lost, and a line that is longer is broken anywhere.
                assert!(!text.starts_with(char::is_whitespace), "{name}: {text}");
                for line in text.lines() {
                    assert!(line.chars().count() <= 100, "{name}: {line}");
                }
            }
            open.extend(command.get_subcommands().cloned());
        }
        assert!(n_texts > 20, "the walk went nowhere");
    }

    #[test]
    fn what_runs_until_it_is_stopped_shows_examples_too() {
        for name in ["worker", "scaler", "split", "gateway"] {
            assert!(help(&[name]).contains("\nExamples:\n  ebb "), "{name}");
        }
    }

    #[test]
    fn every_flag_can_be_set_from_the_environment() {
        // What a command is asked to do this once is not.
        const ONCE: [&str; 5] = [
            "dlq purge --all",
            "dlq purge --yes",
            "dlq redrive --all",
            "enqueue --file",
            "queue purge --yes",
        ];
        const WHICH: [&str; 5] = ["kind", "newer-than", "older-than", "reason", "tenant"];
        let of_dlq = |name| WHICH.map(|flag| format!("dlq {name} --{flag}"));
        let mut once: Vec<_> = ["list", "purge", "redrive"].into_iter().flat_map(of_dlq).collect();
        once.extend(ONCE.map(str::to_owned));
        once.sort();
        let mut lacking = Vec::new();
        let mut open = vec![(String::new(), Cli::command())];
        while let Some((path, command)) = open.pop() {
            let flags = command.get_arguments().filter(|flag| flag.get_env().is_none());
            let flags = flags.filter_map(|flag| flag.get_long());
            lacking.extend(flags.map(|flag| format!("{path}--{flag}")));
            let below = command.get_subcommands();
            open.extend(below.map(|below| (format!("{path}{} ", below.get_name()), below.clone())));
        }
        lacking.sort();
        assert_eq!(lacking, once);
    }

    #[test]
    fn a_switch_is_set_from_the_environment_by_any_word_for_yes_or_no() {
        let mut n_switches = 0;
        let mut open = vec![Cli::command()];
        while let Some(command) = open.pop() {
            let is_switch = |flag: &&clap::Arg| !flag.get_action().takes_values();
            for flag in command.get_arguments().filter(is_switch) {
                let Some(variable) = flag.get_env() else { continue };
                n_switches += 1;
                let values = flag.get_value_parser().possible_values();
                let values: Vec<_> = values.into_iter().flatten().collect();
                for word in ["1", "0", "true", "false", "yes", "no"] {
                    let is_known = values.iter().any(|value| value.matches(word, true));
                    assert!(is_known, "{}={word}", variable.to_string_lossy());
                }
            }
            open.extend(command.get_subcommands().cloned());
        }
        assert!(n_switches > 10, "the walk went nowhere");
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn the_help_of_what_needs_a_model_too() {
        insta::assert_snapshot!("help-ebb", help(&[]));
        insta::assert_snapshot!("help-ebb-train", help(&["train"]));
        insta::assert_snapshot!("help-ebb-train-sentinel", help(&["train", "sentinel"]));
        insta::assert_snapshot!("help-ebb-worker-warm", help(&["worker", "warm"]));
    }

    #[cfg(feature = "cpu")]
    #[test]
    fn warming_up_takes_flags_of_its_own() {
        let line =
            "ebb worker warm --model minilm --device cpu --dtype f32 --kernel-cache k --json";
        assert!(Cli::try_parse_from(line.split(' ')).expect(line).json);
        let line = "ebb worker --id me warm --model minilm";
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line).to_string();
        assert!(error.contains("cannot be used with"), "{error}");
    }

    /// Their own flags are held by the packages they come from.
    #[test]
    fn the_services_take_their_own_flags_and_json() {
        for line in [
            "ebb worker --queue sqlite:/data/q.db --model echo --stop-with-stdin --json",
            "ebb scaler --queue sqlite:/data/q.db --json",
            "ebb scaler conformance --address keda:6000 --json",
            "ebb split --queue sqlite:/data/q.db --to a=95,b=5 --by tenant --json",
            "ebb gateway --queue sqlite:/data/q.db --model chat --json",
            "ebb scaler check --config scaler.toml --scaledobject a.yaml b.yaml --json",
            "ebb --json --log-level debug worker --model echo --listen 127.0.0.1:0 --id me",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            assert!(cli.json, "{line}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (line, told) in [
            ("ebb", "Usage"),
            ("ebb enqueue", "--file <FILE>"),
            ("ebb enqueue text --file jobs.jsonl", "cannot be used with"),
            ("ebb enqueue text --timeout 5s", "--wait"),
            ("ebb result job-1 --timeout 5s", "--follow"),
            ("ebb result", "<ID>"),
            ("ebb cancel", "<ID>..."),
            ("ebb scaler conformance", "--address"),
            ("ebb scaler conformance --address a:1 --metadata queue", "key=value"),
            ("ebb scaler --max-age 15s conformance", "cannot be used with"),
            ("ebb scaler --max-age 15s check", "cannot be used with"),
            ("ebb split --to a=1 compare", "cannot be used with"),
            ("ebb split compare", "<QUEUE>..."),
            ("ebb enqueue text --split a", "QUEUE=WEIGHT"),
            ("ebb gateway --keys keys.toml --open", "cannot be used with"),
            ("ebb dlq redrive", "required"),
            ("ebb dlq redrive job-1 --all", "cannot be used with"),
            ("ebb up --polling-interval 1ms", "use 10ms or more"),
            ("ebb up --jobs-per-replica 0", "number of jobs"),
            ("ebb up --fallback-after 5", "--fallback-replicas"),
            ("ebb demo --limit soon", "such as 250ms"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line).to_string();
            assert!(error.contains(told), "{line}: {error}");
        }
    }
}
