//! The command line of a worker, and what it means once it is checked.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ArgAction;
use clap::builder::BoolishValueParser;
use ebb_queue::{Address, INLINE_LIMIT, JobId, Missing, Payloads, QueueUrl, RetryPolicy, TypedUrl};
use ebb_telemetry::TraceArgs;

use crate::batcher::Limits;
use crate::deletion::Pod;
use crate::metrics::TENANTS;
use crate::models::ModelOptions;
use crate::placing::DeviceArgs;
use crate::serve::{QueuePlan, ServeEntry};
use crate::shared::Settings;

/// How a worker is run.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    /// Queue to take jobs from: sqlite:PATH, nats://HOST, amqp://HOST/VHOST or
    /// redis://HOST/DATABASE, then [?queue=NAME&lease=30s&...]
    #[arg(long, value_name = "URL", env = "EBB_QUEUE", hide_env_values = true)]
    pub queue: Option<TypedUrl>,

    /// Where results go [default: the same broker and queue as --queue]; RabbitMQ keeps none, so
    /// its jobs need this. It knows answers by the ids of their jobs alone: with several queues,
    /// of one worker or of several, no two jobs may have the same id
    #[arg(long, value_name = "URL", env = "EBB_RESULTS", hide_env_values = true)]
    pub results: Option<TypedUrl>,

    /// Create nothing on a broker: a queue that is missing there is an error, and `ebb queue init`
    /// makes it
    #[arg(long, env = "EBB_NO_CREATE")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub no_create: bool,

    /// Longest that one try to connect to a broker takes; the worker goes on trying
    #[arg(long, value_name = "TIME", env = "EBB_CONNECT_TIMEOUT", default_value = "10s")]
    #[arg(value_parser = time)]
    pub connect_timeout: Duration,

    /// Store of large bodies and answers, which travel by reference: file:///DIR,
    /// s3://BUCKET/PREFIX with the usual AWS_* variables, or `results` for the result store of the
    /// queue [default: all travel with their jobs]
    ///
    /// In `results` a body lives as long as a result (result_ttl): a job whose delay is longer is
    /// refused, and a dead letter that is put back later has lost its body.
    #[arg(long, value_name = "URL", env = "EBB_PAYLOADS", hide_env_values = true)]
    pub payloads: Option<TypedUrl>,

    /// Largest body or answer that travels with its job when there is a store of --payloads
    #[arg(long, value_name = "BYTES", env = "EBB_INLINE_LIMIT", default_value_t = INLINE_LIMIT)]
    pub inline_limit: usize,

    /// Queue on the broker of --queue that gets the alerts of a sentinel, as jobs of their own
    #[arg(long, value_name = "NAME", env = "EBB_ALERTS", default_value = "alerts")]
    pub alerts: String,

    /// Model to run: a directory in the Hugging Face layout, with `ebb worker` also the id of a model
    /// that was pulled, `sentinel` for the anomaly detector that comes with Ebb, or `echo` for tests
    #[arg(long, value_name = "DIR|sentinel|echo", env = "EBB_MODEL")]
    pub model: Option<String>,

    /// A queue on the broker of --queue and a model for it, in place of --model; may be given often.
    /// A queue that is named twice has two models: jobs choose with the header ebb-model, and
    /// those that do not get the first
    #[arg(long, value_name = "QUEUE=DIR|sentinel|echo", env = "EBB_SERVE", value_delimiter = ',')]
    pub serve: Vec<ServeEntry>,

    /// Numbers of an embedding for jobs that do not say how many [default: all the model has]
    #[arg(long, value_name = "N", env = "EBB_DIMENSIONS")]
    pub dimensions: Option<NonZeroUsize>,

    /// Tokens that an answer of a generator may have at most; a job that asks for more becomes a dead
    /// letter
    #[arg(long, value_name = "TOKENS", env = "EBB_MAX_NEW_TOKENS", default_value = "4096")]
    pub max_new_tokens: NonZeroUsize,

    /// Memory for the keys and values of a generator: how many texts grow side by side, and how long
    /// one may be. They are on its device; its weights come on top [default: 1 GiB, and on a processor
    /// as much more as one text of the model's full length needs, but at most a quarter of the memory
    /// of this machine or cgroup]
    ///
    /// Workers of one queue should have the same: what one answers another could refuse as too long.
    #[arg(long, value_name = "BYTES", env = "EBB_KV_MEMORY")]
    pub kv_memory: Option<u64>,

    /// Keep what a generator on a processor has computed of a text for others that begin alike, in what
    /// those that grow leave of --kv-memory. Answers are the same; that one comes sooner may tell that
    /// somebody sent a text which begins alike
    #[arg(long, value_name = "BOOL", env = "EBB_PREFIX_CACHE", default_value_t = true)]
    #[arg(action = ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub prefix_cache: bool,

    /// What it runs on.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// Processor threads the model computes with, and that decode; 0 for as many as the processors
    /// that this process may use, or its cgroup's processor limit, rounded down, where that is less
    #[arg(long, value_name = "N", env = "EBB_THREADS", default_value_t = 0)]
    pub threads: usize,

    /// Largest batch, in rows (texts, windows); a single job with more runs alone
    #[arg(long, value_name = "N", env = "EBB_MAX_ITEMS", default_value = "32")]
    pub max_items: NonZeroUsize,

    /// Largest batch, in tokens: padding counts where there is any, with burn's kernels on a GPU; a
    /// single job with more runs alone
    #[arg(long, value_name = "TOKENS", env = "EBB_MAX_COST", default_value = "8192")]
    pub max_cost: NonZeroUsize,

    /// Longest that a free device waits for jobs that are being decoded, such as 5ms
    #[arg(long, value_name = "TIME", env = "EBB_MAX_WAIT", default_value = "5ms")]
    #[arg(value_parser = time)]
    pub max_wait: Duration,

    /// Jobs received ahead of the batch that runs, shared by the queues; no other worker can have
    /// them [default: --max-items]
    #[arg(long, value_name = "N", env = "EBB_PREFETCH")]
    pub prefetch: Option<usize>,

    /// Attempts a job may take before it becomes a dead letter, crashes counted
    #[arg(long, value_name = "N", env = "EBB_MAX_ATTEMPTS", default_value = "5")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub max_attempts: u32,

    /// Delay before the second attempt of a job that failed; doubles with each, with jitter
    #[arg(long, value_name = "TIME", env = "EBB_RETRY_BASE", default_value = "1s")]
    #[arg(value_parser = time)]
    pub retry_base: Duration,

    /// Longest delay before another attempt
    #[arg(long, value_name = "TIME", env = "EBB_RETRY_CAP", default_value = "5m")]
    #[arg(value_parser = time)]
    pub retry_cap: Duration,

    /// A batch that takes longer means that the device is wedged: its jobs go to other workers, and
    /// /livez fails. The first of a shape may take 10m where kernels are tuned by shape
    #[arg(long, value_name = "TIME", env = "EBB_STALL", default_value = "60s")]
    #[arg(value_parser = time)]
    pub stall: Duration,

    /// Time from SIGTERM, at most, to finish what runs; the rest is given back at once. The last
    /// words to the broker and to the collector of traces may take up to 4s more
    #[arg(long, value_name = "TIME", env = "EBB_GRACE", default_value = "25s")]
    #[arg(value_parser = time)]
    pub grace: Duration,

    /// Largest body of a job, in bytes; a larger one becomes a dead letter
    #[arg(long, value_name = "BYTES", env = "EBB_MAX_BODY", default_value_t = 4 << 20)]
    pub max_body: usize,

    /// Most that one job may cost, in tokens as --max-cost counts them; a larger one becomes a dead
    /// letter. It runs in one go, within --stall
    #[arg(long, value_name = "TOKENS", env = "EBB_MAX_JOB_COST", default_value_t = 65536)]
    pub max_job_cost: usize,

    /// Address of /livez /readyz /startupz /metrics, such as 0.0.0.0:8080 [default: none]
    #[arg(long, value_name = "ADDRESS", env = "EBB_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Tell Kubernetes by the annotation pod-deletion-cost what a scale-in would destroy here
    /// [auto: where POD_NAME, POD_NAMESPACE and the token of a service account are]
    #[arg(long, value_name = "auto|on|off", env = "EBB_POD_DELETION_COST", default_value = "auto")]
    #[arg(hide_possible_values = true)]
    pub pod_deletion_cost: PodDeletionCost,

    /// Tenants (header ebb-tenant) with a label of their own in the metrics, first come first
    /// served; all others are `other`
    #[arg(long, value_name = "N", env = "EBB_TENANT_LABELS", default_value_t = TENANTS)]
    pub tenant_labels: usize,

    /// Name of this worker, unlike that of any other [default: host name and a random suffix]
    #[arg(long, value_name = "NAME", env = "EBB_WORKER_ID")]
    pub id: Option<String>,

    /// Exit when no job is ready and none is held, as a Kubernetes Job wants it
    #[arg(long, env = "EBB_EXIT_WHEN_EMPTY")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub exit_when_empty: bool,

    /// Exit after receiving so many jobs [default: no limit]
    #[arg(long, value_name = "N", env = "EBB_MAX_JOBS")]
    pub max_jobs: Option<u64>,

    /// Time that echo takes for a batch
    #[arg(long, value_name = "TIME", env = "EBB_ECHO_BATCH", default_value = "0s")]
    #[arg(value_parser = time, hide_short_help = true)]
    pub echo_batch: Duration,

    /// Time that echo takes more for each job
    #[arg(long, value_name = "TIME", env = "EBB_ECHO_ITEM", default_value = "0s")]
    #[arg(value_parser = time, hide_short_help = true)]
    pub echo_item: Duration,

    /// Jobs in a batch from which echo runs out of memory [default: none]
    #[arg(long, value_name = "N", env = "EBB_ECHO_MEMORY", hide_short_help = true)]
    pub echo_memory: Option<usize>,

    /// Where spans go.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Whether a worker keeps the deletion cost of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PodDeletionCost {
    /// Where it can.
    Auto,
    /// It must be able to.
    On,
    /// Never.
    Off,
}

impl PodDeletionCost {
    /// The pod, if its cost is kept.
    fn pod(self) -> anyhow::Result<Option<Pod>> {
        match (self, Pod::here(|name| std::env::var(name).ok())) {
            (Self::Off, _) | (Self::Auto, Err(_)) => Ok(None),
            (Self::Auto | Self::On, Ok(pod)) => Ok(Some(pod)),
            (Self::On, Err(why)) => anyhow::bail!("--pod-deletion-cost on: {why}"),
        }
    }
}

/// A command line that was checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) queues: Vec<QueuePlan>,
    pub(crate) results: Option<QueueUrl>,
    pub(crate) payloads: Option<Payloads>,
    pub(crate) alerts: QueueUrl,
    pub(crate) missing: Missing,
    pub(crate) connect_timeout: Duration,
    pub(crate) options: ModelOptions,
    pub(crate) tenant_labels: usize,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) settings: Settings,
}

impl Plan {
    /// Whether one store has the answers of several queues, by the ids of their jobs alone.
    pub(crate) fn shares_answers(&self) -> bool {
        self.results.is_some() && self.queues.len() > 1
    }

    /// What a queue was asked for by, for errors: of several the name as well.
    pub(crate) fn flag_of(&self, url: &QueueUrl) -> String {
        match self.queues.len() {
            1 => "--queue".to_owned(),
            _ => format!("--serve {}", url.queue),
        }
    }
}

/// Where results go when not where the jobs are.
///
/// # Errors
/// When they have no place at all: RabbitMQ keeps none.
pub fn store_apart(
    queue: &QueueUrl,
    results: Option<QueueUrl>,
) -> anyhow::Result<Option<QueueUrl>> {
    let results = results.filter(|results| results != queue);
    ensure!(
        results.is_some() || !matches!(queue.address, Address::Amqp(_)),
        "--results is missing: RabbitMQ keeps no results; name a store such as \
         --results redis://HOST or --results sqlite:PATH"
    );
    Ok(results)
}

impl WorkerArgs {
    fn check_limits(&self) -> anyhow::Result<()> {
        ensure!(
            !self.stall.is_zero(),
            "--stall is 0; use the longest time of a batch, such as 60s"
        );
        for (flag, n_jobs) in
            [("--max-items", self.max_items.get()), ("--prefetch", self.prefetch.unwrap_or(0))]
        {
            ensure!(n_jobs <= MOST_JOBS, "{flag} is {n_jobs}; use at most {MOST_JOBS} jobs");
        }
        ensure!(self.kv_memory != Some(0), "--kv-memory is 0; use a number of bytes");
        ensure!(self.max_body > 0, "--max-body is 0; use the largest body in bytes");
        ensure!(self.retry_base <= self.retry_cap, "--retry-base is longer than --retry-cap");
        Ok(())
    }

    /// Finds everything that can be found wrong without a broker, a port or a device.
    pub(crate) fn check(self) -> anyhow::Result<Plan> {
        self.device.choice()?;
        let entries = self.entries()?;
        let missing = "--queue is missing: where do the jobs come from? try sqlite:/tmp/queue.db";
        let queue = self.queue.clone().context(missing)?.read("--queue")?;
        let results = self.results.clone().map(|typed| typed.read("--results")).transpose()?;
        let results = store_apart(&queue, results)?;
        ensure!(!self.connect_timeout.is_zero(), "--connect-timeout is 0; use a time such as 10s");
        let payloads = self.payloads.as_ref().map(|typed| {
            let url = typed.read_payloads("--payloads")?;
            let mut payloads = Payloads::open(&url).context("--payloads")?;
            payloads.inline = self.inline_limit;
            payloads.largest = self.max_body;
            anyhow::Ok(payloads)
        });
        let alerts = queue.with_queue(&self.alerts);
        let queues = self.queue_plans(&queue, entries)?;
        self.check_limits()?;
        let Self { dimensions, max_new_tokens, kv_memory, prefix_cache, .. } = self;
        let options = ModelOptions { dimensions, max_new_tokens, kv_memory, prefix_cache };
        let pod = host();
        let worker = worker_id(self.id.as_deref(), &pod)?;
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let settings = Settings {
            worker,
            pod,
            limits: Limits {
                max_items: self.max_items,
                max_cost: self.max_cost,
                max_wait: self.max_wait,
            },
            prefetch: self.prefetch.unwrap_or(self.max_items.get()),
            retry: RetryPolicy {
                max_attempts: self.max_attempts,
                base: self.retry_base,
                cap: self.retry_cap,
            },
            stall: self.stall,
            grace: self.grace,
            decode_threads: if self.threads == 0 { cores } else { self.threads },
            max_body: self.max_body,
            max_job_cost: self.max_job_cost,
            exit_when_empty: self.exit_when_empty,
            max_jobs: self.max_jobs,
            deletion_cost: self.pod_deletion_cost.pod()?,
        };
        Ok(Plan {
            alerts: alerts.context("--alerts is not valid")?,
            queues,
            results,
            missing: if self.no_create { Missing::Refuse } else { Missing::Create },
            connect_timeout: self.connect_timeout,
            payloads: payloads.transpose()?,
            options,
            tenant_labels: self.tenant_labels,
            listen: self.listen,
            settings,
        })
    }
}

/// The longest time of a flag: nothing waits longer, and moments so far ahead can be told.
const LONGEST: Duration = Duration::from_secs(3600 * 87_600);

/// The most jobs of a batch, and of what is fetched ahead.
const MOST_JOBS: usize = 1_000_000;

/// Parses `250ms`, `30s`, `5m`, `1h30m`, `1d`.
fn time(text: &str) -> Result<Duration, String> {
    let remedy = "use seconds, or a number with a unit, such as 5ms, 30s or 5m";
    let time = ebb_queue::read_span(text).ok_or(remedy)?;
    if time > LONGEST {
        return Err("use at most ten years, 87600h".to_owned());
    }
    Ok(time)
}

fn worker_id(given: Option<&str>, pod: &str) -> anyhow::Result<String> {
    match given {
        Some(id) => id.parse::<JobId>().map(String::from).context("--id is not a name"),
        None => Ok(format!("{pod}-{}", &uuid::Uuid::now_v7().simple().to_string()[20..])),
    }
}

/// Where this worker runs; never empty, since its id begins with it.
fn host() -> String {
    let host = ebb_telemetry::host();
    if host.is_empty() { "worker".to_owned() } else { host }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        worker: WorkerArgs,
    }

    pub(crate) fn check(flags: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from([&["worker"], flags].concat());
        let cli = cli.map_err(|error| error.to_string())?;
        cli.worker.check().map_err(|error| format!("{error:#}"))
    }

    const GOOD: &[&str] = &["--queue", "sqlite:/tmp/q.db", "--model", "echo"];

    #[test]
    fn the_defaults_make_a_worker() {
        let plan = check(GOOD).unwrap();
        assert_eq!(plan.settings.limits.max_items.get(), 32);
        assert_eq!(plan.settings.prefetch, 32);
        assert_eq!(plan.settings.retry.max_attempts, 5);
        assert_eq!((plan.listen, plan.alerts.queue.as_str()), (None, "alerts"));
        assert_eq!((plan.queues.len(), plan.queues[0].words.as_str()), (1, "echo on cpu"));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_flag() {
        for (flags, says) in [
            (&["--model", "echo"][..], "--queue is missing"),
            (&["--queue", "sqlite:/tmp/q.db"], "--model is missing"),
            (&["--serve", "a=echo"], "--model and --serve"),
            (&["--serve", "echo"], "use QUEUE=MODEL"),
            (&["--dimensions", "0"], "--dimensions"),
            (&["--max-new-tokens", "0"], "--max-new-tokens"),
            (&["--kv-memory", "0"], "--kv-memory is 0; use a number of bytes"),
            (&["--stall", "0s"], "--stall is 0"),
            (&["--max-items", "0"], "--max-items"),
            (&["--max-items", "18446744073709551615"], "--max-items is 18446744073709551615; use"),
            (&["--prefetch", "1000001"], "--prefetch is 1000001; use at most 1000000 jobs"),
            (&["--grace", "9223372036854775807s"], "use at most ten years"),
            (&["--max-attempts", "0"], "--max-attempts"),
            (&["--max-wait", "soon"], "such as 5ms, 30s or 5m"),
            (&["--max-wait=-5ms"], "such as 5ms, 30s or 5m"),
            (&["--retry-base", "10m"], "--retry-base is longer"),
            (&["--alerts", "a queue"], "--alerts is not valid"),
            (&["--payloads", "ftp://host"], "use file:///DIR, s3://BUCKET/PREFIX or results"),
            (&["--payloads", "file:/dev/null/no"], "--payloads: payload store: cannot use folder"),
            (&["--device", "tpu"], "unknown device"),
            (&["--dtype", "fp16"], "use f32, f16 or bf16"),
            (&["--dtype", "f16"], "--dtype: f16 on cpu: processors"),
            (&["--id", "two words"], "--id is not a name"),
            (&["--listen", "8080"], "--listen"),
            (&["--pod-deletion-cost", "on"], "--pod-deletion-cost on: the variable KUBERNETES_"),
        ] {
            let given =
                if says.ends_with("missing") { flags.to_vec() } else { [GOOD, flags].concat() };
            let error = check(&given).expect_err(says);
            assert!(error.contains(says), "{given:?}: {error}");
        }
        let secret = check(&[GOOD, &["--payloads", "s3://me:hunter2@bucket/x"]].concat());
        let secret = secret.unwrap_err();
        assert!(secret.contains("--payloads") && !secret.contains("hunter2"), "{secret}");
        let error =
            check(&["--queue", "sqlite:/tmp/q.db", "--model", "/no/such/model"]).unwrap_err();
        assert!(error.contains("--model /no/such/model"), "{error}");
    }

    #[test]
    fn that_several_queues_have_their_answers_in_one_store_is_known() {
        let two = ["--queue", "sqlite:/tmp/q.db", "--serve", "a=echo,b=echo"];
        let apart = ["--results", "sqlite:/tmp/r.db"];
        assert!(check(&[&two[..], &apart].concat()).unwrap().shares_answers());
        assert!(!check(&two).unwrap().shares_answers());
        assert!(!check(&[GOOD, &apart].concat()).unwrap().shares_answers());
    }

    #[test]
    fn two_workers_have_two_names() {
        let ids = [0, 1].map(|_| check(GOOD).unwrap().settings.worker);
        assert_ne!(ids[0], ids[1]);
    }
}
