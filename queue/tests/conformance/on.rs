//! The brokers, each as the suite runs a promise on it.

use std::io::Write;
use std::time::Duration;

use ebb_queue::{Behavior, QueueUrl, TokioClock};
use ebb_servers::{Nats, NatsCluster, NatsVersion, RabbitMq, Redis};

use crate::brokers::{Memory, Served, Time};
use crate::fixture::{Fixture, Promise};
use crate::limits::{self, Limits};
use crate::pool::Pool;

/// No promise takes this long, on a busy machine either; one that does is broken.
const LIMIT: Duration = Duration::from_secs(240);

/// The reference, under paused time.
pub fn memory(_: &'static str, promise: Promise) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
        let memory = Memory::new(TokioClock::starting_at("2030-01-31T12:00:00Z".parse().unwrap()));
        // Paused time runs ahead when nobody moves, so the limit is far away.
        tokio::time::timeout(LIMIT * 60, promise(&memory)).await.expect("the promise is kept");
    });
}

/// A file, in real time with a clock that can be set forward.
pub fn sqlite(_: &'static str, promise: Promise) {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    keep(promise, &Served::new("sqlite", url, Time::ahead()));
}

/// Redis, in real time: it goes by the clock of its handle, which can be set forward.
pub fn redis(test: &'static str, promise: Promise) {
    if let Some(url) = redis_url(test) {
        keep(promise, &Served::new("redis", url, Time::ahead()));
    }
}

/// Where Redis is, unless the test is not to be run there.
pub fn redis_url(test: &str) -> Option<QueueUrl> {
    if is_skipped("redis", test, &limits::REDIS) {
        return None;
    }
    let server = Redis::shared().unwrap_or_else(|error| missing("redis", &error));
    Some(server.url().parse().unwrap())
}

/// The newest NATS, where time passes for real.
pub fn nats(test: &'static str, promise: Promise) {
    static POOL: Pool = Pool::new("nats", |test, promise| {
        on_nats("nats", NatsVersion::Newest, &limits::NATS, test, promise);
    });
    POOL.run(test, promise);
}

/// The oldest NATS that is supported.
pub fn nats_oldest(test: &'static str, promise: Promise) {
    static POOL: Pool = Pool::new("nats_oldest", |test, promise| {
        on_nats("nats_oldest", NatsVersion::Oldest, &limits::NATS_OLDEST, test, promise);
    });
    POOL.run(test, promise);
}

/// Three servers of the newest NATS, with three replicas of each stream.
pub fn nats_cluster(test: &'static str, promise: Promise) {
    if !is_skipped("nats_cluster", test, &limits::NATS) {
        let cluster = NatsCluster::shared().unwrap_or_else(|error| missing("nats_cluster", &error));
        let url = format!("{}?replicas=3", cluster.url());
        keep(promise, &Served::new("nats", url.parse().unwrap(), real()));
    }
}

fn on_nats(name: &str, version: NatsVersion, limits: &Limits, test: &str, promise: Promise) {
    if !is_skipped(name, test, limits) {
        let server = Nats::shared(version).unwrap_or_else(|error| missing(name, &error));
        keep(promise, &Served::new("nats", server.url().parse().unwrap(), real()));
    }
}

/// RabbitMQ, where time passes for real, with its answers in a file.
pub fn amqp(test: &'static str, promise: Promise) {
    static POOL: Pool = Pool::new("amqp", |test, promise| {
        if !is_skipped("amqp", test, &limits::AMQP) {
            let server = RabbitMq::shared().unwrap_or_else(|error| missing("amqp", &error));
            let folder = tempfile::tempdir().unwrap();
            let results = QueueUrl::sqlite(folder.path().join("results.db"));
            let amqp = Served::new("amqp", server.url().parse().unwrap(), real());
            keep(promise, &amqp.with_results(results));
        }
    });
    POOL.run(test, promise);
}

/// Short, since the promises wait for it; long enough for a machine where a thread may stand still
/// for seconds. Nobody waits for the lag to end, so it may be long; but it is shorter than
/// the lease of a queue that is told none.
fn real() -> Time {
    let lease = Duration::from_secs(6);
    let (result_ttl, key_ttl) = (lease * 2, lease * 2);
    let behavior = Behavior { lease, result_ttl, key_ttl, ..Behavior::default() };
    Time::Real { behavior, lag: Duration::from_secs(20) }
}

fn keep(promise: Promise, fixture: &dyn Fixture) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(async {
        tokio::time::timeout(LIMIT, promise(fixture)).await.expect("the promise is kept");
    });
}

/// Whether a test is not for this broker, or this broker not for this machine; says so.
fn is_skipped(broker: &str, test: &str, limits: &Limits) -> bool {
    let unwanted = std::env::var("EBB_SKIP_BROKERS").unwrap_or_default();
    if unwanted.split(',').any(|name| name.trim() == broker) {
        say(&format!("SKIPPED: {broker}::{test}; EBB_SKIP_BROKERS names {broker}"));
        return true;
    }
    let limit = limits.of(test);
    if let Some(limit) = limit {
        say(&format!("NOT RUN: {broker}::{test}; a limit of this broker: {limit}"));
    }
    limit.is_some()
}

/// Seen also when the test passes.
fn say(line: &str) {
    // A closed standard error is no reason to fail.
    drop(writeln!(std::io::stderr(), "{line}"));
}

fn missing(broker: &str, error: &ebb_servers::Error) -> ! {
    panic!("{error}; to go without it, name it in EBB_SKIP_BROKERS={broker}")
}
