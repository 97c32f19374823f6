//! What only a NATS server can do to a queue, on the oldest one that is supported and the newest.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod anew;
mod back;
mod cancel;
mod cluster;
mod costs;
mod cut_off;
mod expired;
mod following;
mod foreign;
mod hosts;
mod keys;
mod kinds;
mod large;
mod late;
#[path = "../support/letters.rs"]
mod letters;
mod marks;
mod order;
mod outage;
mod purge;
mod retention;
mod strangers;
mod topology;
mod way;
mod welcome;

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Delivery, Job, OpenOptions, Queue, QueueUrl, Timestamp, open};
use ebb_servers::{Nats, NatsOptions, NatsVersion};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

/// Both ends of what is supported.
const VERSIONS: [NatsVersion; 2] = [NatsVersion::Oldest, NatsVersion::Newest];

/// Nothing that is there takes this long to answer.
const LONG: Duration = Duration::from_secs(30);

/// Runs a test on each server that is supported, with nothing in it.
fn on_each(test: impl AsyncFn(Nats)) {
    for version in VERSIONS {
        block_on(async {
            let options = NatsOptions { version, ..NatsOptions::default() };
            test(Nats::start(options).await.unwrap()).await;
        });
    }
}

fn block_on(test: impl Future<Output = ()>) {
    runtime().block_on(in_time(Duration::from_secs(90), test));
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn in_time(limit: Duration, test: impl Future<Output = ()>) {
    timeout(limit, test).await.expect("the test ends");
}

async fn try_open(url: &str) -> ebb_queue::Result<Queue> {
    try_open_within(LONG, url).await
}

async fn try_open_within(connect_timeout: Duration, url: &str) -> ebb_queue::Result<Queue> {
    let url: QueueUrl = url.parse()?;
    open(&url, OpenOptions { connect_timeout, ..OpenOptions::default() }).await
}

/// What a queue that could not be opened says.
async fn refusal(url: &str) -> ebb_queue::Error {
    match try_open(url).await {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error,
    }
}

async fn receive(queue: &Queue, max: usize) -> ebb_queue::Result<Vec<Delivery>> {
    queue.receive(NonZeroUsize::new(max).unwrap(), LONG).await
}

/// So many jobs: one receive may bring fewer, where they came by another connection a moment ago.
async fn take(queue: &Queue, n: usize) -> Vec<Delivery> {
    let (mut taken, end) = (Vec::new(), Instant::now() + LONG);
    while taken.len() < n {
        assert!(Instant::now() < end, "{n} are there: {taken:?}");
        taken.extend(receive(queue, n + 1).await.unwrap());
    }
    assert_eq!(taken.len(), n, "{taken:?}");
    taken
}

fn job(name: &str) -> Job {
    Job { id: name.parse().unwrap(), ..Job::new(name.to_owned(), Timestamp::now()) }
}

/// Waits for something to hold.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Tries until the broker is there again.
async fn until_ok<T>(what: impl AsyncFn() -> ebb_queue::Result<T>) -> T {
    loop {
        match what().await {
            Ok(done) => return done,
            Err(error) => assert_eq!(error.kind(), ebb_queue::ErrorKind::Unavailable, "{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}
