//! What a look costs, however much there is or was.

use std::time::Duration;

use async_nats::HeaderMap;
use ebb_queue::{Delivery, Timestamp};
use ebb_servers::Nats;
use futures::future::join_all;
use tokio::time::Instant;

use crate::way::Way;
use crate::{LONG, job, on_each, take, try_open, until};

/// Waits until a handle has noted that it holds, or held, so many jobs. It tells that and does not wait; who
/// looks at the depth before sees none of them, and who looks too late sees none any more.
async fn until_noted(server: &Nats, n_jobs: usize) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut notes = async_nats::jetstream::new(client).get_stream("EBB_NOTES_jobs").await.unwrap();
    let end = Instant::now() + LONG;
    loop {
        let state = notes.info().await.unwrap().state.clone();
        for seq in state.first_sequence..=state.last_sequence {
            // All but the last one of each handle are gone.
            let Ok(note) = notes.get_raw_message(seq).await else { continue };
            let text = String::from_utf8_lossy(&note.payload);
            if text.matches(r#""seq":"#).count() == n_jobs {
                return;
            }
        }
        assert!(Instant::now() < end, "{n_jobs} are noted");
    }
}

#[test]
fn the_age_of_many_jobs_that_were_left_costs_few_requests() {
    const MANY: usize = 300;
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let worker = try_open(&format!("{}?lease=3s", server.url())).await.unwrap();
        let looker = try_open(&format!("nats://127.0.0.1:{}?lease=3s", way.port)).await.unwrap();
        let mut first = job("first");
        first.enqueued_at = Timestamp::from_second(1_700_000_000).unwrap();
        let rest = (1..MANY).map(|nth| job(&nth.to_string()));
        worker.publish([first.clone()].into_iter().chain(rest).collect()).await.unwrap();
        drop(take(&worker, MANY).await);
        until_noted(&server, MANY).await;
        until("their leases have ended", async || {
            let depth = looker.depth().await.unwrap();
            (depth.ready, depth.in_flight) == (MANY as u64, 0)
        })
        .await;
        way.count();
        let depth = looker.depth().await.unwrap();
        let counted = way.counted();
        println!("to look at {MANY} jobs whose leases ended: {counted:?}");
        assert_eq!(depth.oldest_ready, Some(first.enqueued_at));
        assert!(counted.n_requests < 60, "{counted:?}");
    });
}

#[test]
fn the_age_of_a_job_that_was_left_is_known_behind_many_that_are_done() {
    const MANY: usize = 40;
    on_each(async |server| {
        let url = format!("{}?lease=3s", server.url());
        let (lost, other) = (try_open(&url).await.unwrap(), try_open(&url).await.unwrap());
        // The stream goes on to begin with this one.
        let mut later = job("later");
        later.set("ebb-delay", "1h").unwrap();
        lost.publish(vec![later]).await.unwrap();
        lost.publish((0..MANY).map(|nth| job(&nth.to_string())).collect()).await.unwrap();
        drop(take(&lost, MANY).await);
        let are_left = async |n_jobs: usize| {
            until("leases have ended", async || {
                let depth = other.depth().await.unwrap();
                (depth.ready, depth.in_flight) == (n_jobs as u64, 0)
            })
            .await;
        };
        are_left(MANY).await;
        let taken_over = take(&other, MANY).await.into_iter().map(Delivery::ack);
        other.settle(&taken_over.collect::<Vec<_>>()).await.unwrap();
        let mut old = job("old");
        old.enqueued_at = Timestamp::from_second(1_700_000_000).unwrap();
        lost.publish(vec![old.clone()]).await.unwrap();
        drop(take(&lost, 1).await);
        // The others that it lost stand beside it.
        until_noted(&server, MANY + 1).await;
        are_left(1).await;
        let depth = other.depth().await.unwrap();
        assert_eq!((depth.oldest_ready, depth.delayed), (Some(old.enqueued_at), 1));
    });
}

#[test]
fn jobs_that_come_again_and_are_put_back_or_rejected_cost_few_requests() {
    const MANY: usize = 300;
    on_each(async |server| {
        for name in ["back", "dead"] {
            let way = Way::to(server.port()).await;
            let options = format!("queue={name}&lease=3s");
            let lost = try_open(&format!("{}?{options}", server.url())).await.unwrap();
            let next = try_open(&format!("nats://127.0.0.1:{}?{options}", way.port)).await.unwrap();
            lost.publish((0..MANY).map(|nth| job(&nth.to_string())).collect()).await.unwrap();
            let begin = Instant::now();
            drop(take(&lost, MANY).await);
            until("their leases have ended", async || begin.elapsed() > next.lease()).await;
            way.count();
            let taken = take(&next, MANY).await;
            let to_take = way.counted();
            assert!(taken.iter().all(|one| one.attempt == 2));
            let settlements = taken.into_iter().map(|one| match name {
                "back" => one.retry(Duration::ZERO, "again"),
                _ => one.reject("no".to_owned()),
            });
            let settlements: Vec<_> = settlements.collect();
            way.count();
            next.settle(&settlements).await.unwrap();
            let to_settle = way.counted();
            println!(
                "to take {MANY} jobs again: {to_take:?}, to settle them ({name}): {to_settle:?}"
            );
            assert!(to_take.n_requests < 3 * MANY / 2, "{to_take:?}");
            assert!(to_settle.n_requests < 2 * MANY + 10, "{name}: {to_settle:?}");
        }
    });
}

#[test]
fn to_list_dead_letters_does_not_cost_what_was_purged_between_them() {
    const MANY: usize = 5000;
    on_each(async |server| {
        let way = Way::to(server.port()).await;
        let queue = try_open(&format!("nats://127.0.0.1:{}", way.port)).await.unwrap();
        let client = async_nats::connect(server.url()).await.unwrap();
        let streams = async_nats::jetstream::new(client);
        let die = async |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("ebb-id", id);
            let subject = format!("ebb.jobs.dead.{id}");
            streams.publish_with_headers(subject, headers, "x".into()).await.unwrap()
        };
        for id in ["a", "b"] {
            die(id).await.await.unwrap();
        }
        for _ in 0..MANY / 100 {
            // Each takes the place of the one before it, which leaves a gap.
            let died = join_all((0..100).map(async |_| die("c").await.await.unwrap()));
            died.await;
        }
        for id in ["d", "c"] {
            die(id).await.await.unwrap();
        }
        queue.purge(Some(&["c".parse().unwrap()])).await.unwrap();
        way.count();
        let letters = queue.list(9).await.unwrap();
        let counted = way.counted();
        println!("to list letters around {MANY} that are gone: {counted:?}");
        let ids: Vec<_> = letters.iter().map(|letter| letter.job.id.as_str()).collect();
        assert_eq!(ids, ["d", "b", "a"]);
        assert!(counted.n_requests < 100, "{counted:?}");
    });
}
