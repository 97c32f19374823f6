//! The S3 protocol against a server that speaks it: moto, from PyPI, kept in the user's cache.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Backlog, Behavior, Broker, DeadLetters, ErrorKind, FailureKind, OpenOptions, Payloads, Queue,
    Settled, SystemClock, claim,
};
use ebb_servers::Port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::{Ahead, INLINE, answer, body, id, job, take};

const PACKAGES: [&str; 3] = ["moto[s3]>=5,<6", "flask", "flask-cors"];

/// The interpreter of an environment that has moto; made on first use, some 30 seconds.
fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("a user has a home")).join(".cache")
    });
    let folder = cache.join("ebb/python-clients");
    std::fs::create_dir_all(&folder).unwrap();
    // Test processes may come here at once.
    let lock = std::fs::File::create(folder.join("moto.lock")).unwrap();
    lock.lock().unwrap();
    let (venv, done) = (folder.join("moto"), folder.join("moto/complete"));
    let python = venv.join("bin/python");
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        let pip =
            ["-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"];
        run(Command::new(&python).args(pip).args(PACKAGES));
        std::fs::write(done, "").unwrap();
    }
    python
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().expect("python3 with venv is needed for the test of S3");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "moto cannot be installed, which the test of S3 needs: {words}"
    );
}

/// A server of its own; it ends with the test, and all its buckets with it.
struct Server {
    process: Child,
    port: Arc<Port>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Server {
    async fn start(port: Arc<Port>) -> Self {
        let python = tokio::task::spawn_blocking(python).await.unwrap();
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.number().to_string()]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { process, port };
        let patience = Instant::now() + Duration::from_secs(60);
        while server.ask("GET", "/moto-api/").await.is_none() {
            assert!(Instant::now() < patience, "moto does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    /// One request, and the answer to it; moto looks at no signature, but wants a name.
    async fn ask(&self, method: &str, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).await.ok()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\ncontent-length: 0\r\n\
             connection: close\r\nauthorization: AWS4-HMAC-SHA256 Credential=\
             user/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n",
            self.port.number()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn make_bucket(&self) {
        let answer = self.ask("PUT", "/payloads").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    async fn has(&self, key: &str) -> bool {
        let list = self.ask("GET", "/payloads?list-type=2").await.unwrap();
        assert!(list.contains("<ListBucketResult"), "{list}");
        list.contains(&format!("<Key>{key}</Key>"))
    }

    async fn queue(&self, plain: &MemoryQueue) -> Queue {
        queue_at(self.port.number(), plain).await
    }
}

async fn queue_at(port: u16, plain: &MemoryQueue) -> Queue {
    let variables = [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ACCESS_KEY_ID", "user".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "a-secret".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("PATH", "/bin".to_owned()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    let url = "s3://payloads/ebb/prod".parse().unwrap();
    let mut payloads = Payloads::open_with(&url, variables).unwrap();
    payloads.inline = INLINE;
    claim::over(
        Arc::new(plain.clone()),
        payloads,
        Duration::from_secs(86_400),
        Arc::new(SystemClock),
    )
    .await
    .unwrap()
}

/// The port of a store that refuses what does not begin with this word.
async fn refuses_all_but(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8192];
            drop(stream.read(&mut request).await);
            let status = if request.starts_with(word.as_bytes()) { "200 OK" } else { "403 No" };
            let answer = format!(
                "HTTP/1.1 {status}\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    port
}

/// What a store hands out of what it took.
#[derive(Debug, Clone, Copy, PartialEq)]
enum HandsOut {
    /// No bodies of jobs, but what is written to see whether it hands out anything.
    OnlyTheProbe,
    /// Nothing; of what is not there it says so.
    Nothing,
}

/// The port of a store that takes all, and refuses with this code what it does not hand out.
async fn refuses_bodies(hands_out: HandsOut, code: &'static str) -> u16 {
    let mut kept = std::collections::HashSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8192];
            let n = stream.read(&mut request).await.unwrap_or_default();
            let line = String::from_utf8_lossy(&request[..n]);
            let mut words = line.split_whitespace();
            let (method, path) =
                (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if method == "PUT" {
                kept.insert(path.to_owned());
            }
            let is_probe = path.ends_with("/bodies/ebb-probe");
            let (status, body) =
                if method != "GET" || is_probe && hands_out == HandsOut::OnlyTheProbe {
                    ("200 OK", String::new())
                } else if kept.contains(path) {
                    ("403 No", format!("<Error><Code>{code}</Code></Error>"))
                } else {
                    ("404 No", "<Error><Code>NoSuchKey</Code></Error>".to_owned())
                };
            let n = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\netag: \"1\"\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n{body}"
            );
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    port
}

#[tokio::test]
async fn a_body_that_alone_is_refused_keeps_nobody_waiting_and_is_buried_with_the_remedy() {
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let plain = MemoryQueue::new(&Behavior::default(), options);
    let queue =
        queue_at(refuses_bodies(HandsOut::OnlyTheProbe, "AccessDenied").await, &plain).await;
    queue.publish(vec![job("refused", 2 * INLINE), job("behind", 10)]).await.unwrap();
    let next = take(&queue, 1).await.remove(0);
    assert_eq!(next.job.id, id("behind"), "the first is to wait");
    queue.settle(&[next.ack()]).await.unwrap();
    for attempt in 1..5 {
        assert_eq!(plain.depth().await.unwrap().delayed, 1, "after attempt {attempt}");
        assert!(take(&queue, 9).await.is_empty(), "not at once");
        clock.0.fetch_add(300, Ordering::Relaxed);
        assert!(take(&queue, 9).await.is_empty());
    }
    let letter = plain.show(&id("refused")).await.unwrap().unwrap();
    assert_eq!((letter.attempts, letter.kind), (5, FailureKind::Lost));
    for part in ["refuses bodies/", "(AccessDenied)", "s3:ListBucket", "ebb dlq redrive"] {
        assert!(letter.reason.contains(part), "{}", letter.reason);
    }
    let told = queue.get(&id("refused")).await.unwrap().unwrap();
    assert_eq!(told.outcome.failure_kind(), Some(FailureKind::Lost));
}

#[tokio::test]
async fn a_store_that_refuses_all_bodies_costs_no_job_an_attempt_though_it_says_what_is_not_there()
{
    for code in ["AccessDenied", "RequestTimeTooSkewed"] {
        let plain = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        let queue = queue_at(refuses_bodies(HandsOut::Nothing, code).await, &plain).await;
        queue.publish(vec![job("a", 2 * INLINE), job("b", 3 * INLINE)]).await.unwrap();
        for _ in 0..20 {
            let many = NonZeroUsize::new(9).unwrap();
            let error = queue.receive(many, Duration::ZERO).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
        let back = plain.receive(NonZeroUsize::new(9).unwrap(), Duration::ZERO).await.unwrap();
        let attempts: Vec<_> = back.iter().map(|one| one.attempt).collect();
        assert_eq!(attempts, [1, 1], "{code}");
    }
}

#[tokio::test]
async fn a_job_that_was_tried_often_before_its_body_was_refused_has_a_pause_all_the_same() {
    let clock = Arc::new(Ahead::default());
    let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
    let plain = MemoryQueue::new(&Behavior::default(), options);
    let port = refuses_bodies(HandsOut::OnlyTheProbe, "AccessDenied").await;
    let queue = queue_at(port, &plain).await;
    queue.publish(vec![job("often", 2 * INLINE)]).await.unwrap();
    for _ in 0..7 {
        let tried = plain.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
        plain.settle(&[tried.retry(Duration::ZERO, "it failed")]).await.unwrap();
    }
    assert!(take(&queue, 9).await.is_empty());
    assert_eq!(plain.depth().await.unwrap().delayed, 1);
    clock.0.fetch_add(300, Ordering::Relaxed);
    assert!(take(&queue, 9).await.is_empty());
    assert_eq!(plain.show(&id("often")).await.unwrap().unwrap().attempts, 9);
}

#[tokio::test]
async fn a_store_that_refuses_to_take_anything_is_no_outage_that_time_heals() {
    let plain = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
    let queue = queue_at(refuses_all_but("nothing").await, &plain).await;
    let error = queue.publish(vec![job("large", 2 * INLINE)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("check its credentials and rights"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_refused_may_be_one_that_is_gone_and_ends_no_worker() {
    let plain = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
    let queue = queue_at(refuses_all_but("PUT").await, &plain).await;
    queue.publish(vec![job("large", 2 * INLINE)]).await.unwrap();
    let error = queue.receive(NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("s3:ListBucket"), "{error}");
}

#[tokio::test]
async fn bodies_and_answers_go_through_s3_and_an_outage_loses_none() {
    let plain = MemoryQueue::new(&Behavior::default(), OpenOptions::default());
    let port = Arc::new(Port::draw().unwrap());
    let server = Server::start(port.clone()).await;
    let queue = server.queue(&plain).await;
    let error = queue.publish(vec![job("a", 500)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "there is no bucket yet");

    server.make_bucket().await;
    queue.publish(vec![job("a", 500), job("b", 3_000_000)]).await.unwrap();
    let mut deliveries = take(&queue, 9).await;
    assert!(deliveries[0].job.body == body(500) && deliveries[1].job.body == body(3_000_000));
    let (large, small) = (deliveries.remove(1), deliveries.remove(0));
    queue.put(&answer("a", 1, 20_000)).await.unwrap();
    assert_eq!(queue.get(&id("a")).await.unwrap(), Some(answer("a", 1, 20_000)));
    queue.settle(&[large.release()]).await.unwrap();
    let key = plain.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap().remove(0);
    let path = format!("ebb/prod/{}", key.job.headers.body_ref.clone().unwrap());
    queue.settle(&[small.ack(), key.release()]).await.unwrap();
    assert!(server.has(&path).await, "its job is not done");
    let again = take(&queue, 9).await.remove(0);
    queue.settle(&[again.ack()]).await.unwrap();
    assert!(!server.has(&path).await, "its job is done");

    queue.publish(vec![job("c", 500)]).await.unwrap();
    drop(server);
    let outage = queue.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
    assert_eq!(outage.kind(), ErrorKind::Unavailable);
    let words = format!("{outage:?}");
    assert!(outage.to_string().contains("s3://payloads/ebb/prod does not answer"), "{outage}");
    assert!(!words.contains("a-secret"), "{words}");

    // Without its bucket it is a store that is not there, with an empty one the body is gone.
    let server = Server::start(port).await;
    let outage = queue.receive(std::num::NonZeroUsize::MIN, Duration::ZERO).await.unwrap_err();
    assert_eq!(outage.kind(), ErrorKind::Unavailable);
    server.make_bucket().await;
    assert!(take(&queue, 1).await.is_empty());
    let letter = queue.show(&id("c")).await.unwrap().unwrap();
    assert!(letter.reason.starts_with("body is gone: bodies/"), "{}", letter.reason);
    assert_eq!(letter.attempts, 1, "what came between cost nothing");
}

/// A way to the server on which its answers take as long as is set.
async fn slow_way(to: u16, delay: watch::Receiver<Duration>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let (mut asks, mut hears) = client.into_split();
            let (mut answers, mut takes) = server.into_split();
            let delay = delay.clone();
            tokio::spawn(async move { tokio::io::copy(&mut asks, &mut takes).await });
            tokio::spawn(async move {
                let mut piece = vec![0; 1 << 16];
                while let Ok(n @ 1..) = answers.read(&mut piece).await {
                    let nap = *delay.borrow();
                    tokio::time::sleep(nap).await;
                    if hears.write_all(&piece[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_slow_store_costs_no_lease() {
    // Kept every third of it, on a machine where a thread may stand still for a second or two.
    let lease = Duration::from_secs(3);
    let behavior = Behavior { lease, ..Behavior::default() };
    let plain = MemoryQueue::new(&behavior, OpenOptions::default());
    let server = Server::start(Arc::new(Port::draw().unwrap())).await;
    server.make_bucket().await;
    let (delay, delays) = watch::channel(Duration::ZERO);
    let queue = queue_at(slow_way(server.port.number(), delays).await, &plain).await;
    queue.publish(vec![job("a", 500)]).await.unwrap();
    delay.send_replace(2 * lease);
    let one = std::num::NonZeroUsize::MIN;
    let other = plain.as_worker("other");
    let (received, taken) =
        tokio::join!(queue.receive(one, Duration::ZERO), other.receive(one, lease * 3 / 2));
    assert!(taken.unwrap().is_empty(), "nobody takes it while its body is on the way");
    delay.send_replace(Duration::ZERO);
    let delivery = received.unwrap().remove(0);
    assert_eq!((delivery.attempt, delivery.job.body.len()), (1, 500));
    assert_eq!(queue.settle(&[delivery.ack()]).await.unwrap(), [Settled::Held]);
}
