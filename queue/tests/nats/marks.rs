//! A key whose publication did not end well: whoever publishes it again makes the job, once.

use async_nats::HeaderMap;
use ebb_queue::{ErrorKind, Job, Queue};
use ebb_servers::{Nats, NatsOptions};

use crate::{VERSIONS, block_on, job, on_each, receive, try_open};

fn with_key(name: &str) -> Job {
    let mut job = job(name);
    job.set("ebb-key", "k").unwrap();
    job
}

/// Under which id it is known, and whether it was before.
async fn publish(queue: &Queue, job: Job) -> (String, bool) {
    let published = queue.publish(vec![job]).await.unwrap().remove(0);
    (published.id.to_string(), published.duplicate)
}

async fn n_ready(queue: &Queue) -> u64 {
    queue.depth().await.unwrap().ready
}

/// One may do all, the other may not publish jobs.
const USERS: &str = r#"
authorization {
  users: [
    { user: all, password: a }
    { user: less, password: l, permissions: {
        publish: { deny: ["ebb.jobs.jobs", "ebb.jobs.jobs.>"] }
    } }
  ]
}
"#;

#[test]
fn a_key_whose_job_was_refused_makes_a_job_the_next_time() {
    for version in VERSIONS {
        block_on(async {
            let extra_config = USERS.to_owned();
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            let server = Nats::start(options).await.unwrap();
            let bare = format!("127.0.0.1:{}", server.port());
            let all = try_open(&format!("nats://all:a@{bare}")).await.unwrap();
            let less = try_open(&format!("nats://less:l@{bare}")).await.unwrap();
            let error = less.publish(vec![with_key("a")]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

            let (id, is_known) = publish(&all, with_key("b")).await;
            assert_eq!((is_known, n_ready(&all).await), (false, 1));
            assert_eq!(publish(&all, with_key("c")).await, (id.clone(), true));
            let deliveries = receive(&all, 9).await.unwrap();
            let ids: Vec<_> = deliveries.iter().map(|one| one.job.id.as_str()).collect();
            assert_eq!(ids, [id]);
            assert_eq!(&*deliveries[0].job.body, b"b");
        });
    }
}

/// What a producer leaves behind that is gone before its job is known to be stored.
async fn leave_mark(client: &async_nats::Client, id: &str) {
    let mark = serde_json::json!({ "id": id, "is_stored": false });
    client.request("ebb.jobs.keys.k", mark.to_string().into()).await.unwrap();
}

/// The job of such a producer, with its key or without.
async fn leave_job(client: &async_nats::Client, id: &str, key: Option<&str>) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    headers.insert("ebb-id", id);
    if let Some(key) = key {
        headers.insert("ebb-key", key);
    }
    let sent = client.request_with_headers("ebb.jobs.jobs", headers, "left".into()).await;
    sent.unwrap();
}

#[test]
fn a_producer_that_is_gone_leaves_no_key_without_a_job() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        leave_mark(&client, "a").await;
        assert_eq!(publish(&queue, with_key("b")).await, ("a".to_owned(), false));
        assert_eq!(publish(&queue, with_key("c")).await, ("a".to_owned(), true));
        assert_eq!(n_ready(&queue).await, 1);
    });
}

#[test]
fn a_key_whose_job_is_stored_makes_no_second_one() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        // Only the answer was lost: another producer asks first.
        leave_mark(&client, "a").await;
        leave_job(&client, "a", Some("k")).await;
        assert_eq!(publish(&queue, with_key("b")).await, ("a".to_owned(), true));
        assert_eq!(publish(&queue, with_key("c")).await, ("a".to_owned(), true));
        assert_eq!(n_ready(&queue).await, 1);
    });
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        // The same producer asks first.
        leave_mark(&client, "a").await;
        leave_job(&client, "a", Some("k")).await;
        assert_eq!(publish(&queue, with_key("a")).await, ("a".to_owned(), true));
        assert_eq!(publish(&queue, with_key("b")).await, ("a".to_owned(), true));
        assert_eq!(n_ready(&queue).await, 1);
    });
}

#[test]
fn a_key_left_by_an_id_that_was_taken_goes_to_the_next_job() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        leave_job(&client, "a", None).await;
        leave_mark(&client, "a").await;
        assert_eq!(publish(&queue, with_key("b")).await, ("b".to_owned(), false));
        assert_eq!(publish(&queue, with_key("c")).await, ("b".to_owned(), true));
        assert_eq!(n_ready(&queue).await, 2);
    });
}

#[test]
fn a_key_whose_job_found_no_room_is_free() {
    on_each(async |server| {
        let queue = try_open(&server.url()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let streams = async_nats::jetstream::new(client);
        let mut config =
            streams.get_stream("EBB_JOBS_jobs").await.unwrap().cached_info().config.clone();
        config.max_messages = 1;
        streams.update_stream(&config).await.unwrap();
        publish(&queue, job("other")).await;
        let error = queue.publish(vec![with_key("a")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        config.max_messages = -1;
        streams.update_stream(&config).await.unwrap();
        assert_eq!(publish(&queue, with_key("b")).await, ("b".to_owned(), false));
        assert_eq!(n_ready(&queue).await, 2);
    });
}
