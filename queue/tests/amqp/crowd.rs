//! Many calls on one handle at the same moment.

use std::time::Duration;

use ebb_queue::{Delivery, Settled};
use futures::future::try_join_all;

use crate::{handle, job, on_shared, take, url};

#[test]
fn who_settles_while_others_do_ends_nobodys_session() {
    on_shared(async |server| {
        let mut url = url(server, "crowd");
        url.behavior.lease = Duration::from_secs(120);
        let queue = handle(&url).await;
        queue.publish((0..800).map(|n| job(&n.to_string())).collect()).await.unwrap();
        for _ in 0..4 {
            let mut acks = Vec::new();
            while acks.len() < 200 {
                acks.extend(take(&queue, 200 - acks.len()).await.into_iter().map(Delivery::ack));
            }
            let settled = try_join_all(acks.chunks(2).map(|some| queue.settle(some))).await;
            assert!(settled.unwrap().concat().iter().all(|one| *one == Settled::Held));
        }
        assert_eq!(queue.link().n_losses(), 0);
    });
}
