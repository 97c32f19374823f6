//! The deletion cost against a server that speaks HTTPS as an API server does.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ebb_model::echo::{Echo, EchoInput};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{Behavior, Broker, Clock, Job, OpenOptions, ResultStore, RetryPolicy, SystemClock};
use ebb_servers::{Authority, TlsFiles};
use ebb_telemetry::{Health, Traces};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::batcher::Limits;
use crate::{Device, EchoCodec, Metrics, ModelParts, Parts, Pipeline, QueueParts, Settings};

/// An API server, a folder as Kubernetes mounts it, and the pod they know.
struct Kubernetes {
    mount: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    pod: Pod,
    _server: AbortOnDropHandle<()>,
}

impl Kubernetes {
    /// Answers every request with this status; with none, it never answers.
    async fn answering(status: Option<u16>) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let authority = Authority::new(mount.path()).unwrap();
        let acceptor = acceptor(&authority.server().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = format!("https://{}", listener.local_addr().unwrap());
        std::fs::rename(authority.ca(), mount.path().join("ca.crt")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(serve(listener, acceptor, Arc::clone(&asked), status));
        let pod = Pod {
            api,
            namespace: "inference".to_owned(),
            name: "worker-0".to_owned(),
            mount: mount.path().to_owned(),
        };
        let here = Self { mount, asked, pod, _server: AbortOnDropHandle::new(server) };
        here.rotate("first");
        here
    }

    fn rotate(&self, token: &str) {
        std::fs::write(self.mount.path().join("token"), format!("{token}\n")).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn acceptor(files: &TlsFiles) -> TlsAcceptor {
    let read = |path: &Path| std::fs::read(path).unwrap();
    let certificate = CertificateDer::from_pem_slice(&read(&files.cert)).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    asked: Arc<Mutex<Vec<String>>>,
    status: Option<u16>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that does not trust us hangs up.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut request = String::new();
        while !request.ends_with("}}}") {
            let mut part = [0; 4096];
            let n_read = stream.read(&mut part).await.unwrap();
            request.push_str(std::str::from_utf8(&part[..n_read]).unwrap());
        }
        asked.lock().unwrap().push(request);
        let Some(status) = status else { std::future::pending().await };
        let answer = format!("HTTP/1.1 {status} so\r\ncontent-length: 2\r\n\r\n{{}}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn one_annotation_is_patched_with_the_token_of_the_moment() {
    let kubernetes = Kubernetes::answering(Some(200)).await;
    kubernetes.pod.set_deletion_cost(16).await.unwrap();
    kubernetes.rotate("second");
    kubernetes.pod.set_deletion_cost(0).await.unwrap();
    let asked = kubernetes.asked();
    let line = "PATCH /api/v1/namespaces/inference/pods/worker-0 HTTP/1.1\r\n";
    assert!(asked.iter().all(|request| request.starts_with(line)), "{asked:?}");
    let says = |n: usize, words: &str| assert!(asked[n].contains(words), "{}", asked[n]);
    says(0, "authorization: Bearer first\r\n");
    says(0, "content-type: application/merge-patch+json\r\n");
    says(0, r#"{"metadata":{"annotations":{"controller.kubernetes.io/pod-deletion-cost":"16"}}}"#);
    says(1, "authorization: Bearer second\r\n");
    says(1, r#"pod-deletion-cost":"0""#);
}

#[tokio::test]
async fn a_server_of_another_authority_never_sees_the_token() {
    let kubernetes = Kubernetes::answering(Some(200)).await;
    let other = tempfile::tempdir().unwrap();
    let authority = Authority::new(other.path()).unwrap();
    std::fs::copy(authority.ca(), kubernetes.mount.path().join("ca.crt")).unwrap();
    let error = kubernetes.pod.set_deletion_cost(1).await.unwrap_err();
    assert!(matches!(error, PatchError::Http(_)), "{error}");
    assert!(kubernetes.asked().is_empty());
}

#[tokio::test]
async fn what_is_in_the_token_file_is_in_no_message() {
    let kubernetes = Kubernetes::answering(Some(200)).await;
    kubernetes.rotate("se\ncret");
    let error = kubernetes.pod.set_deletion_cost(1).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("cret"), "{error:?}");
    std::fs::write(kubernetes.mount.path().join("ca.crt"), "no certificate").unwrap();
    let error = kubernetes.pod.set_deletion_cost(1).await.unwrap_err();
    assert!(matches!(error, PatchError::Mount { .. }), "{error}");
}

#[tokio::test]
async fn who_may_not_is_told_of_the_rule_that_it_needs() {
    let error = async |status| {
        let kubernetes = Kubernetes::answering(Some(status)).await;
        kubernetes.pod.set_deletion_cost(1).await.unwrap_err()
    };
    let forbidden = error(403).await.to_string();
    let rule = "Role in namespace inference with the verb patch on the resource pods";
    assert!(forbidden.contains(rule), "{forbidden}");
    assert!(matches!(error(404).await, PatchError::NoPod(..)));
    for status in [401, 429, 500] {
        assert!(matches!(error(status).await, PatchError::Answer(answer) if answer == status));
    }
}

/// What is told within an hour, and after how many seconds, where these calls are refused. For three
/// looks the pod works.
async fn told_where_refused(refused: std::ops::Range<usize>) -> Vec<(u64, u64)> {
    let told = Mutex::new(Vec::new());
    let begin = Instant::now();
    let patch = |cost| {
        let mut told = told.lock().unwrap();
        told.push((cost, begin.elapsed().as_secs()));
        let is_refused = refused.contains(&told.len());
        let no_right = PatchError::Forbidden("inference".to_owned());
        std::future::ready(if is_refused { Err(no_right) } else { Ok(()) })
    };
    let sunk = |now: Instant| (now < begin + 3 * PERIOD).then_some(Duration::from_secs(20));
    let keep = keep(patch, sunk, || 0.0);
    tokio::time::timeout(Duration::from_secs(3600), keep).await.unwrap_err();
    told.into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_may_not_asks_again_so_that_no_cost_of_old_stays() {
    // A right that is taken away and given back, as when roles are applied anew; and one that comes
    // late, after a container before this one had left a cost.
    for refused in [2..5, 1..4] {
        let told = told_where_refused(refused.clone()).await;
        let costs: Vec<_> = told.iter().map(|(cost, _)| *cost).collect();
        let [first, rest @ ..] = &costs[..] else { panic!("nothing is told") };
        assert_eq!((*first, rest), (16, &[0].repeat(refused.end - 1)[..]), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_asks_once_in_five_minutes_at_last() {
    let told = told_where_refused(1..usize::MAX).await;
    let pauses: Vec<_> = told.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    assert!((12..40).contains(&pauses.len()), "{pauses:?}");
    assert!((140..=301).contains(pauses.last().unwrap()), "{pauses:?}");
}

#[tokio::test]
async fn a_cost_that_stays_is_told_once() {
    let kubernetes = Kubernetes::answering(Some(200)).await;
    let patch = |cost| kubernetes.pod.set_deletion_cost(cost);
    let keep = keep(patch, |_| Some(Duration::from_secs(20)), || 0.0);
    assert!(tokio::time::timeout(3 * PERIOD, keep).await.is_err(), "it goes on");
    let asked = kubernetes.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].ends_with(r#"pod-deletion-cost":"16"}}}"#), "{}", asked[0]);
}

#[tokio::test]
async fn a_server_that_hangs_is_left_after_a_while() {
    let kubernetes = Kubernetes::answering(None).await;
    let began = Instant::now();
    let error = kubernetes.pod.set_deletion_cost(1).await.unwrap_err();
    assert!(matches!(&error, PatchError::Http(error) if error.is_timeout()), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

/// A worker whose one batch never ends, in this pod.
fn busy_worker(pod: &Pod) -> (Arc<MemoryQueue>, Pipeline) {
    let queue = Arc::new(MemoryQueue::new(&Behavior::default(), OpenOptions::default()));
    let one = NonZeroUsize::MIN;
    let device = Device::inline(Echo::new(), |_: &[EchoInput]| Duration::from_secs(3600));
    let parts = Parts {
        queues: vec![QueueParts {
            name: "default".to_owned(),
            model: "echo on cpu".to_owned(),
            broker: Arc::clone(&queue) as Arc<dyn Broker>,
            results: Arc::clone(&queue) as Arc<dyn ResultStore>,
            alerts: Arc::clone(&queue) as Arc<dyn Broker>,
            models: vec![ModelParts::new("echo", EchoCodec, device)],
        }],
        settings: Settings {
            worker: "worker".to_owned(),
            pod: "worker-0".to_owned(),
            limits: Limits { max_items: one, max_cost: one, max_wait: Duration::ZERO },
            prefetch: 0,
            retry: RetryPolicy::default(),
            stall: Duration::from_secs(7200),
            grace: Duration::ZERO,
            decode_threads: 0,
            max_body: 1 << 10,
            max_job_cost: 1 << 10,
            exit_when_empty: false,
            max_jobs: None,
            deletion_cost: Some(pod.clone()),
        },
        clock: Arc::new(SystemClock),
        seed: 7,
        metrics: Metrics::default(),
        health: Health::new(),
        traces: Traces::default(),
    };
    (queue, Pipeline::new(parts))
}

#[tokio::test]
async fn a_worker_tells_that_it_is_busy_and_a_hanging_server_does_not_keep_it_from_its_end() {
    // Well below the 5 s that the call alone may take; the machine may be slower once.
    let limit = Duration::from_secs(3);
    let mut took = end_beside_a_call().await;
    for _ in 1..3 {
        if took >= limit {
            took = end_beside_a_call().await;
        }
    }
    assert!(took < limit, "{took:?}");
}

/// How long the end of a busy worker takes whose call to the server hangs.
async fn end_beside_a_call() -> Duration {
    let kubernetes = Kubernetes::answering(None).await;
    let (queue, worker) = busy_worker(&kubernetes.pod);
    queue.publish(vec![Job::new(r#"{"input": "a"}"#, SystemClock.now())]).await.unwrap();
    let stop = CancellationToken::new();
    let worker = tokio::spawn(worker.run(stop.clone()));
    while kubernetes.asked().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(kubernetes.asked()[0].ends_with(r#"pod-deletion-cost":"1"}}}"#));
    let stopped = Instant::now();
    stop.cancel();
    worker.await.unwrap().unwrap();
    stopped.elapsed()
}
