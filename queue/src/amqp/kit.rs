//! What the tests of the parts have in common.

use ebb_servers::RabbitMq;

use super::AmqpQueue;
use crate::{Address, OpenOptions, Phase, QueueUrl, Timestamp, WorkerStatus};

/// Runs a test beside a server that others use at the same moment.
pub(super) fn block_on(test: impl Future<Output = ()>) {
    // Whoever starts it has a runtime of its own.
    RabbitMq::shared().unwrap();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// A handle of the queue of this name on that server.
pub(super) async fn opened(queue: &str) -> AmqpQueue {
    opened_on(RabbitMq::shared().unwrap(), queue).await
}

/// The same on a server of its own.
pub(super) async fn opened_on(server: &RabbitMq, queue: &str) -> AmqpQueue {
    let url: QueueUrl = format!("{}?queue={queue}", server.url()).parse().unwrap();
    let Address::Amqp(address) = &url.address else { panic!("{url} is of another broker") };
    let options = OpenOptions::default();
    AmqpQueue::open(address, &url.queue, &url.behavior, options).await.unwrap()
}

pub(super) fn worker(id: &str, phase: Phase, in_flight: u64) -> WorkerStatus {
    WorkerStatus {
        id: id.into(),
        pod: id.into(),
        phase,
        in_flight,
        slots: 8,
        completed: 0,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        first_result: None,
        model: "echo".into(),
        at: Timestamp::now(),
    }
}
