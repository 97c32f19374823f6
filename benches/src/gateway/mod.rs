//! What the gateway costs: embeddings by HTTP against the same jobs by the queue's own client.
//!
//! Both sides have so many clients, each of which asks again as soon as it has its answer, and the same
//! process answers both, with a vector that is always the same: no model is in the time.

mod answerer;
mod client;
mod round;

use std::num::NonZeroUsize;

use anyhow::ensure;
use serde::Serialize;

use crate::broker::{Bed, BrokerArgs};
use crate::process::EbbArgs;
use crate::report::{Table, median, print, progress, rounded};
pub(crate) use answerer::{AnswererArgs, answer};
use round::{Bench, Round, Side};

/// Embeddings through the gateway against the same jobs by the queue's own client
///
/// So many clients on either side, in turns; each asks again as soon as it has its answer, which another
/// process gives without a model. Then requests wait with nobody to answer them, for the memory that each
/// takes. Exits with 1 if a request is not answered as it should be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    gateway: EbbArgs,

    /// Clients that wait for an answer at once, each on a connection of its own
    #[arg(long, env = "EBB_BENCH_CLIENTS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "64")]
    clients: NonZeroUsize,

    /// Requests in each round of each side
    #[arg(long, env = "EBB_BENCH_REQUESTS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 10_000)]
    requests: usize,

    /// Rounds of each side, in turn; the figures are their medians
    #[arg(long, env = "EBB_BENCH_ROUNDS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 5)]
    rounds: usize,

    /// Letters of the text in each request
    #[arg(long, env = "EBB_BENCH_LETTERS", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 256)]
    letters: usize,

    /// Numbers of the vector in each answer
    #[arg(long, env = "EBB_BENCH_DIMENSIONS", hide_env_values = true, value_name = "N")]
    #[arg(default_value = "384")]
    dimensions: NonZeroUsize,

    /// Requests that wait for nobody, for the memory of one; 0 leaves it unmeasured
    #[arg(long, env = "EBB_BENCH_WAITING", hide_env_values = true, value_name = "N")]
    #[arg(default_value_t = 2000)]
    waiting: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    broker: String,
    clients: usize,
    requests: usize,
    rounds: usize,
    gateway_requests_per_s: f64,
    queue_jobs_per_s: f64,
    ratio: f64,
    gateway_p50_ms: f64,
    gateway_p99_ms: f64,
    queue_p50_ms: f64,
    queue_p99_ms: f64,
    /// Processor time of the gateway; on the other side nobody stands between.
    gateway_cpu_us_per_request: f64,
    waiting: usize,
    /// What the gateway has more with so many requests that wait than with none, their connections included.
    kib_per_waiting_request: Option<f64>,
    gateway_rounds: Vec<f64>,
    queue_rounds: Vec<f64>,
}

pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds is 1 or more");
    ensure!(args.requests >= 10 * args.clients.get(), "--requests is 10 times --clients or more");
    ensure!(args.waiting <= 4000, "--waiting is 4000 at most: the gateway takes 4096 at once");
    let bed = Bed::make(&args.broker).await?;
    let mut bench = Bench::start(args, &bed).await?;
    // Not counted: both sides open what they need.
    for side in [Side::Gateway, Side::Queue] {
        bench.round(side, args.clients.get()).await?;
    }
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for n in 0..args.rounds {
        // Who goes first changes, so that neither always finds the warmer disk.
        let order =
            if n % 2 == 0 { [Side::Queue, Side::Gateway] } else { [Side::Gateway, Side::Queue] };
        for side in order {
            let round = bench.round(side, args.requests).await?;
            let words = format!("round {} of {}: {}", n + 1, args.rounds, side.name());
            progress(format_args!("{words} {:.0} requests/s", round.per_s));
            rounds[side as usize].push(round);
        }
    }
    let kib = match args.waiting {
        0 => None,
        n => Some(bench.kib_of_a_waiting_one(n).await?),
    };
    bench.stop().await?;
    let report = Report::of(args, bed.words(), &rounds, kib);
    print(json, &report.table(), &report)
}

impl Report {
    fn of(args: &Args, broker: String, rounds: &[Vec<Round>; 2], kib: Option<f64>) -> Self {
        let middle = |side: Side, what: fn(&Round) -> f64| {
            median(&rounds[side as usize].iter().map(what).collect::<Vec<_>>())
        };
        let rates = |side: Side| {
            let rounds = rounds[side as usize].iter();
            rounds.map(|round| rounded(round.per_s, 1)).collect()
        };
        let per_s = |side| middle(side, |round| round.per_s);
        let (gateway, queue) = (per_s(Side::Gateway), per_s(Side::Queue));
        Self {
            broker,
            clients: args.clients.get(),
            requests: args.requests,
            rounds: args.rounds,
            gateway_requests_per_s: rounded(gateway, 1),
            queue_jobs_per_s: rounded(queue, 1),
            ratio: rounded(gateway / queue, 3),
            gateway_p50_ms: rounded(middle(Side::Gateway, |round| round.p50_ms), 2),
            gateway_p99_ms: rounded(middle(Side::Gateway, |round| round.p99_ms), 2),
            queue_p50_ms: rounded(middle(Side::Queue, |round| round.p50_ms), 2),
            queue_p99_ms: rounded(middle(Side::Queue, |round| round.p99_ms), 2),
            gateway_cpu_us_per_request: rounded(middle(Side::Gateway, |round| round.cpu_us), 1),
            waiting: args.waiting,
            kib_per_waiting_request: kib.map(|kib| rounded(kib, 1)),
            gateway_rounds: rates(Side::Gateway),
            queue_rounds: rates(Side::Queue),
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "broker",
            "clients",
            "gateway requests/s",
            "queue jobs/s",
            "ratio",
            "gateway p50 / p99 ms",
            "queue p50 / p99 ms",
            "gateway µs",
            "KiB of a waiting one",
        ]);
        table.row([
            self.broker.clone(),
            self.clients.to_string(),
            format!("{:.0}", self.gateway_requests_per_s),
            format!("{:.0}", self.queue_jobs_per_s),
            format!("{:.2}", self.ratio),
            format!("{:.1} / {:.1}", self.gateway_p50_ms, self.gateway_p99_ms),
            format!("{:.1} / {:.1}", self.queue_p50_ms, self.queue_p99_ms),
            format!("{:.0}", self.gateway_cpu_us_per_request),
            self.kib_per_waiting_request.map_or("-".to_owned(), |kib| format!("{kib:.0}")),
        ]);
        table
    }
}
