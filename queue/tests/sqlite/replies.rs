//! Replies: results that become jobs in another queue of the same file.

use std::time::Duration;

use ebb_queue::{
    ErrorKind, JSON, Job, JobResult, OpenOptions, Outcome, Queue, QueueUrl, Timestamp, open,
};
use futures::StreamExt;
use tokio::time::Instant;

use crate::{handle, handle_with_clock, job, take, url};

fn result(id: &str, outcome: Outcome) -> JobResult {
    JobResult {
        id: id.parse().unwrap(),
        attempt: 2,
        outcome,
        finished_at: Timestamp::now(),
        queue: None,
    }
}

fn completed(id: &str, body: &str) -> JobResult {
    let (content_type, body) = ("text/plain".to_owned(), body.to_owned().into());
    result(id, Outcome::Completed { content_type, body })
}

async fn queues(folder: &tempfile::TempDir) -> (QueueUrl, Queue, Queue) {
    let url = url(&folder.path().join("queue.db"));
    let queue = handle(&url).await;
    let replies = handle(&url.with_queue("replies").unwrap()).await;
    (url, queue, replies)
}

async fn received(queue: &Queue) -> Vec<Job> {
    take(queue, 9, Duration::ZERO).await.into_iter().map(|one| one.job).collect()
}

#[tokio::test]
async fn a_reply_is_a_job_of_the_same_id_in_the_other_queue() {
    let folder = tempfile::tempdir().unwrap();
    let (_, queue, replies) = queues(&folder).await;
    queue.reply("replies", &completed("a", "the answer"), None).await.unwrap();
    let failed = Outcome::Failed("say \"why\"".into());
    queue.reply("replies", &result("b", failed), None).await.unwrap();
    assert_eq!(replies.depth().await.unwrap().ready, 2);
    let jobs = received(&replies).await;
    assert_eq!((jobs[0].id.as_str(), jobs[0].content_type()), ("a", "text/plain"));
    assert_eq!(&*jobs[0].body, b"the answer");
    assert_eq!((jobs[1].id.as_str(), jobs[1].content_type()), ("b", JSON));
    assert_eq!(&*jobs[1].body, br#"{"error":"say \"why\"","kind":"other"}"#);
    assert_eq!(queue.depth().await.unwrap().ready, 0, "its own queue has nothing of it");
}

#[tokio::test]
async fn a_reply_that_nobody_takes_waits_no_longer_than_its_result_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, clock) = handle_with_clock(&url(&folder.path().join("queue.db"))).await;
    queue.reply("nobody", &completed("told", "the answer"), None).await.unwrap();
    let mut late = job("late");
    late.headers.reply_to = Some("nobody".to_owned());
    late.headers.deadline = Some(Timestamp::now());
    queue.publish(vec![late]).await.unwrap();
    assert_eq!(queue.list(9).await.unwrap().len(), 1, "it is told of its end");
    let nobody = url(&folder.path().join("queue.db")).with_queue("nobody").unwrap();
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let nobody = open(&nobody, options).await.unwrap();
    clock.pass(queue.result_ttl() - Duration::from_secs(60));
    assert_eq!(nobody.depth().await.unwrap().ready, 2);
    clock.pass(Duration::from_secs(120));
    let depth = nobody.depth().await.unwrap();
    assert_eq!((depth.ready, depth.dead), (0, 2));
}

#[tokio::test]
async fn a_second_reply_of_the_same_job_stays_invisible() {
    let folder = tempfile::tempdir().unwrap();
    let (_, queue, replies) = queues(&folder).await;
    queue.reply("replies", &completed("a", "first"), None).await.unwrap();
    queue.reply("replies", &completed("a", "second"), None).await.unwrap();
    let one = take(&replies, 9, Duration::ZERO).await;
    assert_eq!((one.len(), &*one[0].job.body), (1, &b"first"[..]));
    let acks: Vec<_> = one.into_iter().map(ebb_queue::Delivery::ack).collect();
    replies.settle(&acks).await.unwrap();
    queue.reply("replies", &completed("a", "third"), None).await.unwrap();
    assert!(received(&replies).await.is_empty(), "and after it was taken away");
}

#[tokio::test]
async fn who_waits_for_a_reply_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (_, queue, replies) = queues(&folder).await;
    let mut arrivals = replies.arrivals().await.unwrap();
    const LONG: Duration = Duration::from_secs(30);
    let waiting = tokio::spawn(async move { take(&replies, 1, LONG).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let replied = Instant::now();
    queue.reply("replies", &completed("a", "the answer"), None).await.unwrap();
    let told = tokio::time::timeout(LONG, arrivals.next()).await;
    assert_eq!(told.unwrap(), Some(()));
    assert_eq!(waiting.await.unwrap()[0].job.id.as_str(), "a");
    // And not with a last look, when its wait is over.
    assert!(replied.elapsed() < LONG / 2, "{:?}", replied.elapsed());
}

#[tokio::test]
async fn a_reply_may_make_its_queue() {
    let folder = tempfile::tempdir().unwrap();
    let (url, queue, _) = queues(&folder).await;
    queue.reply("made-for-it", &completed("a", "the answer"), None).await.unwrap();
    let made = handle(&url.with_queue("made-for-it").unwrap()).await;
    assert_eq!(received(&made).await.len(), 1);
}

#[tokio::test]
async fn an_address_that_cannot_be_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_, queue, _) = queues(&folder).await;
    for (to, remedy) in [("a queue", "use 1 to 64"), ("", "use 1 to 64"), ("jobs", "name another")]
    {
        let error = queue.reply(to, &completed("a", "the answer"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let words = error.to_string();
        assert!(words.starts_with("ebb-reply-to: ") && words.contains(remedy), "{words}");
    }
    assert_eq!(queue.depth().await.unwrap().ready, 0);
}
