//! Whoever answers the jobs of both sides: an encoder without a model, as a process of its own.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Delivery, JSON, JobResult, Outcome, Queue, Timestamp};
use futures::future::try_join_all;
use tokio::io::AsyncReadExt;

use crate::broker::PlaceArgs;

/// Jobs that are taken at once.
const BATCH: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// Answers the jobs of a queue with the same vector each. Run by `gateway` as a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct AnswererArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// Numbers of the vector.
    #[arg(long, value_name = "N")]
    dimensions: NonZeroUsize,
}

/// Answers until standard input ends.
pub(crate) async fn answer(args: &AnswererArgs) -> anyhow::Result<()> {
    let queue = args.place.read()?.open("answerer").await?;
    let (mut input, mut end) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = serve(&queue, vector(args.dimensions)) => served,
        read = input.read(&mut end) => Ok(read.map(drop)?),
    }
}

async fn serve(queue: &Queue, body: Bytes) -> anyhow::Result<()> {
    loop {
        let deliveries = queue.receive(BATCH, Duration::from_secs(10)).await?;
        let result = |delivery: &Delivery| JobResult {
            id: delivery.job.id.clone(),
            attempt: delivery.attempt,
            outcome: Outcome::Completed { content_type: JSON.to_owned(), body: body.clone() },
            finished_at: Timestamp::now(),
            queue: None,
        };
        // All at once, as the worker does, so that the broker may make one commit of them.
        let results: Vec<JobResult> = deliveries.iter().map(result).collect();
        try_join_all(results.iter().map(|result| queue.put(result))).await?;
        let acks: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
        queue.settle(&acks).await?;
    }
}

/// What an encoder answers, with as many digits as one has.
fn vector(dimensions: NonZeroUsize) -> Bytes {
    let numbers: Vec<f64> =
        (1..=dimensions.get()).map(|n| f64::from((n as f64).sin() as f32)).collect();
    let usage = serde_json::json!({"prompt_tokens": 7, "total_tokens": 7});
    let data = serde_json::json!([{"index": 0, "embedding": numbers, "truncated": false}]);
    serde_json::json!({"data": data, "usage": usage}).to_string().into()
}
