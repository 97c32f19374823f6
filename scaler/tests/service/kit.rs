//! A scaler on queues in memory that can be broken, and a client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, IsActiveResponse, MetricValue, ScaledObjectRef};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    Address, Backlog, Behavior, Broker, Depth, Error, ErrorKind, Headers, Info, Job, Link,
    OpenOptions, Phase, QueueUrl, Result, Source, Timestamp, WorkerStatus,
};
use ebb_scaler::{Connect, Scaler, ScalerArgs};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// How the broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Says only after another look that nothing is there, as a cluster does.
    Unsure,
    Broken,
    /// Takes calls and never answers.
    Hung,
}

/// Queues in memory, and what was done to them.
pub(crate) struct Fickle {
    queues: Mutex<HashMap<String, MemoryQueue>>,
    pub(crate) mood: watch::Sender<Mood>,
    /// How many queues are open.
    pub(crate) open: watch::Sender<usize>,
    /// How many times a queue was opened.
    pub(crate) opened: watch::Sender<usize>,
    /// How many times one was left in order.
    pub(crate) closed: watch::Sender<usize>,
}

impl Fickle {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            queues: Mutex::default(),
            mood: watch::Sender::new(Mood::Well),
            open: watch::Sender::new(0),
            opened: watch::Sender::new(0),
            closed: watch::Sender::new(0),
        })
    }

    pub(crate) fn queue(&self, name: &str) -> MemoryQueue {
        let mut queues = self.queues.lock().unwrap();
        let fresh = || MemoryQueue::new(&Behavior::default(), OpenOptions::default());
        queues.entry(name.to_owned()).or_insert_with(fresh).clone()
    }

    pub(crate) fn feel(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

async fn answer(mood: &watch::Sender<Mood>) -> Result<()> {
    let now = *mood.borrow();
    match now {
        Mood::Well | Mood::Unsure => Ok(()),
        Mood::Broken => Err(Error::new(ErrorKind::Unavailable, "broken by the test")),
        Mood::Hung => std::future::pending().await,
    }
}

/// The broker of a test, as the scaler sees it.
pub(crate) struct Door(pub(crate) Arc<Fickle>);

#[async_trait]
impl Connect for Door {
    async fn connect(&self, url: &QueueUrl, _source: &Source) -> Result<Arc<dyn Backlog>> {
        answer(&self.0.mood).await?;
        let queue = &name_of(url);
        if queue.starts_with("/broken") {
            return Err(Error::new(ErrorKind::Unavailable, "broken by the test"));
        }
        self.0.open.send_modify(|n| *n += 1);
        self.0.opened.send_modify(|n| *n += 1);
        Ok(Arc::new(Seen { queue: self.0.queue(queue), broker: Arc::clone(&self.0) }))
    }
}

/// The queues of the default broker by their own name, those of others after their file.
fn name_of(url: &QueueUrl) -> String {
    match &url.address {
        Address::Sqlite { path, .. } if path.to_str() != Some("/nowhere") => {
            format!("{}#{}", path.display(), url.queue)
        }
        _ => url.queue.clone(),
    }
}

struct Seen {
    queue: MemoryQueue,
    broker: Arc<Fickle>,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.broker.open.send_modify(|n| *n -= 1);
    }
}

#[async_trait]
impl Backlog for Seen {
    async fn depth(&self) -> Result<Depth> {
        const WAIT: Duration = Duration::from_millis(100);
        answer(&self.broker.mood).await?;
        let depth = self.queue.depth().await?;
        if depth.ready > 0 || *self.broker.mood.borrow() != Mood::Unsure {
            return Ok(depth);
        }
        tokio::time::sleep(WAIT).await;
        Ok(Depth { waited: WAIT, ..self.queue.depth().await? })
    }

    async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        answer(&self.broker.mood).await?;
        self.queue.workers().await
    }

    async fn arrivals(&self) -> Result<BoxStream<'static, ()>> {
        answer(&self.broker.mood).await?;
        // A broker that breaks tells of nothing more.
        let mut mood = self.broker.mood.subscribe();
        let broken = async move { drop(mood.wait_for(|mood| *mood == Mood::Broken).await) };
        Ok(self.queue.arrivals().await?.take_until(broken.boxed()).boxed())
    }

    async fn info(&self) -> Result<Info> {
        self.queue.info().await
    }

    fn link(&self) -> &Link {
        self.queue.link()
    }

    async fn close(&self) -> Result<()> {
        self.broker.closed.send_modify(|n| *n += 1);
        self.queue.close().await
    }
}

/// A scaler that runs, its broker, and a client of it.
pub(crate) struct Kit {
    pub(crate) broker: Arc<Fickle>,
    pub(crate) client: ExternalScalerClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) server: JoinHandle<anyhow::Result<()>>,
}

async fn plain(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// Free ports, a queue named `jobs`, and a quick pace.
pub(crate) fn args() -> ScalerArgs {
    ScalerArgs {
        queue: Some(QueueUrl::sqlite("/nowhere")),
        listen: ([127, 0, 0, 1], 0).into(),
        http_listen: Some(([127, 0, 0, 1], 0).into()),
        refresh: Duration::from_millis(50),
        repeat: Duration::from_millis(50),
        reload: Duration::from_millis(20),
        // Longer than any test waits: nothing may end only because time is up.
        grace: Duration::from_secs(60),
        ..ScalerArgs::default()
    }
}

impl Kit {
    pub(crate) async fn start(args: ScalerArgs) -> Self {
        Self::start_with(args, plain).await
    }

    /// The same, with a way of its own to connect.
    pub(crate) async fn start_with(
        args: ScalerArgs,
        connect: impl AsyncFnOnce(SocketAddr) -> Channel,
    ) -> Self {
        let broker = Fickle::new();
        let door = Arc::new(Door(Arc::clone(&broker)));
        let scaler = Scaler::bind_with(args, door).await.unwrap();
        Self::serve(scaler, broker, connect).await
    }

    /// The same on the brokers that are named, none of which can be broken here.
    pub(crate) async fn start_on_brokers(args: ScalerArgs) -> Self {
        let scaler = Scaler::bind(args).await.unwrap();
        Self::serve(scaler, Fickle::new(), plain).await
    }

    async fn serve(
        scaler: Scaler,
        broker: Arc<Fickle>,
        connect: impl AsyncFnOnce(SocketAddr) -> Channel,
    ) -> Self {
        let grpc = scaler.local_addr().unwrap();
        let http = scaler.http_addr().unwrap().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(scaler.serve(stop.clone()));
        let channel = connect(grpc).await;
        let client = ExternalScalerClient::new(channel.clone());
        Self { broker, client, channel, grpc, http, stop, server }
    }

    /// The default queue.
    pub(crate) fn queue(&self) -> MemoryQueue {
        self.broker.queue("jobs")
    }

    /// The one value of the trigger's one metric, asked for as KEDA does.
    pub(crate) async fn value(&self, object: &ScaledObjectRef) -> Result<MetricValue, Status> {
        patiently(async || self.value_at_once(object).await).await
    }

    /// The same by a single poll.
    pub(crate) async fn value_at_once(
        &self,
        object: &ScaledObjectRef,
    ) -> Result<MetricValue, Status> {
        let mut client = self.client.clone();
        let specs = client.get_metric_spec(object.clone()).await?.into_inner().metric_specs;
        assert_eq!(specs.len(), 1);
        let request = GetMetricsRequest {
            scaled_object_ref: Some(object.clone()),
            metric_name: specs[0].metric_name.clone(),
        };
        let mut values = client.get_metrics(request).await?.into_inner().metric_values;
        assert_eq!(values.len(), 1);
        let value = values.remove(0);
        assert_eq!(value.metric_name, specs[0].metric_name);
        assert_eq!(value.metric_value as f64, value.metric_value_float);
        Ok(value)
    }

    /// The value, once the broker was seen lately enough: where a look counts for a short time, a
    /// slow machine may have none that does.
    pub(crate) async fn known_value(&self, object: &ScaledObjectRef) -> i64 {
        let asked = Instant::now();
        loop {
            match self.value(object).await {
                Ok(value) => return value.metric_value,
                Err(status) => assert_eq!(status.code(), Code::Unavailable),
            }
            assert!(asked.elapsed() < Duration::from_secs(20), "the scaler knows nothing");
        }
    }

    pub(crate) async fn is_active(&self, object: &ScaledObjectRef) -> Result<bool, Status> {
        patiently(async || self.is_active_at_once(object).await).await
    }

    /// The same by a single call.
    pub(crate) async fn is_active_at_once(&self, object: &ScaledObjectRef) -> Result<bool, Status> {
        Ok(self.client.clone().is_active(object.clone()).await?.into_inner().result)
    }

    pub(crate) async fn stream(&self, object: &ScaledObjectRef) -> Streaming<IsActiveResponse> {
        self.client.clone().stream_is_active(object.clone()).await.unwrap().into_inner()
    }

    /// The same where there is no work, which is known by now: the stream has nothing to say.
    pub(crate) async fn idle_stream(
        &self,
        object: &ScaledObjectRef,
    ) -> Streaming<IsActiveResponse> {
        let stream = self.stream(object).await;
        assert!(!self.is_active(object).await.unwrap());
        stream
    }

    /// Stops the scaler, and fails if it takes its whole grace for that.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        drop((self.client, self.channel));
        let ended = tokio::time::timeout(Duration::from_secs(30), self.server).await;
        ended.expect("the scaler ends well within its grace").unwrap().unwrap();
    }
}

/// Asks again while the first look at a queue is under way: on a slow machine it may take longer
/// than a call waits for it.
pub(crate) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        let Err(status) = &answer else { return answer };
        let may_wait = begun.elapsed() < Duration::from_secs(20);
        if !(may_wait && status.message().contains("has not been seen yet")) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A page of the scaler's HTTP port, headers included.
pub(crate) async fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

/// Asks for a page until it says this.
pub(crate) async fn page_says(address: SocketAddr, path: &str, words: &str) -> String {
    let asked = Instant::now();
    loop {
        let page = page(address, path).await;
        if page.contains(words) {
            return page;
        }
        assert!(asked.elapsed() < Duration::from_secs(20), "{words} is never in\n{page}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a stream says next; fails when it has nothing to say for a while.
pub(crate) async fn said(stream: &mut Streaming<IsActiveResponse>) -> Option<bool> {
    let next = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    next.expect("the stream speaks").unwrap().map(|response| response.result)
}

/// Hears so many words of a stream; when the last one came, and the longest pause between two.
pub(crate) async fn pauses(
    stream: &mut Streaming<IsActiveResponse>,
    n_words: usize,
) -> (Instant, Duration) {
    assert_eq!(said(stream).await, Some(true));
    let (mut told, mut longest) = (Instant::now(), Duration::ZERO);
    for _ in 1..n_words {
        assert_eq!(said(stream).await, Some(true));
        longest = longest.max(told.elapsed());
        told = Instant::now();
    }
    (told, longest)
}

/// Waits until a stream has nothing more to say. Some words may be on their way already, and while they
/// come no pause is longer than twice the longest before it.
pub(crate) async fn falls_silent(
    stream: &mut Streaming<IsActiveResponse>,
    (mut told, mut longest): (Instant, Duration),
) {
    let silence = async {
        while let Ok(next) = timeout(3 * longest, stream.message()).await {
            assert!(next.unwrap().is_some(), "the stream ends");
            longest = longest.max(told.elapsed());
            told = Instant::now();
        }
    };
    timeout(Duration::from_secs(60), silence).await.expect("the repetition ends");
}

/// Hears a stream out; an error at its end would make KEDA come back ever later.
pub(crate) async fn ends_with_ok(stream: &mut Streaming<IsActiveResponse>) {
    let end = async { while stream.message().await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the stream ends");
}

pub(crate) fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ScaledObjectRef {
        name: "encoder".into(),
        namespace: "ml".into(),
        scaler_metadata: metadata.collect(),
    }
}

pub(crate) async fn publish(queue: &MemoryQueue, n_jobs: usize) {
    let jobs = (0..n_jobs).map(|_| Job::new("{}", Timestamp::now())).collect();
    queue.publish(jobs).await.unwrap();
}

pub(crate) async fn publish_delayed(queue: &MemoryQueue, delay: Duration) {
    let mut job = Job::new("{}", Timestamp::now());
    job.headers = Headers { not_before: Some(job.enqueued_at + delay), ..Headers::default() };
    queue.publish(vec![job]).await.unwrap();
}

pub(crate) async fn report(queue: &MemoryQueue, phase: Phase, in_flight: u64) {
    let status = WorkerStatus {
        id: "w1".into(),
        pod: "pod-1".into(),
        phase,
        in_flight,
        slots: 8,
        completed: 0,
        failed: 0,
        batch_time: None,
        cold_start: Vec::new(),
        first_result: None,
        model: "echo".into(),
        at: Timestamp::now(),
    };
    queue.report(&status).await.unwrap();
}
