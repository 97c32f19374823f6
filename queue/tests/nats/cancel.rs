//! Jobs that are cancelled though their messages cannot be found any more.

use std::time::Duration;

use ebb_queue::{Cancelled, Outcome};
use tokio::time::sleep;

use crate::{job, on_each, receive, try_open, until};

#[test]
fn a_job_whose_id_the_server_has_forgotten_is_dropped_by_whoever_meets_it() {
    on_each(async |server| {
        let url = format!("{}?queue=old&key_ttl=1s", server.url());
        let queue = try_open(&url).await.unwrap();
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
        let late = try_open(&url).await.unwrap();
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
