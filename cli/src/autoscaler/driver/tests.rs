//! The driver against a scaler that says what a test wants, over a real connection.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use ebb_proto::keda::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use ebb_proto::keda::{GetMetricSpecResponse, GetMetricsResponse, IsActiveResponse, MetricValue};
use futures::{Stream, StreamExt, stream};
use tokio::task::JoinHandle;
use tonic::Response;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::autoscaler::fallback::{FallbackBehavior, FallbackPolicy};
use crate::autoscaler::hpa::{HpaPolicy, Rules};
use crate::autoscaler::keda::ExecutorPolicy;

#[derive(Debug, Clone, Default)]
struct Says {
    active: bool,
    value: f64,
    /// The call that fails, and the one that is never answered.
    fails: Option<&'static str>,
    hangs: Option<&'static str>,
    pushed: bool,
}

/// A scaler that says what it is told to say, and remembers what it was asked.
#[derive(Debug, Clone)]
struct Fake {
    says: watch::Sender<Says>,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    async fn ask(&self, name: &'static str) -> Result<Says, Status> {
        self.asked.lock().unwrap().push(name);
        let says = self.says.borrow().clone();
        if says.hangs == Some(name) {
            std::future::pending::<()>().await;
        }
        if says.fails == Some(name) { Err(Status::unavailable("told to fail")) } else { Ok(says) }
    }
}

fn specs() -> GetMetricSpecResponse {
    let spec = MetricSpec { metric_name: "jobs".into(), target_size: 10, target_size_float: 10.0 };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

#[async_trait::async_trait]
impl ExternalScaler for Fake {
    type StreamIsActiveStream = Replies<IsActiveResponse>;
    type StreamMetricSpecStream = Replies<GetMetricSpecResponse>;

    async fn is_active(&self, _: Request<ScaledObjectRef>) -> Reply<IsActiveResponse> {
        let result = self.ask("IsActive").await?.active;
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Reply<Self::StreamIsActiveStream> {
        let says = stream::unfold(self.says.subscribe(), |mut says| async move {
            says.changed().await.ok()?;
            let result = says.borrow_and_update().pushed;
            Some((Ok(IsActiveResponse { result }), says))
        });
        Ok(Response::new(says.boxed()))
    }

    async fn get_metric_spec(&self, _: Request<ScaledObjectRef>) -> Reply<GetMetricSpecResponse> {
        self.ask("GetMetricSpec").await?;
        Ok(Response::new(specs()))
    }

    async fn get_metrics(&self, asked: Request<GetMetricsRequest>) -> Reply<GetMetricsResponse> {
        let value = self.ask("GetMetrics").await?.value;
        let metric_name = asked.into_inner().metric_name;
        let value = MetricValue { metric_name, metric_value: 0, metric_value_float: value };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        _: Request<ScaledObjectRef>,
    ) -> Reply<Self::StreamMetricSpecStream> {
        Err(Status::unimplemented("as scalers before KEDA 2.21"))
    }
}

/// A driver at work on a fake.
struct Bed {
    fake: Fake,
    view: watch::Receiver<View>,
    stop: CancellationToken,
    driver: JoinHandle<Result<()>>,
    server: JoinHandle<()>,
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(20);

impl Bed {
    async fn start(polling: Duration, sync: Duration, cooldown: Duration) -> Self {
        Self::start_with(polling, sync, cooldown, None).await
    }

    async fn start_with(
        polling: Duration,
        sync: Duration,
        cooldown: Duration,
        fallback: Option<FallbackPolicy>,
    ) -> Self {
        let fake = Fake { says: watch::Sender::new(Says::default()), asked: Arc::default() };
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = ExternalScalerServer::new(fake.clone());
        let server = tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        let rules = Rules::Plain { stabilization: Duration::ZERO };
        let settings = Settings {
            scaler: format!("http://{address}"),
            name: "workers".into(),
            namespace: "test".into(),
            metadata: HashMap::new(),
            polling,
            sync,
            policy: ObjectPolicy {
                executor: ExecutorPolicy { cooldown, ..ExecutorPolicy::default() },
                hpa: HpaPolicy { max: 3, rules, ..HpaPolicy::default() },
                fallback,
                ..ObjectPolicy::default()
            },
        };
        let (sender, view) = watch::channel(View::default());
        let stop = CancellationToken::new();
        let driver = tokio::spawn(run(settings, sender, stop.clone()));
        let mut bed = Self { fake, view, stop, driver, server };
        bed.until(|view| view.streaming && view.target > 0.0).await;
        bed
    }

    fn say(&self, change: impl FnOnce(&mut Says)) {
        self.fake.says.send_modify(change);
    }

    async fn until(&mut self, state: impl FnMut(&View) -> bool) -> View {
        let reached = tokio::time::timeout(Duration::from_secs(20), self.view.wait_for(state));
        reached.await.expect("the state is reached in time").unwrap().clone()
    }

    /// Waits for so many more questions: what they lead to has then been done.
    async fn asked(&self, n: usize) {
        let asked = || self.fake.asked.lock().unwrap().len();
        let n_before = asked();
        while asked() < n_before + n {
            tokio::task::yield_now().await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.driver.await.unwrap().unwrap();
        self.server.abort();
    }
}

#[tokio::test]
async fn a_poll_asks_what_keda_asks_in_kedas_order() {
    let bed = Bed::start(LONG, LONG, SHORT).await;
    assert_eq!(*bed.fake.asked.lock().unwrap(), ["GetMetricSpec", "GetMetrics", "IsActive"]);
    bed.end().await;
}

#[tokio::test]
async fn a_pushed_true_wakes_the_pool_without_a_poll_and_a_false_does_nothing() {
    let mut bed = Bed::start(LONG, LONG, SHORT).await;
    bed.say(|says| says.pushed = false);
    bed.say(|says| says.pushed = true);
    let view = bed.until(|view| view.replicas > 0).await;
    assert_eq!(view.replicas, 1);
    assert!(view.first_push.is_some());
    assert_eq!(bed.fake.asked.lock().unwrap().len(), 3, "one poll, at the start");
    bed.end().await;
}

#[tokio::test]
async fn a_poll_wakes_the_pool_a_sync_widens_it_and_the_cooldown_ends_it() {
    let mut bed = Bed::start(SHORT, SHORT, SHORT).await;
    bed.say(|says| (says.active, says.value) = (true, 22.222));
    assert_eq!(bed.until(|view| view.replicas == 3).await.value, 22.222);
    bed.say(|says| says.value = 11.5);
    bed.until(|view| view.replicas == 2).await;
    bed.say(|says| (says.active, says.value) = (false, 0.0));
    bed.until(|view| view.replicas == 0 && !view.active).await;
    bed.end().await;
}

#[tokio::test]
async fn a_scaler_that_does_not_answer_changes_nothing() {
    let mut bed = Bed::start(SHORT, SHORT, Duration::ZERO).await;
    bed.say(|says| (says.active, says.value) = (true, 30.0));
    bed.until(|view| view.replicas == 3).await;
    for call in ["GetMetricSpec", "GetMetrics", "IsActive"] {
        bed.say(|says| says.fails = Some(call));
        let view = bed.until(|view| view.error.is_some()).await;
        assert_eq!(view.replicas, 3);
        assert!(view.error.unwrap().contains("told to fail"));
        // Many more questions without an answer, and a cooldown of nothing.
        bed.asked(20).await;
        assert_eq!(bed.view.borrow().replicas, 3, "{call}");
        bed.say(|says| says.fails = None);
        bed.until(|view| view.error.is_none()).await;
    }
    bed.end().await;
}

const FALLBACK: FallbackPolicy =
    FallbackPolicy { failure_threshold: 3, replicas: 2, behavior: FallbackBehavior::Static };

#[tokio::test]
async fn a_fallback_stands_in_for_metrics_that_fail_and_not_for_a_spec_that_does() {
    let mut bed = Bed::start_with(SHORT, SHORT, SHORT, Some(FALLBACK)).await;
    bed.say(|says| (says.active, says.value) = (true, 30.0));
    bed.until(|view| view.replicas == 3).await;
    // As KEDA has it: kedacore/keda#8056.
    bed.say(|says| says.fails = Some("GetMetricSpec"));
    bed.until(|view| view.error.is_some()).await;
    bed.asked(20).await;
    assert_eq!(bed.view.borrow().replicas, 3);
    for call in ["GetMetrics", "IsActive"] {
        bed.say(|says| says.fails = Some(call));
        bed.until(|view| view.replicas == 2).await;
        bed.say(|says| says.fails = None);
        bed.until(|view| view.replicas == 3).await;
    }
    bed.end().await;
}

#[tokio::test]
async fn a_call_that_is_never_answered_counts_as_the_one_that_failed() {
    let once = FallbackPolicy { failure_threshold: 0, ..FALLBACK };
    for (call, replicas) in [("GetMetricSpec", 3), ("GetMetrics", 2)] {
        let mut bed = Bed::start_with(LONG, SHORT, SHORT, Some(once.clone())).await;
        bed.say(|says| (says.active, says.pushed, says.value) = (true, true, 30.0));
        bed.until(|view| view.replicas == 3).await;
        bed.say(|says| says.hangs = Some(call));
        bed.until(|view| view.error.is_some() && view.replicas == replicas).await;
        bed.end().await;
    }
}
