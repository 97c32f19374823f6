//! NATS by hand: a pull consumer, each result published and acknowledged by JetStream, then the
//! job, as many at once as a batch has.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::ConnectOptions;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, Message};
use async_trait::async_trait;
use bytes::Bytes;
use ebb_queue::{Address, QueueUrl};
use futures::{StreamExt, TryStreamExt, stream};

use crate::broker::Place;
use crate::overhead::lane;
use crate::overhead::lane::LEASE;

const CONSUMER: &str = "bare";
const ID: &str = "ebb-id";
/// Publications under way while the queue is filled.
const WINDOW: usize = 256;

/// A stream of jobs and one of results, filled and counted by hand.
pub(super) struct Lane {
    jetstream: Context,
    jobs: Stream,
    results: Stream,
    subject: String,
}

/// Names of streams, which have no dots, and of their subjects.
fn jobs(name: &str) -> String {
    format!("{}_JOBS", name.replace('.', "_"))
}

fn results(name: &str) -> String {
    format!("{}_RESULTS", name.replace('.', "_"))
}

async fn connect(url: &QueueUrl) -> anyhow::Result<Context> {
    let Address::Nats(address) = &url.address else { bail!("{url} is no address of nats") };
    let server = &address.server;
    // The client takes no password from a URL.
    let options = match (&server.user, &server.secret) {
        (Some(user), Some(secret)) => {
            ConnectOptions::with_user_and_password(user.clone(), secret.reveal().to_owned())
        }
        (None, Some(token)) => ConnectOptions::with_token(token.reveal().to_owned()),
        _ => ConnectOptions::new(),
    };
    let hosts: Vec<String> =
        server.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let client = options.connect(hosts).await.context("cannot connect to nats")?;
    Ok(jetstream::new(client))
}

impl Lane {
    pub(super) async fn make(place: &Place) -> anyhow::Result<Self> {
        let jetstream = connect(&place.queue).await?;
        let name = &place.queue.queue;
        let subject = format!("{}.job", jobs(name));
        let config = Config {
            name: jobs(name),
            subjects: vec![subject.clone()],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            ..Config::default()
        };
        let stream = jetstream.create_stream(config).await?;
        let config = Config {
            name: results(name),
            subjects: vec![format!("{}.*", results(name))],
            max_age: Duration::from_secs(86_400),
            storage: StorageType::File,
            ..Config::default()
        };
        let results = jetstream.create_stream(config).await?;
        let consumer = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: LEASE,
            max_ack_pending: -1,
            ..pull::Config::default()
        };
        stream.create_consumer(consumer).await?;
        Ok(Self { jetstream, jobs: stream, results, subject })
    }
}

#[async_trait]
impl lane::Lane for Lane {
    async fn fill(&self, ids: &[String], body: &Bytes) -> anyhow::Result<()> {
        let publish = |id: String| async move {
            let mut headers = HeaderMap::new();
            headers.insert(ID, id.as_str());
            let (subject, body) = (self.subject.clone(), body.clone());
            self.jetstream.publish_with_headers(subject, headers, body).await?.await?;
            anyhow::Ok(())
        };
        stream::iter(ids.to_vec()).map(publish).buffer_unordered(WINDOW).try_collect().await
    }

    async fn n_left(&self) -> anyhow::Result<u64> {
        Ok(self.jobs.get_info().await?.state.messages)
    }

    async fn n_unanswered(&self, ids: &[String]) -> anyhow::Result<usize> {
        let there = self.results.get_info().await?.state.messages;
        Ok(ids.len().saturating_sub(usize::try_from(there)?))
    }
}

/// Works the stream off.
pub(super) async fn serve(place: &Place, batch: NonZeroUsize) -> anyhow::Result<()> {
    let jetstream = connect(&place.queue).await?;
    let name = &place.queue.queue;
    let consumer: PullConsumer = jetstream.get_consumer_from_stream(CONSUMER, jobs(name)).await?;
    let messages = consumer.stream().max_messages_per_batch(batch.get()).messages().await?;
    let results = &results(name);
    let jetstream = &jetstream;
    messages
        .map_err(anyhow::Error::from)
        .try_for_each_concurrent(batch.get(), |message| answer(jetstream, results, message))
        .await
}

async fn answer(jetstream: &Context, results: &str, message: Message) -> anyhow::Result<()> {
    let id = message.headers.as_ref().and_then(|headers| headers.get(ID));
    let id = id.context("a job has an id")?;
    let subject = format!("{results}.{id}");
    jetstream.publish(subject, super::answer(&message.payload)?).await?.await?;
    message.double_ack().await.map_err(|error| anyhow::anyhow!("cannot ack: {error}"))
}
