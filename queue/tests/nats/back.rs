//! Who puts a job back stores it anew, and may be lost, or late, before the old message is gone.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::HeaderMap;
use ebb_queue::{Delivery, ErrorKind, Queue, Settled, Timestamp};
use ebb_servers::{Nats, NatsOptions};
use tokio::time::{Instant, sleep};

use crate::way::Way;
use crate::{LONG, VERSIONS, block_on, job, on_each, receive, take, try_open, until};

/// Nobody is to wait for long until a lease ends.
const LEASE: &str = "lease=3s";

/// What is passed on in place of acknowledgements, of which nobody knows.
const ACKED: (&str, &str) = ("$JS.ACK.EBB", "$JS.NAY.EBB");

async fn open_at(port: u16) -> Queue {
    try_open(&format!("nats://127.0.0.1:{port}?{LEASE}")).await.unwrap()
}

/// Receives until the stream has no more jobs than these, none of which is ready, and finds nothing.
async fn assert_nothing_comes_but(queue: &Queue, (delayed, dead): (u64, u64)) {
    until("the old messages are gone", async || {
        let found = queue.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.delayed, depth.dead), (delayed, dead));
        depth.ready + depth.in_flight == 0
    })
    .await;
}

fn attempts(taken: &[Delivery]) -> Vec<(&str, u32)> {
    let mut attempts: Vec<_> = taken.iter().map(|one| (one.job.id.as_str(), one.attempt)).collect();
    attempts.sort_unstable();
    attempts
}

async fn ack_all(queue: &Queue, taken: Vec<Delivery>) {
    let n_taken = taken.len();
    let acks: Vec<_> = taken.into_iter().map(Delivery::ack).collect();
    assert_eq!(queue.settle(&acks).await.unwrap(), vec![Settled::Held; n_taken]);
}

#[test]
fn a_job_comes_once_though_whoever_put_it_back_was_lost_before_its_old_message_was_gone() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (lost, other) = (open_at(way.port).await, open_at(server.port()).await);
        let names = ["delayed", "released", "retried"];
        other.publish(names.map(job).to_vec()).await.unwrap();
        let back = take(&lost, 3).await.into_iter().map(|one| match one.job.id.as_str() {
            "delayed" => one.retry(Duration::from_secs(3600), "again"),
            "released" => one.release(),
            _ => one.retry(Duration::ZERO, "again"),
        });
        let back: Vec<_> = back.collect();
        way.change(ACKED.0, ACKED.1);
        lost.settle(&back).await.unwrap_err();
        way.cut();
        let taken = take(&other, 2).await;
        assert_eq!(attempts(&taken), [("released", 1), ("retried", 2)]);
        ack_all(&other, taken).await;
        assert_nothing_comes_but(&other, (1, 0)).await;
    });
}

#[test]
fn a_job_that_was_about_to_be_put_back_comes_once_though_its_holder_is_late() {
    // Longer than the lease, and not so long that the answer is given up.
    const LATE: Duration = Duration::from_millis(3600);
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (late, other) = (open_at(way.port).await, open_at(server.port()).await);
        other.publish(vec![job("a")]).await.unwrap();
        let back = [take(&late, 1).await.remove(0).retry(Duration::ZERO, "again")];
        way.hold("PUB ebb.jobs.jobs.back", LATE);
        let take_over = async {
            until("it is being put back", async || !way.holds()).await;
            let mut taken = Vec::new();
            while taken.is_empty() {
                taken = other.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap();
            }
            taken.remove(0)
        };
        let (settled, taken) = tokio::join!(late.settle(&back), take_over);
        assert_eq!((settled.unwrap(), taken.attempt), (vec![Settled::Held], 2));
        // Its end is the end of the job.
        let end = [taken.reject("no".to_owned())];
        other.settle(&end).await.unwrap();
        assert_nothing_comes_but(&other, (0, 1)).await;
    });
}

#[test]
fn a_job_that_its_first_holder_put_back_after_all_is_not_buried_by_the_next() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (first, next) = (open_at(server.port()).await, open_at(way.port).await);
        first.publish(vec![job("a")]).await.unwrap();
        let back = [take(&first, 1).await.remove(0).retry(Duration::ZERO, "again")];
        // What the next holder says of its lease comes when the first has put it back.
        way.hold("PUB ebb.jobs.notes.lease", LONG);
        let put_back = async {
            until("it was handed to the next", async || !way.holds()).await;
            let settled = first.settle(&back).await.unwrap();
            way.let_go();
            settled
        };
        let (taken, settled) = tokio::join!(take(&next, 1), put_back);
        assert_eq!((settled, attempts(&taken)), (vec![Settled::Held], vec![("a", 2)]));
        let rejected = taken.into_iter().map(|one| one.reject("no".to_owned()));
        let settled = next.settle(&rejected.collect::<Vec<_>>()).await.unwrap();
        assert_eq!((settled, next.depth().await.unwrap().dead), (vec![Settled::Lost], 0));
        let again = take(&first, 1).await;
        assert_eq!(attempts(&again), [("a", 2)]);
        ack_all(&first, again).await;
        assert_nothing_comes_but(&first, (0, 0)).await;
    });
}

#[test]
fn a_plain_message_that_was_moved_comes_once_though_its_mover_was_lost_before_it_was_gone() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (lost, other) = (open_at(way.port).await, open_at(server.port()).await);
        let client = async_nats::connect(server.url()).await.unwrap();
        let send = async |id: &str, header: (&str, &str)| {
            let mut headers = HeaderMap::new();
            headers.insert("ebb-id", id);
            headers.insert(header.0, header.1);
            client.request_with_headers("ebb.jobs.jobs", headers, "x".into()).await.unwrap();
        };
        send("early", ("ebb-delay", "1s")).await;
        send("aside", ("ebb-priority", "low")).await;
        send("taken", ("ebb-priority", "normal")).await;
        way.change(ACKED.0, ACKED.1);
        // The first is put off.
        receive(&lost, 1).await.unwrap_err();
        // The second waits for the third, for which alone there is room.
        let taken = receive(&lost, 1).await.unwrap();
        assert_eq!(attempts(&taken), [("taken", 1)]);
        way.cut();
        for names in [&["aside", "early"][..], &["taken"]] {
            let taken = take(&other, names.len()).await;
            let of = |name| (name, 1 + u32::from(name == "taken"));
            assert_eq!(attempts(&taken), names.iter().copied().map(of).collect::<Vec<_>>());
            ack_all(&other, taken).await;
        }
        assert_nothing_comes_but(&other, (0, 0)).await;
    });
}

/// Receives one job, whatever of the others cannot be stored anew.
async fn take_beside_what_is_stuck(queue: &Queue) -> Vec<Delivery> {
    let end = Instant::now() + LONG;
    loop {
        assert!(Instant::now() < end, "one is there");
        match receive(queue, 1).await {
            Ok(taken) if taken.is_empty() => {}
            Ok(taken) => return taken,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Publishes until the account has no room for more, but for some notes.
async fn fill(queue: &Queue, server: &Nats) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let jobs = async_nats::jetstream::new(client).get_stream("EBB_JOBS_jobs").await.unwrap();
    for nth in 0.. {
        let mut filler = job(&format!("filler-{nth}"));
        filler.body = vec![7; 16 << 10].into();
        filler.set("ebb-delay", "1h").unwrap();
        if let Err(error) = queue.publish(vec![filler]).await {
            assert_eq!(error.kind(), ErrorKind::Full, "{error}");
            break;
        }
    }
    let last = jobs.get_info().await.unwrap().state.last_sequence;
    jobs.delete_message(last).await.unwrap();
}

#[test]
fn a_job_that_an_account_has_no_room_to_store_anew_is_handed_out_all_the_same() {
    const ACCOUNT: &str = "accounts { A { jetstream { max_mem: 1MB, max_store: 1MB }, \
                           users: [{ user: a, password: a }] } }\nno_auth_user: a\n";
    for version in VERSIONS {
        block_on(async {
            let extra_config = ACCOUNT.to_owned();
            let options = NatsOptions { version, extra_config, ..NatsOptions::default() };
            let server = Nats::start(options).await.unwrap();
            let (first, next) = (open_at(server.port()).await, open_at(server.port()).await);
            let large = || vec![7; 64 << 10];
            first.publish(vec![ebb_queue::Job { body: large().into(), ..job("a") }]).await.unwrap();
            let back = [take(&first, 1).await.remove(0).retry(Duration::ZERO, "again")];
            let mut headers = HeaderMap::new();
            headers.insert("ebb-id", "early");
            headers.insert("ebb-delay", "1s");
            let client = async_nats::connect(server.url()).await.unwrap();
            let sent = client.request_with_headers("ebb.jobs.jobs", headers, large().into());
            sent.await.unwrap();
            fill(&first, &server).await;
            first.settle(&back).await.unwrap_err();
            let mut taken = Vec::new();
            for _ in 0..2 {
                taken.extend(take_beside_what_is_stuck(&next).await);
            }
            assert_eq!(attempts(&taken), [("a", 2), ("early", 2)]);
            ack_all(&next, taken).await;
        });
    }
}

#[test]
fn a_job_that_its_stream_takes_no_more_since_it_is_too_large_comes_again() {
    on_each(async |server| {
        let (first, next) = (open_at(server.port()).await, open_at(server.port()).await);
        let large =
            ["a", "b"].map(|name| ebb_queue::Job { body: vec![7; 4000].into(), ..job(name) });
        first.publish(large.to_vec()).await.unwrap();
        let taken = take(&first, 2).await;
        let streams = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
        let mut stream = streams.get_stream("EBB_JOBS_jobs").await.unwrap();
        let mut config = stream.info().await.unwrap().config.clone();
        config.max_message_size = 3000;
        streams.update_stream(&config).await.unwrap();
        let back = taken.into_iter().map(|one| match one.job.id.as_str() {
            "a" => one.retry(Duration::ZERO, "again"),
            _ => one.release(),
        });
        let settled = first.settle(&back.collect::<Vec<_>>()).await.unwrap();
        assert_eq!(settled, [Settled::Held; 2]);
        // To give one back costs an attempt where there is no room to say that it was not tried.
        let taken = take(&next, 2).await;
        assert_eq!(attempts(&taken), [("a", 2), ("b", 2)]);
        ack_all(&next, taken).await;
        assert_nothing_comes_but(&next, (0, 0)).await;
        let other = ebb_queue::Job { id: "c".parse().unwrap(), ..large[0].clone() };
        let refused = next.publish(vec![other]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    });
}

#[test]
fn a_job_that_was_put_back_does_not_expire_by_its_old_message() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (lost, other) = (open_at(way.port).await, open_at(server.port()).await);
        let deadline = Timestamp::now() + Duration::from_secs(4);
        let mut one = job("a");
        one.headers.deadline = Some(deadline);
        other.publish(vec![one]).await.unwrap();
        let back = [take(&lost, 1).await.remove(0).retry(Duration::ZERO, "again")];
        let begin = Instant::now();
        way.change(ACKED.0, ACKED.1);
        lost.settle(&back).await.unwrap_err();
        way.cut();
        let taken = take(&other, 1).await;
        let receipts = [taken[0].receipt().clone()];
        until("the lease of the first and the time of the job have ended", async || {
            assert_eq!(other.extend(&receipts).await.unwrap(), [Settled::Held]);
            begin.elapsed() > other.lease() + Duration::from_millis(500)
                && Timestamp::now() > deadline + Duration::from_millis(200)
        })
        .await;
        let letters = other.list(9).await.unwrap();
        assert!(letters.is_empty(), "{letters:?}");
        assert!(other.get(&"a".parse().unwrap()).await.unwrap().is_none());
        assert_eq!(attempts(&taken), [("a", 2)]);
        ack_all(&other, taken).await;
        assert_nothing_comes_but(&other, (0, 0)).await;
    });
}

#[test]
fn a_job_whose_time_is_over_is_buried_once_though_it_was_about_to_be_put_back() {
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let (lost, other) = (open_at(way.port).await, open_at(server.port()).await);
        let deadline = Timestamp::now() + Duration::from_secs(2);
        let mut one = job("a");
        one.headers.deadline = Some(deadline);
        other.publish(vec![one]).await.unwrap();
        let back = [take(&lost, 1).await.remove(0).retry(Duration::ZERO, "again")];
        let begin = Instant::now();
        // It is noted, and not stored anew.
        way.change("ebb.jobs.jobs.back", "ebb.jobs.nobs.back");
        lost.settle(&back).await.unwrap_err();
        way.cut();
        until("its lease and its time have ended", async || {
            begin.elapsed() > other.lease() + Duration::from_millis(500)
                && Timestamp::now() > deadline + Duration::from_millis(200)
        })
        .await;
        let letters = other.list(9).await.unwrap();
        let ids: Vec<_> = letters.iter().map(|one| one.job.id.as_str()).collect();
        assert_eq!(ids, ["a"]);
        assert_nothing_comes_but(&other, (0, 1)).await;
    });
}

#[test]
fn a_job_is_put_back_though_nobody_can_note_that() {
    on_each(async |server| {
        let queue = open_at(server.port()).await;
        queue.publish(["a", "b"].map(job).to_vec()).await.unwrap();
        let back = take(&queue, 2).await.into_iter().map(|one| match one.job.id.as_str() {
            "a" => one.retry(Duration::ZERO, "again"),
            _ => one.release(),
        });
        let back: Vec<_> = back.collect();
        let client = async_nats::connect(server.url()).await.unwrap();
        async_nats::jetstream::new(client).delete_stream("EBB_NOTES_jobs").await.unwrap();
        assert_eq!(queue.settle(&back).await.unwrap(), [Settled::Held; 2]);
        let taken = take(&queue, 2).await;
        assert_eq!(attempts(&taken), [("a", 2), ("b", 1)]);
        ack_all(&queue, taken).await;
    });
}

#[test]
fn who_puts_a_job_back_that_another_has_does_not_note_that_it_leaves() {
    on_each(async |server| {
        let (late, next) = (open_at(server.port()).await, open_at(server.port()).await);
        next.publish(vec![job("a")]).await.unwrap();
        let back = [take(&late, 1).await.remove(0).retry(Duration::ZERO, "again")];
        let taken = take(&next, 1).await;
        assert_eq!(attempts(&taken), [("a", 2)]);
        assert_eq!(late.settle(&back).await.unwrap(), [Settled::Lost]);
        let client = async_nats::connect(server.url()).await.unwrap();
        let notes = async_nats::jetstream::new(client).get_stream("EBB_NOTES_jobs").await.unwrap();
        until("no note says so", async || {
            let state = notes.get_info().await.unwrap().state;
            for seq in state.first_sequence..=state.last_sequence {
                // All but the last one of each handle are gone.
                let Ok(note) = notes.get_raw_message(seq).await else { continue };
                if String::from_utf8_lossy(&note.payload).contains(r#""leaves":true"#) {
                    return false;
                }
            }
            true
        })
        .await;
        ack_all(&next, taken).await;
        assert_nothing_comes_but(&next, (0, 0)).await;
    });
}

#[test]
fn a_job_is_put_back_beside_one_that_is_called_as_its_place() {
    on_each(async |server| {
        let queue = open_at(server.port()).await;
        queue.publish(vec![job("a")]).await.unwrap();
        let back = [take(&queue, 1).await.remove(0).retry(Duration::ZERO, "again")];
        // The number of the message of the first.
        queue.publish(vec![job("a/1")]).await.unwrap();
        assert_eq!(queue.settle(&back).await.unwrap(), [Settled::Held]);
        let taken = take(&queue, 2).await;
        assert_eq!(attempts(&taken), [("a", 2), ("a/1", 1)]);
        ack_all(&queue, taken).await;
        assert_nothing_comes_but(&queue, (0, 0)).await;
    });
}
