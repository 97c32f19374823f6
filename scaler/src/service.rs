//! KEDA's five calls. The only file that touches the types of `externalscaler.proto`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ebb_proto::keda::external_scaler_server::ExternalScaler;
use ebb_proto::keda::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
};
use futures::Stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use crate::config::ScalerArgs;
use crate::connection::Peer;
use crate::decision::{Decision, decide, whole};
use crate::explain::{self, Explain, Told};
use crate::limits;
use crate::metrics::Metrics;
use crate::news::{News, news};
use crate::open::OpenStream;
use crate::profiles::{Profiles, Refusal};
use crate::push::{Cadence, Push, Seen, attendance};
use crate::resolved::Resolved;
use crate::resolver::Resolver;
use crate::trace::{self, Call};
use crate::trigger::Trigger;
use crate::view::{Unknown, View};
use crate::watch::Observers;

/// Answers KEDA; clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    profiles: watch::Receiver<Arc<Profiles>>,
    resolver: Resolver,
    observers: Observers,
    explain: Explain,
    metrics: Metrics,
    cadence: Cadence,
    stream_max_age: Duration,
    /// Cancelled when streams are to end.
    draining: CancellationToken,
    /// How many streams are open.
    open: watch::Sender<usize>,
}

type Answer<T> = Result<Response<T>, Status>;
/// What an object asks for, and what is known of its queue from now on.
type Followed = (Arc<Resolved>, watch::Receiver<View>);
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(crate) fn new(
        profiles: watch::Receiver<Arc<Profiles>>,
        observers: Observers,
        explain: Explain,
        metrics: Metrics,
        args: &ScalerArgs,
    ) -> Self {
        Self {
            resolver: Resolver::new(profiles.clone()),
            profiles,
            observers,
            explain,
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

    /// What an object asks for, by the configuration of this moment.
    fn resolve(&self, object: &ScaledObjectRef) -> Result<Arc<Resolved>, Status> {
        let ScaledObjectRef { name, namespace, scaler_metadata } = object;
        limits::check(namespace, name, scaler_metadata).map_err(Status::invalid_argument)?;
        self.resolver.resolve(namespace, scaler_metadata).map_err(|refusal| {
            self.explain.refused(namespace, name, &refusal);
            match refusal {
                Refusal::Invalid(words) => Status::invalid_argument(words),
                Refusal::Denied(words) => Status::permission_denied(words),
            }
        })
    }

    /// What is known, or what a look that is under way has found so far where that is sure by itself.
    async fn decision(
        &self,
        object: &ScaledObjectRef,
        resolved: &Resolved,
        is_sure: fn(&Decision) -> bool,
    ) -> Result<Decision, Status> {
        let Resolved { place, trigger, .. } = resolved;
        let unknown = |why: Unknown| status(resolved, &why);
        let max_age = self.observers.max_age();
        let glimpse = |view: &View| {
            let (snapshot, now) = view.glimpsed(Instant::now(), max_age)?;
            Some(decide(snapshot, trigger, now)).filter(is_sure)
        };
        let seen = self.observers.view(place, &object.namespace, |view| glimpse(view).is_some());
        let view = seen.await.map_err(unknown)?;
        let known = view.known(Instant::now(), max_age);
        let decision = known.map(|(snapshot, now)| decide(snapshot, trigger, now));
        let decision = decision.or_else(|why| glimpse(&view).ok_or(why)).map_err(unknown)?;
        let Decision { value, why, .. } = decision;
        let ScaledObjectRef { name, namespace, .. } = object;
        tracing::debug!(namespace, name, queue = %trigger.source, value, %why, "decided");
        Ok(decision)
    }

    /// The first time, also warns of what has less effect than it says, and whenever it is seen, of
    /// another pool on the same queue.
    fn remember(&self, object: &ScaledObjectRef, resolved: &Arc<Resolved>, told: Told) {
        let ScaledObjectRef { name, namespace, .. } = object;
        let is_first = self.explain.told(namespace, name, resolved, told);
        let queue = &resolved.place.source;
        if let Some(warning) = resolved.trigger.warning().filter(|_| is_first) {
            tracing::warn!(namespace, name, %queue, "{warning}");
        }
        if let Some((of, other)) = self.explain.rival(namespace, name, &resolved.place) {
            let warning = explain::one_pool(&[(of, other)]);
            tracing::warn!(namespace, name, %queue, "{warning}");
        }
    }

    /// Takes the time of an answer, and notes its code.
    async fn timed<T>(&self, call: Call, answer: impl Future<Output = Answer<T>>) -> Answer<T> {
        let answer = answer.await;
        call.end(answer.as_ref().err().map_or(Code::Ok, Status::code));
        answer
    }

    fn called<T>(&self, method: &'static str, request: &Request<T>) -> Call {
        Call::begin((self.observers.traces(), &self.metrics), method, request)
    }

    /// When a stream that opens now is to end: spread, so that not all end at once.
    fn end_of_stream(&self) -> Instant {
        let chance: f64 = rand::random();
        Instant::now() + self.stream_max_age.mul_f64(0.8 + 0.4 * chance)
    }

    /// Counts a stream in, unless its connection or its client has as many as it may have.
    fn opened<T>(&self, method: &'static str, request: &Request<T>) -> Result<OpenStream, Status> {
        let room = request.extensions().get::<Peer>().map(Peer::room_for_a_stream);
        let room = room.transpose().map_err(|full| Status::resource_exhausted(full.to_string()))?;
        Ok(OpenStream::count(&self.open, self.metrics.streams(method), room))
    }

    /// Tells activity until the stream is old or the scaler ends; whatever the broker does.
    fn push(
        &self,
        object: ScaledObjectRef,
        mut resolved: Arc<Resolved>,
        mut views: watch::Receiver<View>,
        open: OpenStream,
    ) -> Answers<IsActiveResponse> {
        let service = self.clone();
        let end = self.end_of_stream();
        let mut profiles = self.profiles.clone();
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
                let trigger = &resolved.trigger;
                if service.tells(&mut push, &views.borrow_and_update(), trigger, now) {
                    service.remember(&object, &resolved, Told::Pushed);
                    yield Ok(IsActiveResponse { result: true });
                }
                let news = tokio::select! {
                    () = &mut ended => News::End,
                    changed = profiles.changed() => News::of(changed, News::Profiles),
                    news = news(&push, &mut views, now) => news,
                };
                match news {
                    News::End => break,
                    News::View => {}
                    News::Profiles => match service.moved(&object, &resolved) {
                        Ok(None) => {}
                        Ok(Some((new, new_views))) => {
                            resolved = new;
                            views = new_views;
                        }
                        // KEDA hears why when it opens the next stream.
                        Err(_) => break,
                    },
                }
            }
        })
    }

    /// What an object asks for now, if it is not what it was.
    fn moved(
        &self,
        object: &ScaledObjectRef,
        before: &Resolved,
    ) -> Result<Option<Followed>, Status> {
        let now = self.resolve(object)?;
        if *now == *before {
            return Ok(None);
        }
        let views = self.observers.watch(&now.place, &object.namespace);
        let views = views.map_err(|why| status(&now, &why))?;
        Ok(Some((now, views)))
    }

    /// Whether a stream says `true` now. It says nothing while nothing is known.
    fn tells(&self, push: &mut Push, view: &View, trigger: &Trigger, now: Instant) -> bool {
        let max_age = self.observers.max_age();
        let known = view.known(now, max_age).ok();
        let Some((snapshot, time)) = known.or_else(|| view.glimpsed(now, max_age)) else {
            return false;
        };
        let Decision { active, wakes_at, rests_at, .. } = decide(snapshot, trigger, time);
        if known.is_none() && !active {
            return false;
        }
        let since = push.active_since().map(|since| time - now.saturating_duration_since(since));
        let (attended, reports) = attendance(snapshot, trigger, since);
        // Brokers keep time in milliseconds.
        let until = |at| Duration::try_from(time.duration_until(at)).unwrap_or_default();
        let [wakes, rests] =
            [wakes_at, rests_at].map(|at| at.map(|at| now + until(at) + Duration::from_millis(1)));
        let seen = Seen { active, attended, reports, wakes, rests };
        let Some(reason) = push.next(seen, self.cadence, now) else { return false };
        self.metrics.pushed(reason);
        let look = view.look.as_ref().and_then(|look| look.span.as_ref());
        trace::told(self.observers.traces(), reason, look, &trigger.source);
        true
    }
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Answer<IsActiveResponse> {
        let call = self.called("IsActive", &request);
        let answer = async {
            let object = request.into_inner();
            let resolved = self.resolve(&object)?;
            // Whatever workers say, it is not less active for that.
            let decision = self.decision(&object, &resolved, |decision| decision.active);
            let result = decision.await?.active;
            self.remember(&object, &resolved, Told::Active(result));
            Ok(Response::new(IsActiveResponse { result }))
        };
        self.timed(call, answer).await
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<Self::StreamIsActiveStream> {
        let call = self.called("StreamIsActive", &request);
        let answer = async {
            let resolved = self.resolve(request.get_ref())?;
            let views = match self.observers.watch(&resolved.place, &request.get_ref().namespace) {
                // An error here would make KEDA come back ever later.
                Err(Unknown::Stopping) => return Ok(Response::new(ended())),
                views => views.map_err(|why| status(&resolved, &why))?,
            };
            let open = self.opened("StreamIsActive", &request)?;
            Ok(Response::new(self.push(request.into_inner(), resolved, views, open)))
        };
        self.timed(call, answer).await
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<GetMetricSpecResponse> {
        let call = self.called("GetMetricSpec", &request);
        let answer = async {
            let resolved = self.resolve(request.get_ref())?;
            let target = resolved.trigger.target();
            self.remember(request.get_ref(), &resolved, Told::Target(target));
            Ok(Response::new(spec(&resolved.trigger)))
        };
        self.timed(call, answer).await
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Answer<GetMetricsResponse> {
        let call = self.called("GetMetrics", &request);
        let answer = async {
            let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
            let object = scaled_object_ref
                .ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
            let resolved = self.resolve(&object)?;
            let name = resolved.trigger.metric_name();
            if name != metric_name {
                return Err(Status::not_found(format!("the metric of this trigger is {name}")));
            }
            // Who holds jobs may not have been heard yet: by a value that is too low an HPA scales in what
            // runs.
            let decision = self.decision(&object, &resolved, |_| false);
            let value = decision.await?.value;
            self.remember(&object, &resolved, Told::Value(value));
            let value =
                MetricValue { metric_name, metric_value: whole(value), metric_value_float: value };
            Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
        };
        self.timed(call, answer).await
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Answer<Self::StreamMetricSpecStream> {
        let call = self.called("StreamMetricSpec", &request);
        let answer = async {
            let mut profiles = self.profiles.clone();
            let resolved = self.resolve(request.get_ref())?;
            let open = self.opened("StreamMetricSpec", &request)?;
            let (service, end) = (self.clone(), self.end_of_stream());
            let object = request.into_inner();
            let stream: Answers<_> = Box::pin(async_stream::stream! {
                let _open = open;
                let mut told = spec(&resolved.trigger);
                yield Ok(told.clone());
                loop {
                    let changed = tokio::select! {
                        () = service.draining.cancelled() => false,
                        () = sleep_until(end) => false,
                        changed = profiles.changed() => changed.is_ok(),
                    };
                    // KEDA hears why when it opens the next stream.
                    let resolved = changed.then(|| service.resolve(&object));
                    let Some(Ok(resolved)) = resolved else { break };
                    let now = spec(&resolved.trigger);
                    if now != told {
                        told = now;
                        yield Ok(told.clone());
                    }
                }
            });
            Ok(Response::new(stream))
        };
        self.timed(call, answer).await
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
fn status(resolved: &Resolved, why: &Unknown) -> Status {
    let words = resolved.status(why);
    match why {
        Unknown::TooManyQueues(_) | Unknown::TooManyOfNamespace(_) => {
            Status::resource_exhausted(words)
        }
        _ => Status::unavailable(words),
    }
}

fn ended<T: Send + 'static>() -> Answers<T> {
    Box::pin(futures::stream::empty())
}

#[cfg(test)]
mod tests;
