//! The command line of a split, and what it means once it is checked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::BoolishValueParser;
use ebb_queue::{Address, Missing, QueueUrl, TypedUrl, parse_span};

use crate::reload;
use crate::splitter::WhenFull;
use crate::weights::{By, Share, Weights};

/// How a split is run.
#[derive(Debug, Clone, clap::Args)]
pub struct SplitArgs {
    /// The intake, where producers publish: sqlite:PATH, nats://HOST, amqp://HOST/VHOST or
    /// redis://HOST/DATABASE, then [?queue=NAME&max_ready=N&...]
    ///
    /// The queues that jobs go to are on the same broker, with the same options: with max_ready,
    /// each takes so many.
    #[arg(long, value_name = "URL", env = "EBB_QUEUE", hide_env_values = true)]
    pub queue: Option<TypedUrl>,

    /// Where results go [default: with their jobs]; the same for the workers of all versions, and
    /// for who asks. RabbitMQ keeps none, so its jobs need this
    #[arg(long, value_name = "URL", env = "EBB_RESULTS", hide_env_values = true)]
    pub results: Option<TypedUrl>,

    /// Queues that jobs go to, and what each gets in proportion to the others:
    /// jobs-stable=95,jobs-canary=5
    #[arg(
        long,
        value_name = "QUEUE=WEIGHT",
        env = "EBB_SPLIT_TO",
        hide_env_values = true,
        value_delimiter = ','
    )]
    #[arg(conflicts_with = "weights")]
    pub to: Vec<Share>,

    /// The same as a TOML file, read again when it changes: the table weights, QUEUE = WEIGHT
    #[arg(long, value_name = "FILE", env = "EBB_SPLIT_WEIGHTS", hide_env_values = true)]
    pub weights: Option<PathBuf>,

    /// How often the file of weights is looked at for changes
    #[arg(
        long,
        value_name = "TIME",
        env = "EBB_SPLIT_RELOAD",
        hide_env_values = true,
        default_value = "5s"
    )]
    #[arg(value_parser = parse_span)]
    pub reload: Duration,

    /// What jobs are told apart by: jobs of the same id, tenant or key go the same way
    #[arg(long, env = "EBB_SPLIT_BY", hide_env_values = true, default_value = "key")]
    pub by: By,

    /// What to do with the jobs of a queue that is full
    #[arg(long, env = "EBB_SPLIT_WHEN_FULL", hide_env_values = true, default_value = "wait")]
    pub when_full: WhenFull,

    /// Jobs that are held at most, those that wait for room included
    #[arg(
        long,
        value_name = "N",
        env = "EBB_SPLIT_WINDOW",
        hide_env_values = true,
        default_value = "512"
    )]
    pub window: NonZeroUsize,

    /// Bytes of the bodies of the jobs that are held at most. How large a job is shows once it is
    /// here: one call brings up to 128, fewer after large ones, and RabbitMQ sends as many ahead
    #[arg(
        long,
        value_name = "BYTES",
        env = "EBB_SPLIT_BODY_MEMORY",
        hide_env_values = true,
        default_value = "67108864"
    )]
    pub body_memory: NonZeroUsize,

    /// Create nothing on the broker: a queue that is missing there is an error, and
    /// `ebb queue init` makes it
    #[arg(long, env = "EBB_NO_CREATE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    pub no_create: bool,

    /// Longest that one try to connect to the broker takes; the split goes on trying
    #[arg(
        long,
        value_name = "TIME",
        env = "EBB_CONNECT_TIMEOUT",
        hide_env_values = true,
        default_value = "10s"
    )]
    #[arg(value_parser = parse_span)]
    pub connect_timeout: Duration,

    /// Time from SIGTERM on, at most, to give back what has not gone on. The last words to the broker
    /// may take up to 3s more
    #[arg(
        long,
        value_name = "TIME",
        env = "EBB_SPLIT_GRACE",
        hide_env_values = true,
        default_value = "10s"
    )]
    #[arg(value_parser = parse_span)]
    pub grace: Duration,

    /// Address of /livez /readyz /startupz /metrics, such as 0.0.0.0:8080 [default: none]
    #[arg(long, value_name = "ADDRESS", env = "EBB_LISTEN", hide_env_values = true)]
    pub listen: Option<SocketAddr>,
}

/// A command line that was checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) queue: QueueUrl,
    pub(crate) results: Option<QueueUrl>,
    pub(crate) weights: Weights,
    pub(crate) file: Option<PathBuf>,
    pub(crate) missing: Missing,
}

impl SplitArgs {
    /// Finds everything that can be found wrong without a broker or a port.
    pub(crate) fn check(&self) -> anyhow::Result<Plan> {
        let missing = "--queue is missing: where do producers publish? try sqlite:/tmp/queue.db";
        let queue = self.queue.as_ref().context(missing)?.read("--queue")?;
        let results = self.results.as_ref().map(|typed| typed.read("--results")).transpose()?;
        let results = results.filter(|results| *results != queue);
        ensure!(
            results.is_some() || !matches!(queue.address, Address::Amqp(_)),
            "--results is missing: RabbitMQ keeps no results; name the store that the workers \
             have, such as --results redis://HOST"
        );
        for (name, span) in [("--reload", self.reload), ("--connect-timeout", self.connect_timeout)]
        {
            ensure!(!span.is_zero(), "{name} is 0; use a time such as 5s");
        }
        let weights = match &self.weights {
            Some(path) => reload::load(path, &queue.queue)?,
            None if self.to.is_empty() => {
                bail!("--to is missing: where do jobs go? try --to jobs-stable=95,jobs-canary=5")
            }
            None => {
                let weights = Weights::new(self.to.iter().cloned()).context("--to")?;
                reload::check(&weights, &queue.queue).context("--to")?;
                weights
            }
        };
        let missing = if self.no_create { Missing::Refuse } else { Missing::Create };
        Ok(Plan { queue, results, weights, file: self.weights.clone(), missing })
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "ebb-split", max_term_width = 100)]
    struct Cli {
        #[command(flatten)]
        split: SplitArgs,
    }

    fn check(flags: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from([&["split"], flags].concat());
        let cli = cli.map_err(|error| error.to_string())?;
        cli.split.check().map_err(|error| format!("{error:#}"))
    }

    const GOOD: &[&str] = &["--queue", "sqlite:/tmp/q.db", "--to", "a=95", "--to", "b=5"];

    #[test]
    fn the_help_suffices_to_operate_the_split() {
        let help = Cli::command().term_width(100).render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(help.join("\n"));
    }

    #[test]
    fn shares_come_one_by_one_or_together() {
        let (one_by_one, together) =
            (check(GOOD), check(&[&GOOD[..2], &["--to", "a=95,b=5"]].concat()));
        assert_eq!(one_by_one.unwrap().weights, together.unwrap().weights);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        let queue = &GOOD[..2];
        for (flags, told) in [
            (&["--to", "a=1"][..], "--queue is missing"),
            (queue, "--to is missing"),
            (&[queue, &["--to", "jobs=1"]].concat(), "--to: jobs is the queue that jobs are taken"),
            (&[queue, &["--to", "a"]].concat(), "QUEUE=WEIGHT"),
            (&[queue, &["--to", "a=0"]].concat(), "--to: no queue has a weight above 0"),
            (&[queue, &["--weights", "/no/such"]].concat(), "--weights: /no/such: cannot be read"),
            (&[GOOD, &["--weights", "x"]].concat(), "cannot be used with"),
            (&[GOOD, &["--reload", "0s"]].concat(), "--reload is 0"),
            (&[GOOD, &["--by", "colour"]].concat(), "--by"),
            (&["--queue", "amqp://host", "--to", "a=1"], "--results is missing"),
            (&["--queue", "nats://me:hunter2@host?colour=red", "--to", "a=1"], "--queue"),
        ] {
            let error = check(flags).expect_err(told);
            assert!(error.contains(told) && !error.contains("hunter2"), "{flags:?}: {error}");
        }
    }
}
