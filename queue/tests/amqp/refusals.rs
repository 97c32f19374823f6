//! Queues of the broker that take no messages, or are not what they should be: what depends on them
//! waits, and nothing else does.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ebb_queue::{
    Delivery, Error, ErrorKind, JobResult, Outcome, Priority, Queue, QueueUrl, Settled, Settlement,
    Timestamp, answer_at,
};
use ebb_servers::RabbitMq;
use futures::future::join_all;
use lapin::BasicProperties;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;

use crate::{brief, depth, handle, job, on_shared, plain, take, take_one, until, url};

/// A queue of this name, where no lease ends while a test runs.
fn patient(server: &RabbitMq, queue: &str) -> QueueUrl {
    let mut patient = url(server, queue);
    patient.behavior.lease = Duration::from_secs(120);
    patient
}

/// Has a part of a queue refuse messages while it has so many.
fn bound(server: &RabbitMq, part: &str, n_messages: u32) {
    let limit = format!(r#"{{"max-length": {n_messages}, "overflow": "reject-publish"}}"#);
    let pattern = format!("^{part}$");
    let set = ["set_policy", part, &pattern, &limit, "--apply-to", "queues"];
    server.control(&set).unwrap();
}

/// Has it take more. Without a limit it would go on to refuse, whatever it has.
fn make_room(server: &RabbitMq, part: &str) {
    bound(server, part, 100_000);
}

/// Publishes past the handles of the queue until there is no room for more; how much that was.
async fn fill(server: &RabbitMq, part: &str) -> u64 {
    let (_connection, channel) = plain(server).await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for n_stored in 0..100 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish("".into(), part.into(), options, b"filler", properties);
        if sent.await.unwrap().await.unwrap().is_nack() {
            return n_stored;
        }
    }
    panic!("it takes any number");
}

/// So many jobs, in the order of their names.
async fn take_all(queue: &Queue, n_jobs: usize) -> Vec<Delivery> {
    let mut held = Vec::new();
    while held.len() < n_jobs {
        held.extend(take(queue, n_jobs - held.len()).await);
    }
    held.sort_by_key(|one| one.job.id.clone());
    held
}

/// Makes dead letters until there is no room for more.
async fn fill_with_dead(queue: &Queue) {
    for nth in 0..100 {
        queue.publish(vec![job(&format!("filler-{nth}"))]).await.unwrap();
        let rejection = take_one(queue).await.reject("to fill it");
        let Err(error) = queue.settle(std::slice::from_ref(&rejection)).await else { continue };
        assert_eq!(error.error.kind(), ErrorKind::Full, "{error}");
        return;
    }
    panic!("it takes any number");
}

/// Why this one of the settlements is not carried out, where all others are.
async fn refusal(queue: &Queue, settlements: &[Settlement], refused: usize) -> Error {
    let answers = queue.settle(settlements).await;
    for nth in 0..settlements.len() {
        let answer = (nth != refused).then_some(Settled::Held);
        assert_eq!(answer_at(&answers, nth), answer, "{nth}");
    }
    answers.unwrap_err().error
}

async fn figures(queue: &Queue) -> (u64, u64, u64, u64) {
    let depth = depth(queue).await;
    (depth.ready, depth.in_flight, depth.delayed, depth.dead)
}

#[test]
fn one_job_that_finds_no_room_neither_holds_up_nor_doubles_the_others() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "no-room")).await;
        bound(server, "ebb:no-room:dead", 1);
        fill_with_dead(&queue).await;
        let n_dead = depth(&queue).await.dead;
        queue.publish(["a", "b", "c", "d"].map(job).to_vec()).await.unwrap();
        let [a, b, c, d] = take_all(&queue, 4).await.try_into().unwrap();
        let again = a.retry(Duration::from_secs(60), "again");
        let settlements: [Settlement; 4] = [again, b.reject("bad"), c.release(), d.ack()];
        for _ in 0..3 {
            let error = refusal(&queue, &settlements, 1).await;
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        }
        // What filled the dead letters is held, too.
        until("all but one are settled, once", async || figures(&queue).await == (1, 2, 1, n_dead))
            .await;
        make_room(server, "ebb:no-room:dead");
        until("there is room", async || {
            queue.settle(&settlements).await.is_ok_and(|told| told == [Settled::Held; 4])
        })
        .await;
        until("it is dead", async || figures(&queue).await == (1, 1, 1, n_dead + 1)).await;
        let id = "b".parse().unwrap();
        assert_eq!(queue.show(&id).await.unwrap().unwrap().attempts, 1);
        assert_eq!(take_one(&queue).await.job.id.as_str(), "c");
    });
}

#[test]
fn a_limit_of_the_broker_holds_every_client_back() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "limited")).await;
        bound(server, "limited", 3);
        let n_stored = fill(server, "limited").await;
        // A quorum queue notices a moment later.
        assert!((3..20).contains(&n_stored), "{n_stored}");
        let error = queue.publish(vec![job("more")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        assert!(error.may_be_stored());
        let words = error.to_string();
        assert!(words.contains("may be stored") && words.contains("the same id"), "{words}");
        let taken = take_all(&queue, usize::try_from(n_stored).unwrap()).await;
        let acks: Vec<_> = taken.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await.unwrap();
        until("there is room", async || queue.publish(vec![job("more")]).await.is_ok()).await;
        assert_eq!(take_one(&queue).await.job.id.as_str(), "more");
    });
}

#[test]
fn a_publication_of_which_a_part_finds_no_room_tells_which_jobs_are_stored() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "room-for-some")).await;
        bound(server, "room-for-some", 1);
        fill(server, "room-for-some").await;
        let jobs = ["a", "b", "c", "d"].map(job);
        let jobs = jobs.into_iter().enumerate().map(|(nth, mut job)| {
            // Each priority has a queue of its own, and only one of them is full.
            let is_stored = nth % 2 == 0;
            job.headers.priority = if is_stored { Priority::High } else { Priority::Normal };
            job
        });
        let error = queue.publish(jobs.collect()).await.unwrap_err();
        assert_eq!((error.kind(), error.may_be_stored()), (ErrorKind::Full, true), "{error}");
        assert_eq!(error.stored(), [job("a").id, job("c").id]);
    });
}

#[test]
fn what_finds_no_queue_is_held_and_the_others_are_settled() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "gone-back")).await;
        let (_connection, channel) = plain(server).await;
        queue.publish(["a", "b", "c", "d"].map(job).to_vec()).await.unwrap();
        let [a, b, c, d] = take_all(&queue, 4).await.try_into().unwrap();
        let options = QueueDeleteOptions::default();
        channel.queue_delete("ebb:gone-back:back".into(), options).await.unwrap();
        let settlements = [a.release(), b.reject("bad"), c.release(), d.ack()];
        for _ in 0..3 {
            let answers = queue.settle(&settlements).await;
            let told = [0, 1, 2, 3].map(|nth| answer_at(&answers, nth));
            assert_eq!(told, [None, Some(Settled::Held), None, Some(Settled::Held)]);
            let error = answers.unwrap_err().error;
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
            assert!(error.to_string().contains("ebb:gone-back:back"), "{error}");
        }
        // Who opens it anew makes what is missing.
        let other = handle(&patient(server, "gone-back")).await;
        until("two are settled, once", async || figures(&other).await == (0, 2, 0, 1)).await;
        assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 4]);
        until("all are settled, once", async || figures(&other).await == (2, 0, 0, 1)).await;
    });
}

#[test]
fn dead_letters_for_which_there_is_no_room_are_put_back_once() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "redriven")).await;
        let mut urgent = job("urgent");
        urgent.set("ebb-priority", "high").unwrap();
        queue.publish(vec![job("a"), urgent]).await.unwrap();
        let rejections: Vec<_> =
            take_all(&queue, 2).await.into_iter().map(|one| one.reject("bad")).collect();
        queue.settle(&rejections).await.unwrap();
        bound(server, "redriven", 1);
        let mut n_waiting = 0;
        while queue.publish(vec![job(&format!("filler-{n_waiting}"))]).await.is_ok() {
            n_waiting += 1;
        }
        for n_done in [1, 0] {
            let error = queue.redrive(None).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
            let told = error.to_string().contains("dead letters that were put back before: 1");
            assert_eq!(told, n_done == 1, "{error}");
            // It lies where it lay, for whoever looks next.
            assert_eq!(queue.list(9).await.unwrap().len(), 1);
            until("one is back, once", async || figures(&queue).await == (n_waiting + 1, 0, 0, 1))
                .await;
        }
        make_room(server, "redriven");
        until("both are back, once", async || {
            // There is room a moment later.
            queue.redrive(None).await.ok();
            figures(&queue).await == (n_waiting + 2, 0, 0, 0)
        })
        .await;
    });
}

#[test]
fn what_was_fetched_ahead_and_finds_no_room_is_kept_and_no_job_doubles() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "ahead")).await;
        let n_jobs = 200;
        let names: Vec<_> = (0..n_jobs).map(|n| format!("job-{n}")).collect();
        queue.publish(names.iter().map(|name| job(name)).collect()).await.unwrap();
        bound(server, "ebb:ahead:back", 1);
        // In a hurry and with much to come, it fetches ahead, and is not asked for it.
        let mut n_done = 0;
        for _ in 0..6 {
            let acks: Vec<_> = take(&queue, 4).await.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
            n_done += acks.len() as u64;
        }
        let n_others = fill(server, "ebb:ahead:back").await;
        // It tries to give that back some times.
        tokio::time::sleep(Duration::from_secs(2)).await;
        make_room(server, "ebb:ahead:back");
        let handle = handle(&url(server, "ahead")).await;
        until("all that is left is ready", async || {
            figures(&handle).await == (n_jobs - n_done + n_others, 0, 0, 0)
        })
        .await;
    });
}

#[test]
fn jobs_whose_lease_ends_come_back_though_there_is_no_room() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "crammed")).await;
        let other = handle(&brief(server, "crammed")).await;
        queue.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        let held = take_all(&other, 2).await;
        bound(server, "ebb:crammed:back", 1);
        let n_others = fill(server, "ebb:crammed:back").await;
        // Nobody extends their leases.
        drop(held);
        until("they are back", async || figures(&queue).await == (n_others + 2, 0, 0, 0)).await;
        let n_jobs = usize::try_from(n_others).unwrap() + 2;
        let back = take_all(&queue, n_jobs).await;
        let attempt = |id: &str| back.iter().find(|one| one.job.id.as_str() == id).unwrap().attempt;
        assert_eq!((attempt("a"), attempt("b")), (2, 2));
        let acks: Vec<_> = back.into_iter().map(Delivery::ack).collect();
        assert_eq!(queue.settle(&acks).await.unwrap(), vec![Settled::Held; n_jobs]);
    });
}

#[test]
fn a_delay_that_cannot_be_kept_says_why_and_holds_up_no_other_job() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "wrong-level")).await;
        let (_connection, channel) = plain(server).await;
        let level = "ebb:wrong-level:delay-11";
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(level.into(), options, FieldTable::default()).await.unwrap();
        queue.publish(["a", "b", "c"].map(job).to_vec()).await.unwrap();
        let [a, b, c] = take_all(&queue, 3).await.try_into().unwrap();
        let long = a.retry(Duration::from_secs(300), "later");
        let settlements = [long, b.retry(Duration::from_secs(60), "soon"), c.ack()];
        for _ in 0..2 {
            let error = refusal(&queue, &settlements, 0).await;
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
            assert!(error.to_string().contains(level), "{error}");
        }
        until("the others are settled, once", async || figures(&queue).await == (0, 1, 1, 0)).await;
        channel.queue_delete(level.into(), QueueDeleteOptions::default()).await.unwrap();
        assert_eq!(queue.settle(&settlements).await.unwrap(), [Settled::Held; 3]);
        until("it is delayed", async || figures(&queue).await == (0, 0, 2, 0)).await;
    });
}

#[test]
fn what_finds_no_queue_is_not_taken_for_stored_while_others_publish() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "gone-dead")).await;
        let (_connection, channel) = plain(server).await;
        let inbox = "answers-of-gone-dead";
        let options = QueueDeclareOptions::durable();
        channel.queue_declare(inbox.into(), options, FieldTable::default()).await.unwrap();
        queue.publish((0..32).map(|n| job(&format!("job-{n}"))).collect()).await.unwrap();
        let held = take_all(&queue, 32).await;
        let rejections: Vec<_> = held.into_iter().map(|one| one.reject("bad")).collect();
        let dead = "ebb:gone-dead:dead".into();
        channel.queue_delete(dead, QueueDeleteOptions::default()).await.unwrap();
        let outcome = Outcome::Failed("bad".into());
        let id = "job-0".parse().unwrap();
        let finished_at = Timestamp::UNIX_EPOCH;
        let answer = JobResult { id, attempt: 1, outcome, finished_at, queue: None };
        let is_over = AtomicBool::new(false);
        let replies = (0..8).map(async |_| {
            while !is_over.load(Relaxed) {
                queue.reply(inbox, &answer, None).await.unwrap();
            }
        });
        let refused = async {
            for rejection in rejections.chunks(1).cycle().take(320) {
                let error = queue.settle(rejection).await.unwrap_err().error;
                assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
            }
            is_over.store(true, Relaxed);
        };
        tokio::join!(refused, join_all(replies));
        // Who opens it anew makes what is missing.
        let other = handle(&patient(server, "gone-dead")).await;
        assert_eq!(queue.settle(&rejections).await.unwrap(), [Settled::Held; 32]);
        until("all are dead", async || figures(&other).await == (0, 0, 0, 32)).await;
    });
}

#[test]
fn a_job_that_cannot_die_for_want_of_room_is_told_of_once_it_is_dead() {
    on_shared(async |server| {
        let queue = handle(&patient(server, "no-grave")).await;
        let (_connection, channel) = plain(server).await;
        let options = QueueDeclareOptions::exclusive();
        let inbox = "no-grave-replies";
        channel.queue_declare(inbox.into(), options, FieldTable::default()).await.unwrap();
        let n_told = async || {
            let options = QueueDeclareOptions::default().passive();
            let inbox = channel.queue_declare(inbox.into(), options, FieldTable::default());
            inbox.await.unwrap().message_count()
        };
        bound(server, "ebb:no-grave:dead", 1);
        fill_with_dead(&queue).await;
        let n_dead = depth(&queue).await.dead;
        let mut late = job("late");
        late.set("ebb-ttl", "0").unwrap();
        late.set("ebb-reply-to", inbox).unwrap();
        queue.publish(vec![late]).await.unwrap();
        let one = std::num::NonZeroUsize::MIN;
        until("it was refused some times", async || {
            queue.receive(one, Duration::from_millis(100)).await.is_err()
        })
        .await;
        let look = async || drop(queue.receive(one, Duration::from_millis(100)).await);
        for _ in 0..3 {
            look().await;
            assert_eq!(n_told().await, 0);
        }
        make_room(server, "ebb:no-grave:dead");
        until("it is dead", async || {
            look().await;
            depth(&queue).await.dead == n_dead + 1
        })
        .await;
        look().await;
        assert_eq!(n_told().await, 1);
    });
}
