//! How the scaler is run: flag, environment variable and field are one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::builder::{BoolishValueParser, StringValueParser, TypedValueParser};
use ebb_queue::QueueUrl;
use ebb_telemetry::TraceArgs;
use tokio::runtime::Runtime;

use crate::reload::Source;
use crate::tls::TlsArgs;

/// No more of anything at once.
const MOST: usize = 1_000_000;

/// How the scaler is run.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct ScalerArgs {
    /// The broker, and the queue of triggers that name none: sqlite:PATH, nats://HOST,
    /// amqp://HOST/VHOST or redis://HOST/DATABASE, then [?queue=NAME]
    ///
    /// Triggers name other queues on the same broker by `queue` in their metadata.
    #[arg(long, env = "EBB_QUEUE", hide_env_values = true, value_name = "URL")]
    #[arg(value_parser = QueueUrlParser)]
    pub queue: Option<QueueUrl>,

    /// Connection profiles, their options, and who may use them: a TOML file, read again whenever
    /// it or a secret that it names changes
    ///
    /// With it, --queue is the profile `default`, unless the file has one. `ebb scaler check`
    /// tests it; docs/scaler-config.md tells what may stand in it.
    #[arg(long, env = "EBB_SCALER_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// How often files are looked at for changes: --config, its secrets, and certificates
    #[arg(long, env = "EBB_SCALER_RELOAD", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "5s", value_parser = span)]
    pub reload: Duration,

    /// Create nothing on the broker: a queue that is missing there is unknown to KEDA until
    /// somebody makes it, with `ebb queue init` or by a worker
    #[arg(long, env = "EBB_NO_CREATE")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub no_create: bool,

    /// Where KEDA reaches the scaler: the gRPC address, encrypted with --tls-cert
    #[arg(long, env = "EBB_SCALER_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    #[arg(default_value = "0.0.0.0:6000")]
    pub listen: SocketAddr,

    /// Where /livez, /readyz, /startupz, /metrics and /explain are served
    #[arg(long, env = "EBB_SCALER_HTTP_LISTEN", hide_env_values = true, value_name = "ADDRESS")]
    #[arg(default_value = "0.0.0.0:8080")]
    pub http_listen: Option<SocketAddr>,

    /// How long the last look at a queue counts while the broker does not answer
    ///
    /// Then KEDA is told UNAVAILABLE, and leaves the replicas as they are or takes its fallback;
    /// it is never told zero. At least three times --refresh.
    #[arg(long, env = "EBB_SCALER_MAX_AGE", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "15s", value_parser = span)]
    pub max_age: Duration,

    /// How often a busy queue is looked at between arrivals; an idle one up to five times less
    #[arg(long, env = "EBB_SCALER_REFRESH", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "1s", value_parser = span)]
    pub refresh: Duration,

    /// How soon `active` is pushed again while no worker reports; then after 1, 2, 4, ... as long
    ///
    /// Up to --heartbeat: workers may be long in coming. Where one reports, jobs that come one by one
    /// are pushed as often at most, or once a second where this is longer.
    #[arg(long, env = "EBB_SCALER_REPEAT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "1s", value_parser = span)]
    pub repeat: Duration,

    /// How often `active` is pushed again once a worker reports, or none has come for long
    ///
    /// Each push makes KEDA write the status of the ScaledObject.
    #[arg(long, env = "EBB_SCALER_HEARTBEAT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "30s", value_parser = span)]
    pub heartbeat: Duration,

    /// How long a push stream lives, give or take a fifth; KEDA opens the next one 2 s later
    ///
    /// So that KEDA finds new replicas of the scaler, and lost connections are not kept.
    #[arg(long, env = "EBB_SCALER_STREAM_MAX_AGE", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "5m", value_parser = span)]
    pub stream_max_age: Duration,

    /// Queues that are watched at once; triggers on further ones get RESOURCE_EXHAUSTED
    #[arg(long, env = "EBB_SCALER_MAX_QUEUES", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "256")]
    pub max_queues: usize,

    /// Queues that are watched at once because the triggers of one namespace named them; further
    /// ones of it get RESOURCE_EXHAUSTED
    ///
    /// So that one namespace whose rule allows any number of names leaves room to the others. A
    /// queue counts for the namespace that asked for it first.
    #[arg(long, env = "EBB_SCALER_MAX_QUEUES_PER_NAMESPACE", hide_env_values = true)]
    #[arg(value_name = "N", default_value = "128")]
    pub max_queues_per_namespace: usize,

    /// How long a queue that no trigger asks for is watched on
    ///
    /// Longer than the pollingInterval of the ScaledObjects, else each poll opens the queue anew.
    #[arg(long, env = "EBB_SCALER_KEEP", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "10m", value_parser = span)]
    pub keep: Duration,

    /// Connections at once; further ones are closed
    #[arg(long, env = "EBB_SCALER_MAX_CONNECTIONS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "1024")]
    pub max_connections: usize,

    /// Streams at once on one connection; further ones get RESOURCE_EXHAUSTED
    ///
    /// KEDA has one connection for all triggers with the same address, and two streams on it for
    /// each push trigger.
    #[arg(long, env = "EBB_SCALER_MAX_STREAMS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "20000")]
    pub max_streams: usize,

    /// Streams at once of one client on all its connections; further ones get RESOURCE_EXHAUSTED
    ///
    /// A client is its certificate where --tls-client-ca asks for one, and else its address: all
    /// that come through one proxy are one.
    #[arg(long, env = "EBB_SCALER_MAX_STREAMS_PER_CLIENT", hide_env_values = true)]
    #[arg(value_name = "N", default_value = "40000")]
    pub max_streams_per_client: usize,

    /// How long a connection lives; its streams then end as they always do, and new ones come on
    /// another connection
    ///
    /// So that KEDA finds new replicas of the scaler, and shows its certificate anew.
    #[arg(long, env = "EBB_SCALER_CONNECTION_MAX_AGE", hide_env_values = true)]
    #[arg(value_name = "SPAN", default_value = "30m", value_parser = span)]
    pub connection_max_age: Duration,

    /// Threads that answer calls and look at queues
    ///
    /// One answers some ten thousand calls a second at less cost for each, since threads wake each
    /// other; the second halves the longest waits.
    #[arg(long, env = "EBB_SCALER_THREADS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "2", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,

    /// How long shutdown waits for KEDA to let go of its streams and connections
    #[arg(long, env = "EBB_SCALER_GRACE", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "5s", value_parser = span)]
    pub grace: Duration,

    /// How connections are encrypted.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Where spans go.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// The defaults of the flags, for use inside another process; no queue.
impl Default for ScalerArgs {
    fn default() -> Self {
        Self {
            queue: None,
            config: None,
            reload: Duration::from_secs(5),
            no_create: false,
            listen: SocketAddr::from(([0, 0, 0, 0], 6000)),
            http_listen: Some(SocketAddr::from(([0, 0, 0, 0], 8080))),
            max_age: Duration::from_secs(15),
            refresh: Duration::from_secs(1),
            repeat: Duration::from_secs(1),
            heartbeat: Duration::from_secs(30),
            stream_max_age: Duration::from_secs(300),
            max_queues: 256,
            max_queues_per_namespace: 128,
            keep: Duration::from_secs(600),
            max_connections: 1024,
            max_streams: 20_000,
            max_streams_per_client: 40_000,
            connection_max_age: Duration::from_secs(1800),
            threads: 2,
            grace: Duration::from_secs(5),
            tls: TlsArgs::default(),
            trace: TraceArgs::default(),
        }
    }
}

impl ScalerArgs {
    /// A runtime with as many threads as were asked for.
    ///
    /// # Errors
    /// When the system has none left.
    pub fn runtime(&self) -> anyhow::Result<Runtime> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(self.threads.into()).enable_all();
        builder.build().context("cannot start the runtime")
    }

    /// Checks what no single flag can.
    ///
    /// # Errors
    /// Names the flag and the remedy.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.max_age < 3 * self.refresh {
            anyhow::bail!("--max-age is less than three times --refresh; raise it or look oftener");
        }
        let counts = [
            ("--max-queues", self.max_queues),
            ("--max-queues-per-namespace", self.max_queues_per_namespace),
            ("--max-connections", self.max_connections),
            ("--max-streams", self.max_streams),
            ("--max-streams-per-client", self.max_streams_per_client),
        ];
        for (flag, count) in counts {
            if !(1..=MOST).contains(&count) {
                anyhow::bail!("{flag} is {count}; use 1 to {MOST}");
            }
        }
        if self.queue.is_none() && self.config.is_none() {
            anyhow::bail!(
                "--queue is missing; use a URL such as sqlite:PATH, or --config with profiles"
            );
        }
        Ok(())
    }

    /// Where the connection profiles come from.
    pub(crate) fn source(&self) -> Source {
        Source { file: self.config.clone(), queue: self.queue.clone() }
    }
}

/// Like clap's own parser, but silent about the value: a URL may carry a password.
#[derive(Debug, Clone, Copy)]
struct QueueUrlParser;

impl TypedValueParser for QueueUrlParser {
    type Value = QueueUrl;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<QueueUrl, clap::Error> {
        let text = StringValueParser::new().parse_ref(command, arg, value)?;
        text.parse().map_err(|error| {
            let kind = clap::error::ErrorKind::ValueValidation;
            clap::Error::raw(kind, format!("--queue: {error}\n")).with_cmd(command)
        })
    }
}

fn span(text: &str) -> Result<Duration, String> {
    let remedy = "use seconds, or a unit, such as 250ms, 15s or 5m, from 10ms to 1d";
    let limits = Duration::from_millis(10)..=Duration::from_secs(86_400);
    let span = ebb_queue::read_span(text).filter(|span| limits.contains(span));
    span.ok_or_else(|| remedy.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::ScalerArgs;

    #[derive(Debug, Parser)]
    #[command(name = "ebb-scaler", term_width = 100)]
    struct Cli {
        #[command(flatten)]
        args: ScalerArgs,
    }

    #[test]
    fn defaults_in_code_are_the_defaults_of_the_flags() {
        let args = Cli::try_parse_from(["ebb-scaler"]).unwrap().args;
        assert_eq!(args, ScalerArgs { queue: args.queue.clone(), ..ScalerArgs::default() });
    }

    #[test]
    fn the_longest_span_is_taken_as_it_is_told() {
        for (text, hours) in [("1d", 24), ("24h", 24), ("23h60m", 24), ("0.5h", 0), ("7200", 2)] {
            let told = Cli::try_parse_from(["ebb-scaler", "--keep", text]).unwrap();
            assert_eq!(told.args.keep.as_secs() / 3600, hours, "{text}");
        }
    }

    #[test]
    fn a_wrong_flag_is_told_with_its_remedy_and_no_password() {
        let cases = [
            (["--max-age", "soon"], "use seconds, or a unit"),
            (["--max-age", "1ms"], "from 10ms to 1d"),
            (["--max-age", "-5s"], "from 10ms to 1d"),
            (["--max-age", "1d1ms"], "from 10ms to 1d"),
            (["--queue", "nats://me:hunter2@broker:0"], "port is 1 to 65535"),
        ];
        for ([flag, value], remedy) in cases {
            let told = Cli::try_parse_from(["ebb-scaler", &format!("{flag}={value}")]);
            let told = told.unwrap_err().to_string();
            assert!(told.contains(flag) && told.contains(remedy), "{told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let queue = Some(ebb_queue::QueueUrl::sqlite("/data/ebb.db"));
        let good = ScalerArgs { queue, ..ScalerArgs::default() };
        assert!(good.check().is_ok());
        let told = |args: ScalerArgs| args.check().unwrap_err().to_string();
        assert!(told(ScalerArgs::default()).contains("--queue is missing"));
        assert!(told(ScalerArgs { refresh: good.max_age, ..good.clone() }).contains("--max-age"));
        assert!(told(ScalerArgs { max_queues: 0, ..good.clone() }).contains("--max-queues"));
        let none = ScalerArgs { max_streams: 0, ..good.clone() };
        assert!(told(none).contains("--max-streams is 0"));
        let none = ScalerArgs { max_streams_per_client: 0, ..good };
        assert!(told(none).contains("--max-streams-per-client is 0"));
    }

    #[test]
    fn the_streams_that_a_client_may_have_fit_into_the_pod_that_is_shipped() {
        // As measured, somewhat rounded up: docs/sizing.md.
        const PROCESS_MIB: usize = 32;
        const STREAM_KIB: usize = 15;
        let deployment = include_str!("../../deploy/base/scaler/deployment.yaml");
        let (_, limits) = deployment.split_once("            limits:\n").unwrap();
        let (_, memory) = limits.split_once("memory: ").unwrap();
        let pod: usize = memory.split_once("Mi\n").unwrap().0.parse().unwrap();
        let streams = ScalerArgs::default().max_streams_per_client * STREAM_KIB / 1024;
        assert!(PROCESS_MIB + streams <= pod, "{streams} MiB of streams in {pod}");
    }

    #[test]
    fn the_help_suffices_to_operate_the_scaler() {
        let help = <Cli as clap::CommandFactory>::command().render_long_help();
        insta::assert_snapshot!(help);
    }
}
