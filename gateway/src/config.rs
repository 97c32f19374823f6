//! The command line of a gateway, and what it means once it is checked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::BoolishValueParser;
use ebb_queue::{Address, INLINE_LIMIT, Missing, Payloads, QueueUrl, TypedUrl, parse_span};
use ebb_telemetry::{Patience, TraceArgs};

use crate::connections::Welcome;
use crate::ids::Ids;
use crate::keys::Keys;
use crate::models::ModelPlan;
use crate::routes::Limits;
use crate::{file, reload};

/// Characters that a secret has at least.
const SECRET: usize = 32;

/// How a gateway is run.
#[derive(Debug, Clone, clap::Args)]
pub struct GatewayArgs {
    /// The queue of the one model that there is without --config: sqlite:PATH, nats://HOST,
    /// amqp://HOST/VHOST or redis://HOST/DATABASE, then [?queue=NAME&max_ready=N&...]
    #[arg(long, value_name = "URL", env = "EBB_QUEUE", hide_env_values = true)]
    pub queue: Option<TypedUrl>,

    /// Where its results are [default: with the jobs]. RabbitMQ keeps none, so its jobs need this
    #[arg(long, value_name = "URL", env = "EBB_RESULTS", hide_env_values = true)]
    pub results: Option<TypedUrl>,

    /// What clients call the model of --queue [default: the name of the queue]
    #[arg(long, value_name = "NAME", env = "EBB_GATEWAY_MODEL", hide_env_values = true)]
    pub model: Option<String>,

    /// Models and their queues, in place of --queue: a TOML file with a table [models.NAME] for each
    ///
    /// In it: queue (or queue_file, queue_env: where the URL is, which may hold a password), results
    /// (or results_file, results_env), aliases, serves (the ebb-model of its jobs, where workers of
    /// the queue have several models), timeout, max_in_flight.
    #[arg(long, value_name = "FILE", env = "EBB_GATEWAY_CONFIG", hide_env_values = true)]
    #[arg(conflicts_with_all = ["queue", "results", "model"])]
    pub config: Option<PathBuf>,

    /// Where large bodies and answers are, which travel by reference, as workers have it
    #[arg(long, value_name = "URL", env = "EBB_PAYLOADS", hide_env_values = true)]
    pub payloads: Option<TypedUrl>,

    /// Largest body or answer that travels with its job when there is a store of --payloads
    #[arg(long, value_name = "BYTES", env = "EBB_INLINE_LIMIT", hide_env_values = true)]
    #[arg(default_value_t = INLINE_LIMIT)]
    pub inline_limit: usize,

    /// Who may use the gateway: a TOML file, read again when it changes, with a table [keys.NAME]
    /// for each key; clients send `authorization: Bearer KEY`
    ///
    /// In it: sha256 (of the key), tenant (the ebb-tenant of its jobs; NAME by default), models,
    /// max_in_flight, requests_per_minute, and whether its jobs may set ebb-priority to high (priority)
    /// and ebb-cost (cost), which they may not by default. Who has a key sees the jobs of its tenant alone.
    #[arg(long, value_name = "FILE", env = "EBB_GATEWAY_KEYS", hide_env_values = true)]
    pub keys: Option<PathBuf>,

    /// A secret that only the gateway has, the same for all its replicas, and needed with --keys: by it
    /// ids of jobs are known as those that the gateway gave out. A file of 32 characters or more, such
    /// as: head -c 32 /dev/urandom | base64. With another secret the ids from before are unknown
    #[arg(long, value_name = "FILE", env = "EBB_GATEWAY_ID_SECRET_FILE", hide_env_values = true)]
    pub id_secret_file: Option<PathBuf>,

    /// Let anybody in who reaches --listen, without --keys; else only programs of this machine
    /// may, and no pages of other sites
    #[arg(long, env = "EBB_GATEWAY_OPEN", hide_env_values = true, conflicts_with = "keys")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub open: bool,

    /// How often the file of keys is looked at for changes
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_RELOAD", hide_env_values = true)]
    #[arg(default_value = "5s", value_parser = parse_span)]
    pub reload: Duration,

    /// Where clients reach the gateway; it speaks plain HTTP, so an ingress before it has the TLS
    #[arg(long, value_name = "ADDRESS", env = "EBB_GATEWAY_LISTEN", hide_env_values = true)]
    #[arg(default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Address of /livez /readyz /startupz /metrics, such as 0.0.0.0:8080 [default: none]
    #[arg(long, value_name = "ADDRESS", env = "EBB_LISTEN", hide_env_values = true)]
    pub admin_listen: Option<SocketAddr>,

    /// How long a request waits for its answer, or for the first piece of it: long enough for a pool
    /// that starts from zero
    ///
    /// A model's own timeout and the headers ebb-ttl and ebb-deadline of a request come before it. When
    /// it is over the jobs are cancelled, so that nobody runs what nobody waits for.
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_TIMEOUT", hide_env_values = true)]
    #[arg(default_value = "5m", value_parser = parse_span)]
    pub timeout: Duration,

    /// Requests that are answered at once; further ones are told to come again. Where there are several
    /// keys, one without a max_in_flight of its own has half at most of what others leave
    #[arg(long, value_name = "N", env = "EBB_GATEWAY_MAX_IN_FLIGHT", hide_env_values = true)]
    #[arg(default_value = "4096")]
    pub max_in_flight: NonZeroUsize,

    /// Connections of clients at once, idle ones among them; further ones are told to come again. Each
    /// is an open file of the process
    #[arg(long, value_name = "N", env = "EBB_GATEWAY_MAX_CONNECTIONS", hide_env_values = true)]
    #[arg(default_value = "8192")]
    pub max_connections: NonZeroUsize,

    /// How long a client may take from its connection to the end of its first request's headers, which
    /// have 16 KiB at most; no longer than --idle-timeout
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_HEADER_TIMEOUT", hide_env_values = true)]
    #[arg(default_value = "30s", value_parser = parse_span)]
    pub header_timeout: Duration,

    /// How long a connection is kept from an answer to the end of the next request's headers: longer
    /// than a proxy before the gateway keeps it, or a request meets one that was just closed
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_IDLE_TIMEOUT", hide_env_values = true)]
    #[arg(default_value = "75s", value_parser = parse_span)]
    pub idle_timeout: Duration,

    /// How long a client may take nothing of an answer that waits for it, or next to nothing, or less
    /// than a tenth of a large one: then its connection is closed, and its jobs are cancelled as those of
    /// one that hangs up
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_STALL_TIMEOUT", hide_env_values = true)]
    #[arg(default_value = "1m", value_parser = parse_span)]
    pub stall_timeout: Duration,

    /// Largest body of a request, in bytes
    #[arg(long, value_name = "BYTES", env = "EBB_GATEWAY_MAX_BODY", hide_env_values = true)]
    #[arg(default_value = "8388608")]
    pub max_body: NonZeroUsize,

    /// Bytes of bodies and of answers that all requests hold at once; further ones are told to come
    /// again. Where there are several keys, one holds half at most of what others leave. A body is held
    /// until its jobs are published, which takes up to three times its size, and the answers of a request,
    /// or the pieces of a stream, until its client has taken them
    #[arg(long, value_name = "BYTES", env = "EBB_GATEWAY_BODY_MEMORY", hide_env_values = true)]
    #[arg(default_value = "268435456")]
    pub body_memory: NonZeroUsize,

    /// Inputs that one request may have: each is a job
    #[arg(long, value_name = "N", env = "EBB_GATEWAY_MAX_INPUTS", hide_env_values = true)]
    #[arg(default_value = "2048")]
    pub max_inputs: NonZeroUsize,

    /// How often a stream that has nothing to say sends a comment, so that no proxy closes it
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_KEEP_ALIVE", hide_env_values = true)]
    #[arg(default_value = "5s", value_parser = parse_span)]
    pub keep_alive: Duration,

    /// Create nothing on the broker: a queue that is missing there is an error, and
    /// `ebb queue init` makes it
    #[arg(long, env = "EBB_NO_CREATE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    pub no_create: bool,

    /// Longest that one try to connect to a broker takes; the gateway goes on trying
    #[arg(long, value_name = "TIME", env = "EBB_CONNECT_TIMEOUT", hide_env_values = true)]
    #[arg(default_value = "10s", value_parser = parse_span)]
    pub connect_timeout: Duration,

    /// Time from SIGTERM until who still waits is told the ids of the jobs, which stay; the gateway has
    /// ended a few seconds later at most
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_GRACE", hide_env_values = true)]
    #[arg(default_value = "25s", value_parser = parse_span)]
    pub grace: Duration,

    /// Time from SIGTERM until no more requests are taken, a part of --grace: for a Service or a balancer
    /// that still sends some while it learns that this replica ends
    #[arg(long, value_name = "TIME", env = "EBB_GATEWAY_LINGER", hide_env_values = true)]
    #[arg(default_value = "0s", value_parser = parse_span)]
    pub linger: Duration,

    /// Where spans go.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// A command line that was checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) models: Vec<ModelPlan>,
    pub(crate) keys: Option<(PathBuf, Keys)>,
    pub(crate) ids: Ids,
    pub(crate) payloads: Option<Payloads>,
    pub(crate) missing: Missing,
}

impl GatewayArgs {
    /// Finds everything that can be found wrong without a broker or a port.
    pub(crate) fn check(&self) -> anyhow::Result<Plan> {
        let models = match &self.config {
            Some(path) => self.configured(path)?,
            None => vec![self.single()?],
        };
        for plan in &models {
            let ModelPlan { name, url, results, .. } = plan;
            ensure!(
                results.is_some() || !matches!(url.address, Address::Amqp(_)),
                "model {name}: results are missing: RabbitMQ keeps none; name the store that the \
                 workers have, such as redis://HOST"
            );
        }
        let spans = [
            ("--reload", self.reload),
            ("--timeout", self.timeout),
            ("--header-timeout", self.header_timeout),
            ("--idle-timeout", self.idle_timeout),
            ("--stall-timeout", self.stall_timeout),
            ("--keep-alive", self.keep_alive),
            ("--connect-timeout", self.connect_timeout),
        ];
        for (name, span) in spans {
            ensure!(!span.is_zero(), "{name} is 0; use a time such as 5s");
        }
        ensure!(
            self.header_timeout <= self.idle_timeout,
            "--header-timeout is longer than --idle-timeout, which ends a first request's headers as \
             well; give a longer --idle-timeout, or a shorter --header-timeout"
        );
        let keys = match &self.keys {
            Some(path) => Some((path.clone(), reload::load(path)?)),
            None => None,
        };
        self.check_memory()?;
        ensure!(
            keys.is_some() || self.open || self.listen.ip().is_loopback(),
            "--listen: {} can be reached from other machines, and anybody may use the gateway; give \
             --keys, or --open if that is meant",
            self.listen
        );
        let payloads = self.payloads.as_ref().map(|typed| {
            let mut payloads = Payloads::open(&typed.read_payloads("--payloads")?)?;
            payloads.inline = self.inline_limit;
            anyhow::Ok(payloads)
        });
        let payloads = payloads.transpose().context("--payloads")?;
        let missing = if self.no_create { Missing::Refuse } else { Missing::Create };
        Ok(Plan { models, keys, ids: self.ids()?, payloads, missing })
    }

    /// Whether there is room for the largest body: who is told to come again is told in vain where not.
    fn check_memory(&self) -> anyhow::Result<()> {
        let (times, why) = match self.keys {
            Some(_) => (
                2,
                "twice as much as --max-body: where --keys has several, one holds half of it at most",
            ),
            None => (1, "as much as --max-body"),
        };
        let least = self.max_body.get().saturating_mul(times);
        ensure!(
            self.body_memory.get() >= least,
            "--body-memory is {}, and no body of --max-body fits; give it {least} or more, {why}, or give \
             a smaller --max-body",
            self.body_memory
        );
        Ok(())
    }

    /// How much is taken.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            max_in_flight: self.max_in_flight.get(),
            max_body: self.max_body.get(),
            memory: self.body_memory.get(),
            max_inputs: self.max_inputs.get(),
            keep_alive: self.keep_alive,
        }
    }

    /// Who is let in, and how long he is waited for.
    pub(crate) fn welcome(&self) -> Welcome {
        let patience = Patience {
            headers: self.header_timeout,
            idle: self.idle_timeout,
            stall: self.stall_timeout,
        };
        Welcome { max_connections: self.max_connections.get(), patience }
    }

    /// Whether only programs of this machine may ask.
    pub(crate) fn is_local(&self) -> bool {
        self.keys.is_none() && !self.open
    }

    fn ids(&self) -> anyhow::Result<Ids> {
        let Some(path) = &self.id_secret_file else {
            if self.keys.is_some() {
                bail!(
                    "--id-secret-file is missing: with --keys nobody may make ids of jobs up; give a \
                     file with 32 characters of chance or more, the same to all replicas"
                );
            }
            return Ok(Ids::default());
        };
        let told = || format!("--id-secret-file: {}", path.display());
        let secret = reload::read(path).with_context(told)?;
        let secret = secret.trim();
        ensure!(
            secret.len() >= SECRET,
            "{} has {} characters; use {SECRET} or more, such as: head -c 32 /dev/urandom | base64",
            told(),
            secret.len()
        );
        Ok(Ids::new(secret.as_bytes()))
    }

    fn single(&self) -> anyhow::Result<ModelPlan> {
        let missing = "--queue is missing: where do jobs go? try sqlite:/tmp/queue.db, or --config \
                       with several models";
        let url = self.queue.as_ref().context(missing)?.read("--queue")?;
        let results = self.results.as_ref().map(|typed| typed.read("--results")).transpose()?;
        Ok(ModelPlan {
            name: self.model.clone().unwrap_or_else(|| url.queue.clone()),
            aliases: Vec::new(),
            results: apart(&url, results),
            url,
            serves: None,
            timeout: self.timeout,
            max_in_flight: None,
        })
    }

    fn configured(&self, path: &std::path::Path) -> anyhow::Result<Vec<ModelPlan>> {
        let told = || format!("--config: {}", path.display());
        let drafts = file::parse(&reload::read(path).with_context(told)?).with_context(told)?;
        ensure!(!drafts.is_empty(), "{}: there is no model; write [models.NAME]", told());
        let plan = |(name, draft): (String, file::Draft)| {
            let line = draft.line;
            let at = || format!("{}: line {line}: models.{name}", told());
            let url = draft.queue.read("queue").with_context(at)?;
            let results = draft.results.map(|from| from.read("results"));
            let results = results.transpose().with_context(at)?;
            anyhow::Ok(ModelPlan {
                aliases: draft.aliases,
                results: apart(&url, results),
                url,
                serves: draft.serves,
                timeout: draft.timeout.unwrap_or(self.timeout),
                max_in_flight: draft.max_in_flight,
                name,
            })
        };
        drafts.into_iter().map(plan).collect()
    }
}

/// Results that lie with their jobs are not apart.
fn apart(url: &QueueUrl, results: Option<QueueUrl>) -> Option<QueueUrl> {
    results.filter(|results| results != url)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "ebb-gateway", max_term_width = 100)]
    struct Cli {
        #[command(flatten)]
        gateway: GatewayArgs,
    }

    fn check(flags: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from([&["gateway"], flags].concat());
        let cli = cli.map_err(|error| error.to_string())?;
        cli.gateway.check().map_err(|error| format!("{error:#}"))
    }

    const QUEUE: &[&str] = &["--queue", "sqlite:/tmp/q.db?queue=chat"];

    #[test]
    fn the_help_suffices_to_operate_the_gateway() {
        let help = Cli::command().term_width(100).render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(help.join("\n"));
    }

    #[test]
    fn one_queue_is_one_model() {
        let plan = check(QUEUE).unwrap();
        let [model] = &plan.models[..] else { panic!("{plan:?}") };
        assert_eq!((model.name.as_str(), model.timeout), ("chat", Duration::from_secs(300)));
        let named = check(&[QUEUE, &["--model", "org/chat", "--timeout", "9s"]].concat()).unwrap();
        let model = &named.models[0];
        assert_eq!((model.name.as_str(), model.timeout), ("org/chat", Duration::from_secs(9)));
    }

    #[test]
    fn a_file_has_several_models_and_its_mistakes_are_told_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        let flags = ["--config", path.to_str().unwrap()];
        let file = |text: &str| std::fs::write(&path, text).unwrap();
        file(
            "[models.a]\nqueue = \"sqlite:q.db?queue=a\"\ntimeout = \"2s\"\n[models.b]\nqueue = \"sqlite:q.db\"\n",
        );
        let models = check(&flags).unwrap().models;
        let told: Vec<_> = models.iter().map(|model| (&*model.name, model.timeout)).collect();
        assert_eq!(told, [("a", Duration::from_secs(2)), ("b", Duration::from_secs(300))]);
        for (text, told) in [
            ("", "there is no model; write [models.NAME]"),
            (
                "[models.a]\nqueue = \"nats://me:hunter2@host?colour=red\"",
                "line 1: models.a: queue:",
            ),
            ("[models.a]\nqueue_file = \"/no/such\"", "queue_file: /no/such: cannot be read"),
            ("[models.a]\nqueue = \"amqp://host\"", "model a: results are missing"),
            ("[models.a]\nquue = 1", "line 2: key \"models.a.quue\" is not known; use queue"),
        ] {
            file(text);
            let error = check(&flags).expect_err(told);
            assert!(error.contains(told) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        for (flags, told) in [
            (&[][..], "--queue is missing"),
            (&["--queue", "nats://me:hunter2@host?colour=red"], "--queue"),
            (&["--queue", "amqp://host"], "results are missing"),
            (&[QUEUE, &["--config", "x"]].concat(), "cannot be used with"),
            (&["--config", "/no/such"], "--config: /no/such: cannot be read"),
            (&[QUEUE, &["--keys", "/no/such"]].concat(), "--keys: /no/such: cannot be read"),
            (&[QUEUE, &["--keys", "x", "--open"]].concat(), "cannot be used with"),
            (&[QUEUE, &["--listen", "0.0.0.0:8000"]].concat(), "give --keys, or --open"),
            (&[QUEUE, &["--timeout", "0s"]].concat(), "--timeout is 0"),
            (&[QUEUE, &["--stall-timeout", "0s"]].concat(), "--stall-timeout is 0"),
            (&[QUEUE, &["--idle-timeout", "29s"]].concat(), "longer than --idle-timeout"),
            (&[QUEUE, &["--header-timeout", "76s"]].concat(), "--header-timeout is longer than"),
            (&[QUEUE, &["--max-connections", "0"]].concat(), "--max-connections"),
            (&[QUEUE, &["--body-memory", "8388607"]].concat(), "give it 8388608 or more, as much"),
            (&[QUEUE, &["--timeout", "soon"]].concat(), "a number with a unit"),
        ] {
            let error = check(flags).expect_err(told);
            assert!(error.contains(told) && !error.contains("hunter2"), "{flags:?}: {error}");
        }
        assert!(check(&[QUEUE, &["--listen", "0.0.0.0:8000", "--open"]].concat()).is_ok());
        assert!(check(&[QUEUE, &["--idle-timeout", "30s"]].concat()).is_ok());
    }

    #[test]
    fn keys_need_a_secret_that_is_long_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (keys, secret) = (path("keys.toml"), path("secret"));
        std::fs::write(&keys, "").unwrap();
        std::fs::write(&secret, "short\n").unwrap();
        let with_keys = [QUEUE, &["--keys", &keys]].concat();
        let error = check(&with_keys).unwrap_err();
        assert!(error.contains("--id-secret-file is missing"), "{error}");
        let with_both = [&with_keys[..], &["--id-secret-file", &secret]].concat();
        let error = check(&with_both).unwrap_err();
        assert!(error.contains("has 5 characters; use 32") && !error.contains("short"), "{error}");
        std::fs::write(&secret, "x".repeat(32)).unwrap();
        assert!(check(&with_both).is_ok());
        let error = check(&[&with_both[..], &["--body-memory", "8388608"]].concat()).unwrap_err();
        assert!(error.contains("give it 16777216 or more, twice as much"), "{error}");
    }
}
