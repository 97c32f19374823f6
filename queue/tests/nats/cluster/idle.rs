//! A queue in which nothing is ready is looked at for ever: each look costs the servers little.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream;
use async_nats::{Client, Subscriber};
use ebb_queue::{Backlog, Depth, Job, Queue};
use ebb_servers::NatsCluster;
use futures::StreamExt;
use tokio::time::{sleep, timeout};

use super::{on_cluster, replicated_at, streams};
use crate::foreign::{looked_at, reader, work};
use crate::{job, until, until_ok};

/// From one look to the next so long nobody answers that the second knows no more than the first.
const COLD: Duration = Duration::from_secs(4);
/// So long a look waits at least where it does not know that whoever leads has not stood still.
const COLD_LOOK: Duration = Duration::from_millis(900);
/// After so long without a request there come no more of a look.
const QUIET: Duration = Duration::from_millis(300);

/// What a look asks JetStream for: how often the jobs were counted by their subjects, and all requests.
#[derive(Debug, PartialEq)]
struct Asked {
    n_surveys: usize,
    n_requests: usize,
}

/// Hears the requests to JetStream that come to the first server.
async fn ear(cluster: &NatsCluster) -> (Client, Subscriber) {
    let client = async_nats::connect(cluster.nodes()[0].url()).await.unwrap();
    let ear = client.subscribe("$JS.API.>").await.unwrap();
    // The server has read the subscription when it answers this.
    client.request("$JS.API.INFO", "".into()).await.unwrap();
    (client, ear)
}

/// What the servers are asked until it is quiet.
async fn asked(ear: &mut Subscriber, queue: &str) -> Asked {
    let mut asked = Asked { n_surveys: 0, n_requests: 0 };
    while let Ok(Some(request)) = timeout(QUIET, ear.next()).await {
        let subject = request.subject.as_str();
        if subject.contains(queue) {
            asked.n_requests += 1;
            let filters = String::from_utf8_lossy(&request.payload).contains("subjects_filter");
            asked.n_surveys += usize::from(filters && subject.contains("JOBS"));
        }
    }
    asked
}

/// What a look sees and asks for; one that fails, since the servers have no time for each other, does not
/// count.
async fn look(queue: &Queue, ear: &mut Subscriber, name: &str) -> (Depth, Asked) {
    loop {
        asked(ear, name).await;
        if let Ok(depth) = queue.depth().await {
            return (depth, asked(ear, name).await);
        }
        sleep(COLD).await;
    }
}

fn delayed(name: &str) -> Job {
    let mut job = job(name);
    job.set("ebb-delay", "1h").unwrap();
    job
}

#[test]
fn a_look_at_an_idle_queue_counts_its_jobs_once_and_asks_little_beside() {
    on_cluster(async |cluster| {
        let queue = replicated_at(cluster, 0, "idle").await;
        let (_client, mut ear) = ear(cluster).await;
        let mut looks = Vec::new();
        for n_delayed in [0, 1] {
            sleep(COLD).await;
            for _ in ["cold", "awake"] {
                let (depth, asked) = look(&queue, &mut ear, "idle").await;
                assert_eq!((depth.ready, depth.delayed), (0, n_delayed));
                looks.push(asked);
            }
            until_ok(async || queue.publish(vec![delayed("late")]).await).await;
        }
        println!("{looks:?}");
        assert!(looks.iter().all(|asked| asked.n_surveys == 1), "{looks:?}");
        let most = looks.iter().map(|asked| asked.n_requests).max();
        assert!(most <= Some(20), "{looks:?}");
    });
}

/// How long a look waits before it says that nothing is there, where nobody has looked for a while.
async fn waited(consumer: &Arc<dyn Backlog>) -> Duration {
    until_ok(async || consumer.depth().await).await;
    sleep(COLD).await;
    let depth = until_ok(async || consumer.depth().await).await;
    assert_eq!((depth.ready, depth.in_flight), (0, 0));
    depth.waited
}

#[test]
fn who_leads_a_consumer_of_others_is_kept_known_to_be_awake_as_long_as_somebody_listens() {
    on_cluster(async |cluster| {
        let config = stream::Config { num_replicas: 3, ..stream::Config::default() };
        let stream = work(&streams(cluster).await, config).await;
        reader(&stream, "pool", pull::Config::default()).await;
        let url = cluster.nodes()[0].url();
        let consumer = until_ok(async || looked_at(&url, "pool").await).await;
        let unheard = waited(&consumer).await;
        assert!(unheard >= COLD_LOOK, "{unheard:?}");
        let mut arrivals = until_ok(async || consumer.arrivals().await).await;
        let listening = tokio::spawn(async move { while arrivals.next().await.is_some() {} });
        // Servers that elect another leader meanwhile begin anew.
        until("it is known", async || waited(&consumer).await < COLD_LOOK / 2).await;
        listening.abort();
    });
}

#[test]
fn whether_the_broker_answers_is_one_request_however_long_nobody_asked() {
    on_cluster(async |cluster| {
        let queue = replicated_at(cluster, 0, "rested").await;
        let (_client, mut ear) = ear(cluster).await;
        sleep(COLD).await;
        asked(&mut ear, "rested").await;
        queue.ping().await.unwrap();
        let asked = asked(&mut ear, "rested").await;
        assert_eq!(asked, Asked { n_surveys: 0, n_requests: 1 });
    });
}
