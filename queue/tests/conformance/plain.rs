//! A client that knows nothing of us: the broker's own, through which anybody can publish.

use ebb_queue::{Address, QueueUrl};
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};

/// Headers by name.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

pub enum Plain {
    Nats { stream: async_nats::jetstream::Context, subject: String },
    Redis { client: redis::aio::MultiplexedConnection, inbox: String },
    Amqp { _connection: lapin::Connection, channel: lapin::Channel, queue: String },
}

impl Plain {
    /// One for the queue of this URL; none where nobody but us can publish.
    pub async fn connect(url: &QueueUrl) -> Option<Self> {
        let server = url.with_secrets();
        let server = server.split('?').next().unwrap_or_default();
        let queue = url.queue.clone();
        Some(match url.address {
            Address::Sqlite { .. } => return None,
            Address::Nats(_) => {
                let hosts: Vec<_> = server.split(',').collect();
                let client = async_nats::connect(hosts).await.unwrap();
                let stream = async_nats::jetstream::new(client);
                Self::Nats { stream, subject: format!("ebb.{queue}.jobs") }
            }
            Address::Redis(_) => {
                let client = redis::Client::open(server).unwrap();
                let client = client.get_multiplexed_async_connection().await.unwrap();
                Self::Redis { client, inbox: format!("ebb:{{{queue}}}") }
            }
            Address::Amqp(_) => {
                let properties = lapin::ConnectionProperties::default();
                let connection = lapin::Connection::connect(server, properties).await.unwrap();
                let channel = connection.create_channel().await.unwrap();
                channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
                Self::Amqp { _connection: connection, channel, queue }
            }
        })
    }

    /// Publishes a job whose body is its id; the broker has it when this returns.
    pub async fn send(&mut self, id: &str, headers: Headers<'_>) {
        let headers = headers.iter().copied().chain([("ebb-id", id)]);
        match self {
            Self::Nats { stream, subject } => {
                let mut map = async_nats::HeaderMap::new();
                for (name, value) in headers {
                    map.insert(name, value);
                }
                let sent = stream.publish_with_headers(subject.clone(), map, id.to_owned().into());
                sent.await.unwrap().await.unwrap();
            }
            Self::Redis { client, inbox } => {
                let mut add = redis::cmd("XADD");
                add.arg(&*inbox).arg("*").arg("body").arg(id);
                for (name, value) in headers {
                    add.arg(name).arg(value);
                }
                let _entry: String = add.query_async(client).await.unwrap();
            }
            Self::Amqp { channel, queue, .. } => {
                let mut table = FieldTable::default();
                for (name, value) in headers {
                    table.insert(name.into(), AMQPValue::LongString(value.into()));
                }
                let properties = BasicProperties::default().with_headers(table);
                let options = BasicPublishOptions::default();
                let (exchange, key) = ("ebb".into(), queue.as_str().into());
                let sent = channel.basic_publish(exchange, key, options, id.as_bytes(), properties);
                assert!(sent.await.unwrap().await.unwrap().is_ack());
            }
        }
    }
}
