//! Bodies of jobs: on their way to the worker, and what becomes of them when the job is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, DeadLetters, ErrorKind, Failure, FailureKind, Job, JobResult,
    OpenOptions, Outcome, PayloadsUrl, QueueUrl, ResultStore, Settled, Timestamp, open,
};
use proptest::prelude::*;

use crate::{Ahead, INLINE, Site, answer, body, id, job, over, take};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_body_around_the_limit_comes_back_as_it_was(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), INLINE - 3..INLINE + 4), 1..20),
        in_results: bool,
    ) {
        runtime().block_on(async {
            let site = Site::new().await;
            let queue = if in_results {
                over(&site.plain, &PayloadsUrl::Results).await
            } else {
                site.queue.clone()
            };
            let jobs: Vec<_> =
                bodies.iter().map(|body| Job::new(body.clone(), Timestamp::now())).collect();
            queue.publish(jobs.clone()).await.unwrap();
            let n_large = bodies.iter().filter(|body| body.len() > INLINE).count();
            let n_kept = if in_results { 0 } else { n_large };
            prop_assert_eq!(site.keys("bodies").len(), n_kept);
            let deliveries = take(&queue, 99).await;
            let received: Vec<_> = deliveries.iter().map(|one| one.job.clone()).collect();
            prop_assert_eq!(received, jobs);
            let acks: Vec<_> = deliveries.into_iter().map(ebb_queue::Delivery::ack).collect();
            let settled = queue.settle(&acks).await.unwrap();
            prop_assert!(settled.iter().all(|answer| *answer == Settled::Held));
            prop_assert_eq!(site.keys("bodies").len(), 0);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_body_of_many_pieces_goes_through_the_result_store_of_the_embedded_queue() {
    let folder = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(folder.path().join("queue.db"));
    let payloads = Some(ebb_queue::Payloads::open(&PayloadsUrl::Results).unwrap());
    let options = ebb_queue::OpenOptions { payloads, ..ebb_queue::OpenOptions::default() };
    let queue = open(&url, options).await.unwrap();
    let jobs = vec![job("a", 3 << 20), job("b", 1 << 18), job("c", (1 << 18) + 1)];
    queue.publish(jobs.clone()).await.unwrap();
    let bodies: Vec<_> = take(&queue, 9).await.into_iter().map(|one| one.job.body).collect();
    assert!(bodies.iter().zip(&jobs).all(|(body, job)| *body == job.body));
    queue.put(&answer("a", 1, 1 << 20)).await.unwrap();
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(answer("a", 1, 1 << 20)));
}

#[tokio::test]
async fn a_job_that_waits_longer_than_its_body_is_kept_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut url = QueueUrl::sqlite(folder.path().join("queue.db"));
    url.behavior.result_ttl = Duration::from_secs(60);
    let payloads = Some(ebb_queue::Payloads::open(&PayloadsUrl::Results).unwrap());
    let options = ebb_queue::OpenOptions { payloads, ..ebb_queue::OpenOptions::default() };
    let queue = open(&url, options).await.unwrap();
    let delayed = |name: &str, n: usize, secs| {
        let mut job = job(name, n);
        job.headers.not_before = Some(Timestamp::now() + Duration::from_secs(secs));
        job
    };
    let large = 1 << 19;
    let error = queue.publish(vec![delayed("a", large, 90)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("raise result_ttl, or let --payloads name"), "{error}");
    assert_eq!(queue.depth().await.unwrap().delayed, 0);
    queue.publish(vec![delayed("b", large, 30), delayed("c", 10, 90)]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().delayed, 2);

    let result_ttl = Duration::from_secs(60);
    let site = Site::with(Behavior { result_ttl, ..Behavior::default() }).await;
    site.queue.publish(vec![delayed("d", large, 90)]).await.unwrap();
    assert_eq!(site.keys("bodies").len(), 1, "elsewhere a body lives as long as its job");
}

#[tokio::test]
async fn a_body_lives_as_long_as_its_job() {
    let site = Site::new().await;
    let queue = &site.queue;
    queue.publish(vec![job("a", 500)]).await.unwrap();
    let letter = take(queue, 1).await.remove(0).retry(Duration::ZERO, "once more");
    queue.settle(&[letter]).await.unwrap();
    assert_eq!(site.keys("bodies").len(), 1, "after a retry");
    let release = take(queue, 1).await.remove(0).release();
    queue.settle(&[release]).await.unwrap();
    assert_eq!(site.keys("bodies").len(), 1, "after a release");
    let delivery = take(queue, 1).await.remove(0);
    assert_eq!(queue.extend(&[delivery.receipt().clone()]).await.unwrap(), [Settled::Held]);
    let ack = [delivery.ack()];
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Held]);
    assert!(site.keys("bodies").is_empty(), "after the ack");
    assert_eq!(queue.settle(&ack).await.unwrap(), [Settled::Held], "the same ack, sent again");
}

#[tokio::test]
async fn an_ack_whose_lease_was_lost_deletes_nothing() {
    let lease = Duration::from_millis(100);
    let site = Site::with(Behavior { lease, ..Behavior::default() }).await;
    site.queue.publish(vec![job("a", 500)]).await.unwrap();
    let late = take(&site.queue, 1).await.remove(0);
    let one = std::num::NonZeroUsize::MIN;
    let second = site.queue.receive(one, Duration::from_secs(30)).await.unwrap();
    assert_eq!(site.queue.settle(&[late.ack()]).await.unwrap(), [Settled::Lost]);
    assert_eq!((site.keys("bodies").len(), second[0].job.body.len()), (1, 500));
}

#[tokio::test]
async fn what_is_not_published_leaves_nothing_in_the_store() {
    let site = Site::with(Behavior { max_ready: Some(2), ..Behavior::default() }).await;
    let queue = &site.queue;
    queue.publish(vec![job("a", 500)]).await.unwrap();
    let again = queue.publish(vec![job("a", 600), job("b", 500)]).await.unwrap();
    assert_eq!(again.iter().map(|one| one.duplicate).collect::<Vec<_>>(), [true, false]);
    assert_eq!(site.keys("bodies").len(), 2, "of a duplicate nothing is kept");
    let full = queue.publish(vec![job("c", 500)]).await.unwrap_err();
    assert_eq!((full.kind(), site.keys("bodies").len()), (ErrorKind::Full, 2));
    let huge = queue.publish(vec![job("c", 500), job("d", (1 << 20) + 1)]).await.unwrap_err();
    assert_eq!((huge.kind(), site.keys("bodies").len()), (ErrorKind::Invalid, 2));
    let bodies: Vec<_> = take(queue, 9).await.into_iter().map(|one| one.job.body).collect();
    assert_eq!(bodies, [body(500), body(500)], "the first body counts");
}

#[tokio::test]
async fn a_body_that_is_gone_or_another_makes_a_dead_letter_with_the_reason() {
    let site = Site::new().await;
    let queue = &site.queue;
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm, &str); 3] = [
        ("gone", |file| std::fs::remove_file(file).unwrap(), "body is gone: bodies/"),
        ("longer", |file| std::fs::write(file, body(501)).unwrap(), "it has 501 bytes"),
        ("other", |file| std::fs::write(file, [0; 500]).unwrap(), "its sha256 is another"),
    ];
    for (name, harm, why) in harms {
        let mut large = job(name, 500);
        large.headers.reply_to = Some("inbox".to_owned());
        queue.publish(vec![large, job(&format!("{name}-small"), 10)]).await.unwrap();
        harm(&site.keys("bodies")[0]);
        let rest = take(queue, 9).await;
        assert_eq!((rest.len(), rest[0].job.body.len()), (1, 10), "its neighbour is handed out");
        let letter = site.plain.show(&id(name)).await.unwrap().unwrap();
        assert!(letter.reason.contains(why), "{}", letter.reason);
        assert!(letter.reason.contains(&format!("file://{}", site.folder.display())));
        let told = queue.get(&id(name)).await.unwrap().unwrap();
        assert_eq!(told.outcome, Outcome::Failed(Failure::new(FailureKind::Lost, letter.reason)));
        assert_eq!(site.plain.replies().last(), Some(&("inbox".to_owned(), told)));
        queue.purge(None).await.unwrap();
        assert!(site.keys("bodies").is_empty());
    }
}

#[tokio::test]
async fn a_dead_letter_whose_body_is_gone_says_why_its_job_failed_before_a_crash() {
    let site = Site::new().await;
    let (queue, kind) = (&site.queue, FailureKind::Model);
    queue.publish(vec![job("a", 500)]).await.unwrap();
    let first = take(queue, 1).await.remove(0);
    let outcome = Outcome::Failed(Failure::new(kind, "not finite"));
    queue.put(&JobResult { outcome, ..answer("a", 1, 0) }).await.unwrap();
    queue.settle(&[first.retry(Duration::ZERO, "its worker was lost")]).await.unwrap();
    std::fs::remove_file(&site.keys("bodies")[0]).unwrap();
    assert!(take(queue, 1).await.is_empty());
    let letter = site.plain.show(&id("a")).await.unwrap().unwrap();
    assert_eq!((letter.kind, &*letter.reason), (kind, "not finite"));
    let told = queue.get(&id("a")).await.unwrap().unwrap();
    assert_eq!(told.outcome, Outcome::Failed(Failure::new(kind, "not finite")));
}

#[tokio::test]
async fn a_receive_that_finds_only_lost_bodies_goes_on_waiting() {
    let site = Site::new().await;
    site.queue.publish(vec![job("gone", 500)]).await.unwrap();
    std::fs::remove_file(&site.keys("bodies")[0]).unwrap();
    let queue = site.queue.clone();
    let one = std::num::NonZeroUsize::MIN;
    let waiting = tokio::spawn(async move { queue.receive(one, Duration::from_secs(30)).await });
    while site.plain.depth().await.unwrap().dead == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    site.queue.publish(vec![job("there", 500)]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap()[0].job.id, id("there"));
}

#[tokio::test]
async fn an_answered_job_whose_body_is_gone_already_is_done_and_no_dead_letter() {
    let site = Site::new().await;
    site.queue.publish(vec![job("a", 500)]).await.unwrap();
    // A worker answered, its ack deleted the body, and its broker lost the ack.
    site.queue.put(&answer("a", 1, 10)).await.unwrap();
    std::fs::remove_file(&site.keys("bodies")[0]).unwrap();
    assert!(take(&site.queue, 1).await.is_empty());
    let depth = site.queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.dead), (0, 0, 0));
    assert_eq!(site.queue.get(&id("a")).await.unwrap(), Some(answer("a", 1, 10)));
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_no_job_an_attempt() {
    let site = Site::new().await;
    let queue = &site.queue;
    queue.publish(vec![job("a", 500), job("b", 10), job("c", 500)]).await.unwrap();
    let elsewhere = site.folder.with_extension("away");
    std::fs::rename(&site.folder, &elsewhere).unwrap();
    for _ in 0..10 {
        let one = std::num::NonZeroUsize::MIN;
        let error = queue.receive(one, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
    let small = take(queue, 9).await;
    assert_eq!((small.len(), &small[0].job.id), (1, &id("b")), "what needs no store goes on");
    std::fs::rename(&elsewhere, &site.folder).unwrap();
    let back = take(queue, 9).await;
    let back: Vec<_> = back.iter().map(|one| (one.job.body.len(), one.attempt)).collect();
    assert_eq!(back, [(500, 1), (500, 1)]);
}

#[tokio::test]
async fn a_plain_producer_may_check_in_a_body_by_itself() {
    let site = Site::new().await;
    let folder = site.folder.join("bodies");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("mine.txt"), "hello").unwrap();
    let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let reference = format!(r#"{{"key": "bodies/mine.txt", "size": 5, "sha256": "{sha256}"}}"#);
    let headers = [("Ebb-Body-Ref", "bodies/mine.txt"), ("content-type", "text/plain")];
    let job = Job::from_message(headers, reference, Timestamp::now()).unwrap();
    site.plain.publish(vec![job]).await.unwrap();
    let one = take(&site.queue, 1).await.remove(0);
    assert_eq!((&*one.job.body, one.job.content_type()), (&b"hello"[..], "text/plain"));
    assert_eq!(one.job.headers.body_ref, None);
    site.queue.settle(&[one.ack()]).await.unwrap();
    assert!(site.keys("bodies").is_empty());
}

#[tokio::test]
async fn a_reference_that_cannot_be_right_makes_a_dead_letter() {
    let site = Site::new().await;
    std::fs::write(site.folder.parent().unwrap().join("secret"), "x").unwrap();
    let huge = format!(r#"{{"key": "bodies/a", "size": {}, "sha256": "00"}}"#, u64::MAX);
    for (key, body, why) in [
        ("bodies/a", "a body", "ebb-body-ref: the body is no reference"),
        ("../secret", r#"{"key": "../secret", "size": 1, "sha256": "00"}"#, "not bodies/NAME"),
        ("bodies/a", &huge, "send at most 1048576"),
    ] {
        let job =
            Job::from_message([("ebb-body-ref", key)], body.to_owned(), Timestamp::now()).unwrap();
        site.plain.publish(vec![job]).await.unwrap();
        assert!(take(&site.queue, 1).await.is_empty());
        let letter = site.queue.list(1).await.unwrap().remove(0);
        assert!(letter.reason.contains(why), "{}", letter.reason);
        assert_eq!(letter.kind, FailureKind::Invalid);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn files_that_are_not_ours_to_read_cost_no_attempt_unless_others_are() {
    use std::os::unix::fs::PermissionsExt;

    use nix::unistd::{Uid, setfsuid};

    // Root may read everything: then all files are of nobody, in whose name this thread goes to them, and
    // those that it starts.
    if Uid::effective().is_root() {
        setfsuid(Uid::from_raw(65_534));
    }
    let site = Site::new().await;
    let queue = &site.queue;
    queue.publish(vec![job("a", 500), job("b", 600)]).await.unwrap();
    let [first, second] = &site.keys("bodies")[..] else { panic!("two bodies") };
    let set = |path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(first, 0);
    set(second, 0);
    assert!(std::fs::File::open(first).is_err(), "it can be read");
    let one = std::num::NonZeroUsize::MIN;
    for _ in 0..10 {
        let error = queue.receive(one, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    let jobs = site.plain.receive(one, Duration::ZERO).await.unwrap();
    assert_eq!(jobs[0].attempt, 1);
    let key = jobs[0].job.headers.body_ref.clone().unwrap();
    let other = [first, second]
        .into_iter()
        .find(|path| !key.ends_with(path.file_name().unwrap().to_str().unwrap()));
    set(other.unwrap(), 0o600);
    let back: Vec<_> = jobs.into_iter().map(ebb_queue::Delivery::release).collect();
    site.plain.settle(&back).await.unwrap();
    let next = take(queue, 1).await.remove(0);
    assert_eq!(next.job.id, id("b"), "the first waits, so that it keeps nobody");
    assert_eq!(site.plain.depth().await.unwrap().delayed, 1);
}

#[tokio::test]
async fn a_receive_that_finds_only_lost_bodies_ends_in_time() {
    const MANY: usize = 200;
    let site = Site::new().await;
    let jobs = (0..MANY).map(|nth| job(&format!("gone-{nth}"), 500));
    site.queue.publish(jobs.collect()).await.unwrap();
    std::fs::remove_dir_all(site.folder.join("bodies")).unwrap();
    let eight = std::num::NonZeroUsize::new(8).unwrap();
    let taken = site.queue.receive(eight, Duration::from_millis(100)).await.unwrap();
    assert!(taken.is_empty());
    // Of the others each look costs half a second, in which nobody could stop who receives.
    let depth = site.plain.depth().await.unwrap();
    assert!((8..=MANY as u64 / 4).contains(&depth.dead), "{depth:?}");
}

#[tokio::test]
async fn a_job_without_its_body_dies_at_once_beside_pieces_of_a_later_number() {
    let site = Site::new().await;
    let queue = &site.queue;
    queue.publish(vec![job("a", 500)]).await.unwrap();
    // Whoever sent them gave the job back.
    queue.chunk(&id("a"), 5, 0, "piece".into()).await.unwrap();
    std::fs::remove_file(&site.keys("bodies")[0]).unwrap();
    assert!(take(queue, 1).await.is_empty());
    let letter = site.plain.show(&id("a")).await.unwrap().unwrap();
    assert_eq!((letter.kind, letter.attempts), (FailureKind::Lost, 1));
    let told = queue.get(&id("a")).await.unwrap().unwrap();
    assert_eq!(told.outcome, Outcome::Failed(Failure::new(letter.kind, letter.reason)));
}

#[tokio::test]
async fn who_has_lost_a_job_without_its_body_leaves_the_pieces_of_another_alone() {
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let plain = MemoryQueue::new(&Behavior::default(), options);
    let folder = tempfile::tempdir().unwrap();
    let queue = over(&plain, &PayloadsUrl::File(folder.path().to_owned())).await;
    queue.publish(vec![job("a", 500)]).await.unwrap();
    std::fs::remove_dir_all(folder.path().join("bodies")).unwrap();
    let mut late = std::pin::pin!(take(&queue, 1));
    assert!(futures::poll!(&mut late).is_pending(), "it looks for the body once more");
    // It stands still meanwhile, and another worker begins.
    clock.0.fetch_add(plain.lease().as_secs() + 1, Ordering::Relaxed);
    let next = plain.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
    plain.chunk(&id("a"), next.attempt, 0, "piece".into()).await.unwrap();
    assert!(late.await.is_empty());
    assert_eq!(plain.get(&id("a")).await.unwrap(), None);
    assert_eq!(plain.settle(&[next.ack()]).await.unwrap(), [Settled::Held]);
}
