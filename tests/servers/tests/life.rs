//! Servers come up as they were asked to, keep their data, and go with their owner.
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]
#![allow(clippy::print_stdout, reason = "one test talks to itself in another process")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ebb_servers::{
    Authority, Nats, NatsOptions, NatsVersion, Persistence, RabbitMq, RabbitMqOptions, Redis,
    RedisOptions,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

/// Set in a process that is to own a server and to be killed.
const OWNER: &str = "EBB_TEST_OWNER";

/// No answer that must come takes this long, on a machine that does much else.
const LONG: Duration = Duration::from_secs(20);

/// So long an answer is waited for that must not come.
const SHORT: Duration = Duration::from_millis(500);

/// What a port answers to these words.
fn ask(port: u16, words: &str) -> std::io::Result<String> {
    ask_within(LONG, port, words)
}

fn ask_within(patience: Duration, port: u16, words: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(words.as_bytes())?;
    let mut answer = [0; 4096];
    let n_bytes = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n_bytes]).into_owned())
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn redis_keeps_its_data_over_a_kill_and_is_gone_when_dropped() {
    let options = RedisOptions { persistence: Persistence::Always, ..RedisOptions::default() };
    let mut redis = Redis::start(options).await.unwrap();
    let port = redis.port();
    assert_eq!(ask(port, "SET a 1\r\n").unwrap(), "+OK\r\n");
    redis.kill();
    assert!(ask(port, "PING\r\n").is_err());
    assert_eq!(redis.pid(), None);
    redis.restart().await.unwrap();
    assert_eq!(ask(port, "GET a\r\n").unwrap(), "$1\r\n1\r\n");
    redis.pause().unwrap();
    assert!(ask_within(SHORT, port, "PING\r\n").is_err(), "it is held");
    redis.resume().unwrap();
    assert_eq!(ask(port, "PING\r\n").unwrap(), "+PONG\r\n");
    let home = home_of(redis.pid().unwrap());
    assert!(home.is_dir());
    drop(redis);
    assert!(ask(port, "PING\r\n").is_err());
    assert!(!home.exists());
}

#[tokio::test]
async fn data_in_a_folder_of_the_caller_outlives_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = Some(folder.path().to_owned());
    let options =
        RedisOptions { persistence: Persistence::Always, data, ..RedisOptions::default() };
    let redis = Redis::start(options.clone()).await.unwrap();
    assert_eq!(ask(redis.port(), "SET a 1\r\n").unwrap(), "+OK\r\n");
    drop(redis);
    let redis = Redis::start(options).await.unwrap();
    assert_eq!(ask(redis.port(), "GET a\r\n").unwrap(), "$1\r\n1\r\n");
}

#[tokio::test]
async fn both_versions_of_nats_come_up() {
    for version in [NatsVersion::Newest, NatsVersion::Oldest] {
        let nats = Nats::start(NatsOptions { version, ..NatsOptions::default() }).await.unwrap();
        assert!(ask(nats.port(), "").unwrap().starts_with("INFO"), "{}", nats.url());
    }
}

#[tokio::test]
async fn a_server_asks_for_what_it_was_told_to() {
    let password = Some("secret".to_owned());
    let redis = Redis::start(RedisOptions { password, ..RedisOptions::default() }).await.unwrap();
    assert!(ask(redis.port(), "PING\r\n").unwrap().starts_with("-NOAUTH"));
    assert_eq!(ask(redis.port(), "AUTH secret\r\n").unwrap(), "+OK\r\n");
    assert!(redis.url().starts_with("redis://:secret@"), "{}", redis.url());

    let token = Some("secret".to_owned());
    let nats = Nats::start(NatsOptions { token, ..NatsOptions::default() }).await.unwrap();
    assert!(ask(nats.port(), "").unwrap().contains("\"auth_required\":true"));
    assert!(nats.url().starts_with("nats://secret@"), "{}", nats.url());
}

#[tokio::test]
async fn an_encrypted_port_is_no_plain_one() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path()).unwrap();
    let tls = Some(authority.server().unwrap());
    let redis = RedisOptions { tls: tls.clone(), ..RedisOptions::default() };
    let redis = Redis::start(redis).await.unwrap();
    assert!(redis.url().starts_with("rediss://"), "{}", redis.url());
    let answer = ask_within(SHORT, redis.port(), "PING\r\n");
    assert!(!answer.unwrap_or_default().contains("PONG"));

    let nats = Nats::start(NatsOptions { tls, ..NatsOptions::default() }).await.unwrap();
    assert!(nats.url().starts_with("tls://"), "{}", nats.url());
    assert!(ask(nats.port(), "").unwrap().contains("\"tls_required\":true"));
}

#[tokio::test]
async fn rabbitmq_comes_back_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Some(Authority::new(folder.path()).unwrap().server().unwrap());
    let options = RabbitMqOptions { tls, ..RabbitMqOptions::default() };
    let mut rabbitmq = RabbitMq::start(options).await.unwrap();
    let pid = rabbitmq.pid().unwrap();
    // The port that the URL names is the encrypted one.
    assert!(rabbitmq.url().starts_with("amqps://guest:guest@"), "{}", rabbitmq.url());
    let (port, plain) = (rabbitmq.port(), rabbitmq.plain_port());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    rabbitmq.restart().await.unwrap();
    assert_eq!((rabbitmq.port(), rabbitmq.plain_port()), (port, plain));
    assert_ne!(rabbitmq.pid().unwrap(), pid);
    let (app, option) = ("rabbit", "dead_letter_worker_publisher_confirm_timeout");
    let is_set = format!("{{ok, 5000}} = application:get_env({app}, {option}).");
    rabbitmq.control(&["eval", &is_set]).unwrap();
    rabbitmq.pause().unwrap();
    assert!(ask_within(SHORT, plain, "AMQP\0\0\x09\x01").is_err(), "it is held");
    rabbitmq.resume().unwrap();
    assert!(ask(plain, "AMQP\0\0\x09\x01").unwrap().contains("RabbitMQ"));
    let home = home_of(rabbitmq.pid().unwrap());
    drop(rabbitmq);
    // The name service and the helpers of Erlang too.
    eventually("nothing works there", || at_work_in(&home, "").is_empty()).await;
    assert!(!home.exists());
}

#[tokio::test]
async fn a_server_and_its_data_are_gone_when_the_owner_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let test = "a_server_and_its_data_are_gone_when_the_owner_is_killed";
    let (mut owner, port, home) = an_owner(test, folder.path()).await;
    assert_eq!(ask(port, "PING\r\n").unwrap(), "+PONG\r\n");
    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the server is gone", || ask(port, "PING\r\n").is_err()).await;
    eventually("its data is gone", || !home.exists()).await;
}

#[tokio::test]
async fn what_a_dead_owner_left_is_swept_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let test = "what_a_dead_owner_left_is_swept_at_the_next_start";
    let (mut owner, port, home) = an_owner(test, folder.path()).await;
    // Who watches the server is killed before the owner, so nobody is left to clean up.
    for watcher in at_work_in(&home, "sh") {
        kill(Pid::from_raw(watcher), Signal::SIGKILL).unwrap();
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(ask(port, "PING\r\n").unwrap(), "+PONG\r\n", "nobody ended it");
    let (mut next, next_port, next_home) = an_owner(test, folder.path()).await;
    eventually("the server is swept", || ask(port, "PING\r\n").is_err()).await;
    eventually("its data is swept", || !home.exists()).await;
    assert_eq!(ask(next_port, "PING\r\n").unwrap(), "+PONG\r\n");
    next.kill().unwrap();
    next.wait().unwrap();
    eventually("the next is gone too", || !next_home.exists()).await;
}

/// Another process that owns a Redis: this test again, which waits there to be killed.
///
/// Its server has its home in this folder, since any start sweeps the homes in the usual one.
async fn an_owner(test: &str, folder: &Path) -> (Child, u16, PathBuf) {
    if std::env::var_os(OWNER).is_some() {
        let redis = Redis::start(RedisOptions::default()).await.unwrap();
        let home = home_of(redis.pid().unwrap());
        println!("\nowns {} {}", redis.port(), home.display());
        std::future::pending::<()>().await;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", test]).env(OWNER, "1").env("TMPDIR", folder);
    let mut owner = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let told = lines.map(Result::unwrap).find_map(|line| {
        let (port, home) = line.strip_prefix("owns ")?.split_once(' ')?;
        Some((port.parse().unwrap(), PathBuf::from(home)))
    });
    let (port, home) = told.expect("it says what it owns");
    (owner, port, home)
}

/// The folder in which a server works.
fn home_of(pid: u32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap()
}

/// The processes of this name, or of any, that work in this folder.
fn at_work_in(home: &Path, name: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_here = |pid: &i32| {
        let place = format!("/proc/{pid}");
        let comm = std::fs::read_to_string(format!("{place}/comm")).unwrap_or_default();
        let folder = std::fs::read_link(format!("{place}/cwd"));
        comm.contains(name) && folder.is_ok_and(|folder| folder.starts_with(home))
    };
    pids.filter(is_here).collect()
}
