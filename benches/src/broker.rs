//! The broker a bench runs against: one of its own, gone when it ends, or one that a URL names.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use ebb_queue::{Address, OpenOptions, Queue, QueueUrl, Synchronous};

/// Which broker a bench runs against.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BrokerArgs {
    /// The broker to measure; one is started for the run unless --url names one
    #[arg(long, value_enum, env = "EBB_BENCH_BROKER", hide_env_values = true)]
    #[arg(default_value_t = BrokerKind::Sqlite)]
    pub(crate) broker: BrokerKind,

    /// A broker that is there already, such as sqlite:/var/lib/ebb/queue.db
    ///
    /// The run adds queues of its own to it, named bench-PID-..., and leaves them there.
    #[arg(long, env = "EBB_BENCH_URL", hide_env_values = true, value_name = "URL")]
    url: Option<QueueUrl>,

    /// Where a broker that is started keeps its data [default: the temporary directory]
    ///
    /// The disk under it decides the figures of `--synchronous full`.
    #[arg(long, env = "EBB_BENCH_DIR", hide_env_values = true, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What a commit of a SQLite broker that is started waits for: the disk, or the system alone
    #[arg(long, value_enum, env = "EBB_BENCH_SYNCHRONOUS", hide_env_values = true)]
    #[arg(default_value_t = Durability::Full)]
    synchronous: Durability,
}

/// The brokers there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BrokerKind {
    /// The embedded queue: a file, no server.
    Sqlite,
}

impl BrokerKind {
    /// Whether there is a process that can be killed and started again.
    pub(crate) fn has_server(self) -> bool {
        match self {
            Self::Sqlite => false,
        }
    }
}

impl std::fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    Full,
    Normal,
}

/// A broker that is up. Dropped, one that was started here is gone with its data.
#[derive(Debug)]
pub(crate) struct Bed {
    base: QueueUrl,
    _data: Option<tempfile::TempDir>,
}

impl Bed {
    /// Starts the broker, or takes the one that the URL names.
    pub(crate) fn make(args: &BrokerArgs) -> anyhow::Result<Self> {
        if let Some(url) = &args.url {
            let kind = kind_of(url);
            ensure!(
                kind == args.broker,
                "--url names a broker of kind {kind}, --broker {}; make them agree",
                args.broker
            );
            return Ok(Self { base: url.clone(), _data: None });
        }
        let data = tempfile::Builder::new()
            .prefix("ebb-bench-")
            .tempdir_in(args.dir.clone().unwrap_or_else(std::env::temp_dir))
            .context("cannot make a directory for the broker's data; name one with --dir")?;
        let base = match args.broker {
            BrokerKind::Sqlite => {
                let path = data.path().join("queue.db");
                let synchronous = match args.synchronous {
                    Durability::Full => Synchronous::Full,
                    Durability::Normal => Synchronous::Normal,
                };
                let address = Address::Sqlite { path: path.clone(), synchronous };
                QueueUrl { address, ..QueueUrl::sqlite(path) }
            }
        };
        Ok(Self { base, _data: Some(data) })
    }

    /// The URL of a queue that no other run uses.
    pub(crate) fn queue(&self, name: &str, lease: Duration) -> anyhow::Result<QueueUrl> {
        let mut url = self.base.with_queue(&format!("bench-{}-{name}", std::process::id()))?;
        url.behavior.lease = lease;
        Ok(url)
    }

    /// What the figures were measured on, in words.
    pub(crate) fn words(&self) -> &'static str {
        match &self.base.address {
            Address::Sqlite { synchronous: Synchronous::Full, .. } => "sqlite, synchronous=full",
            Address::Sqlite { synchronous: Synchronous::Normal, .. } => {
                "sqlite, synchronous=normal"
            }
        }
    }
}

/// Opens a queue under a name that says who has it open.
pub(crate) async fn open(url: &QueueUrl, who: &str) -> anyhow::Result<Queue> {
    let worker = format!("bench-{who}-{}", std::process::id());
    let options = OpenOptions { worker, ..OpenOptions::default() };
    ebb_queue::open(url, options).await.with_context(|| format!("cannot open {url}"))
}

fn kind_of(url: &QueueUrl) -> BrokerKind {
    match &url.address {
        Address::Sqlite { .. } => BrokerKind::Sqlite,
    }
}
