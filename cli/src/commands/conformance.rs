//! `ebb scaler conformance`: does a scaler, ours or another, answer as KEDA needs it?

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::BoolishValueParser;
use ebb_scaler::conformance::{
    ConnectError, Finding, Hand, Papers, Plan, Report, Verdict, examine,
};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exit::{Exit, unavailable, usage};
use crate::options::parse_interval;
use crate::output::{Output, note, table};

/// What `--help` adds.
pub(crate) const HELP: &str = "\
Speaks KEDA's externalscaler.proto to any scaler: GetMetricSpec, GetMetrics and IsActive in KEDA's
order, StreamIsActive, StreamMetricSpec, hundreds of streams on one connection. Each rule says which
behaviour of KEDA it comes from and what to mend. A rule that cannot be judged is skipped, with the
reason; the exit code is 1 when a rule is broken.

Examples:
  ebb scaler conformance --address localhost:6000 --metadata queue=jobs --metadata jobsPerReplica=5
  ebb scaler conformance --address scaler.keda:6000 --ca ca.pem --cert tls.crt --key tls.key
  ebb scaler conformance --address localhost:6000 --expect-active --signal $SCALER_PID
  ebb scaler conformance --address localhost:6000 --json | jq '.rules[] | [.rule, .verdict]'";

/// Whom to examine, and as which trigger.
#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    /// The scaler's address, as in a trigger's scalerAddress
    #[arg(long, env = "EBB_CONFORMANCE_ADDRESS", hide_env_values = true, value_name = "HOST:PORT")]
    address: String,

    /// A key of the trigger's metadata and its value; may be repeated
    #[arg(
        long,
        env = "EBB_CONFORMANCE_METADATA",
        hide_env_values = true,
        value_name = "KEY=VALUE"
    )]
    #[arg(value_parser = parse_pair)]
    metadata: Vec<(String, String)>,

    /// Metadata that the scaler must refuse [default: a key that no scaler knows]
    #[arg(
        long,
        env = "EBB_CONFORMANCE_NONSENSE",
        hide_env_values = true,
        value_name = "KEY=VALUE"
    )]
    #[arg(value_parser = parse_pair)]
    nonsense: Option<(String, String)>,

    /// The namespace of the ScaledObject that is played
    #[arg(long, env = "EBB_CONFORMANCE_NAMESPACE", hide_env_values = true)]
    #[arg(default_value = "default")]
    namespace: String,

    /// The name of the ScaledObject that is played
    #[arg(long, env = "EBB_CONFORMANCE_NAME", hide_env_values = true)]
    #[arg(default_value = "conformance")]
    name: String,

    /// There is work in the queue, so the scaler must be active
    #[arg(long, env = "EBB_CONFORMANCE_EXPECT_ACTIVE", hide_env_values = true)]
    #[arg(value_parser = BoolishValueParser::new())]
    expect_active: bool,

    /// Streams of activity that are open at once, each with one of metrics beside it
    #[arg(long, env = "EBB_CONFORMANCE_STREAMS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 500)]
    streams: usize,

    /// How long a single answer may take until it counts as none
    #[arg(long, env = "EBB_CONFORMANCE_TIMEOUT", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "5s", value_parser = parse_interval)]
    timeout: Duration,

    /// How long a stream in which nothing changes is listened to
    #[arg(long, env = "EBB_CONFORMANCE_LISTEN", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "3s", value_parser = parse_interval)]
    listen: Duration,

    /// The scaler's process: it is sent SIGTERM at the end, for the rules about that
    #[arg(long, env = "EBB_CONFORMANCE_SIGNAL", hide_env_values = true, value_name = "PID")]
    #[arg(value_parser = clap::value_parser!(i32).range(2..))]
    signal: Option<i32>,

    /// How long the process may take to end after SIGTERM
    #[arg(long, env = "EBB_CONFORMANCE_GRACE", hide_env_values = true, value_name = "SPAN")]
    #[arg(default_value = "30s", value_parser = parse_interval)]
    grace: Duration,

    /// Speak TLS, and trust this authority: a PEM file
    #[arg(long, env = "EBB_CONFORMANCE_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Our certificate, for a scaler that asks for one: a PEM file
    #[arg(long, env = "EBB_CONFORMANCE_CERT", hide_env_values = true, value_name = "FILE")]
    #[arg(requires = "ca", requires = "key")]
    cert: Option<PathBuf>,

    /// The key of our certificate: a PEM file
    #[arg(long, env = "EBB_CONFORMANCE_KEY", hide_env_values = true, value_name = "FILE")]
    #[arg(requires = "cert")]
    key: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// When nothing answers at the address, or a flag is wrong.
pub(crate) async fn run(args: ConformanceArgs, output: Output) -> Result<Exit> {
    let plan = args.plan()?;
    let process = args.signal.map(|pid| Process(Pid::from_raw(pid)));
    if let Some(Process(pid)) = process {
        kill(pid, None).map_err(|error| usage(format!("--signal {pid}: {error}")))?;
    }
    note(format!("examining {}", plan.address));
    let hand = process.as_ref().map(|process| process as &dyn Hand);
    let report = match examine(&plan, hand).await {
        Ok(report) => report,
        Err(error @ ConnectError::Address(_)) => return Err(usage(format!("--address: {error}"))),
        Err(error) => return Err(unavailable(format!("--address: {error}"))),
    };
    if output.json {
        output.json(&report)?;
    } else {
        output.line(words(&report))?;
    }
    Ok(if report.failed == 0 { Exit::Done } else { Exit::Failed })
}

impl ConformanceArgs {
    fn plan(&self) -> Result<Plan> {
        if let Some((_, rest)) = self.address.split_once("://") {
            return Err(usage(format!("--address: write HOST:PORT, such as {rest}")));
        }
        let papers = match &self.ca {
            None => None,
            Some(ca) => Some(Papers {
                ca: read("--ca", ca)?,
                identity: match (&self.cert, &self.key) {
                    (Some(cert), Some(key)) => Some((read("--cert", cert)?, read("--key", key)?)),
                    _ => None,
                },
            }),
        };
        Ok(Plan {
            address: self.address.clone(),
            papers,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            metadata: self.metadata.iter().cloned().collect(),
            nonsense: self.nonsense.clone(),
            expect_active: self.expect_active,
            streams: self.streams,
            patience: self.timeout,
            listen: self.listen,
            grace: self.grace,
        })
    }
}

fn read(flag: &str, path: &Path) -> Result<String> {
    let shown = path.display();
    std::fs::read_to_string(path)
        .map_err(|error| usage(format!("{flag}: cannot read {shown}: {error}")))
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or("use key=value, as in queue=jobs")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A process that is told to end by a signal.
struct Process(Pid);

impl Hand for Process {
    fn stop(&self) -> std::io::Result<()> {
        Ok(kill(self.0, Signal::SIGTERM)?)
    }

    fn gone(&self) -> bool {
        // One that nobody has waited for yet is still listed, and has ended all the same.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state == Some('Z') || kill(self.0, None) == Err(Errno::ESRCH)
    }
}

fn words(report: &Report) -> String {
    let row = |finding: &Finding| {
        [finding.rule.name.to_owned(), verdict(finding.verdict).to_owned(), finding.seen.clone()]
    };
    let rows: Vec<_> = report.rules.iter().map(row).collect();
    let mut words = vec![table(["rule", "verdict", "seen"], &rows)];
    for Finding { rule, seen, .. } in report.with(Verdict::Failed) {
        words.push(format!(
            "\n{}: {}\n  seen  {seen}\n  why   {}\n  mend  {}",
            rule.name, rule.holds, rule.why, rule.mend
        ));
    }
    let (passed, failed, skipped) = (report.passed, report.failed, report.skipped);
    words.push(format!("\n{passed} passed, {failed} failed, {skipped} skipped"));
    if let Some(times) = report.triple {
        let (p50, max) = (times.p50_ms, times.max_ms);
        words.push(format!("KEDA's three calls took {p50} ms together, at most {max} ms"));
    }
    words.join("\n")
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
        Verdict::Skipped => "skipped",
    }
}
