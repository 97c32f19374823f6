//! Batches of which a broker stores a part: what it stored keeps its bodies.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{
    ErrorKind, OpenOptions, Payloads, PayloadsUrl, QueueUrl, SystemClock, claim, open,
};
use ebb_servers::{RabbitMq, RabbitMqOptions};

use crate::{INLINE, job, take};

/// Lets no queue of this server grow longer, as its operator would.
fn limit_queues(server: &RabbitMq, n: usize) {
    let policy = format!(r#"{{"max-length": {n}, "overflow": "reject-publish"}}"#);
    server.control(&["set_policy", "short", ".*", &policy]).unwrap();
}

#[tokio::test]
async fn jobs_that_were_stored_of_a_batch_that_was_refused_keep_their_bodies() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut payloads = Payloads::open(&PayloadsUrl::File(folder.path().to_owned())).unwrap();
    payloads.inline = INLINE;
    let url: QueueUrl = format!("{}?queue=jobs", server.url()).parse().unwrap();
    let plain = open(&url, OpenOptions::default()).await.unwrap();
    let queue = claim::over(plain, payloads, Arc::new(SystemClock)).await.unwrap();
    limit_queues(&server, 3);
    let n_bodies = || std::fs::read_dir(folder.path().join("bodies")).unwrap().count();
    let batch = (0..60).map(|nth| job(&format!("job-{nth}"), 500)).collect();
    let refused = queue.publish(batch).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!(n_bodies(), 60, "nobody knows which of them are needed");
    // Of one job it is known.
    let refused = queue.publish(vec![job("alone", 500)]).await.unwrap_err();
    assert_eq!((refused.kind(), n_bodies()), (ErrorKind::Full, 60));
    let first = queue.receive(60.try_into().unwrap(), Duration::from_secs(30)).await.unwrap();
    let rest = take(&queue, 60).await;
    assert!(!first.is_empty());
    assert!(first.iter().chain(&rest).all(|one| one.job.body.len() == 500));
    assert_eq!(queue.depth().await.unwrap().dead, 0);
}
