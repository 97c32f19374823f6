//! A worker as the command line asks for it, on the embedded queue.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use ebb_queue::{OpenOptions, Outcome, Payloads, PayloadsUrl, Queue, QueueUrl};
use ebb_worker::{WorkerArgs, run};
use support::{echo_job, job};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
}

/// A fresh queue, and the flags of a worker for it.
async fn site(dir: &tempfile::TempDir, flags: &[&str]) -> (Queue, WorkerArgs) {
    let url = QueueUrl::sqlite(dir.path().join("queue.db"));
    let queue = ebb_queue::open(&url, OpenOptions::default()).await.unwrap();
    let own = ["worker", "--queue", &url.to_string(), "--model", "echo"].map(str::to_owned);
    let flags = own.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned()));
    (queue, Cli::parse_from(flags).worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_through_the_embedded_queue() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, args) = site(&dir, &["--exit-when-empty"]).await;
    let mut jobs: Vec<_> = (0..300).map(echo_job).collect();
    jobs[77] = job(77, r#"{"input": "", "poison": true}"#);
    queue.publish(jobs).await.unwrap();
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (299, 1, 0));
    assert!(summary.cold_start.iter().any(|(phase, _)| phase == "weights"), "{summary:?}");
    let result = queue.get(&echo_job(299).id).await.unwrap().unwrap();
    let Outcome::Completed { content_type, body } = result.outcome else { panic!("{result:?}") };
    assert_eq!(
        (content_type.as_str(), &*body),
        ("application/json", &br#"{"output":"text 299"}"#[..])
    );
    assert_eq!(queue.list(10).await.unwrap()[0].reason, "batch failed: an item is poison");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_and_answers_go_through_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = PayloadsUrl::File(dir.path().join("store"));
    let url = store.to_string();
    let flags = ["--exit-when-empty", "--payloads", &url, "--inline-limit", "1000"];
    let (plain, args) = site(&dir, &flags).await;
    let mut payloads = Payloads::open(&store).unwrap();
    payloads.inline = 1000;
    let options = OpenOptions { payloads: Some(payloads), ..OpenOptions::default() };
    let address = QueueUrl::sqlite(dir.path().join("queue.db"));
    let queue = ebb_queue::open(&address, options).await.unwrap();
    let input = "x".repeat(50_000);
    let mut large = job(1, &format!(r#"{{"input": "{input}"}}"#));
    large.headers.reply_to = Some("inbox".to_owned());
    queue.publish(vec![echo_job(0), large.clone()]).await.unwrap();
    assert!(plain.depth().await.unwrap().ready == 2 && has_files(&dir.path().join("store/bodies")));
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed), (2, 0));
    assert!(!has_files(&dir.path().join("store/bodies")), "the bodies went with their jobs");
    let result = queue.get(&large.id).await.unwrap().unwrap();
    let Outcome::Completed { body, .. } = result.outcome else { panic!("{result:?}") };
    assert_eq!(body, format!(r#"{{"output":"{input}"}}"#));
    let reference = plain.get(&large.id).await.unwrap().unwrap().encode();
    assert!(reference.len() < 1000, "{} bytes are in the result store", reference.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_store_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, args) = site(&dir, &["--exit-when-empty"]).await;
    let mut job = echo_job(0);
    job.headers.body_ref = Some("bodies/a".to_owned());
    plain.publish(vec![job]).await.unwrap();
    assert_eq!(run(args, CancellationToken::new()).await.unwrap().failed, 1);
    let reason = plain.list(1).await.unwrap().remove(0).reason;
    assert!(reason.contains("bodies/a; give this worker the store with --payloads"), "{reason}");
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_answers_does_not_keep_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _) = site(&dir, &[]).await;
    // A pipe that nobody writes to: who opens it waits, on a thread that cannot be stopped.
    let bodies = dir.path().join("store/bodies");
    std::fs::create_dir_all(&bodies).unwrap();
    assert!(Command::new("mkfifo").arg(bodies.join("a")).status().unwrap().success());
    let mut stuck = job(0, r#"{"key": "bodies/a", "size": 1, "sha256": ""}"#);
    stuck.headers.body_ref = Some("bodies/a".to_owned());
    queue.publish(vec![stuck]).await.unwrap();
    let url = QueueUrl::sqlite(dir.path().join("queue.db")).to_string();
    let store = PayloadsUrl::File(dir.path().join("store")).to_string();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_ebb-worker"))
        .args(["--queue", &url, "--model", "echo", "--payloads", &store, "--grace", "1s"])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while queue.depth().await.unwrap().in_flight == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the job is not taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ends_at_sigterm(&mut worker).await);
}

/// Whether a worker ends well when it is told to; it has 15 seconds.
#[cfg(unix)]
async fn ends_at_sigterm(worker: &mut std::process::Child) -> bool {
    let (pid, stopped) = (worker.id().to_string(), Instant::now());
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    loop {
        if let Some(status) = worker.try_wait().unwrap() {
            return status.success();
        }
        if stopped.elapsed() > Duration::from_secs(15) {
            worker.kill().unwrap();
            panic!("it outlives its grace period");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(all(unix, feature = "cpu"))]
#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_that_never_comes_does_not_keep_the_process() {
    let dir = tempfile::tempdir().unwrap();
    site(&dir, &[]).await;
    let sound =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/tiny-bert");
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(sound.join(name), model.join(name)).unwrap();
    }
    let tokenizer = model.join("tokenizer.json");
    assert!(Command::new("mkfifo").arg(&tokenizer).status().unwrap().success());
    let url = QueueUrl::sqlite(dir.path().join("queue.db")).to_string();
    let mut worker = Command::new(env!("CARGO_BIN_EXE_ebb-worker"))
        .args(["--queue", &url, "--model", &model.display().to_string(), "--grace", "1s"])
        .spawn()
        .unwrap();
    // Until somebody reads there, one who writes there waits: then the worker waits for what comes. On a
    // thread of its own: the runtime would not end before one that it waits for.
    let (opened, reading) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || opened.send(std::fs::File::options().write(true).open(tokenizer)));
    let Ok(pipe) = tokio::time::timeout(Duration::from_secs(30), reading).await else {
        worker.kill().unwrap();
        panic!("the tokenizer is not read");
    };
    let _pipe = pipe.unwrap().unwrap();
    assert!(ends_at_sigterm(&mut worker).await);
}

fn has_files(folder: &std::path::Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probes_tell_of_a_worker_from_its_start_to_its_end() {
    let told = tokio::time::timeout(Duration::from_secs(120), what_probes_tell());
    told.await.expect("each state is told");
}

async fn what_probes_tell() {
    let dir = tempfile::tempdir().unwrap();
    let port = ebb_servers::Port::draw().unwrap();
    let free = std::net::SocketAddr::from(([127, 0, 0, 1], port.number()));
    let (queue, args) = site(&dir, &["--listen", &free.to_string(), "--id", "w-1"]).await;
    let stop = CancellationToken::new();
    let worker = tokio::spawn(run(args, stop.clone()));
    while !page(free, "/readyz").await.is_some_and(|page| page.starts_with("HTTP/1.1 200")) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let first = "worker_first_result_seconds ";
    let metrics = page(free, "/metrics").await.unwrap();
    assert!(!metrics.contains(first), "there was none");
    // A rate of what comes first is seen only where something was there before it.
    let none = "worker_jobs_total{model=\"echo\",outcome=\"rejected\"} 0";
    assert!(metrics.contains(none), "{metrics}");
    queue.publish(vec![echo_job(0)]).await.unwrap();
    let done = "worker_jobs_total{model=\"echo\",outcome=\"completed\"} 1";
    while !page(free, "/metrics").await.is_some_and(|page| page.contains(done)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let metrics = page(free, "/metrics").await.unwrap();
    assert!(metrics.contains("worker_cold_start_seconds{phase=\"weights\"}"), "{metrics}");
    assert_eq!(queue.workers().await.unwrap()[0].id, "w-1");
    let told = metrics.lines().find_map(|line| line.strip_prefix(first));
    let first_result: f64 = told.expect(&metrics).parse().unwrap();
    let reported = async || queue.workers().await.unwrap()[0].clone();
    while reported().await.first_result.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let worker_told = reported().await;
    assert_eq!(worker_told.first_result, Some(first_result));
    let cold_start: f64 = worker_told.cold_start.iter().map(|(_, seconds)| seconds).sum();
    // The age of the process is told to 10 ms.
    assert!(first_result + 0.02 > cold_start, "{first_result} s, of which {cold_start} s");
    assert!(worker_told.cold_start.iter().all(|(phase, _)| phase != "first result"));
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 1);
    assert_eq!(page(free, "/livez").await, None, "the port is free again");
}

async fn page(address: std::net::SocketAddr, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await.ok()?;
    Some(page)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_serves_two_queues_of_one_broker() {
    let dir = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(dir.path().join("queue.db"));
    let mut queues = Vec::new();
    for name in ["first", "second"] {
        let own = url.with_queue(name).unwrap();
        queues.push(ebb_queue::open(&own, OpenOptions::default()).await.unwrap());
    }
    queues[0].publish((0..100).map(echo_job).collect()).await.unwrap();
    queues[1].publish((100..250).map(echo_job).collect()).await.unwrap();
    let args = ["worker", "--queue", &url.to_string(), "--serve", "first=echo,second=echo"];
    let args = Cli::parse_from([&args[..], &["--exit-when-empty"]].concat()).worker;
    let summary = run(args, CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (250, 0, 0));
    for (queue, number) in [(&queues[0], 99), (&queues[1], 100)] {
        let result = queue.get(&echo_job(number).id).await.unwrap().unwrap();
        assert!(result.outcome.is_completed(), "{result:?}");
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.ready, depth.in_flight), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dimensions_without_an_encoder_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_queue, args) = site(&dir, &["--dimensions", "8"]).await;
    let error = run(args, CancellationToken::new()).await.unwrap_err().to_string();
    assert_eq!(error, "--dimensions is for an encoder, and no model here is one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_broker_that_takes_a_connection_and_never_answers() {
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", broker.local_addr().unwrap());
    let flags = ["worker", "--queue", &url, "--model", "echo", "--connect-timeout", "60s"];
    let (stop, begun) = (CancellationToken::new(), Instant::now());
    let worker = tokio::spawn(run(Cli::parse_from(flags).worker, stop.clone()));
    // It reads nothing of what comes.
    let _connected = broker.accept().await.unwrap();
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_five_refusals_to_end_a_worker_that_calls_its_broker() {
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://worker:wrong@{}", broker.local_addr().unwrap());
    let flags = ["worker", "--queue", &url, "--model", "echo"];
    let mut worker = tokio::spawn(run(Cli::parse_from(flags).worker, CancellationToken::new()));
    let mut n_refused = 0;
    let ended = loop {
        let (mut stream, _) = tokio::select! {
            ended = &mut worker => break ended.unwrap(),
            called = broker.accept() => called.unwrap(),
        };
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let refusal = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        stream.write_all(refusal.repeat(4).as_bytes()).await.unwrap();
        n_refused += 1;
    };
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(n_refused, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_queues_are_opened_at_the_same_time() {
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", broker.local_addr().unwrap());
    let flags = ["worker", "--queue", &url, "--serve", "a=echo,b=echo,c=echo"];
    let flags = [&flags[..], &["--connect-timeout", "1h"]].concat();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(run(Cli::parse_from(flags).worker, stop.clone()));
    // It says nothing to any of them, so none comes after another.
    let mut connected = Vec::new();
    for nth in 0..3 {
        let call = tokio::time::timeout(Duration::from_secs(30), broker.accept()).await;
        connected.push(call.unwrap_or_else(|_| panic!("{nth} of 3 have called")).unwrap());
    }
    stop.cancel();
    assert_eq!(worker.await.unwrap().unwrap().completed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_queues_the_one_that_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(dir.path().join("queue.db"));
    for name in ["first", "third"] {
        let own = url.with_queue(name).unwrap();
        ebb_queue::open(&own, OpenOptions::default()).await.unwrap();
    }
    let url = url.to_string();
    let flags = ["worker", "--queue", &url, "--no-create", "--serve"];
    let flags = [&flags[..], &["first=echo,second=echo,third=echo"]].concat();
    let error = run(Cli::parse_from(flags).worker, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with("--serve second"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queues_are_made_in_one_new_file_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let url = QueueUrl::sqlite(dir.path().join("queue.db")).to_string();
    let served: Vec<String> = (0..32).map(|number| format!("queue-{number}=echo")).collect();
    let flags = ["worker", "--queue", &url, "--serve", &served.join(","), "--exit-when-empty"];
    let summary = run(Cli::parse_from(flags).worker, CancellationToken::new()).await.unwrap();
    assert_eq!((summary.completed, summary.failed, summary.left), (0, 0, 0));
}
