//! Dead letters that are deleted for their age: beside what others put there, and by who may not.

use std::time::Duration;

use ebb_queue::{Elsewhere, ErrorKind, Queue, QueueUrl, Settled};
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use tokio::time::{Instant, sleep};

use crate::{LONG, answered, depth, handle, job, on_shared, plain, take_one, until, url};

/// The same queue where dead letters are kept no time at all.
fn keeping_none(url: &QueueUrl) -> QueueUrl {
    let mut url = url.clone();
    url.behavior.dead_ttl = Some(Duration::from_millis(1));
    url
}

async fn die(queue: &Queue, name: &str) {
    queue.publish(vec![job(name)]).await.unwrap();
    queue.settle(&[take_one(queue).await.reject("bad")]).await.unwrap();
}

/// Deletes what is old until there was something; how many letters that were. A step of a busy broker ends
/// before it has met any.
async fn purge_one(queue: &Queue) -> u64 {
    let end = Instant::now() + LONG;
    loop {
        let n_jobs = answered(async || queue.purge_old(Elsewhere::Leave).await).await.n_jobs;
        if n_jobs > 0 || Instant::now() > end {
            return n_jobs;
        }
    }
}

async fn n_dead(queue: &Queue) -> u64 {
    depth(queue).await.dead
}

#[test]
fn a_few_messages_of_others_stay_and_stop_nothing() {
    on_shared(async |server| {
        let queue = handle(&keeping_none(&url(server, "others"))).await;
        let (_connection, channel) = plain(server).await;
        for _ in 0..3 {
            let (to, options) = ("ebb:others:dead".into(), BasicPublishOptions::default());
            let properties = BasicProperties::default();
            channel.basic_publish("".into(), to, options, b"theirs", properties).await.unwrap();
        }
        until("they are there", async || n_dead(&queue).await == 3).await;
        die(&queue, "ours").await;
        until("it is dead", async || n_dead(&queue).await == 4).await;
        sleep(Duration::from_millis(5)).await;
        assert_eq!(purge_one(&queue).await, 1);
        assert_eq!(queue.purge_old(Elsewhere::Leave).await.unwrap().n_jobs, 0);
        until("theirs stay", async || n_dead(&queue).await == 3).await;
    });
}

#[test]
fn who_may_not_read_dead_letters_is_told_and_keeps_its_leases() {
    on_shared(async |server| {
        let url = keeping_none(&url(server, "denied"));
        let queue = handle(&url).await;
        die(&queue, "dead").await;
        server.control(&["add_user", "no-reader", "secret"]).unwrap();
        let may_read = "^(?!ebb:denied:dead$).*$";
        server.control(&["set_permissions", "no-reader", ".*", ".*", may_read]).unwrap();
        let text = format!("amqp://no-reader:secret@127.0.0.1:{}", server.port());
        let mut denied: QueueUrl = format!("{text}?queue=denied").parse().unwrap();
        denied.behavior = url.behavior.clone();
        let worker = handle(&denied).await;
        worker.publish(vec![job("alive")]).await.unwrap();
        let held = take_one(&worker).await;
        for _ in 0..2 {
            let error = worker.purge_old(Elsewhere::Leave).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        }
        assert_eq!(worker.settle(&[held.ack()]).await.unwrap(), [Settled::Held]);
        assert_eq!(purge_one(&queue).await, 1);
    });
}
