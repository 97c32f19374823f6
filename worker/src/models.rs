//! From a model's kind to its codec and its builder: the only match over models.

use std::num::NonZeroUsize;
#[cfg(feature = "cpu")]
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "cpu")]
use anyhow::Context;
use anyhow::ensure;
use ebb_model::Model;
use ebb_model::echo::Echo;
#[cfg(feature = "cpu")]
use ebb_model::{
    DeviceChoice, DeviceError,
    bert::{self, Classifier, Encoder, Tagger, Tokenizer},
    sentinel::Sentinel,
};

#[cfg(feature = "cpu")]
use crate::codec::{ClassifierCodec, EncoderCodec, RerankerCodec, SentinelCodec, TaggerCodec};
use crate::codec::{Codec, EchoCodec};
use crate::device::{BuildError, DeviceBuilder, Phases};
#[cfg(feature = "cpu")]
use crate::serve::name_of;
use crate::serve::{ModelChoice, QueuePlan};
use crate::served::ModelParts;

/// Puts the models of all queues on one device, each once; those of each queue, in its order.
pub(crate) fn seat(
    plans: &[QueuePlan],
    dimensions: Option<NonZeroUsize>,
) -> anyhow::Result<(DeviceBuilder, Vec<Vec<ModelParts>>)> {
    let is_one = plans.iter().map(|plan| plan.models.len()).sum::<usize>() == 1;
    let mut seats = Seats {
        builder: DeviceBuilder::default(),
        seated: Vec::new(),
        is_one,
        age: age_of_process(),
        dimensions,
        n_encoders: 0,
    };
    let mut queues = Vec::new();
    for plan in plans {
        let models = plan.models.iter().map(|(name, choice)| seats.take(name, choice));
        queues.push(models.collect::<anyhow::Result<_>>()?);
    }
    ensure!(
        dimensions.is_none() || seats.n_encoders > 0,
        "--dimensions is for an encoder, and no model here is one"
    );
    Ok((seats.builder, queues))
}

/// A device that is being filled.
struct Seats {
    builder: DeviceBuilder,
    /// What is on it, by what it was made from: two queues may share a model.
    seated: Vec<(ModelChoice, ModelParts)>,
    /// Whether there is but one model, so that its phases need no name.
    is_one: bool,
    /// Only the first model has waited for the process.
    age: Option<Duration>,
    #[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "there is no encoder"))]
    dimensions: Option<NonZeroUsize>,
    n_encoders: usize,
}

impl Seats {
    fn take(&mut self, name: &str, choice: &ModelChoice) -> anyhow::Result<ModelParts> {
        if let Some((_, there)) = self.seated.iter().find(|(seated, _)| seated == choice) {
            return Ok(there.clone());
        }
        let parts = self.seat(name, choice)?;
        self.seated.push((choice.clone(), parts.clone()));
        Ok(parts)
    }

    fn seat(&mut self, name: &str, choice: &ModelChoice) -> anyhow::Result<ModelParts> {
        match choice {
            ModelChoice::Echo { batch, item, memory } => {
                let mut echo = Echo::new().with_batch_time(*batch).with_item_time(*item);
                if let Some(items) = memory {
                    echo = echo.with_memory_for(*items);
                }
                let build = move |phases: &mut Phases| Ok(phases.time("weights", || echo.clone()));
                Ok(self.add(name, EchoCodec, build))
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Sentinel(dir, device) => {
                Ok(self.add(name, SentinelCodec, sentinel(dir.clone(), *device)))
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Encoder(dir, device) => {
                let settings = read_settings(dir)?;
                let codec = EncoderCodec::new(tokenizer(dir)?, &settings, name_of(dir))
                    .with_dimensions(self.dimensions.map(NonZeroUsize::get))
                    .with_context(|| format!("--dimensions, of model {name}"))?;
                self.n_encoders += 1;
                let (dir, device) = (dir.clone(), *device);
                Ok(self.add(name, codec, move |phases: &mut Phases| {
                    start(device, phases)?;
                    let mut model = phases.time("weights", || Encoder::load(&dir, device))?;
                    phases.time("warm-up", || model.warm_up())?;
                    Ok(model)
                }))
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Classifier(dir, device) => {
                let settings = read_settings(dir)?;
                let codec = ClassifierCodec::new(tokenizer(dir)?, &settings, name_of(dir));
                Ok(self.add(name, codec, classifier(dir.clone(), *device)))
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Reranker(dir, device) => {
                let codec = RerankerCodec::new(tokenizer(dir)?, name_of(dir));
                Ok(self.add(name, codec, classifier(dir.clone(), *device)))
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Tagger(dir, device) => {
                let settings = read_settings(dir)?;
                let codec = TaggerCodec::new(tokenizer(dir)?, &settings, name_of(dir));
                let (dir, device) = (dir.clone(), *device);
                Ok(self.add(name, codec, move |phases: &mut Phases| {
                    start(device, phases)?;
                    let mut model = phases.time("weights", || Tagger::load(&dir, device))?;
                    phases.time("warm-up", || model.warm_up())?;
                    Ok(model)
                }))
            }
        }
    }

    fn add<C, M>(
        &mut self,
        name: &str,
        codec: C,
        mut build: impl FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    ) -> ModelParts
    where
        C: Codec,
        M: Model<Input = C::Input, Output = C::Output>,
    {
        let mut age = self.age.take();
        let own = (!self.is_one).then(|| name.to_owned());
        let device = self.builder.add(move |phases| {
            if let Some(age) = age.take() {
                phases.add("process", age);
            }
            let mut of_this = Phases::default();
            let built = build(&mut of_this);
            phases.extend(of_this, own.as_deref());
            built
        });
        ModelParts::new(name, codec, device)
    }
}

#[cfg(feature = "cpu")]
fn read_settings(dir: &Path) -> anyhow::Result<bert::Settings> {
    bert::Settings::read(dir).context("--model")
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
fn sentinel(
    dir: Option<PathBuf>,
    device: DeviceChoice,
) -> impl FnMut(&mut Phases) -> Result<Sentinel, BuildError> + Send + 'static {
    move |phases| {
        start(device, phases)?;
        let mut model = phases.time("weights", || match &dir {
            Some(dir) => Sentinel::load(dir, device),
            None => Sentinel::shipped(device),
        })?;
        phases.time("warm-up", || model.warm_up())?;
        Ok(model)
    }
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
