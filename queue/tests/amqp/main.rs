//! What RabbitMQ promises beyond the conformance suite: servers that crash, the jobs of plain
//! producers, who may do what, and what becomes of jobs whose holder does not move.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod access;
mod alarms;
mod bells;
mod crowd;
mod dead;
mod hosts;
mod kinds;
mod late;
mod leases;
#[path = "../support/letters.rs"]
mod letters;
mod notes;
mod outages;
mod refusals;
mod retention;
mod strangers;
mod unknown;

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{
    Delivery, Depth, Error, ErrorKind, Job, OpenOptions, Queue, QueueUrl, Result, Timestamp, open,
};
use ebb_servers::RabbitMq;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep};

/// No wait here takes this long.
pub const LONG: Duration = Duration::from_secs(30);

/// Runs a test on a server that others use at the same moment.
pub fn on_shared(test: impl AsyncFnOnce(&RabbitMq)) {
    let server = RabbitMq::shared().unwrap();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test(server));
}

/// A queue of this name on this server, where no lease ends while a test runs.
pub fn url(server: &RabbitMq, queue: &str) -> QueueUrl {
    format!("{}?queue={queue}&lease=60s", server.url()).parse().unwrap()
}

/// The same for a handle whose leases end soon.
pub fn brief(server: &RabbitMq, queue: &str) -> QueueUrl {
    let mut brief = url(server, queue);
    brief.behavior.lease = Duration::from_secs(2);
    brief
}

/// A handle with connections of its own.
pub async fn handle(url: &QueueUrl) -> Queue {
    open(url, OpenOptions { connect_timeout: LONG, ..OpenOptions::default() }).await.unwrap()
}

/// What the broker answers, once it does: it may be too busy for a while, most of all when it comes back.
pub async fn answered<T>(call: impl AsyncFn() -> Result<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        match call().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < end => {}
            answer => return answer.unwrap(),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// How much there is, once the broker says so.
pub async fn depth(queue: &Queue) -> Depth {
    answered(async || queue.depth().await).await
}

/// Why it is not opened.
pub async fn refusal(url: &QueueUrl) -> Error {
    let Err(error) = open(url, OpenOptions::default()).await else { panic!("{url} was opened") };
    error
}

/// What a plain client works with.
pub async fn plain(server: &RabbitMq) -> (Connection, Channel) {
    let options = ConnectionProperties::default();
    let uri = format!("{}/%2f", server.url());
    let connection = Connection::connect(&uri, options).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A job of this name; its body is the same.
pub fn job(name: &str) -> Job {
    let mut job = Job::new(name.to_owned(), Timestamp::now());
    job.id = name.parse().unwrap();
    job
}

/// At most so many, as soon as there is one.
pub async fn take(queue: &Queue, max: usize) -> Vec<Delivery> {
    let max = NonZeroUsize::new(max).unwrap();
    answered(async || queue.receive(max, LONG).await).await
}

/// The next job.
pub async fn take_one(queue: &Queue) -> Delivery {
    take(queue, 1).await.pop().expect("a job is ready")
}

/// Waits for something to hold.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}
