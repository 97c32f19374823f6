//! Dead letters that the broker is slow to hand over.

use std::time::Duration;

use ebb_queue::{Delivery, QueueUrl};
use ebb_servers::{RabbitMq, RabbitMqOptions};
use tokio::time::sleep;

use crate::{depth, handle, job, take, until, url};

/// They take a while to hand over.
const LETTERS: usize = 96;
const BODY: usize = 512 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_are_seen_though_the_broker_stands_still_meanwhile() {
    let server = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let mut url: QueueUrl = url(&server, "letters");
    url.behavior.lease = Duration::from_secs(120);
    let queue = handle(&url).await;
    let mut n_dead = 0;
    while n_dead < LETTERS {
        let mut large = job(&format!("letter-{n_dead}"));
        large.body = vec![b'x'; BODY].into();
        queue.publish(vec![large]).await.unwrap();
        let rejections: Vec<_> =
            take(&queue, 9).await.into_iter().map(|one: Delivery| one.reject("bad")).collect();
        n_dead += rejections.len();
        queue.settle(&rejections).await.unwrap();
    }
    until("all are dead", async || depth(&queue).await.dead == LETTERS as u64).await;
    for after in [40, 80, 120, 160] {
        let stall = async {
            sleep(Duration::from_millis(after)).await;
            server.pause().unwrap();
            sleep(Duration::from_millis(900)).await;
            server.resume().unwrap();
        };
        let (letters, ()) = tokio::join!(queue.list(LETTERS), stall);
        assert_eq!(letters.unwrap().len(), LETTERS);
    }
}
