//! The broker a bench runs against: one of its own, gone when it ends, or one that a URL names.

mod place;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use ebb_queue::{Address, QueueUrl, Synchronous, TypedUrl};
use tempfile::TempDir;

use crate::process::cpu_time;
use crate::report::progress;
pub(crate) use place::{Place, PlaceArgs};
use server::{Server, Started};

/// Which broker a bench runs against.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BrokerArgs {
    /// The broker to measure; one is started for the run unless --url names one
    #[arg(long, value_enum, env = "EBB_BENCH_BROKER", hide_env_values = true)]
    #[arg(default_value_t = BrokerKind::Sqlite)]
    pub(crate) broker: BrokerKind,

    /// A broker that is there already, such as sqlite:/var/lib/ebb/queue.db or nats://HOST
    ///
    /// The run adds queues of its own to it, named bench-PID-..., and leaves them there.
    #[arg(long, env = "EBB_BENCH_URL", hide_env_values = true, value_name = "URL")]
    url: Option<TypedUrl>,

    /// Where a broker that is started keeps its data [default: the temporary directory]
    ///
    /// The disk under it decides the figures of `--durability strict`.
    #[arg(long, env = "EBB_BENCH_DIR", hide_env_values = true, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What a broker that is started waits for before it answers
    #[arg(long, value_enum, env = "EBB_BENCH_DURABILITY", hide_env_values = true)]
    #[arg(default_value_t = Durability::Strict)]
    durability: Durability,

    /// A broker that is started to keep the answers apart from the jobs [default: none, but for
    /// amqp, which keeps no answers: redis if it is installed, else sqlite]
    #[arg(long, value_enum, env = "EBB_BENCH_RESULTS_BROKER", hide_env_values = true)]
    #[arg(value_name = "BROKER", value_parser = clap::builder::EnumValueParser::<BrokerKind>::new())]
    results_broker: Option<BrokerKind>,
}

impl BrokerArgs {
    /// Has a broker that is started keep its data in a folder of the caller's.
    pub(crate) fn lie_in_a_folder(&mut self) -> anyhow::Result<TempDir> {
        let folder = self.folder()?;
        self.dir = Some(folder.path().to_owned());
        Ok(folder)
    }

    fn folder(&self) -> anyhow::Result<TempDir> {
        let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("ebb-bench-").tempdir_in(dir);
        folder.context("cannot make a directory for the broker's data; name one with --dir")
    }
}

/// The brokers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BrokerKind {
    /// The embedded queue: a file, no server
    Sqlite,
    /// NATS JetStream
    Nats,
    /// RabbitMQ, with quorum queues
    Amqp,
    /// Redis Streams
    Redis,
}

/// What a broker waits for before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    /// The disk: sqlite synchronous=full, nats `sync_interval: always`, redis appendfsync always
    Strict,
    /// What is usual: sqlite synchronous=normal, nats as it comes, redis appendfsync everysec
    Standard,
}

impl std::fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Nats => "nats",
            Self::Amqp => "amqp",
            Self::Redis => "redis",
        })
    }
}

/// What a restart hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The broker of the jobs.
    Jobs,
    /// The store of the answers; the broker of the jobs where that keeps them.
    Results,
}

/// A broker that is up. Dropped, one that was started here is gone with its data.
#[derive(Debug)]
pub(crate) struct Bed {
    kind: BrokerKind,
    jobs: Site,
    results: Option<Site>,
    /// After the servers, which write there.
    _data: TempDir,
}

/// One broker.
#[derive(Debug)]
struct Site {
    base: QueueUrl,
    server: Option<Server>,
    words: String,
}

impl From<Started> for Site {
    fn from(started: Started) -> Self {
        let Started { url, server, words } = started;
        Self { base: url, server, words: words.to_owned() }
    }
}

impl Site {
    fn cpu_time(&self) -> Option<Duration> {
        match (&self.server, &self.base.address) {
            (Some(server), _) => cpu_time(server.pid()?),
            // Whoever opens the file is the broker.
            (None, Address::Sqlite { .. }) => Some(Duration::ZERO),
            (None, _) => None,
        }
    }
}

impl Bed {
    /// Starts the broker, or takes the one that the URL names.
    pub(crate) async fn make(args: &BrokerArgs) -> anyhow::Result<Self> {
        let data = args.folder()?;
        let kind = args.broker;
        let jobs = match &args.url {
            Some(url) => named(url, kind)?,
            None => {
                let folder = data.path().join("jobs");
                Started::make(kind, args.durability, &folder).await?.into()
            }
        };
        let folder = data.path().join("results");
        let start = |kind| Started::make(kind, args.durability, &folder);
        let results = match (args.results_broker, kind) {
            (Some(BrokerKind::Amqp), _) => {
                anyhow::bail!("--results-broker amqp keeps no answers; use redis, nats or sqlite")
            }
            (Some(apart), _) => Some(start(apart).await?),
            (None, BrokerKind::Amqp) => Some(match start(BrokerKind::Redis).await {
                Ok(started) => started,
                Err(error) => {
                    progress(format_args!(
                        "answers go to sqlite, since there is no redis: {error}"
                    ));
                    start(BrokerKind::Sqlite).await?
                }
            }),
            (None, _) => None,
        };
        Ok(Self { kind, jobs, results: results.map(Site::from), _data: data })
    }

    /// A queue that no other run uses.
    pub(crate) fn place(&self, name: &str, lease: Duration) -> anyhow::Result<Place> {
        let name = format!("bench-{}-{name}", std::process::id());
        let at = |site: &Site| -> anyhow::Result<QueueUrl> {
            let mut url = site.base.with_queue(&name)?;
            url.behavior.lease = lease;
            Ok(url)
        };
        let results = self.results.as_ref().map(at).transpose()?;
        Ok(Place { queue: at(&self.jobs)?, results })
    }

    /// Which broker holds the jobs.
    pub(crate) fn kind(&self) -> BrokerKind {
        self.kind
    }

    /// Whether there is a process of ours that can be killed and started again.
    pub(crate) fn can_restart(&self) -> bool {
        self.jobs.server.is_some()
    }

    /// Kills a broker with -9, leaves it dead for a while, and starts it again on the same data;
    /// says which one it was.
    pub(crate) async fn restart(
        &mut self,
        victim: Victim,
        down: Duration,
    ) -> anyhow::Result<&'static str> {
        let (server, what) = self.server(victim)?;
        server.restart(down).await.with_context(|| format!("{what} did not come back"))?;
        Ok(what)
    }

    /// Kills a broker with -9; it is dead on return, until it is restarted.
    pub(crate) fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        self.server(victim)?.0.kill();
        Ok(())
    }

    /// The process that a restart hits, and which one it is in words.
    fn server(&mut self, victim: Victim) -> anyhow::Result<(&mut Server, &'static str)> {
        let apart = self.results.as_mut().and_then(|site| site.server.as_mut());
        match (victim, apart) {
            (Victim::Results, Some(server)) => Ok((server, "the store of the answers")),
            _ => {
                let server = self.jobs.server.as_mut();
                Ok((server.context("the broker is not ours to restart")?, "the broker"))
            }
        }
    }

    /// The processor time that the brokers have used, none where they have no process; `None` where one
    /// of them is not ours, or the system does not tell.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        std::iter::once(&self.jobs).chain(&self.results).map(Site::cpu_time).sum()
    }

    /// What the figures were measured on, in words.
    pub(crate) fn words(&self) -> String {
        match &self.results {
            Some(results) => format!("{}; results on {}", self.jobs.words, results.words),
            None => self.jobs.words.clone(),
        }
    }
}

/// The broker that a URL names.
fn named(url: &TypedUrl, wanted: BrokerKind) -> anyhow::Result<Site> {
    let base = url.read("--url")?;
    let (kind, words) = match &base.address {
        Address::Sqlite { synchronous: Synchronous::Full, .. } => {
            (BrokerKind::Sqlite, "sqlite, synchronous=full")
        }
        Address::Sqlite { synchronous: Synchronous::Normal, .. } => {
            (BrokerKind::Sqlite, "sqlite, synchronous=normal")
        }
        Address::Nats(_) => (BrokerKind::Nats, "nats of --url"),
        Address::Amqp(_) => (BrokerKind::Amqp, "amqp of --url"),
        Address::Redis(_) => (BrokerKind::Redis, "redis of --url"),
    };
    ensure!(
        kind == wanted,
        "--url names a broker of kind {kind}, --broker {wanted}; make them agree"
    );
    Ok(Site { base, server: None, words: words.to_owned() })
}
