//! From a model's kind to its codec and its builder: the only match over models.

#[cfg(feature = "cpu")]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "cpu")]
use anyhow::Context;
use ebb_model::Model;
use ebb_model::echo::Echo;
#[cfg(feature = "cpu")]
use ebb_model::{
    DeviceChoice, DeviceError,
    bert::{self, Classifier, Encoder, Tagger, Tokenizer},
    sentinel::Sentinel,
};
use ebb_queue::{Broker, Clock, ResultStore};
use ebb_telemetry::{Health, Traces};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "cpu")]
use crate::codec::{ClassifierCodec, EncoderCodec, RerankerCodec, SentinelCodec, TaggerCodec};
use crate::codec::{Codec, EchoCodec};
use crate::config::ModelChoice;
#[cfg(feature = "cpu")]
use crate::config::name_of;
use crate::device::{BuildError, Device, Phases};
use crate::metrics::Metrics;
use crate::pipeline::Pipeline;
use crate::shared::{Parts, Settings, Summary};

/// Everything around a model.
pub(crate) struct Site {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) results: Arc<dyn ResultStore>,
    pub(crate) alerts: Arc<dyn Broker>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) traces: Traces,
}

/// Works with the model of this choice until `stop` is cancelled.
pub(crate) async fn work(
    choice: ModelChoice,
    site: Site,
    stop: CancellationToken,
) -> anyhow::Result<Summary> {
    match choice {
        ModelChoice::Echo { batch, item, memory } => {
            let mut echo = Echo::new().with_batch_time(batch).with_item_time(item);
            if let Some(items) = memory {
                echo = echo.with_memory_for(items);
            }
            let build = move |phases: &mut Phases| Ok(phases.time("weights", || echo.clone()));
            work_with(EchoCodec, build, site, stop).await
        }
        #[cfg(feature = "cpu")]
        ModelChoice::Sentinel(dir, device) => sentinel(dir, device, site, stop).await,
        #[cfg(feature = "cpu")]
        ModelChoice::Encoder(dir, device) => {
            let settings = bert::Settings::read(&dir).context("--model")?;
            let codec = EncoderCodec::new(tokenizer(&dir)?, &settings, name_of(&dir));
            let build = move |phases: &mut Phases| {
                start(device, phases)?;
                let mut model = phases.time("weights", || Encoder::load(&dir, device))?;
                phases.time("warm-up", || model.warm_up())?;
                Ok(model)
            };
            work_with(codec, build, site, stop).await
        }
        #[cfg(feature = "cpu")]
        ModelChoice::Classifier(dir, device) => {
            let settings = bert::Settings::read(&dir).context("--model")?;
            let codec = ClassifierCodec::new(tokenizer(&dir)?, &settings, name_of(&dir));
            work_with(codec, classifier(dir, device), site, stop).await
        }
        #[cfg(feature = "cpu")]
        ModelChoice::Reranker(dir, device) => {
            let codec = RerankerCodec::new(tokenizer(&dir)?, name_of(&dir));
            work_with(codec, classifier(dir, device), site, stop).await
        }
        #[cfg(feature = "cpu")]
        ModelChoice::Tagger(dir, device) => {
            let settings = bert::Settings::read(&dir).context("--model")?;
            let codec = TaggerCodec::new(tokenizer(&dir)?, &settings, name_of(&dir));
            let build = move |phases: &mut Phases| {
                start(device, phases)?;
                let mut model = phases.time("weights", || Tagger::load(&dir, device))?;
                phases.time("warm-up", || model.warm_up())?;
                Ok(model)
            };
            work_with(codec, build, site, stop).await
        }
    }
}

/// Starts a device for which that takes time.
#[cfg(feature = "cpu")]
fn start(device: DeviceChoice, phases: &mut Phases) -> Result<(), DeviceError> {
    if device.keeps_kernels() { phases.time("device", || device.start()) } else { Ok(()) }
}

#[cfg(feature = "cpu")]
fn tokenizer(dir: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::load(dir).context("--model")
}

#[cfg(feature = "cpu")]
fn classifier(
    dir: PathBuf,
    device: DeviceChoice,
) -> impl FnMut(&mut Phases) -> Result<Classifier, BuildError> + Send + 'static {
    move |phases| {
        start(device, phases)?;
        let mut model = phases.time("weights", || Classifier::load(&dir, device))?;
        phases.time("warm-up", || model.warm_up())?;
        Ok(model)
    }
}

#[cfg(feature = "cpu")]
async fn sentinel(
    dir: Option<PathBuf>,
    device: DeviceChoice,
    site: Site,
    stop: CancellationToken,
) -> anyhow::Result<Summary> {
    let build = move |phases: &mut Phases| {
        start(device, phases)?;
        let mut model = phases.time("weights", || match &dir {
            Some(dir) => Sentinel::load(dir, device),
            None => Sentinel::shipped(device),
        })?;
        phases.time("warm-up", || model.warm_up())?;
        Ok(model)
    };
    work_with(SentinelCodec, build, site, stop).await
}

async fn work_with<C, M>(
    codec: C,
    mut build: impl FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    site: Site,
    stop: CancellationToken,
) -> anyhow::Result<Summary>
where
    C: Codec,
    M: Model<Input = C::Input, Output = C::Output>,
{
    let mut age = age_of_process();
    let device = Device::thread(move |phases| {
        // Only the first model has waited for the process.
        if let Some(age) = age.take() {
            phases.add("process", age);
        }
        build(phases)
    })?;
    let Site { broker, results, alerts, settings, clock, metrics, health, traces } = site;
    let seed = rand::random();
    let pipeline = Pipeline::new(Parts {
        codec,
        device,
        broker,
        results,
        alerts,
        settings,
        clock,
        seed,
        metrics,
        health,
        traces,
    });
    Ok(pipeline.run(stop).await?)
}

/// How long this process has been running, where the system tells: to 10 ms.
fn age_of_process() -> Option<Duration> {
    // Linux counts in hundredths of a second towards user space, whatever it does inside.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    // The name of the process, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let started: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(now - started / TICKS_PER_SECOND).ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_age() {
        let age = age_of_process().unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
    }
}
