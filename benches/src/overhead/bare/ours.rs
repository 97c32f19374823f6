//! The embedded queue has no other client than ours: the loop around it is what is bare.

use std::num::NonZeroUsize;
use std::time::Duration;

use ebb_queue::{Delivery, JSON, JobResult, Outcome, Timestamp};
use futures::future::try_join_all;

use crate::broker::Place;

pub(super) async fn serve(place: &Place, batch: NonZeroUsize) -> anyhow::Result<()> {
    let queue = place.open("bare").await?;
    loop {
        let deliveries = queue.receive(batch, Duration::from_secs(10)).await?;
        // All at once, as the worker does, so that the broker may make one commit of them.
        let results: Vec<JobResult> = deliveries.iter().map(echo).collect::<Result<_, _>>()?;
        try_join_all(results.iter().map(|result| queue.put(result))).await?;
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await?;
    }
}

fn echo(delivery: &Delivery) -> anyhow::Result<JobResult> {
    let body = super::answer(&delivery.job.body)?;
    Ok(JobResult {
        id: delivery.job.id.clone(),
        attempt: delivery.attempt,
        outcome: Outcome::Completed { content_type: JSON.to_owned(), body },
        finished_at: Timestamp::now(),
        queue: None,
    })
}
