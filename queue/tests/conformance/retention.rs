//! Dead letters may be kept for a while only; then they go with all that they left.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Behavior, Elsewhere, Job, JobId, JobResult, JobState, Purged, Queue, Settled};

use crate::fixture::{Fixture, publish, settle, soon};

pub async fn old_dead_letters_go_and_young_ones_stay(fixture: &dyn Fixture) {
    // Longer than the few requests take in which a young one must not grow old.
    let ttl = fixture.lease() * 3 / 2;
    let (queue, other) = (keeping(fixture, ttl).await, fixture.again("two").await);
    die(fixture, &queue, &["a", "b"]).await;
    fixture.assert_counts(&queue, [0, 0, 0, 2]).await;
    assert_eq!(purge_old(&queue).await, 0, "they are young");
    fixture.pass_by(ttl).await;
    die(fixture, &queue, &["young"]).await;
    fixture.publish(&queue, &["runs"]).await;
    let running = fixture.take_one(&queue).await;
    fixture.publish(&queue, &["waits"]).await;
    assert_eq!(purge_old(&other).await, 2);
    assert_eq!(purge_old(&queue).await, 0);
    fixture.assert_counts(&queue, [1, 1, 0, 1]).await;
    let letters = queue.list(9).await.unwrap();
    assert_eq!(letters[0].job.id.as_str(), "young");
    assert_eq!(settle(&queue, running.ack()).await, Settled::Held);
    assert_eq!(fixture.take_one(&queue).await.job.id.as_str(), "waits");
}

pub async fn dead_letters_are_kept_for_ever_unless_it_is_asked_for(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    die(fixture, &queue, &["a"]).await;
    fixture.pass_by(fixture.lease()).await;
    assert_eq!(purge_old(&queue).await, 0);
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
}

pub async fn a_job_that_was_put_back_is_not_old(fixture: &dyn Fixture) {
    let ttl = fixture.lease() * 3 / 2;
    let queue = keeping(fixture, ttl).await;
    die(fixture, &queue, &["a", "b"]).await;
    fixture.assert_counts(&queue, [0, 0, 0, 2]).await;
    fixture.pass_by(ttl).await;
    let a: JobId = "a".parse().unwrap();
    assert_eq!(queue.redrive(Some(std::slice::from_ref(&a))).await.unwrap(), 1);
    assert_eq!(purge_old(&queue).await, 1, "the other one");
    let again = fixture.take_one(&queue).await;
    assert_eq!((again.job.id.as_str(), again.attempt), ("a", 1));
    // It died a moment ago, whenever it died first.
    settle(&queue, again.reject("bad again")).await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    assert_eq!(purge_old(&queue).await, 0);
    assert!(queue.show(&a).await.unwrap().is_some());
}

pub async fn an_old_dead_letter_leaves_nothing_behind(fixture: &dyn Fixture) {
    let queue = keeping(fixture, fixture.short()).await;
    let job = fixture.job("a", &[("ebb-key", "k")]);
    publish(&queue, job.clone()).await;
    let delivery = fixture.take_one(&queue).await;
    queue.chunk(&job.id, 1, 0, "old".into()).await.unwrap();
    queue.put(&fixture.failed("a", 1, "bad")).await.unwrap();
    settle(&queue, delivery.reject("bad")).await;
    fixture.pass_by(fixture.short()).await;
    assert_eq!(purge_old(&queue).await, 1);
    assert_eq!(queue.get(&job.id).await.unwrap(), None);
    // A broker that cannot tell says so.
    let state = queue.state(&job.id).await.unwrap();
    assert_eq!(state.unwrap_or(JobState::Unknown), JobState::Unknown);
    for again in [job.clone(), fixture.job("b", &[("ebb-key", "k")])] {
        assert!(!publish(&queue, again.clone()).await.duplicate, "{} is new", again.id);
        let delivery = fixture.take_one(&queue).await;
        assert_eq!((delivery.attempt, &delivery.job), (1, &again));
        settle(&queue, delivery.reject("bad")).await;
        assert_eq!(queue.purge(None).await.unwrap(), 1);
    }
}

pub async fn who_follows_an_old_dead_letter_is_told(fixture: &dyn Fixture) {
    let queue = keeping(fixture, fixture.short()).await;
    let other = fixture.again("client").await;
    die(fixture, &queue, &["a"]).await;
    let mut followed = other.follow(&"a".parse().unwrap(), 0).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), soon(&mut followed)).await;
    assert!(early.is_err(), "nothing is known yet");
    fixture.pass_by(fixture.short()).await;
    assert_eq!(purge_old(&queue).await, 1);
    assert!(soon(&mut followed).await.is_none(), "nothing can come");
}

pub async fn bodies_that_lie_elsewhere_are_told_or_left_with_their_letters(fixture: &dyn Fixture) {
    let queue = keeping(fixture, fixture.short()).await;
    for name in ["first", "second"] {
        publish(&queue, fixture.job(name, &[("ebb-body-ref", "bodies/it")])).await;
        fixture.kill(&queue, "bad").await;
    }
    die(fixture, &queue, &["behind"]).await;
    fixture.assert_counts(&queue, [0, 0, 0, 3]).await;
    fixture.pass_by(fixture.short()).await;
    let purged = queue.purge_old(Elsewhere::Leave).await.unwrap();
    assert_eq!((purged.n_jobs, purged.referring.len()), (1, 0), "what has a body of its own");
    assert_eq!(purged.n_left, 2);
    fixture.assert_counts(&queue, [0, 0, 0, 2]).await;
    let purged = queue.purge_old(Elsewhere::Take).await.unwrap();
    let told: Vec<_> = purged.referring.iter().map(|job| job.headers.body_ref.as_deref()).collect();
    assert_eq!((purged.n_jobs, told), (2, vec![Some("bodies/it"); 2]));
    assert_eq!(purged.referring[0].id.as_str(), "first");
}

pub async fn a_header_that_reads_like_a_reference_is_none(fixture: &dyn Fixture) {
    let queue = keeping(fixture, fixture.short()).await;
    let headers = [("ebb-key", "body_ref"), ("ebb-tenant", "\"body_ref\":")];
    publish(&queue, fixture.job("a", &headers)).await;
    fixture.kill(&queue, "bad").await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    fixture.pass_by(fixture.short()).await;
    let purged = queue.purge_old(Elsewhere::Leave).await.unwrap();
    assert_eq!((purged.n_jobs, purged.n_left, purged.referring.len()), (1, 0, 0));
}

pub async fn the_record_that_a_job_has_gone_on_outlives_its_letter(fixture: &dyn Fixture) {
    let queue = keeping(fixture, fixture.short()).await;
    let id: JobId = "a".parse().unwrap();
    publish(&queue, fixture.job("a", &[("ebb-body-ref", "bodies/it")])).await;
    assert!(!queue.has_gone_on(&id).await.unwrap());
    queue.put(&JobResult::moved(id.clone(), "other", fixture.now())).await.unwrap();
    fixture.kill(&queue, "lost").await;
    fixture.assert_counts(&queue, [0, 0, 0, 1]).await;
    fixture.pass_by(fixture.short()).await;
    let purged = queue.purge_old(Elsewhere::Take).await.unwrap();
    assert_eq!((purged.n_jobs, purged.referring.len()), (1, 0), "the other queue needs the body");
    assert!(queue.has_gone_on(&id).await.unwrap());
}

pub async fn what_is_put_back_while_old_letters_go_keeps_its_body(fixture: &dyn Fixture) {
    for nth in 0..4 {
        race(fixture, Duration::from_millis(nth)).await;
    }
}

pub async fn what_is_put_back_while_old_letters_go_is_still_known(fixture: &dyn Fixture) {
    for nth in 0..4 {
        let (queue, back) = race(fixture, Duration::from_millis(nth)).await;
        for job in back {
            let again = publish(&queue, job.clone()).await;
            assert!(again.duplicate, "{} is known", job.id);
            let key = job.headers.key.as_deref().unwrap();
            let other = publish(&queue, fixture.job("other", &[("ebb-key", key)])).await;
            assert_eq!((other.duplicate, other.id), (true, job.id));
        }
    }
}

pub async fn what_a_redrive_that_was_cut_off_put_back_keeps_its_body(fixture: &dyn Fixture) {
    for nth in 0..6 {
        cut_off(fixture, Duration::from_millis(nth)).await;
    }
}

pub async fn what_a_redrive_that_was_cut_off_put_back_is_still_known(fixture: &dyn Fixture) {
    for nth in 0..6 {
        let (queue, back) = cut_off(fixture, Duration::from_millis(nth)).await;
        for job in back {
            assert!(publish(&queue, job.clone()).await.duplicate, "{} is known", job.id);
        }
    }
}

/// Letters that are put back, from so long after others begin to delete them for their age; the queue, and
/// the jobs that were put back and are taken.
async fn race(fixture: &dyn Fixture, after: Duration) -> (Queue, Vec<Job>) {
    let queue = with_old_letters(fixture).await;
    let other = fixture.again("two").await;
    let redriving = async {
        tokio::time::sleep(after).await;
        other.redrive(None).await.unwrap()
    };
    let (purged, n_redriven) = tokio::join!(queue.purge_old(Elsewhere::Take), redriving);
    let purged = purged.unwrap();
    let n_back = usize::try_from(n_redriven).unwrap();
    let back = all_that_is_back(fixture, &queue, n_back, &purged).await;
    assert_eq!(back.len(), n_back);
    let n_dead = LETTERS as u64 - n_redriven - purged.n_jobs;
    fixture.assert_counts(&queue, [0, n_redriven, 0, n_dead]).await;
    (queue, back)
}

/// The same where the redrive comes first, and is cut off so long after it began.
async fn cut_off(fixture: &dyn Fixture, after: Duration) -> (Queue, Vec<Job>) {
    let queue = with_old_letters(fixture).await;
    let other = fixture.again("two").await;
    tokio::time::timeout(after, other.redrive(None)).await.ok();
    let purged = queue.purge_old(Elsewhere::Take).await.unwrap();
    // Nobody knows how far it came.
    let back = all_that_is_back(fixture, &queue, 0, &purged).await;
    (queue, back)
}

const LETTERS: usize = 12;

/// A queue with dead letters that are too old, each with a key, and a body that lies elsewhere.
async fn with_old_letters(fixture: &dyn Fixture) -> Queue {
    let queue = keeping(fixture, fixture.short()).await;
    for nth in 0..LETTERS {
        let (name, key) = (format!("job-{nth}"), format!("key-{nth}"));
        let headers = [("ebb-key", &*key), ("ebb-body-ref", "bodies/it")];
        publish(&queue, fixture.job(&name, &headers)).await;
        fixture.kill(&queue, "bad").await;
    }
    fixture.assert_counts(&queue, [0, 0, 0, LETTERS as u64]).await;
    fixture.pass_by(fixture.short()).await;
    queue
}

/// The jobs that are ready, so many or more, none of which was purged.
async fn all_that_is_back(
    fixture: &dyn Fixture,
    queue: &Queue,
    n_known: usize,
    purged: &Purged,
) -> Vec<Job> {
    let all = NonZeroUsize::new(LETTERS).unwrap();
    let mut taken = fixture.take(queue, n_known).await;
    loop {
        let more = fixture.receive(queue, all, Duration::from_millis(300)).await;
        if more.is_empty() {
            break;
        }
        taken.extend(more);
    }
    let back: Vec<_> = taken.into_iter().map(|delivery| delivery.job.clone()).collect();
    for job in &back {
        assert!(purged.referring.iter().all(|one| one.id != job.id), "{} has its body", job.id);
    }
    back
}

/// A queue that keeps its dead letters for this while only, and all else for longer than a promise
/// takes: what is gone did not go by itself.
async fn keeping(fixture: &dyn Fixture, dead_ttl: Duration) -> Queue {
    let (lease, long) = (fixture.lease() * 10, fixture.lease() * 20);
    let behavior = Behavior { lease, result_ttl: long, key_ttl: long, ..fixture.behavior() };
    fixture.fresh_with(Behavior { dead_ttl: Some(dead_ttl), ..behavior }).await
}

/// Jobs of these names that die one after the other.
async fn die(fixture: &dyn Fixture, queue: &Queue, names: &[&str]) {
    for name in names {
        fixture.publish(queue, &[name]).await;
        fixture.kill(queue, "bad").await;
    }
}

/// Deletes what is old, as a worker does that has no store of payloads.
async fn purge_old(queue: &Queue) -> u64 {
    let mut n_purged = 0;
    loop {
        let purged = queue.purge_old(Elsewhere::Leave).await.unwrap();
        assert!(purged.referring.is_empty());
        if purged.n_jobs == 0 {
            return n_purged;
        }
        n_purged += purged.n_jobs;
    }
}
