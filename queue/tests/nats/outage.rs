//! A server that is killed comes back with all that it accepted.

use std::collections::BTreeSet;
use std::time::Duration;

use ebb_queue::Delivery;

use crate::{LONG, job, on_each, receive, try_open, until, until_ok};

#[test]
fn no_job_is_lost_when_the_server_is_killed_while_it_works() {
    on_each(async |mut server| {
        let url = format!("{}?lease=8s", server.url());
        let (queue, producer) = (try_open(&url).await.unwrap(), try_open(&url).await.unwrap());
        let names: BTreeSet<_> = (0..40).map(|n| format!("job-{n}")).collect();
        producer.publish(names.iter().map(|name| job(name)).collect()).await.unwrap();
        let mut first = Vec::new();
        // One receive may bring fewer: they came by another connection a moment ago.
        while first.len() < 10 {
            first.extend(receive(&queue, 10 - first.len()).await.unwrap());
        }

        server.kill();
        while queue.link().is_up() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(queue.link().last_error().is_some());
        let begin = tokio::time::Instant::now();
        assert!(queue.depth().await.is_err());
        assert!(begin.elapsed() < LONG / 2, "told within seconds: {:?}", begin.elapsed());
        server.restart().await.unwrap();

        // The ids of what waits are known on the other side of a restart, too.
        let again = until_ok(async || producer.publish(vec![job("job-39")]).await).await;
        assert!(again[0].duplicate);
        // What was held before the outage is held after it.
        let acks: Vec<_> = first.into_iter().map(Delivery::ack).collect();
        let mut done: BTreeSet<_> = acks.iter().map(|ack| ack.receipt().job.to_string()).collect();
        until_ok(async || Ok(queue.settle(&acks).await?)).await;
        assert!(queue.link().is_up());
        assert_eq!(queue.link().n_losses(), 1);
        while done != names {
            let deliveries = until_ok(async || receive(&queue, 64).await).await;
            done.extend(deliveries.iter().map(|one| one.job.id.to_string()));
            let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
        }
        until("nothing is left", async || {
            // What was acknowledged too late, on a machine that stood still, comes once more.
            let late = queue.receive(64.try_into().unwrap(), Duration::ZERO).await.unwrap();
            let acks: Vec<_> = late.into_iter().map(Delivery::ack).collect();
            queue.settle(&acks).await.unwrap();
            let depth = queue.depth().await.unwrap();
            (depth.ready, depth.in_flight, depth.delayed, depth.dead) == (0, 0, 0, 0)
        })
        .await;
    });
}
