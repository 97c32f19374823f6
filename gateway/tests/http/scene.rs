//! A gateway, its queue, and whoever answers the jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use ebb_gateway::{Canceller, Ids, Keys, Limits, Metrics, Model, ModelPlan, Models, Parts, router};
use ebb_queue::faulty::{Faults, Faulty};
use ebb_queue::memory::MemoryQueue;
use ebb_queue::{
    AnyQueue, Behavior, Broker, Clock, Delivery, Failure, JSON, Job, JobResult, OpenOptions,
    Outcome, Queue, QueueUrl, ResultStore, Timestamp, TokioClock,
};
use ebb_telemetry::Traces;
use futures::StreamExt;
use prometheus::Registry;
use prometheus::proto::{Metric, MetricFamily};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

/// What a gateway of a test is given.
pub(crate) struct Setting {
    pub(crate) behavior: Behavior,
    pub(crate) models: Vec<ModelPlan>,
    pub(crate) keys: Option<String>,
    pub(crate) limits: Limits,
}

impl Default for Setting {
    fn default() -> Self {
        let limits = Limits {
            max_in_flight: 100,
            max_body: 1 << 16,
            memory: 1 << 20,
            max_inputs: 100,
            keep_alive: Duration::from_secs(5),
        };
        Self { behavior: Behavior::default(), models: vec![plan("m")], keys: None, limits }
    }
}

/// A model of this name.
pub(crate) fn plan(name: &str) -> ModelPlan {
    ModelPlan {
        name: name.to_owned(),
        aliases: vec![format!("alias-of-{name}")],
        url: QueueUrl::sqlite("none.db").with_queue(name).unwrap(),
        results: None,
        serves: None,
        timeout: Duration::from_secs(60),
        max_in_flight: None,
    }
}

/// A gateway around a queue in memory; all models share it.
pub(crate) struct Scene {
    pub(crate) queue: MemoryQueue,
    pub(crate) closing: CancellationToken,
    registry: Registry,
    router: Router,
    _cancels: AbortOnDropHandle<()>,
}

impl Scene {
    pub(crate) fn new(setting: Setting) -> Self {
        Self::around(setting, Arc::new)
    }

    /// The same on a broker with these faults, which can be set anew.
    pub(crate) fn on_faulty(setting: Setting, faults: Faults) -> (Self, Faulty<MemoryQueue>) {
        let mut broker = None;
        let scene = Self::around(setting, |queue| {
            let faulty = Faulty::new(Arc::new(queue), faults, 7);
            broker = Some(faulty.clone());
            Arc::new(faulty)
        });
        (scene, broker.expect("it was put around the queue"))
    }

    /// The same, with something between the gateway and the queue.
    pub(crate) fn around<Q: AnyQueue + 'static>(
        setting: Setting,
        wrap: impl FnOnce(MemoryQueue) -> Arc<Q>,
    ) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(Timestamp::UNIX_EPOCH));
        let options = OpenOptions { clock: Arc::clone(&clock), ..OpenOptions::default() };
        let queue = MemoryQueue::new(&setting.behavior, options);
        let opened: Queue = wrap(queue.clone());
        let models = setting.models.into_iter().map(|plan| {
            let model = Model::new(plan);
            model.open(Arc::clone(&opened));
            model
        });
        let keys = setting.keys.map(|text| {
            let keys = Arc::new(Keys::parse(&text).unwrap());
            watch::Sender::new(keys).subscribe()
        });
        let closing = CancellationToken::new();
        let registry = Registry::new();
        let metrics = Metrics::registered(&registry).unwrap();
        let (canceller, cancels) = Canceller::start(&metrics, setting.limits.max_in_flight);
        let parts = Parts {
            models: models.collect::<Models>(),
            is_local: keys.is_none(),
            keys,
            ids: Ids::new(b"a secret of the test"),
            canceller,
            limits: setting.limits,
            clock,
            metrics,
            traces: Traces::default(),
            closing: closing.clone(),
        };
        Self { queue, closing, registry, router: router(parts), _cancels: cancels }
    }

    /// The figure of a metric with these labels; 0 where there is none.
    pub(crate) fn figure(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name);
        let mut metrics = metrics.flat_map(MetricFamily::get_metric);
        let has = |metric: &Metric, (name, value): &(&str, &str)| {
            metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
        };
        let metric = metrics.find(|metric| labels.iter().all(|label| has(metric, label)));
        // One of them is none, which has 0.
        metric
            .map_or(0.0, |metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
    }

    /// Sends a request, and gives the response with its body unread.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request, and waits for all of the response.
    pub(crate) async fn ask(&self, request: Request<Body>) -> Reply {
        let (head, body) = self.send(request).await.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Reply { status: head.status, headers: head.headers, body }
    }

    /// The same in the background.
    pub(crate) fn begin(&self, request: Request<Body>) -> AbortOnDropHandle<Reply> {
        let router = self.router.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let response = router.oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            Reply { status: head.status, headers: head.headers, body }
        }))
    }

    /// Starts a worker that answers each job by this, the last first.
    pub(crate) fn answers(
        &self,
        answer: impl Fn(&Job) -> Result<String, String> + Send + 'static,
    ) -> AbortOnDropHandle<()> {
        let queue = self.queue.as_worker("w");
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                for delivery in receive(&queue).await.into_iter().rev() {
                    let said = answer(&delivery.job);
                    end(&queue, delivery, said).await;
                }
            }
        }))
    }

    /// Waits for the next job, and takes it.
    pub(crate) async fn take(&self) -> Delivery {
        receive(&self.queue).await.pop().unwrap()
    }
}

async fn receive(queue: &MemoryQueue) -> Vec<Delivery> {
    let max = 64.try_into().unwrap();
    loop {
        let deliveries = queue.receive(max, Duration::from_secs(5)).await.unwrap();
        if !deliveries.is_empty() {
            return deliveries;
        }
    }
}

/// Stores what became of a job, and settles it; a failure in words alone is the job's own fault.
pub(crate) async fn end(queue: &MemoryQueue, delivery: Delivery, said: Result<String, String>) {
    end_as(queue, delivery, said.map_err(Failure::invalid)).await;
}

/// The same, of any kind of failure.
pub(crate) async fn end_as(queue: &MemoryQueue, delivery: Delivery, said: Result<String, Failure>) {
    let outcome = match &said {
        Ok(body) => Outcome::Completed { content_type: JSON.to_owned(), body: body.clone().into() },
        Err(failure) => Outcome::Failed(failure.clone()),
    };
    let (id, attempt) = (delivery.job.id.clone(), delivery.attempt);
    let finished_at = Timestamp::UNIX_EPOCH;
    queue.put(&JobResult { id, attempt, outcome, finished_at, queue: None }).await.unwrap();
    let settlement = match said {
        Ok(_) => delivery.ack(),
        Err(failure) => delivery.reject(failure),
    };
    queue.settle(&[settlement]).await.unwrap();
}

/// A response that was read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }

    /// Status, and the code of the error.
    pub(crate) fn error(&self) -> (u16, String) {
        let code = self.json()["error"]["code"].as_str().unwrap_or("").to_owned();
        (self.status.as_u16(), code)
    }
}

/// A request with headers and a body.
pub(crate) fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    request("GET", path, &[], "")
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    request("POST", path, &[], body)
}

/// What an encoder answers: the length of the text.
pub(crate) fn embed(job: &Job) -> Result<String, String> {
    let body: Value = serde_json::from_slice(&job.body).unwrap();
    let text = body["input"].as_str().or(body["input"][0].as_str()).unwrap();
    if text == "bad" {
        return Err("the text is bad".to_owned());
    }
    let n = text.len();
    Ok(format!(
        r#"{{"data":[{{"embedding":[{n}],"truncated":false}}],"usage":{{"prompt_tokens":{n},"total_tokens":{n}}}}}"#
    ))
}

/// The events of a stream as they come.
pub(crate) struct Events {
    body: axum::body::BodyDataStream,
    read: String,
}

impl Events {
    pub(crate) fn of(response: Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), read: String::new() }
    }

    /// The next one, without the empty line behind it; none at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(event);
            }
            let part = self.body.next().await?.unwrap();
            self.read.push_str(std::str::from_utf8(&part).unwrap());
        }
    }

    /// All that is left.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }
}
