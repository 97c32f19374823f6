//! Asks the scaler what KEDA would ask, when KEDA would ask it, and acts on the answers.
//!
//! One loop does the work of KEDA's polling, its push handler and the HorizontalPodAutoscaler, one
//! at a time, as KEDA's own lock has it. Two streams run beside it and only tell.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ebb_proto::keda::external_scaler_client::ExternalScalerClient;
use ebb_proto::keda::{GetMetricsRequest, MetricSpec, ScaledObjectRef};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tracing::{debug, info, warn};

use super::keda::{Reconnect, number};
use super::object::{self, ObjectPolicy, Replicas, ScaledObject};

/// KEDA's deadline for everything that the HorizontalPodAutoscaler waits for.
const SYNC_DEADLINE: Duration = Duration::from_secs(3);

/// Which object is scaled, by which scaler, how often it is asked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the scaler listens, such as `http://127.0.0.1:6000`.
    pub scaler: String,
    /// The object's name.
    pub name: String,
    /// The object's namespace.
    pub namespace: String,
    /// The trigger's metadata, as it would stand in a ScaledObject.
    pub metadata: HashMap<String, String>,
    /// Time between two polls (KEDA's `pollingInterval`).
    pub polling: Duration,
    /// Time between two syncs of the HorizontalPodAutoscaler.
    pub sync: Duration,
    /// How KEDA and the HorizontalPodAutoscaler scale.
    pub policy: ObjectPolicy,
}

/// What the autoscaler wants, and why.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// Replicas wanted.
    pub replicas: u32,
    /// Whether the scaler said last that there is work.
    pub active: bool,
    /// Whether the scaler's stream is open.
    pub streaming: bool,
    /// When the scaler's stream said so for the first time.
    pub first_push: Option<std::time::Instant>,
    /// The metric at the last look.
    pub value: f64,
    /// What one replica should have of it.
    pub target: f64,
    /// Why the last look failed, if it did.
    pub error: Option<String>,
}

/// Runs until told to stop; the view says at any time how many workers are wanted.
pub async fn run(
    settings: Settings,
    view: watch::Sender<View>,
    stop: CancellationToken,
) -> Result<()> {
    let endpoint = Endpoint::from_shared(settings.scaler.clone())
        .with_context(|| format!("scaler address {:?} is not valid", settings.scaler))?;
    let scaler = Scaler {
        client: ExternalScalerClient::new(endpoint.connect_lazy()),
        object: ScaledObjectRef {
            name: settings.name.clone(),
            namespace: settings.namespace.clone(),
            scaler_metadata: settings.metadata.clone(),
        },
    };
    view.send_modify(|view| view.replicas = settings.policy.executor.min);
    let (told, news) = mpsc::channel(16);
    let streams = async {
        tokio::join!(
            watch_activity(scaler.clone(), told.clone(), &view),
            watch_specs(scaler.clone(), told.clone()),
        )
    };
    let driver = Driver {
        scaler: scaler.clone(),
        scaled: ScaledObject::new(settings.policy.clone()),
        spec: None,
        epoch: Instant::now(),
        view: &view,
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = driver.run(&settings, news) => {}
        _ = streams => {}
    }
    Ok(())
}

/// What the streams tell.
#[derive(Debug)]
enum News {
    /// There is work.
    Active,
    /// The metric has another target now.
    Spec(MetricSpec),
}

/// KEDA's calls for one object.
#[derive(Debug, Clone)]
struct Scaler {
    client: ExternalScalerClient<Channel>,
    object: ScaledObjectRef,
}

impl Scaler {
    async fn spec(&mut self, deadline: Option<Duration>) -> Result<MetricSpec> {
        let request = within(self.object.clone(), deadline);
        let response =
            self.client.get_metric_spec(request).await.map_err(|status| refusal(&status))?;
        the_one(response.into_inner().metric_specs)
    }

    /// The sum of all values under this name, as the HorizontalPodAutoscaler takes it.
    async fn value(&mut self, name: &str, deadline: Option<Duration>) -> Result<f64> {
        let request = GetMetricsRequest {
            scaled_object_ref: Some(self.object.clone()),
            metric_name: name.to_owned(),
        };
        let response = self
            .client
            .get_metrics(within(request, deadline))
            .await
            .map_err(|status| refusal(&status))?;
        let values = response.into_inner().metric_values;
        ensure!(!values.is_empty(), "no matching metrics found");
        Ok(values.iter().map(|value| number(value.metric_value_float, value.metric_value)).sum())
    }

    async fn is_active(&mut self, deadline: Option<Duration>) -> Result<bool> {
        let request = within(self.object.clone(), deadline);
        Ok(self
            .client
            .is_active(request)
            .await
            .map_err(|status| refusal(&status))?
            .into_inner()
            .result)
    }

    /// One look, in KEDA's order; an error of the last call voids what the first ones said.
    async fn look(&mut self, deadline: Option<Duration>) -> Result<Look, Failure> {
        let end = deadline.map(|deadline| Instant::now() + deadline);
        let spec = by(end, self.spec(deadline)).await;
        let spec = spec.map_err(|error| Failure { spec: None, error })?;
        let rest = async {
            let value = self.value(&spec.metric_name, deadline).await?;
            Ok((value, self.is_active(deadline).await?))
        };
        match by(end, rest).await {
            Ok((value, active)) => Ok(Look { spec, value, active }),
            Err(error) => Err(Failure { spec: Some(spec), error }),
        }
    }
}

struct Look {
    spec: MetricSpec,
    value: f64,
    active: bool,
}

/// A look that failed.
struct Failure {
    /// None where it was `GetMetricSpec` that failed.
    spec: Option<MetricSpec>,
    error: anyhow::Error,
}

struct Driver<'a> {
    scaler: Scaler,
    scaled: ScaledObject,
    /// What the HorizontalPodAutoscaler was built with: kept until the stream tells another.
    spec: Option<MetricSpec>,
    epoch: Instant,
    view: &'a watch::Sender<View>,
}

impl Driver<'_> {
    async fn run(mut self, settings: &Settings, mut news: mpsc::Receiver<News>) {
        let mut poll = interval(settings.polling);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sync = interval_at(Instant::now() + settings.sync, settings.sync);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let before = self.replicas();
            tokio::select! {
                Some(news) = news.recv() => self.hear(news),
                _ = poll.tick() => self.poll().await,
                _ = sync.tick() => self.sync().await,
            }
            // The first sync comes a full interval after activation, as if the two were in step:
            // on a cluster it is anything up to that.
            if before == 0 && self.replicas() > 0 {
                sync.reset();
            }
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Active => {
                let wanted = self.scaled.push(self.epoch.elapsed(), self.replicas());
                self.scale(wanted, "pushed");
            }
            News::Spec(spec) => self.spec = Some(spec),
        }
    }

    async fn poll(&mut self) {
        let mut look = self.scaler.look(None).await;
        if let Err(Failure { error, .. }) = &look {
            debug!(%error, "poll failed, asking once more");
            look = self.scaler.look(None).await;
        }
        let look = self.note(look);
        let wanted = self.scaled.poll(self.epoch.elapsed(), self.members(), look);
        self.scale(wanted, "polled");
    }

    async fn sync(&mut self) {
        if self.replicas() == 0 {
            return;
        }
        let look = self.scaler.look(Some(SYNC_DEADLINE)).await;
        let look = self.note(look);
        let wanted = self.scaled.sync(self.epoch.elapsed(), self.members(), look);
        self.scale(wanted, "synced");
    }

    /// Puts a look into the view, and says what it means to the object.
    fn note(&mut self, look: Result<Look, Failure>) -> object::Look {
        let look = match look {
            Ok(look) => look,
            Err(failure) => {
                self.complain(&failure.error);
                // Without a spec KEDA does not come as far as the fallback (kedacore/keda#8056).
                let Some(spec) = failure.spec else { return object::Look::Silent };
                return object::Look::Failed { target: target(self.spec.get_or_insert(spec)) };
            }
        };
        let spec = self.spec.get_or_insert(look.spec);
        let target = target(spec);
        self.view.send_modify(|view| {
            view.active = look.active;
            view.value = look.value;
            view.target = target;
            view.error = None;
        });
        object::Look::Answered { value: look.value, target, active: look.active }
    }

    fn complain(&self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        self.view.send_if_modified(|view| {
            let new = view.error.as_ref() != Some(&error);
            if new {
                warn!(error, "the scaler does not answer");
                view.error = Some(error);
            }
            new
        });
    }

    /// A process that was started counts as ready: no metric here has a target for all replicas.
    fn members(&self) -> Replicas {
        let wanted = self.replicas();
        Replicas { wanted, ready: wanted }
    }

    fn replicas(&self) -> u32 {
        self.view.borrow().replicas
    }

    fn scale(&self, wanted: u32, why: &str) {
        let from = self.replicas();
        if wanted != from {
            info!(from, to = wanted, why, "scaling");
            self.view.send_modify(|view| view.replicas = wanted);
        }
    }
}

/// Keeps `StreamIsActive` open and tells each `true`; a `false` is ignored, as KEDA does.
async fn watch_activity(mut scaler: Scaler, told: mpsc::Sender<News>, view: &watch::Sender<View>) {
    let mut reconnect = Reconnect::default();
    loop {
        let end = async {
            let mut stream =
                scaler.client.stream_is_active(scaler.object.clone()).await?.into_inner();
            view.send_modify(|view| view.streaming = true);
            while let Some(said) = stream.message().await? {
                if !said.result {
                    continue;
                }
                view.send_if_modified(|view| {
                    let first = view.first_push.is_none();
                    view.first_push.get_or_insert_with(std::time::Instant::now);
                    first
                });
                if told.send(News::Active).await.is_err() {
                    break;
                }
            }
            Ok::<(), Status>(())
        };
        let end = end.await;
        view.send_modify(|view| view.streaming = false);
        wait(&mut reconnect, "StreamIsActive", end).await;
    }
}

/// Keeps `StreamMetricSpec` open and tells each new target, unless the scaler does not offer it.
async fn watch_specs(mut scaler: Scaler, told: mpsc::Sender<News>) {
    let mut reconnect = Reconnect::default();
    loop {
        let end = async {
            let object = scaler.object.clone();
            let mut stream = scaler.client.stream_metric_spec(object).await?.into_inner();
            while let Some(said) = stream.message().await? {
                reconnect = Reconnect::default();
                // An empty list is ignored, as KEDA does.
                let Ok(spec) = the_one(said.metric_specs) else { continue };
                if told.send(News::Spec(spec)).await.is_err() {
                    break;
                }
            }
            Ok::<(), Status>(())
        };
        let end = end.await;
        if end.as_ref().is_err_and(|status| status.code() == tonic::Code::Unimplemented) {
            return std::future::pending().await;
        }
        wait(&mut reconnect, "StreamMetricSpec", end).await;
    }
}

async fn wait(reconnect: &mut Reconnect, stream: &str, end: Result<(), Status>) {
    let delay = match end {
        Ok(()) => reconnect.after_end(),
        Err(status) => {
            debug!(stream, code = %status.code(), reason = status.message(), "stream broke");
            reconnect.after_error()
        }
    };
    tokio::time::sleep(delay).await;
}

/// The answer, if it comes in time.
async fn by<T>(end: Option<Instant>, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(end) = end else { return answer.await };
    let in_time = tokio::time::timeout_at(end, answer).await;
    in_time.unwrap_or_else(|_| bail!("no answer within {} s", SYNC_DEADLINE.as_secs()))
}

fn within<T>(message: T, deadline: Option<Duration>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    request
}

fn refusal(status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}

/// Ours is one metric per trigger; the HorizontalPodAutoscaler would take the largest of several.
fn the_one(mut specs: Vec<MetricSpec>) -> Result<MetricSpec> {
    match specs.len() {
        0 => bail!("got empty metric spec"),
        1 => Ok(specs.remove(0)),
        n => bail!("the scaler offers {n} metrics, and there must be one"),
    }
}

fn target(spec: &MetricSpec) -> f64 {
    number(spec.target_size_float, spec.target_size)
}

#[cfg(test)]
mod tests;
