//! KEDA's calls at scale: thousands of ScaledObjects on a few queues whose depth changes, all on
//! the one connection that KEDA has.

mod bare;
mod clock;
mod load;
mod queues;
mod wire;

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use crate::awake::Awake;
use crate::broker::{Bed, BrokerArgs};
use crate::process::EbbArgs;
use crate::report::{Table, dash, percentile, print, progress, rounded};
use crate::scaler::ScalerProcess;
pub(crate) use bare::bare;
use load::{Load, Object, Tally, why};
use queues::Queues;

/// KEDA's three calls for thousands of ScaledObjects
///
/// Starts `ebb scaler` and calls GetMetricSpec, GetMetrics and IsActive in turn for one object
/// after the other, at a steady rate, whether earlier calls are done or not. Then the same once
/// more for a scaler with one object for each queue: the broker must not notice the difference;
/// and for a bare gRPC server that answers the same to everybody: so much of it is the machine's.
/// Exits with 1 if a call fails, if an answer is not what is in the queue, or if the calls to the
/// broker grow with the objects.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    ebb: EbbArgs,

    /// ScaledObjects, spread over the queues
    #[arg(long, env = "EBB_BENCH_OBJECTS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 5_000)]
    objects: usize,

    /// Queues, each with jobs in it
    #[arg(long, env = "EBB_BENCH_QUEUES", hide_env_values = true, value_name = "Q")]
    #[arg(default_value_t = 50)]
    queues: usize,

    /// Triples of calls per second
    #[arg(long, env = "EBB_BENCH_RATE", hide_env_values = true, value_name = "R")]
    #[arg(default_value_t = 2_000)]
    rate: u32,

    /// Jobs per second that are published or taken out, one queue after the other
    #[arg(long, env = "EBB_BENCH_CHANGES", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 50)]
    changes: u32,

    /// Lets no processor halt meanwhile, as a kernel booted with `idle=poll`
    ///
    /// On a virtual machine a processor that halted comes back after milliseconds. Not for a
    /// container with a limit of processor time, which this would use up.
    #[arg(long, env = "EBB_BENCH_AWAKE", hide_env_values = true)]
    awake: bool,

    /// How long each scaler is called, in seconds, 900 at most
    #[arg(long, env = "EBB_BENCH_SECONDS", hide_env_values = true, value_name = "S")]
    #[arg(default_value_t = 15)]
    seconds: u32,
}

/// What one server did.
#[derive(Debug, Serialize)]
struct Side {
    server: &'static str,
    objects: usize,
    triples_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    rss_mib: f64,
    /// Processors that it kept busy; `None` where the system does not tell.
    cpus: Option<f64>,
    /// Each look is two: the depth, and the workers.
    broker_calls_per_s: f64,
    errors: u64,
    wrong: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    queues: usize,
    rate: u32,
    changes_per_s: f64,
    awake: bool,
    #[serde(flatten)]
    many: Side,
    few: Side,
    /// With as many objects as `many`, and nothing behind it.
    bare: Side,
    p50_ratio: f64,
    p99_ratio: f64,
}

const LEASE: Duration = Duration::from_secs(60);
/// Not counted: connections, caches and the first look at each queue.
const WARM_UP: Duration = Duration::from_secs(2);
const CALLS_OF_A_LOOK: f64 = 2.0;

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.queues > 0 && args.rate > 0, "--queues and --rate are 1 or more");
    ensure!(args.seconds > 0, "--seconds is 1 or more");
    // Half of what a scaler's connections live.
    ensure!(args.seconds <= 900, "--seconds is 900 at most");
    ensure!(args.objects >= args.queues, "--objects is less than --queues; use at least as many");
    let ebb = args.ebb.find()?;
    let bed = Bed::make(&args.broker).await?;
    let logs = tempfile::tempdir()?;
    progress(format_args!("filling {} queues", args.queues));
    let queues = Queues::fill(&bed, args.queues, LEASE).await?;
    let changing = queues.change(args.changes);
    let mut awake = args.awake.then(Awake::start).transpose()?;
    let mut sides = Vec::new();
    for (name, n_objects) in [("few", args.queues), ("many", args.objects)] {
        let flags = ["--max-queues", &(args.queues + 1).to_string()];
        let log = logs.path().join(format!("{name}.log"));
        let scaler = ScalerProcess::start(&ebb, queues.first(), &flags, log).await?;
        progress(format_args!("{} s of calls for {n_objects} objects", args.seconds));
        sides.push(side("ebb scaler", &scaler, queues.objects(n_objects), args).await?);
        scaler.stop().await?;
        awake.as_mut().map_or(Ok(()), Awake::check)?;
    }
    let scaler = ScalerProcess::bare(&logs.path().join("bare.log")).await?;
    progress(format_args!("{} s of calls to a bare server", args.seconds));
    let objects = queues.objects(args.objects).into_iter();
    let objects = objects.map(|object| Object { values: bare::JOBS..=bare::JOBS, ..object });
    let bare = side("bare gRPC", &scaler, objects.collect(), args).await?;
    scaler.stop().await?;
    awake.as_mut().map_or(Ok(()), Awake::check)?;
    let changes_per_s = changing.stop().await?;
    let (Some(many), Some(few)) = (sides.pop(), sides.pop()) else {
        anyhow::bail!("there are two sides");
    };
    let report = Report {
        broker: bed.words(),
        queues: args.queues,
        rate: args.rate,
        changes_per_s: rounded(changes_per_s, 1),
        awake: args.awake,
        p50_ratio: rounded(many.p50_ms / bare.p50_ms, 2),
        p99_ratio: rounded(many.p99_ms / bare.p99_ms, 2),
        many,
        few,
        bare,
    };
    print(json, &report.table(), &report)?;
    report.check()
}

/// Calls one scaler for a while, and looks at what that cost it.
async fn side(
    server: &'static str,
    scaler: &ScalerProcess,
    objects: Vec<Object>,
    args: &Args,
) -> anyhow::Result<Side> {
    let n_objects = objects.len();
    let load = Load::start(scaler.address(), objects, args.rate)?;
    load.run(WARM_UP).await?;
    let (looks, cpu, began) = (scaler.looks().await?, scaler.cpu_time(), Instant::now());
    let tally = load.run(Duration::from_secs(args.seconds.into())).await?;
    let seconds = began.elapsed().as_secs_f64();
    let calls = (scaler.looks().await? - looks) * CALLS_OF_A_LOOK;
    let cpus = cpus((cpu, scaler.cpu_time()), seconds);
    let Tally { millis, errors, wrong, words, failed } = tally;
    let why = match failed {
        Some(object) => why(scaler.address(), object).await,
        None => None,
    };
    let words = words.into_iter().chain(why).collect::<Vec<_>>().join("; ");
    ensure!(!millis.is_empty(), "no call was answered: {words}");
    if !words.is_empty() {
        progress(words);
    }
    Ok(Side {
        server,
        objects: n_objects,
        triples_per_s: rounded(millis.len() as f64 / seconds, 1),
        p50_ms: rounded(percentile(&millis, 0.5), 2),
        p99_ms: rounded(percentile(&millis, 0.99), 2),
        max_ms: rounded(percentile(&millis, 1.0), 2),
        rss_mib: rounded(scaler.peak_mib(), 1),
        cpus,
        broker_calls_per_s: rounded(calls / seconds, 1),
        errors,
        wrong,
    })
}

/// Processors that were kept busy between two readings of a process's time. That stands at nothing where
/// the system does not tell: a process that has answered calls has used some.
fn cpus((before, after): (Duration, Duration), seconds: f64) -> Option<f64> {
    let used = after.saturating_sub(before).as_secs_f64();
    (!after.is_zero()).then(|| rounded(used / seconds, 2))
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::new([
            "server",
            "objects",
            "triples/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "RSS MiB",
            "processors",
            "broker calls/s",
            "errors",
            "wrong",
        ]);
        for side in [&self.few, &self.many, &self.bare] {
            table.row([
                side.server.to_owned(),
                side.objects.to_string(),
                format!("{:.0}", side.triples_per_s),
                format!("{:.2}", side.p50_ms),
                format!("{:.2}", side.p99_ms),
                format!("{:.2}", side.max_ms),
                dash(side.rss_mib, 1),
                dash(side.cpus, 2),
                format!("{:.0}", side.broker_calls_per_s),
                side.errors.to_string(),
                side.wrong.to_string(),
            ]);
        }
        table
    }

    fn check(&self) -> anyhow::Result<()> {
        let sides = [&self.few, &self.many, &self.bare];
        let (errors, wrong) = sides
            .iter()
            .fold((0, 0), |(errors, wrong), side| (errors + side.errors, wrong + side.wrong));
        ensure!(errors == 0, "{errors} triples were not answered");
        ensure!(wrong == 0, "{wrong} answers are not what is in the queue");
        // How often a busy machine gets round to looking differs from run to run.
        let limit = 2.0 * self.few.broker_calls_per_s + 10.0;
        let calls = self.many.broker_calls_per_s;
        ensure!(calls <= limit, "the calls to the broker grow with the objects: {calls}/s");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_not_told_where_the_system_does_not_tell_of_them() {
        let second = Duration::from_secs(1);
        assert_eq!(cpus((second, 3 * second), 4.0), Some(0.5));
        assert_eq!(cpus((second, second), 4.0), Some(0.0));
        assert_eq!(cpus((Duration::ZERO, Duration::ZERO), 4.0), None);
    }
}
