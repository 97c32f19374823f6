//! What becomes of the jobs of a handle that does not move, ends, or is gone.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Behavior, OpenOptions, QueueUrl, Results, Settled, open};
use ebb_servers::RabbitMq;
use lapin::Channel;
use lapin::options::QueueDeleteOptions;
use tokio::time::{Instant, sleep};

use crate::{LONG, answered, depth, handle, job, on_shared, plain, take, take_one, until, url};

#[test]
fn a_handle_that_does_not_move_loses_its_jobs() {
    on_shared(async |server| {
        let wedged = handle(&crate::brief(server, "wedged")).await;
        let other = handle(&url(server, "wedged")).await;
        wedged.publish(vec![job("a")]).await.unwrap();
        let held = take_one(&wedged).await;
        let again = take_one(&other).await;
        assert_eq!((again.job.id.as_str(), again.attempt), ("a", 2));
        let settled = wedged.settle(&[held.reject("late")]).await.unwrap();
        assert_eq!(settled, [ebb_queue::Settled::Lost]);
        other.settle(&[again.reject("enough")]).await.unwrap();
        let letter = other.show(&"a".parse().unwrap()).await.unwrap().unwrap();
        assert!(letter.history[0].what.starts_with("lease expired, held by "), "{letter:?}");
        assert_eq!((letter.attempts, letter.history.len()), (2, 2));
    });
}

#[test]
fn who_held_no_job_closes_without_waiting_for_the_broker_to_take_acknowledgements() {
    // For that a handle is given as long; a slow machine may be as slow once or twice.
    const BOUND: Duration = Duration::from_millis(800);
    on_shared(async |server| {
        let mut times: Vec<Duration> = Vec::new();
        while times.len() < 5 && times.iter().all(|time| *time >= BOUND) {
            let queue = handle(&url(server, &format!("jobless-{}", times.len()))).await;
            let none = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
            assert!(none.is_empty());
            let start = Instant::now();
            queue.close().await.unwrap();
            times.push(start.elapsed());
        }
        assert!(times.iter().any(|time| *time < BOUND), "{times:?}");
    });
}

#[test]
fn who_shuts_down_in_order_charges_nothing() {
    on_shared(async |server| {
        // What the broker has not done when the connection ends is charged, and nothing tells when that is;
        // a busy machine may be that slow once.
        let n_charged = n_charged_by_closing(&url(server, "orderly")).await;
        if n_charged > 0 {
            let n_again = n_charged_by_closing(&url(server, "orderly-again")).await;
            assert_eq!(n_again, 0, "and {n_charged} before");
        }
    });
}

/// How many of the jobs of a handle that closes are charged for that.
async fn n_charged_by_closing(url: &QueueUrl) -> usize {
    let (queue, other) = (handle(url).await, handle(url).await);
    let names: Vec<_> = (0..200).map(|n| format!("job-{n}")).collect();
    queue.publish(names.iter().map(|name| job(name)).collect()).await.unwrap();
    // In a hurry and with much to come, it fetches ahead.
    for _ in 0..6 {
        let settlements: Vec<_> =
            take(&queue, 4).await.into_iter().map(ebb_queue::Delivery::release).collect();
        queue.settle(&settlements).await.unwrap();
    }
    queue.close().await.unwrap();
    drop(queue);
    let (mut n_seen, mut n_charged) = (0, 0);
    while n_seen < names.len() {
        let deliveries = take(&other, 50).await;
        assert!(!deliveries.is_empty(), "{n_seen} of {} came", names.len());
        n_charged += deliveries.iter().filter(|delivery| delivery.attempt != 1).count();
        n_seen += deliveries.len();
        let settlements: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
        other.settle(&settlements).await.unwrap();
    }
    n_charged
}

#[test]
fn what_was_fetched_ahead_and_nobody_asks_for_goes_to_others_uncharged() {
    on_shared(async |server| {
        let url = url(server, "idle");
        let (queue, other) = (handle(&url).await, handle(&url).await);
        let mut jobs: Vec<_> = (0..200).map(|n| job(&format!("job-{n}"))).collect();
        // In two lanes, of which it fetches ahead from one.
        jobs.iter_mut().take(8).for_each(|job| job.set("ebb-priority", "high").unwrap());
        let n_jobs = jobs.len();
        queue.publish(jobs).await.unwrap();
        let mut n_seen = 0;
        for _ in 0..8 {
            let acks: Vec<_> =
                take(&queue, 4).await.into_iter().map(ebb_queue::Delivery::ack).collect();
            n_seen += queue.settle(&acks).await.unwrap().len();
        }
        // It lives on and asks for no more.
        while n_seen < n_jobs {
            let deliveries = take(&other, 50).await;
            assert!(!deliveries.is_empty(), "{n_seen} of {n_jobs} came");
            for one in &deliveries {
                assert_eq!(one.attempt, 1, "{} was charged", one.job.id);
            }
            let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
            n_seen += other.settle(&acks).await.unwrap().len();
        }
        assert_eq!(n_seen, n_jobs);
    });
}

#[test]
fn a_handle_that_is_gone_gives_its_jobs_back_at_once_and_is_charged() {
    on_shared(async |server| {
        let url = url(server, "gone");
        let (gone, other) = (handle(&url).await, handle(&url).await);
        gone.publish(vec![job("a")]).await.unwrap();
        let held = take_one(&gone).await;
        until("it is seen to be held", async || depth(&other).await.in_flight == 1).await;
        drop((held, gone));
        let start = Instant::now();
        let again = take_one(&other).await;
        assert_eq!(again.attempt, 2);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        other.settle(&[again.ack()]).await.unwrap();
    });
}

#[test]
fn who_holds_all_that_was_fetched_ahead_gets_more_as_soon_as_it_settles() {
    // A handle gives up after half a second what it does not get; a slow machine may be as slow
    // once or twice.
    const BOUND: Duration = Duration::from_millis(450);
    on_shared(async |server| {
        let mut waits = Vec::new();
        while waits.len() < 5 && waits.iter().all(|wait| *wait >= BOUND) {
            let url = url(server, &format!("full-{}", waits.len()));
            waits.push(wait_of_who_holds_all(&url).await);
        }
        assert!(waits.iter().any(|wait| *wait < BOUND), "{waits:?}");
    });
}

/// How long it takes to get more for who holds all that was fetched ahead, and settles it soon.
async fn wait_of_who_holds_all(url: &QueueUrl) -> Duration {
    let queue = handle(url).await;
    let names: Vec<_> = (0..1_000).map(|n| format!("job-{n}")).collect();
    queue.publish(names.iter().map(|name| job(name)).collect()).await.unwrap();
    // In a hurry and with much to come, it fetches ahead, and no more than is good.
    let (mut held, few) = (Vec::new(), NonZeroUsize::new(16).unwrap());
    loop {
        let more = queue.receive(few, Duration::ZERO).await.unwrap();
        if more.is_empty() {
            break;
        }
        held.extend(more);
    }
    assert!(held.len() < names.len(), "all of them were fetched ahead");
    let settlements: Vec<_> = held.into_iter().map(ebb_queue::Delivery::ack).collect();
    let start = Instant::now();
    let (more, settled) = tokio::join!(queue.receive(few, LONG), async {
        sleep(Duration::from_millis(100)).await;
        queue.settle(&settlements).await
    });
    let wait = start.elapsed();
    assert_eq!(settled.unwrap().len(), settlements.len());
    assert!(!more.unwrap().is_empty(), "all that was left came before");
    wait
}

#[test]
fn a_job_with_the_name_of_one_whose_result_is_gone_is_run() {
    on_shared(async |server| {
        let ttl = Duration::from_secs(3);
        let behavior = Behavior { result_ttl: ttl, ..Behavior::default() };
        let results = MemoryQueue::new(&behavior, OpenOptions::default());
        let results = Some(Results(Arc::new(results)));
        let options = OpenOptions { connect_timeout: LONG, results, ..OpenOptions::default() };
        let first = open(&crate::brief(server, "namesakes"), options).await.unwrap();
        let other = handle(&url(server, "namesakes")).await;
        first.publish(vec![job("a")]).await.unwrap();
        let late = take_one(&first).await;
        // Its lease ends, and another is as quick.
        let again = take_one(&other).await;
        assert_eq!(again.attempt, 2);
        assert_eq!(first.settle(&[late.ack()]).await.unwrap(), [ebb_queue::Settled::Lost]);
        other.settle(&[again.ack()]).await.unwrap();
        sleep(ttl).await;
        other.publish(vec![job("a")]).await.unwrap();
        let next = take_one(&first).await;
        assert_eq!((next.job.id.as_str(), next.attempt), ("a", 1));
        first.settle(&[next.ack()]).await.unwrap();
    });
}

#[test]
fn who_is_told_no_more_of_what_it_fetches_ahead_holds_none_of_it() {
    on_shared(async |server| {
        let (_connection, channel) = plain(server).await;
        // On a slow machine it may be in no hurry once or twice, and fetches nothing ahead.
        for n in 0..5 {
            if is_told_that_it_holds_none(server, &channel, &format!("told-no-more-{n}")).await {
                return;
            }
        }
        panic!("it holds what nobody tells it of any more");
    });
}

/// Whether a handle that may have fetched ahead learns soon that it holds nothing, as its lane is deleted.
async fn is_told_that_it_holds_none(server: &RabbitMq, channel: &Channel, name: &str) -> bool {
    let queue = handle(&url(server, name)).await;
    let mut jobs: Vec<_> = (0..200).map(|n| job(&n.to_string())).collect();
    jobs.iter_mut().for_each(|job| job.set("ebb-priority", "high").unwrap());
    queue.publish(jobs).await.unwrap();
    // In a hurry and with much to come, it fetches ahead.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.extend(take(&queue, 4).await);
    }
    // The broker tells so of a queue that is gone, and where somebody holds a job for too long.
    let (lane, options) = (format!("ebb:{name}:high"), QueueDeleteOptions::default());
    channel.queue_delete(lane.as_str().into(), options).await.unwrap();
    let receipts: Vec<_> = held.iter().map(|one| one.receipt().clone()).collect();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let told = answered(async || queue.extend(&receipts).await).await;
        if told.iter().all(|one| *one == Settled::Lost) {
            assert_eq!(queue.link().n_losses(), 1);
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}
