//! The bare loops: what a careful client does by hand, with nothing of ours around it. Take some
//! jobs, store their results, acknowledge them.

mod amqp;
mod nats;
mod ours;
mod redis;
mod store;

use std::num::NonZeroUsize;

use anyhow::Context;
use bytes::Bytes;
use ebb_queue::{Address, QueueUrl};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::lane::{Lane, Ours};
use crate::broker::{BrokerKind, Place, PlaceArgs};

/// The bare client loop. Run by `overhead` as a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct BareArgs {
    #[command(flatten)]
    place: PlaceArgs,

    /// Jobs to take at once.
    #[arg(long, value_name = "N")]
    batch: NonZeroUsize,
}

/// The queue that a bare loop serves, empty.
pub(super) async fn lane(kind: BrokerKind, place: &Place) -> anyhow::Result<Box<dyn Lane>> {
    Ok(match kind {
        BrokerKind::Sqlite => Box::new(Ours(place.open("observer").await?)),
        BrokerKind::Nats => Box::new(nats::Lane::make(place).await?),
        BrokerKind::Amqp => Box::new(amqp::Lane::make(place).await?),
        BrokerKind::Redis => Box::new(redis::Lane::make(place).await?),
    })
}

/// Serves a queue until standard input ends.
pub(crate) async fn bare(args: &BareArgs) -> anyhow::Result<()> {
    let place = args.place.read()?;
    let (mut input, mut end) = (tokio::io::stdin(), [0]);
    tokio::select! {
        served = serve(&place, args.batch) => served,
        read = input.read(&mut end) => Ok(read.map(drop)?),
    }
}

async fn serve(place: &Place, batch: NonZeroUsize) -> anyhow::Result<()> {
    match &place.queue.address {
        Address::Sqlite { .. } => ours::serve(place, batch).await,
        Address::Nats(_) => nats::serve(place, batch).await,
        Address::Amqp(_) => amqp::serve(place, batch).await,
        Address::Redis(_) => redis::serve(place, batch).await,
    }
}

/// What the worker's echo model does to a job: reads the request and writes the answer.
fn answer(body: &[u8]) -> anyhow::Result<Bytes> {
    #[derive(Deserialize)]
    struct Request {
        input: String,
    }
    #[derive(Serialize)]
    struct Answer {
        output: String,
    }
    let Request { input } = serde_json::from_slice(body).context("a body is no request")?;
    Ok(serde_json::to_vec(&Answer { output: input })?.into())
}

/// The address as a client of the broker knows it: with the password, without our options.
fn plain(url: &QueueUrl) -> String {
    let text = url.with_secrets();
    text.split_once('?').map_or(text.as_str(), |(address, _)| address).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_as_the_worker_does_it() {
        assert_eq!(answer(br#"{"input": "a\"b"}"#).unwrap(), br#"{"output":"a\"b"}"#[..]);
        assert!(answer(b"text").is_err());
    }

    #[test]
    fn a_plain_address_has_the_password_and_none_of_our_options() {
        let url: QueueUrl = "redis://:secret@host:7000/3?queue=a&lease=2s".parse().unwrap();
        assert_eq!(plain(&url), "redis://:secret@host:7000/3");
    }
}
