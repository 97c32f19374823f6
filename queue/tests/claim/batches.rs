//! Batches of which a broker stores a part: what it stored keeps its bodies.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{
    Error, ErrorKind, OpenOptions, Payloads, PayloadsUrl, Queue, QueueUrl, SystemClock, claim, open,
};
use ebb_servers::{RabbitMq, RabbitMqOptions};
use tokio::time::sleep;

use crate::{INLINE, job, take};

/// Lets no queue of this server grow longer, as its operator would. A quorum queue takes what comes
/// before it has heard of the limit, and what is on its way when the limit is reached.
fn limit_queues(server: &RabbitMq, n: usize) {
    let policy = format!(r#"{{"max-length": {n}, "overflow": "reject-publish"}}"#);
    server.control(&["set_policy", "short", ".*", &policy]).unwrap();
}

/// Publishes jobs in batches until one is refused, and returns why and how many jobs there were.
async fn publish_until_refused(queue: &Queue, batch: usize) -> (Error, usize) {
    for n in 0..50 {
        let jobs = (n * batch..(n + 1) * batch).map(|nth| job(&format!("job-{nth}"), 500));
        if let Err(refused) = queue.publish(jobs.collect()).await {
            return (refused, (n + 1) * batch);
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("the queue takes any number of jobs");
}

#[tokio::test]
async fn jobs_that_were_stored_of_a_batch_that_was_refused_keep_their_bodies() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut payloads = Payloads::open(&PayloadsUrl::File(folder.path().to_owned())).unwrap();
    payloads.inline = INLINE;
    let url: QueueUrl = format!("{}?queue=jobs", server.url()).parse().unwrap();
    let plain = open(&url, OpenOptions::default()).await.unwrap();
    let queue = claim::over(plain, payloads, Duration::from_secs(86_400), Arc::new(SystemClock))
        .await
        .unwrap();
    limit_queues(&server, 3);
    let n_bodies = || std::fs::read_dir(folder.path().join("bodies")).unwrap().count();
    let (refused, n_jobs) = publish_until_refused(&queue, 60).await;
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!(n_bodies(), n_jobs, "nobody knows which of them are needed");
    // Nor of one alone: the broker may say so of a job that it has stored.
    let refused = queue.publish(vec![job("alone", 500)]).await.unwrap_err();
    assert_eq!((refused.kind(), refused.may_be_stored()), (ErrorKind::Full, true));
    assert_eq!(n_bodies(), n_jobs + 1);
    let first = queue.receive(n_jobs.try_into().unwrap(), Duration::from_secs(30)).await.unwrap();
    let rest = take(&queue, n_jobs).await;
    assert!(!first.is_empty());
    assert!(first.iter().chain(&rest).all(|one| one.job.body.len() == 500));
    assert_eq!(queue.depth().await.unwrap().dead, 0);
}
