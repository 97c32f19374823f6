//! Jobs that are cancelled though their messages cannot be found any more.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Cancelled, JobId, OpenOptions, Outcome, Queue, QueueUrl, open};
use ebb_servers::{Nats, NatsOptions, NatsVersion};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::way::Way;
use crate::{LONG, VERSIONS, block_on, job, on_each, receive, take, try_open, until};

/// One may do all, one may not look at results, one may not delete messages of jobs.
const USERS: &str = r#"
authorization {
  users: [
    { user: all, password: a }
    { user: blind, password: b, permissions: {
        publish: { deny: [
          "$JS.API.DIRECT.GET.EBB_RESULTS_jobs", "$JS.API.STREAM.MSG.GET.EBB_RESULTS_jobs"
        ] }
    } }
    { user: canceller, password: c, permissions: {
        publish: { allow: [
          "ebb.jobs.jobs", "ebb.jobs.results.*", "ebb.jobs.chunks.=cancelled.>", "ebb.jobs.cancelled",
          "ebb.jobs.phase", "$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.EBB_JOBS_jobs.*",
          "$JS.API.DIRECT.GET.*", "$JS.API.STREAM.MSG.DELETE.EBB_JOBS_jobs",
          "$JS.API.STREAM.MSG.DELETE.EBB_RESULTS_jobs"
        ] }
        subscribe: { allow: ["_INBOX.>"] }
    } }
    { user: half, password: h, permissions: {
        publish: { deny: ["$JS.API.STREAM.MSG.DELETE.EBB_JOBS_jobs"] }
    } }
  ]
}
"#;

/// A server that knows those.
async fn started(version: NatsVersion) -> Nats {
    let options = NatsOptions { version, extra_config: USERS.to_owned(), ..NatsOptions::default() };
    Nats::start(options).await.unwrap()
}

/// Runs a test on each server that is supported, with the handles of these users.
fn with_users<const N: usize>(users: [&str; N], test: impl AsyncFn([Queue; N])) {
    for version in VERSIONS {
        block_on(async {
            let server = started(version).await;
            let mut queues = Vec::new();
            for user in users {
                let url = format!("nats://{user}@127.0.0.1:{}", server.port());
                queues.push(try_open(&url).await.unwrap());
            }
            test(queues.try_into().ok().unwrap()).await;
        });
    }
}

fn id(name: &str) -> JobId {
    name.parse().unwrap()
}

#[test]
fn who_cannot_know_of_cancelled_jobs_gets_jobs_all_the_same() {
    with_users(["all:a", "blind:b"], async |[all, blind]| {
        all.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        let mut taken = receive(&blind, 2).await.unwrap();
        while taken.len() < 2 {
            taken.extend(receive(&blind, 2).await.unwrap());
        }
        assert!(taken.iter().all(|delivery| delivery.attempt == 1));
        // Also what comes back.
        let back: Vec<_> = taken.into_iter().map(ebb_queue::Delivery::release).collect();
        blind.settle(&back).await.unwrap();
        let again = receive(&blind, 2).await.unwrap();
        assert!(again.iter().all(|delivery| delivery.attempt == 1) && !again.is_empty());
    });
}

#[test]
fn who_may_only_cancel_cancels() {
    with_users(["all:a", "canceller:c"], async |[all, canceller]| {
        all.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        assert_eq!(canceller.cancel(&id("a")).await.unwrap(), Cancelled::Waiting);
        let taken = receive(&all, 1).await.unwrap();
        // Its note is told, and not waited for.
        until("it is seen that it is held", async || all.depth().await.unwrap().in_flight == 1)
            .await;
        assert_eq!(canceller.cancel(&id("b")).await.unwrap(), Cancelled::Running);
        assert_eq!(taken[0].job.id, id("b"));
        let error = canceller.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.kind(), ebb_queue::ErrorKind::Denied, "{error}");
    });
}

#[test]
fn a_job_that_waits_is_cancelled_by_few_requests_however_many_hold_others() {
    on_each(async |server| {
        const N_HANDLES: usize = 8;
        let way = Way::to(server.port()).await;
        let canceller = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let mut handles = Vec::new();
        for n in 0..N_HANDLES {
            let handle = try_open(&server.url()).await.unwrap();
            handle.publish(vec![job(&format!("held-{n}"))]).await.unwrap();
            take(&handle, 1).await;
            handles.push(handle);
        }
        handles[0].publish(vec![job("a")]).await.unwrap();
        way.count();
        assert_eq!(canceller.cancel(&id("a")).await.unwrap(), Cancelled::Waiting);
        let counted = way.counted();
        println!("to cancel a job that waits: {counted:?}");
        assert!(counted.n_requests <= 13, "{counted:?}");
        way.count();
        assert_eq!(canceller.cancel(&id("held-0")).await.unwrap(), Cancelled::Running);
        println!("to cancel one that runs: {:?}", way.counted());
        way.count();
        assert_eq!(canceller.cancel(&id("a")).await.unwrap(), Cancelled::Ended);
        println!("to cancel one that was: {:?}", way.counted());
    });
}

#[test]
fn a_job_whose_canceller_came_halfway_never_runs_and_can_be_cancelled_to_its_end() {
    with_users(["all:a", "half:h"], async |[all, half]| {
        all.publish(["a", "b", "c"].map(job).to_vec()).await.unwrap();
        for name in ["a", "b"] {
            half.cancel(&id(name)).await.unwrap_err();
            let result = all.get(&id(name)).await.unwrap().unwrap();
            assert_eq!(result.outcome, Outcome::Cancelled);
        }
        assert_eq!(all.depth().await.unwrap().ready, 3);
        assert_eq!(all.cancel(&id("a")).await.unwrap(), Cancelled::Waiting);
        assert_eq!(all.depth().await.unwrap().ready, 2);
        assert_eq!(all.cancel(&id("a")).await.unwrap(), Cancelled::Ended);
        let taken = receive(&all, 9).await.unwrap();
        let ids: Vec<_> = taken.iter().map(|delivery| delivery.job.id.as_str()).collect();
        assert_eq!(ids, ["c"]);
        until("only what is held counts", async || {
            let depth = all.depth().await.unwrap();
            (depth.ready, depth.in_flight) == (0, 1)
        })
        .await;
    });
}

#[test]
fn a_job_whose_id_the_server_has_forgotten_is_dropped_by_whoever_meets_it() {
    on_each(async |server| {
        let mut url: QueueUrl = format!("{}?queue=old", server.url()).parse().unwrap();
        // Sooner than a URL may ask for: what tells that a job is cancelled is to outlive its id.
        url.behavior.key_ttl = Duration::from_secs(1);
        let queue = open(&url, OpenOptions::default()).await.unwrap();
        let names = ["a", "b", "c", "d", "e", "f"];
        queue.publish(names.map(job).to_vec()).await.unwrap();
        let mut left = names.to_vec();
        // A server forgets when it next looks.
        while let Some(name) = left.pop() {
            sleep(Duration::from_secs(2)).await;
            match queue.cancel(&name.parse().unwrap()).await.unwrap() {
                Cancelled::Marked => break,
                told => assert_eq!(told, Cancelled::Waiting, "{name}"),
            }
        }
        assert!(!left.is_empty(), "the ids are forgotten");
        let depth = queue.depth().await.unwrap();
        assert_eq!(depth.ready, left.len() as u64 + 1, "it counts until somebody meets it");
        let late = open(&url, OpenOptions::default()).await.unwrap();
        let mut taken = Vec::new();
        while taken.len() < left.len() {
            taken.extend(receive(&late, 9).await.unwrap());
        }
        let ids: Vec<_> = taken.iter().map(|delivery| delivery.job.id.as_str()).collect();
        assert_eq!(ids, left);
        until("only those that are held count", async || {
            let depth = queue.depth().await.unwrap();
            (depth.ready, depth.in_flight) == (0, left.len() as u64)
        })
        .await;
        let gone = queue.get(&names[left.len()].parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(gone.outcome, Outcome::Cancelled);
    });
}

#[test]
fn who_was_away_is_told_of_what_it_holds_when_it_is_back() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let worker = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let canceller = try_open(&server.url()).await.unwrap();
        canceller.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        let held = receive(&worker, 1).await.unwrap();
        assert_eq!(held[0].job.id, id("a"));
        let mut told_of = worker.cancellations().await.unwrap();
        way.cut();
        until("the loss is noticed", async || !worker.link().is_up()).await;
        assert_eq!(canceller.cancel(&id("a")).await.unwrap(), Cancelled::Running);
        way.mend();
        let told = timeout(LONG, told_of.next()).await.expect("it is told");
        assert_eq!(told, Some(id("a")));
        // It goes on to hear of others, and is told of nothing twice.
        assert_eq!(canceller.cancel(&id("b")).await.unwrap(), Cancelled::Waiting);
        let told = timeout(LONG, told_of.next()).await.expect("it is told");
        assert_eq!(told, Some(id("b")));
    });
}

#[test]
fn a_cancelled_job_is_not_handed_out_because_the_word_of_it_comes_late() {
    const LATE: Duration = Duration::from_millis(1500);
    for version in VERSIONS {
        block_on(async {
            let server = started(version).await;
            let way = Way::to(server.port()).await;
            let at = |user: &str, port: u16| format!("nats://{user}@127.0.0.1:{port}");
            let all = try_open(&at("all:a", server.port())).await.unwrap();
            let half = try_open(&at("half:h", server.port())).await.unwrap();
            let worker = try_open(&at("all:a", way.port)).await.unwrap();
            all.publish(vec![job("a")]).await.unwrap();
            // What came back is looked up, and this canceller leaves it there.
            let again = receive(&all, 1).await.unwrap().remove(0).retry(Duration::ZERO, "again");
            all.settle(&[again]).await.unwrap();
            half.cancel(&id("a")).await.unwrap_err();
            way.hold("GET.EBB_RESULTS_jobs", LATE);
            let (max, wait) = (NonZeroUsize::MIN, 2 * LATE);
            assert!(worker.receive(max, wait).await.unwrap().is_empty());
            assert!(!way.holds(), "it was looked up");
            let depth = all.depth().await.unwrap();
            assert_eq!((depth.ready, depth.in_flight), (0, 0));
        });
    }
}

#[test]
fn a_job_that_is_handed_out_while_its_canceller_replies_is_left_to_whoever_has_it() {
    for version in VERSIONS {
        block_on(async {
            let server = started(version).await;
            let way = Way::to(server.port()).await;
            let at = |user: &str, port: u16| format!("nats://{user}@127.0.0.1:{port}?lease=24s");
            let all = try_open(&at("all:a", server.port())).await.unwrap();
            let canceller = try_open(&at("all:a", way.port)).await.unwrap();
            // It does not know that jobs are cancelled, and need not wait to learn that.
            let blind = try_open(&at("blind:b", server.port())).await.unwrap();
            all.publish(vec![job("before")]).await.unwrap();
            let before = take(&blind, 1).await.remove(0);
            blind.settle(&[before.ack()]).await.unwrap();
            let mut asked = job("a");
            asked.headers.reply_to = Some("answers.here".to_owned());
            all.publish(vec![asked]).await.unwrap();
            way.hold("answers.here", LONG);
            let name = id("a");
            let taken = async {
                until("it is being replied to", async || !way.holds()).await;
                let taken = take(&blind, 1).await.remove(0);
                way.let_go();
                taken
            };
            let (cancelled, taken) = tokio::join!(canceller.cancel(&name), taken);
            assert_eq!((cancelled.unwrap(), taken.job.id), (Cancelled::Running, name));
            let depth = all.depth().await.unwrap();
            assert_eq!((depth.ready, depth.in_flight), (0, 1));
        });
    }
}

#[test]
fn jobs_of_all_lanes_together_wait_a_part_of_their_lease_for_a_word_that_never_comes() {
    // Of which the wait is a quarter at most, and the rest of half of it is left for a busy machine.
    const LEASE: Duration = Duration::from_secs(16);
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let at = |port: u16| format!("nats://127.0.0.1:{port}?lease=16s");
        let other = try_open(&at(server.port())).await.unwrap();
        let worker = try_open(&at(way.port)).await.unwrap();
        let priorities = ["high", "normal", "low"];
        let named = |name: &'static str, nth: u32| {
            let mut job = job(&format!("{name}-{nth}"));
            job.set("ebb-priority", name).unwrap();
            job
        };
        // What came back lies in lanes of its own.
        other.publish(priorities.map(|name| named(name, 1)).to_vec()).await.unwrap();
        let back = take(&other, 3).await.into_iter().map(|one| one.retry(Duration::ZERO, "again"));
        other.settle(&back.collect::<Vec<_>>()).await.unwrap();
        other.publish(priorities.map(|name| named(name, 2)).to_vec()).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let _nobody = client.subscribe("$JS.API.DIRECT.GET.EBB_SILENCE_jobs").await.unwrap();
        way.change("EBB_RESULTS_jobs", "EBB_SILENCE_jobs");
        let (mut names, mut looks) = (Vec::new(), Vec::new());
        while names.len() < 6 {
            let begin = Instant::now();
            let taken = receive(&worker, 9).await.unwrap();
            looks.push(begin.elapsed());
            names.extend(taken.iter().map(|one| (one.job.id.to_string(), one.attempt)));
            let acks: Vec<_> = taken.into_iter().map(ebb_queue::Delivery::ack).collect();
            worker.settle(&acks).await.unwrap();
        }
        names.sort();
        let expected = ["high", "low", "normal"].map(|name| [(name, 1, 2), (name, 2, 1)]);
        let expected = expected.as_flattened().iter();
        let expected: Vec<_> =
            expected.map(|(name, nth, attempt)| (format!("{name}-{nth}"), *attempt)).collect();
        assert_eq!(names, expected);
        assert!(looks.iter().all(|look| *look < LEASE / 2), "{looks:?}");
    });
}
