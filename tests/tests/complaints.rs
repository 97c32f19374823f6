//! The words that a person reads when a broker is down, locked, full or not what it should be.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

use e2e::{Run, Workplace};
use ebb_servers::{Nats, NatsOptions, NatsVersion, RabbitMq, RabbitMqOptions, Redis, RedisOptions};

/// Runs `ebb` against a URL; what it says on standard error, with the port left out.
fn complaint(url: &str, args: &[&str]) -> String {
    let workplace = Workplace::new();
    let results = workplace.queue();
    let args = [args, &["--queue", url, "--results", &results, "--connect-timeout", "3s"]].concat();
    let ran: Run = workplace.ebb(&args).failed();
    let port = url.rsplit_once(':').unwrap().1;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    ran.stderr.trim_end().replace(&port, "PORT")
}

/// A port on which nobody listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_broker_that_is_down_is_named_with_what_to_check() {
    for scheme in ["nats", "amqp", "redis"] {
        let url = format!("{scheme}://127.0.0.1:{}", closed_port());
        let told = complaint(&url, &["queue", "depth"]);
        println!("{told}");
        assert!(told.starts_with("error: cannot open the queue: "), "{told}");
        assert!(told.contains("127.0.0.1:PORT"), "{told}");
    }
}
