//! What a broker says where it does not know, and what others may not have heard.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Behavior, Cancelled, ErrorKind, OpenOptions, Phase, Queue, QueueUrl, Result, Results, Settled,
    Timestamp, WorkerStatus, open,
};
use ebb_servers::{RabbitMq, RabbitMqOptions};
use futures::TryStreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ExchangeDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use tokio::time::{Instant, sleep};

use crate::{LONG, depth, handle, job, on_shared, plain, take_one, until, url};

/// Holds the leader of a queue as it is (`suspend`), or lets it go on (`resume`).
fn lead(server: &RabbitMq, queue: &str, verb: &str) {
    server.control(&["eval", &format!("sys:{verb}('%2F_{queue}').")]).unwrap();
}

/// A queue of this name, where no lease ends meanwhile.
fn patient(server: &RabbitMq, queue: &str) -> QueueUrl {
    let mut url = url(server, queue);
    url.behavior.lease = Duration::from_secs(120);
    url
}

/// That it is so many, or that it is not known.
fn knows_or_says_so(told: Result<usize>, n: usize) {
    match told {
        Ok(told) => assert_eq!(told, n),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    }
}

#[test]
fn a_queue_whose_leader_does_not_answer_is_not_said_to_be_empty() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "frozen")).await;
        queue.publish(vec![job("dead")]).await.unwrap();
        let dead = take_one(&queue).await;
        queue.settle(&[dead.reject("bad")]).await.unwrap();
        queue.publish(["a", "b", "c"].map(job).to_vec()).await.unwrap();
        let is_known = async || {
            let depth = depth(&queue).await;
            (depth.ready, depth.dead) == (3, 1)
        };
        until("all are counted", is_known).await;
        lead(server, "frozen", "suspend");
        for _ in 0..3 {
            knows_or_says_so(queue.depth().await.map(|depth| depth.ready as usize), 3);
        }
        // What the others have is handed out all the same.
        let mut high = job("high");
        high.set("ebb-priority", "high").unwrap();
        queue.publish(vec![high]).await.unwrap();
        let high = take_one(&queue).await;
        assert_eq!(high.job.id.as_str(), "high");
        queue.settle(&[high.ack()]).await.unwrap();
        lead(server, "frozen", "resume");
        lead(server, "ebb:frozen:dead", "suspend");
        knows_or_says_so(queue.list(10).await.map(|letters| letters.len()), 1);
        knows_or_says_so(queue.depth().await.map(|depth| depth.dead as usize), 1);
        lead(server, "ebb:frozen:dead", "resume");
        until("all are counted again", is_known).await;
        assert_eq!(queue.list(10).await.unwrap().len(), 1);
    });
}

#[test]
fn a_job_that_a_worker_puts_off_for_long_is_counted_and_purged_by_others() {
    on_shared(async |server| {
        let url = url(server, "put-off");
        let (scaler, worker) = (handle(&url).await, handle(&url).await);
        assert_eq!(depth(&scaler).await.delayed, 0);
        let (_connection, channel) = plain(server).await;
        let mut headers = FieldTable::default();
        let delay = AMQPValue::LongString(LongString::from("10m"));
        headers.insert("ebb-delay".into(), delay);
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("ebb".into(), "put-off".into(), options, b"x", properties);
        sent.await.unwrap();
        until("it is put off", async || {
            let none = worker.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
            assert!(none.is_empty(), "it is too early for it");
            let depth = depth(&worker).await;
            (depth.ready, depth.delayed) == (0, 1)
        })
        .await;
        until("others count it", async || depth(&scaler).await.delayed == 1).await;
        let purged: Vec<_> = scaler.purge_waiting().await.unwrap().try_collect().await.unwrap();
        assert_eq!(purged.iter().map(|step| step.n_jobs).sum::<u64>(), 1);
        until("it is gone", async || depth(&worker).await.delayed == 0).await;
    });
}

fn status(worker: &str) -> WorkerStatus {
    WorkerStatus {
        id: worker.into(),
        pod: worker.into(),
        phase: Phase::Busy,
        in_flight: 1,
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

#[test]
fn what_is_held_is_told_again_where_the_exchange_that_it_is_told_by_was_deleted() {
    on_shared(async |server| {
        let url = patient(server, "remade");
        let (first, other) = (handle(&url).await, handle(&url).await);
        first.publish(vec![job("a"), job("b")]).await.unwrap();
        let held = take_one(&first).await;
        until("it is heard", async || depth(&other).await.in_flight == 1).await;
        let (_connection, channel) = plain(server).await;
        let (name, options) = ("ebb:remade:status".into(), ExchangeDeleteOptions::default());
        channel.exchange_delete(name, options).await.unwrap();
        // Each says something within this time, and nothing is there to say it to until one of them makes it.
        for _ in 0..15 {
            // A worker says how it is before anybody has noticed.
            first.report(&status("first")).await.ok();
            sleep(Duration::from_millis(100)).await;
        }
        until("it is heard without anybody new", async || depth(&other).await.in_flight == 1).await;
        assert_eq!(first.link().n_losses(), 0, "its connection was lost, and what it held");
        let late = handle(&url).await;
        until("it is heard by the new one", async || depth(&late).await.in_flight == 1).await;
        until("it is heard again", async || depth(&other).await.in_flight == 1).await;
        let _more = take_one(&late).await;
        until("more is heard", async || depth(&other).await.in_flight == 2).await;
        until("the first hears too", async || depth(&first).await.in_flight == 2).await;
        first.report(&status("first")).await.unwrap();
        let is_listed = async || other.workers().await.is_ok_and(|workers| workers.len() == 1);
        until("its report is heard", is_listed).await;
        first.settle(&[held.ack()]).await.unwrap();
    });
}

#[test]
fn a_cancellation_that_nobody_can_be_told_of_is_stored_and_costs_no_connection() {
    on_shared(async |server| {
        let results = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let results = Some(Results(Arc::new(results)));
        let options = OpenOptions { connect_timeout: LONG, results, ..OpenOptions::default() };
        let queue = open(&patient(server, "untold"), options).await.unwrap();
        queue.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        let held = take_one(&queue).await;
        let (_connection, channel) = plain(server).await;
        let (name, options) = ("ebb:untold:status".into(), ExchangeDeleteOptions::default());
        channel.exchange_delete(name, options).await.unwrap();
        assert_eq!(queue.cancel(&"b".parse().unwrap()).await.unwrap(), Cancelled::Marked);
        // The broker would have closed the channel by then, as it answers to this behind it.
        queue.publish(vec![job("c")]).await.unwrap();
        assert_eq!(take_one(&queue).await.job.id.as_str(), "c", "what is cancelled does not run");
        assert_eq!(queue.settle(&[held.ack()]).await.unwrap(), [Settled::Held]);
        assert_eq!(queue.link().n_losses(), 0, "its connection was lost, and what it held");
    });
}

#[test]
fn who_publishes_to_a_queue_with_max_ready_is_not_refused_for_one_leader_that_does_not_answer() {
    on_shared(async |server| {
        let mut url = patient(server, "bounded");
        url.behavior.max_ready = Some(3);
        let queue = handle(&url).await;
        queue.publish(vec![job("a")]).await.unwrap();
        lead(server, "ebb:bounded:delay-10", "suspend");
        let stored = queue.publish(vec![job("b")]).await;
        // What is known counts.
        let refused = queue.publish(["c", "d"].map(job).to_vec()).await;
        lead(server, "ebb:bounded:delay-10", "resume");
        stored.unwrap();
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Full);
        until("both are counted", async || depth(&queue).await.ready == 2).await;
    });
}

#[test]
fn who_publish_together_with_max_ready_wait_together_for_a_leader_that_does_not_answer() {
    on_shared(async |server| {
        let mut url = patient(server, "bounded-crowd");
        url.behavior.max_ready = Some(1_000);
        let queue = handle(&url).await;
        queue.publish(vec![job("first")]).await.unwrap();
        lead(server, "ebb:bounded-crowd:delay-10", "suspend");
        let start = Instant::now();
        let publishing = (0..80).map(|n| {
            let queue = queue.clone();
            async move { queue.publish(vec![job(&n.to_string())]).await }
        });
        let published = futures::future::join_all(publishing).await;
        let took = start.elapsed();
        lead(server, "ebb:bounded-crowd:delay-10", "resume");
        published.into_iter().for_each(|one| drop(one.unwrap()));
        // One by one they would wait for 20 s.
        assert!(took < Duration::from_secs(8), "{took:?}");
        until("all are counted", async || depth(&queue).await.ready == 81).await;
    });
}

/// All levels of delay of a queue, with a job in the highest.
async fn all_levels(queue: &Queue, name: &str) -> Vec<String> {
    let mut late = job("late");
    late.set("ebb-delay", "70d").unwrap();
    queue.publish(vec![late]).await.unwrap();
    assert_eq!(depth(queue).await.delayed, 1);
    (0..26).map(|level| format!("ebb:{name}:delay-{level}")).collect()
}

/// The same of many at once.
fn lead_all(server: &RabbitMq, queues: &[String], verb: &str) {
    let names: Vec<_> = queues.iter().map(|queue| format!("'%2F_{queue}'")).collect();
    let all = format!("[sys:{verb}(Name) || Name <- [{}]].", names.join(","));
    server.control(&["eval", &all]).unwrap();
}

#[test]
fn who_receives_does_not_wait_for_who_counts_queues_that_do_not_answer() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "held-up")).await;
        let levels = all_levels(&queue, "held-up").await;
        lead_all(server, &levels, "suspend");
        let counting = queue.depth();
        let receiving = async {
            sleep(Duration::from_millis(200)).await;
            queue.publish(vec![job("a")]).await.unwrap();
            let start = Instant::now();
            let (taken, took) = (take_one(&queue).await, start.elapsed());
            queue.settle(&[taken.ack()]).await.unwrap();
            took
        };
        let (counted, took) = tokio::join!(counting, receiving);
        lead_all(server, &levels, "resume");
        knows_or_says_so(counted.map(|depth| depth.delayed as usize), 1);
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_counts_many_queues_of_which_none_answers_keeps_its_connection() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let queue = handle(&patient(&server, "wedged")).await;
    let mut queues = all_levels(&queue, "wedged").await;
    queue.publish(vec![job("a")]).await.unwrap();
    let held = take_one(&queue).await;
    queues.extend(["back", "high", "low", "dead"].map(|part| format!("ebb:wedged:{part}")));
    queues.push("wedged".to_owned());
    lead_all(&server, &queues, "suspend");
    // All of them take nearly as long as our patience lasts, and the server is slow besides.
    let slow = async {
        sleep(Duration::from_secs(1)).await;
        server.pause().unwrap();
        sleep(Duration::from_secs(4)).await;
        server.resume().unwrap();
    };
    let (counted, ()) = tokio::join!(queue.depth(), slow);
    lead_all(&server, &queues, "resume");
    assert_eq!(counted.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(queue.settle(&[held.ack()]).await.unwrap(), [Settled::Held]);
    assert_eq!(queue.link().n_losses(), 0, "its connection was lost, and what it held");
}

// What an operator does keeps its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_and_counts_does_not_wait_for_a_broker_that_lets_nobody_bind() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let queue = handle(&patient(&server, "unbound")).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let held = take_one(&queue).await;
    let before = depth(&queue).await;
    assert_eq!(before.in_flight, 1, "{before:?} {:?}", queue.link());
    // Where bindings are kept, somebody else is at work.
    let lock = "spawn(fun() -> mnesia:transaction(fun() -> mnesia:lock({table, rabbit_route}, write), \
                timer:sleep(9000) end) end).";
    server.control(&["eval", lock]).unwrap();
    let end = Instant::now() + Duration::from_secs(7);
    while Instant::now() < end {
        assert_eq!(queue.depth().await.unwrap().in_flight, 1);
        sleep(Duration::from_millis(200)).await;
    }
    queue.settle(&[held.ack()]).await.unwrap();
}
