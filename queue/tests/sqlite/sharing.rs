//! Callers that share a transaction, and handles that share a file.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ebb_queue::{ErrorKind, Job, Queue, Settled, Timestamp};
use futures::future::join_all;
use rusqlite::Connection;
use tokio::time::Instant;

use crate::{answer, handle, handle_with_clock, job, take, url};

/// Keeps everybody from writing until it is dropped.
fn lock(file: &std::path::Path) -> Connection {
    let db = Connection::open(file).unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    db
}

#[tokio::test]
async fn a_refused_command_leaves_those_beside_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let mut url = url(&file);
    url.behavior.max_ready = Some(4);
    let queue = handle(&url).await;
    let lock = lock(&file);
    let names = [vec!["a", "b"], vec!["c", "d", "e"], vec!["f", "g"], vec!["h"]];
    let publishes = names.map(|names| {
        let queue = queue.clone();
        let jobs = names.into_iter().map(job).collect();
        tokio::spawn(async move { queue.publish(jobs).await })
    });
    // On one thread all of them are at the writer's door after a turn each.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(lock);
    let published = join_all(publishes).await.into_iter().map(|one| one.unwrap());
    let kinds: Vec<_> = published.map(|one| one.err().map(|error| error.kind())).collect();
    let full = Some(ErrorKind::Full);
    assert_eq!(kinds, [None, full, None, full]);
    let ready: Vec<_> = take(&queue, 9, Duration::ZERO).await;
    let ready: Vec<_> = ready.iter().map(|one| one.job.id.as_str()).collect();
    assert_eq!(ready, ["a", "b", "f", "g"]);
}

#[tokio::test]
async fn a_lease_begins_when_it_is_granted_and_not_when_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let (queue, clock) = handle_with_clock(&url(&file)).await;
    let wait = || queue.lease() + Duration::from_secs(1);
    queue.publish(vec![job("a")]).await.unwrap();
    let waiting = lock(&file);
    let mut receive = pin!(take(&queue, 1, Duration::ZERO));
    assert!(futures::poll!(&mut receive).is_pending(), "somebody else writes");
    clock.pass(wait());
    drop(waiting);
    let delivery = receive.await.remove(0);
    assert_eq!(queue.depth().await.unwrap().in_flight, 1);

    let waiting = lock(&file);
    let receipts = [delivery.receipt().clone()];
    let mut extend = pin!(queue.extend(&receipts));
    assert!(futures::poll!(&mut extend).is_pending(), "somebody else writes");
    clock.pass(wait());
    drop(waiting);
    assert_eq!(extend.await.unwrap(), [Settled::Held]);
    assert_eq!(queue.depth().await.unwrap().in_flight, 1);
}

#[tokio::test]
async fn readers_do_not_wait_for_a_writer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let queue = handle(&url(&file)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let delivery = take(&queue, 1, Duration::ZERO).await.remove(0);
    queue.put(&answer(&delivery)).await.unwrap();
    let lock = lock(&file);
    assert_eq!(queue.depth().await.unwrap().in_flight, 1);
    assert!(queue.get(&delivery.job.id).await.unwrap().is_some());
    assert!(queue.workers().await.unwrap().is_empty());
    drop(lock);
}

#[tokio::test]
async fn a_claim_whose_caller_has_gone_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queue.db");
    let queue = handle(&url(&file)).await;
    queue.publish(vec![job("a")]).await.unwrap();
    let lock = lock(&file);
    let first = {
        let queue = queue.clone();
        tokio::spawn(async move { queue.publish(vec![job("b")]).await })
    };
    tokio::task::yield_now().await;
    // The writer waits for the lock with the publish; the claim waits behind it.
    let claim = queue.receive(NonZeroUsize::MIN, Duration::ZERO);
    assert!(futures::FutureExt::now_or_never(claim).is_none());
    drop(lock);
    first.await.unwrap().unwrap();
    assert_eq!(queue.depth().await.unwrap().in_flight, 0);
    assert_eq!(take(&queue, 9, Duration::ZERO).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_handle_leaves_others_their_turn() {
    // A machine that does much else spoils one round.
    let first = passed_over().await;
    if first.len() > 3 {
        let second = passed_over().await;
        assert!(second.len() <= 3, "passed over: {first:?}, and once more {second:?}");
    }
}

/// How many were published before one of fifty whose turn had come, where they were far too many.
async fn passed_over() -> Vec<usize> {
    // Forty commits, with what the four callers of a handle publish in each. Who waits for a turn
    // has a chance at every one of them, of about a third.
    const MANY: usize = 160;
    let folder = tempfile::tempdir().unwrap();
    let url = url(&folder.path().join("queue.db"));
    let busy = [handle(&url).await, handle(&url).await];
    let n_published = Arc::new(AtomicUsize::new(0));
    // Four callers each, so that the next command waits when a commit is through.
    let hogs = busy.iter().cycle().take(8).cloned().enumerate().map(|(k, queue)| {
        let n_published = n_published.clone();
        tokio::spawn(async move {
            for n in 0.. {
                let jobs = (0..64).map(|m| job(&format!("{k}-{n}-{m}"))).collect();
                queue.publish(jobs).await.unwrap();
                n_published.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let hogs: Vec<_> = hogs.collect();
    let other = handle(&url).await;
    // In what the others publish meanwhile, since a slow machine is slow for all.
    let mut waits = Vec::new();
    for n in 0..50 {
        let before = n_published.load(Ordering::SeqCst);
        other.publish(vec![job(&format!("other-{n}"))]).await.unwrap();
        waits.push(n_published.load(Ordering::SeqCst) - before);
    }
    for hog in hogs {
        hog.abort();
    }
    // A thread of its own that stands still for a while misses its turns as well.
    waits.retain(|wait| *wait > MANY);
    waits
}

#[tokio::test]
async fn who_lists_dead_letters_keeps_nobody_from_writing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?synchronous=normal", folder.path().join("queue.db").display());
    let url = url.parse().unwrap();
    let (queue, other) = (handle(&url).await, handle(&url).await);
    const MANY: usize = 400;
    for nth in 0..MANY / 50 {
        let jobs = (0..50).map(|at| {
            let mut job = Job::new(vec![1; 256 << 10], Timestamp::now());
            job.id = format!("{nth}-{at}").parse().unwrap();
            job
        });
        queue.publish(jobs.collect()).await.unwrap();
        let letters =
            take(&queue, 99, Duration::ZERO).await.into_iter().map(|one| one.reject("no"));
        queue.settle(&letters.collect::<Vec<_>>()).await.unwrap();
    }
    // A machine that does much else spoils some rounds.
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let round = longest_publish(&other, async {
            assert_eq!(queue.list(usize::MAX).await.unwrap().len(), MANY);
        });
        let (longest, took) = round.await;
        if longest < took / 3 {
            return;
        }
        rounds.push((longest, took));
    }
    panic!("of each listing the longest publish, and all of it: {rounds:?}");
}

/// How long the longest publish takes while something else is done, and how long that takes.
async fn longest_publish(queue: &Queue, work: impl Future<Output = ()>) -> (Duration, Duration) {
    let (is_done, longest) = (AtomicBool::new(false), AtomicU64::new(0));
    let working = async {
        let began = Instant::now();
        work.await;
        is_done.store(true, Ordering::SeqCst);
        began.elapsed()
    };
    let publishing = async {
        while !is_done.load(Ordering::SeqCst) {
            let began = Instant::now();
            queue.publish(vec![Job::new("body", Timestamp::now())]).await.unwrap();
            let took = u64::try_from(began.elapsed().as_micros()).unwrap();
            longest.fetch_max(took, Ordering::SeqCst);
        }
    };
    let (took, ()) = tokio::join!(working, publishing);
    (Duration::from_micros(longest.into_inner()), took)
}
