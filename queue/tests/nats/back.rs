//! Who puts a job back stores it anew, and may be lost, or late, before the old message is gone.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_nats::HeaderMap;
use ebb_queue::{Delivery, Queue, Settled};

use crate::way::Way;
use crate::{LONG, job, on_each, receive, take, try_open, until};

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
