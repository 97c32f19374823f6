//! Servers come up, keep their data and go.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use ebb_servers::{
    Nats, NatsOptions, NatsVersion, Persistence, RabbitMq, RabbitMqOptions, Redis, RedisOptions,
};

/// What a port answers to these words.
fn ask(port: u16, words: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(words.as_bytes())?;
    let mut answer = [0; 1024];
    let n_bytes = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n_bytes]).into_owned())
}

#[tokio::test]
async fn redis_keeps_its_data_over_a_kill_and_is_gone_when_dropped() {
    let options = RedisOptions { persistence: Persistence::Always, ..RedisOptions::default() };
    let mut redis = Redis::start(options).await.unwrap();
    let port = redis.port();
    assert_eq!(ask(port, "SET a 1\r\n").unwrap(), "+OK\r\n");
    redis.kill();
    assert!(ask(port, "PING\r\n").is_err());
    redis.restart().await.unwrap();
    assert_eq!(ask(port, "GET a\r\n").unwrap(), "$1\r\n1\r\n");
    redis.pause().unwrap();
    assert!(ask(port, "PING\r\n").is_err(), "it is held");
    redis.resume().unwrap();
    assert_eq!(ask(port, "PING\r\n").unwrap(), "+PONG\r\n");
    drop(redis);
    assert!(ask(port, "PING\r\n").is_err());
}

#[tokio::test]
async fn both_versions_of_nats_come_up() {
    for version in [NatsVersion::Newest, NatsVersion::Oldest] {
        let nats = Nats::start(NatsOptions { version, ..NatsOptions::default() }).await.unwrap();
        assert!(ask(nats.port(), "").unwrap().starts_with("INFO"), "{}", nats.url());
    }
}

#[tokio::test]
async fn rabbitmq_comes_back_where_it_was() {
    let mut rabbitmq = RabbitMq::start(RabbitMqOptions::default()).await.unwrap();
    let (port, pid) = (rabbitmq.port(), rabbitmq.pid().unwrap());
    rabbitmq.restart().await.unwrap();
    assert_eq!(rabbitmq.port(), port);
    assert_ne!(rabbitmq.pid().unwrap(), pid);
    rabbitmq.pause().unwrap();
    assert!(ask(port, "AMQP\0\0\x09\x01").is_err(), "it is held");
    rabbitmq.resume().unwrap();
    assert!(ask(port, "AMQP\0\0\x09\x01").unwrap().contains("RabbitMQ"));
}
