//! What a client that waits for a reply hears: through the broker's own client, not through us.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use ebb_queue::{Address, OpenOptions, QueueUrl, open};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::brokers::unused_name;

/// One reply.
#[derive(Debug)]
pub struct Mail {
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
}

/// Where replies are awaited.
pub struct Mailbox {
    /// What a job names in `ebb-reply-to`.
    pub to: String,
    pub mails: BoxStream<'static, Mail>,
}

/// A new one on the broker of this queue.
pub async fn mailbox(url: &QueueUrl) -> Mailbox {
    let to = unused_name();
    let server = url.with_secrets();
    let server = server.split('?').next().unwrap_or_default();
    let mails = match url.address {
        Address::Sqlite { .. } => on_sqlite(url, &to).await,
        Address::Nats(_) => on_nats(server, &to).await,
        Address::Redis(_) => on_redis(server, &to).await,
        Address::Amqp(_) => on_amqp(server, &to).await,
    };
    Mailbox { to, mails }
}

/// Another queue of the same file, where a reply is a job.
async fn on_sqlite(url: &QueueUrl, to: &str) -> BoxStream<'static, Mail> {
    const MANY: NonZeroUsize = NonZeroUsize::new(9).unwrap();
    let queue = open(&url.with_queue(to).unwrap(), OpenOptions::default()).await.unwrap();
    let mails = stream::unfold(queue, async |queue| {
        let jobs = queue.receive(MANY, Duration::from_secs(5)).await.unwrap();
        let mails = jobs.into_iter().map(|delivery| {
            let job = &delivery.job;
            let ours = [("ebb-id", job.id.as_str()), ("content-type", job.content_type())];
            let traced = job.headers.traceparent.as_deref().map(|trace| ("traceparent", trace));
            let headers = ours.into_iter().chain(traced);
            let headers =
                headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            Mail { headers, body: delivery.job.body }
        });
        Some((stream::iter(mails.collect::<Vec<_>>()), queue))
    });
    mails.flatten().boxed()
}

async fn on_nats(server: &str, subject: &str) -> BoxStream<'static, Mail> {
    let hosts: Vec<_> = server.split(',').collect();
    let client = async_nats::connect(hosts).await.unwrap();
    let mut messages = client.subscribe(subject.to_owned()).await.unwrap();
    // Only what comes back shows that the server has heard of the subscription.
    client.publish(subject.to_owned(), Bytes::new()).await.unwrap();
    messages.next().await.unwrap();
    let mails = messages.map(move |message| {
        // The connection lives as long as somebody listens.
        let _alive = &client;
        let headers = message.headers.unwrap_or_default();
        let text = |values: &[async_nats::HeaderValue]| values[0].as_str().to_owned();
        let headers = headers.iter().map(|(name, values)| (name.to_string(), text(values)));
        Mail { headers: headers.collect(), body: message.payload }
    });
    mails.boxed()
}

async fn on_redis(server: &str, stream: &str) -> BoxStream<'static, Mail> {
    type Entry = (String, BTreeMap<String, Vec<u8>>);
    let client = redis::Client::open(server).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let start = (connection, stream.to_owned(), "-".to_owned());
    let mails = stream::unfold(start, async |(mut connection, stream, from)| {
        loop {
            let mut look = redis::cmd("XRANGE");
            look.arg(&stream).arg(&from).arg("+").arg("COUNT").arg(1);
            let entries: Vec<Entry> = look.query_async(&mut connection).await.unwrap();
            let Some((id, mut fields)) = entries.into_iter().next() else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let body = fields.remove("body").unwrap_or_default().into();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let headers = fields.into_iter().map(|(name, value)| (name, text(value))).collect();
            return Some((Mail { headers, body }, (connection, stream, format!("({id}"))));
        }
    });
    mails.boxed()
}

async fn on_amqp(server: &str, queue: &str) -> BoxStream<'static, Mail> {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(server, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let (options, none) = (QueueDeclareOptions::exclusive(), FieldTable::default());
    channel.queue_declare(queue.into(), options, none.clone()).await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(queue.into(), "".into(), options, none).await.unwrap();
    let mails = consumer.map(move |delivery| {
        // The connection lives as long as somebody listens.
        let _alive = (&connection, &channel);
        let delivery = delivery.unwrap();
        let mut headers = BTreeMap::new();
        for (name, value) in delivery.properties.headers().iter().flat_map(FieldTable::inner) {
            if let AMQPValue::LongString(text) = value {
                headers.insert(name.to_string(), text.to_string());
            }
        }
        if let Some(content_type) = delivery.properties.content_type() {
            headers.insert("content-type".to_owned(), content_type.to_string());
        }
        Mail { headers, body: delivery.data.into() }
    });
    mails.boxed()
}
