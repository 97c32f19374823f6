//! KEDA's five calls. The only file that touches the types of `externalscaler.proto`.

use std::pin::Pin;
use std::time::Duration;

use ebb_proto::keda::external_scaler_server::ExternalScaler;
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use ebb_queue::{Phase, QueueUrl};
use futures::Stream;
use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::config::ScalerArgs;
use crate::decision::{Decision, decide, whole};
use crate::metrics::Metrics;
use crate::push::{Cadence, Push, Reason, Seen};
use crate::trigger::Trigger;
use crate::watch::{Observers, Unknown, View};

/// An active stream has spoken, and what it says next can wait this long.
const UNHURRIED: Duration = Duration::from_millis(100);

/// Answers KEDA; clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    broker: QueueUrl,
    observers: Observers,
    metrics: Metrics,
    cadence: Cadence,
    stream_max_age: Duration,
    /// Cancelled when streams are to end.
    draining: CancellationToken,
    /// How many streams are open.
    open: watch::Sender<usize>,
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(crate) fn new(
        broker: QueueUrl,
        observers: Observers,
        metrics: Metrics,
        args: &ScalerArgs,
    ) -> Self {
        Self {
            broker,
            observers,
            metrics,
            cadence: Cadence { repeat: args.repeat, heartbeat: args.heartbeat },
            stream_max_age: args.stream_max_age,
            draining: CancellationToken::new(),
            open: watch::Sender::new(0),
        }
    }

    /// Ends all streams with OK, and returns when the last one has.
    pub(crate) async fn drain(&self) {
        self.draining.cancel();
        let mut open = self.open.subscribe();
        // Cannot fail: the sender is ours.
        drop(open.wait_for(|n_streams| *n_streams == 0).await);
    }

    fn trigger(&self, object: &ScaledObjectRef) -> Result<Trigger, Status> {
        let pairs = object.scaler_metadata.iter();
        let metadata = pairs.map(|(key, value)| (key.as_str(), value.as_str()));
        Trigger::parse(metadata, &self.broker)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }

    async fn decision(
        &self,
        object: &ScaledObjectRef,
        trigger: &Trigger,
    ) -> Result<Decision, Status> {
        let unknown = |why: Unknown| status(&trigger.queue, &why);
        let view = self.observers.view(&trigger.queue).await.map_err(unknown)?;
        let known = view.known(Instant::now(), self.observers.max_age()).map_err(unknown)?;
        let (snapshot, now) = known;
        let decision = decide(snapshot, trigger, now);
        let Decision { value, why, .. } = decision;
        let ScaledObjectRef { name, namespace, .. } = object;
        tracing::debug!(namespace, name, queue = trigger.queue, value, %why, "decided");
        Ok(decision)
    }

    /// Takes the time of an answer, and notes its code.
    async fn timed<T>(
        &self,
        method: &'static str,
        answer: impl Future<Output = Answer<T>>,
    ) -> Answer<T> {
        let begun = Instant::now();
        let answer = answer.await;
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        self.metrics.answered(method, code, begun.elapsed());
        answer
    }

    /// When a stream that opens now is to end: spread, so that not all end at once.
    fn end_of_stream(&self) -> Instant {
        let chance: f64 = rand::random();
        Instant::now() + self.stream_max_age.mul_f64(0.8 + 0.4 * chance)
    }

    fn opened(&self, method: &'static str) -> OpenStream {
        self.open.send_modify(|n_streams| *n_streams += 1);
        let gauge = self.metrics.streams(method);
        gauge.inc();
        OpenStream { open: self.open.clone(), gauge }
    }

    /// Tells activity until the stream is old or the scaler ends; whatever the broker does.
    fn push(
        &self,
        trigger: Trigger,
        mut views: watch::Receiver<View>,
    ) -> Answers<IsActiveResponse> {
        let service = self.clone();
        let open = self.opened("StreamIsActive");
        let end = self.end_of_stream();
        Box::pin(async_stream::stream! {
            let _open = open;
            let mut push = Push::Opening;
            let ended = async {
                tokio::select! {
                    () = service.draining.cancelled() => {}
                    () = sleep_until(end) => {}
                }
            };
            tokio::pin!(ended);
            loop {
                let now = Instant::now();
                let told = service.tell(&mut push, &views.borrow_and_update(), &trigger, now);
                if let Some(result) = told {
                    yield Ok(IsActiveResponse { result });
                }
                // A due push about an unknown queue waits until there is news.
                let due = push.due().filter(|due| *due > now);
                let news = async {
                    if let Some(due) = due {
                        if push.is_unhurried() {
                            sleep(UNHURRIED).await;
                        }
                        tokio::select! {
                            changed = views.changed() => changed.is_ok(),
                            () = sleep_until(due) => true,
                        }
                    } else {
                        views.changed().await.is_ok()
                    }
                };
                let go_on = tokio::select! {
                    () = &mut ended => false,
                    news = news => news,
                };
                if !go_on {
                    break;
                }
            }
        })
    }

    /// What a stream says now, if anything. Nothing is said while nothing is known.
    fn tell(&self, push: &mut Push, view: &View, trigger: &Trigger, now: Instant) -> Option<bool> {
        let (snapshot, time) = view.known(now, self.observers.max_age()).ok()?;
        let Decision { active, wakes_at, .. } = decide(snapshot, trigger, time);
        let attended = snapshot.workers.iter().any(|worker| worker.phase != Phase::Draining);
        // Brokers keep time in milliseconds.
        let until = |at| Duration::try_from(time.duration_until(at)).unwrap_or_default();
        let wakes = wakes_at.map(|at| now + until(at) + Duration::from_millis(1));
        let reason: Reason = push.next(Seen { active, attended, wakes }, self.cadence, now)?;
        self.metrics.pushed(reason);
        Some(active)
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Answer<IsActiveResponse> {
        let answer = async {
            let object = request.into_inner();
            let trigger = self.trigger(&object)?;
            let decision = self.decision(&object, &trigger).await?;
            Ok(Response::new(IsActiveResponse { result: decision.active }))
        };
        self.timed("IsActive", answer).await
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<Self::StreamIsActiveStream> {
        let answer = async {
            let trigger = self.trigger(request.get_ref())?;
            let views = match self.observers.watch(&trigger.queue) {
                // An error here would make KEDA come back ever later.
                Err(Unknown::Stopping) => return Ok(Response::new(ended())),
                views => views.map_err(|why| status(&trigger.queue, &why))?,
            };
            Ok(Response::new(self.push(trigger, views)))
        };
        self.timed("StreamIsActive", answer).await
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<GetMetricSpecResponse> {
        let answer = async { Ok(Response::new(spec(&self.trigger(request.get_ref())?))) };
        self.timed("GetMetricSpec", answer).await
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Answer<GetMetricsResponse> {
        let answer = async {
            let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
            let object = scaled_object_ref
                .ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
            let trigger = self.trigger(&object)?;
            if trigger.metric_name() != metric_name {
                let name = trigger.metric_name();
                return Err(Status::not_found(format!("the metric of this trigger is {name}")));
            }
            let decision = self.decision(&object, &trigger).await?;
            let value = MetricValue {
                metric_name,
                metric_value: whole(decision.value),
                metric_value_float: decision.value,
            };
            Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
        };
        self.timed("GetMetrics", answer).await
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<Self::StreamMetricSpecStream> {
        let answer = async {
            let spec = spec(&self.trigger(request.get_ref())?);
            let draining = self.draining.clone();
            let open = self.opened("StreamMetricSpec");
            let end = self.end_of_stream();
            let stream: Answers<_> = Box::pin(async_stream::stream! {
                let _open = open;
                yield Ok(spec);
                tokio::select! {
                    () = draining.cancelled() => {}
                    () = sleep_until(end) => {}
                }
            });
            Ok(Response::new(stream))
        };
        self.timed("StreamMetricSpec", answer).await
    }
}

fn spec(trigger: &Trigger) -> GetMetricSpecResponse {
    let spec = MetricSpec {
        metric_name: trigger.metric_name(),
        target_size: whole(trigger.target()),
        target_size_float: trigger.target(),
    };
    GetMetricSpecResponse { metric_specs: vec![spec] }
}

/// Never OK: what is unknown is never told as zero.
fn status(queue: &str, why: &Unknown) -> Status {
    let words = format!("queue {queue}: {why}");
    match why {
        Unknown::TooManyQueues(_) => Status::resource_exhausted(words),
        _ => Status::unavailable(words),
    }
}

fn ended<T: Send + 'static>() -> Answers<T> {
    Box::pin(futures::stream::empty())
}

/// Counts a stream while it lives.
struct OpenStream {
    open: watch::Sender<usize>,
    gauge: IntGauge,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.send_modify(|n_streams| *n_streams -= 1);
        self.gauge.dec();
    }
}
