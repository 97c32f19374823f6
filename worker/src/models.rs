//! From a model's kind to its codec and its builder: the only match over models.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
#[cfg(feature = "cpu")]
use std::path::{Path, PathBuf};
#[cfg(feature = "cpu")]
use std::sync::mpsc::sync_channel;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;
#[cfg(feature = "cpu")]
use std::time::Instant;

#[cfg(feature = "cpu")]
use anyhow::Context;
use anyhow::ensure;
use ebb_model::Model;
use ebb_model::echo::Echo;
#[cfg(feature = "cpu")]
use ebb_model::{
    DeviceChoice, DeviceError, InferError, LoadError, Opened,
    bert::{self, Classifier, Encoder, Tagger, Tokenizer},
    causal::{self, ChatTemplate, Generator},
    sentinel::Sentinel,
};
#[cfg(feature = "cpu")]
use tracing::info;

#[cfg(feature = "cpu")]
use crate::codec::{
    ClassifierCodec, EncoderCodec, GeneratorCodec, RerankerCodec, SentinelCodec, TaggerCodec,
};
use crate::codec::{Codec, EchoCodec};
use crate::device::{BuildError, DeviceBuilder, Phases};
#[cfg(feature = "cpu")]
use crate::generators::{room_for, tell_room, tell_unknown};
#[cfg(feature = "cpu")]
use crate::origin::Origin;
#[cfg(feature = "cpu")]
use crate::serve::name_of;
use crate::serve::{ModelChoice, QueuePlan};
use crate::served::ModelParts;

/// What the command line says of models of one kind or another.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "there is only echo"))]
pub(crate) struct ModelOptions {
    /// Numbers of an embedding where a job does not say.
    pub(crate) dimensions: Option<NonZeroUsize>,
    /// Tokens that an answer of a generator may have.
    pub(crate) max_new_tokens: NonZeroUsize,
    /// Bytes of a generator's keys and values, where it is said.
    pub(crate) kv_memory: Option<u64>,
    /// Whether a generator keeps what texts have in common.
    pub(crate) prefix_cache: bool,
}

/// Puts the models of all queues on one device, each once; those of each queue, in its order.
///
/// The device starts, and its models are loaded, while this reads the tokenizers.
pub(crate) fn seat(
    plans: &[QueuePlan],
    options: ModelOptions,
) -> anyhow::Result<Vec<Vec<ModelParts>>> {
    let is_one = plans.iter().map(|plan| plan.models.len()).sum::<usize>() == 1;
    let mut seats = Seats {
        builder: DeviceBuilder::default(),
        codecs: Vec::new(),
        seated: Vec::new(),
        is_one,
        options,
        n_encoders: 0,
    };
    let mut queues: Vec<Vec<usize>> = Vec::new();
    for plan in plans {
        let models = plan.models.iter().map(|(name, choice)| seats.take(name, choice));
        queues.push(models.collect::<anyhow::Result<_>>()?);
    }
    ensure!(
        options.dimensions.is_none() || seats.n_encoders > 0,
        "--dimensions is for an encoder, and no model here is one"
    );
    seats.builder.start()?;
    let models = read(seats.codecs)?;
    let of_queue = |seats: Vec<usize>| seats.into_iter().map(|seat| models[seat].clone()).collect();
    Ok(queues.into_iter().map(of_queue).collect())
}

/// What makes the codec of a model that has its seat; it may have a tokenizer to read.
type MakeCodec = Box<dyn FnOnce() -> anyhow::Result<ModelParts> + Send>;

/// Makes all codecs, the tokenizers of several models beside each other.
fn read(codecs: Vec<MakeCodec>) -> anyhow::Result<Vec<ModelParts>> {
    thread::scope(|scope| {
        let reading: Vec<_> = codecs.into_iter().map(|make| scope.spawn(make)).collect();
        reading.into_iter().map(join).collect()
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// A device that is being filled.
struct Seats {
    builder: DeviceBuilder,
    codecs: Vec<MakeCodec>,
    /// What is on it, by what it was made from: two queues may share a model.
    seated: Vec<ModelChoice>,
    /// Whether there is but one model, so that its phases need no name.
    is_one: bool,
    #[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "there is only echo"))]
    options: ModelOptions,
    n_encoders: usize,
}

impl Seats {
    /// The place of a model among those on the device.
    fn take(&mut self, name: &str, choice: &ModelChoice) -> anyhow::Result<usize> {
        if let Some(seat) = self.seated.iter().position(|seated| seated == choice) {
            return Ok(seat);
        }
        self.seat(name, choice)?;
        self.seated.push(choice.clone());
        Ok(self.seated.len() - 1)
    }

    fn seat(&mut self, name: &str, choice: &ModelChoice) -> anyhow::Result<()> {
        match choice {
            ModelChoice::Echo { batch, item, memory } => {
                let mut echo = Echo::new().with_batch_time(*batch).with_item_time(*item);
                if let Some(items) = memory {
                    echo = echo.with_memory_for(*items);
                }
                let build = move |phases: &mut Phases| Ok(phases.time("weights", || echo.clone()));
                self.add(name, || Ok(EchoCodec), build);
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Sentinel(dir, device) => {
                self.add(name, || Ok(SentinelCodec), sentinel(dir.clone(), *device));
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Encoder(dir, device) => {
                let origin = origin(dir)?;
                let (settings, called) = (read_settings(dir)?, name_of(dir));
                let dimensions = self.options.dimensions.map(NonZeroUsize::get);
                let flag = format!("--dimensions, of model {name}");
                let codec = move |tokenizer| {
                    let codec = EncoderCodec::new(tokenizer, &settings, called);
                    codec.with_dimensions(dimensions).context(flag)
                };
                self.n_encoders += 1;
                let load = load(Encoder::on, Encoder::warm_up);
                self.add_texts(name, (origin, *device), codec, load);
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Classifier(dir, device) => {
                let origin = origin(dir)?;
                let (settings, called) = (read_settings(dir)?, name_of(dir));
                let codec = move |tokenizer| Ok(ClassifierCodec::new(tokenizer, &settings, called));
                let load = load(Classifier::on, Classifier::warm_up);
                self.add_texts(name, (origin, *device), codec, load);
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Reranker(dir, device) => {
                let (origin, called) = (origin(dir)?, name_of(dir));
                let codec = move |tokenizer| Ok(RerankerCodec::new(tokenizer, called));
                let load = load(Classifier::on, Classifier::warm_up);
                self.add_texts(name, (origin, *device), codec, load);
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Tagger(dir, device) => {
                let origin = origin(dir)?;
                let (settings, called) = (read_settings(dir)?, name_of(dir));
                let codec = move |tokenizer| Ok(TaggerCodec::new(tokenizer, &settings, called));
                let load = load(Tagger::on, Tagger::warm_up);
                self.add_texts(name, (origin, *device), codec, load);
            }
            #[cfg(feature = "cpu")]
            ModelChoice::Generator(dir, device) => self.seat_generator(name, dir, *device)?,
        }
        Ok(())
    }

    #[cfg(feature = "cpu")]
    fn seat_generator(
        &mut self,
        name: &str,
        dir: &Path,
        device: DeviceChoice,
    ) -> anyhow::Result<()> {
        let (origin, called) = (origin(dir)?, name_of(dir));
        let settings = causal::Settings::read(dir).context("--model")?;
        let template = ChatTemplate::of(&settings).context("--model")?;
        let room = room_for(&settings, device, self.options.kv_memory)
            .with_context(|| format!("--model {}", dir.display()))?;
        tell_room(&called, &settings, room);
        let (most, prefixes) = (self.options.max_new_tokens.get(), self.options.prefix_cache);
        let codec = move |dir: &Path| {
            let tokenizer = timed(dir, |dir| causal::Tokenizer::of(&settings, dir))?;
            tell_unknown(dir, &tokenizer, &settings);
            let codec = GeneratorCodec::new(tokenizer, template, &settings, called, most);
            Ok(codec.with_room_for(room.n_tokens))
        };
        let load = Load {
            open: causal::Source::open,
            on: move |source, opened: &Opened| {
                let generator = Generator::on(source, opened)?.with_cache_bytes(room.bytes);
                Ok(generator.with_prefixes(prefixes))
            },
            warm_up: Generator::warm_up,
        };
        self.add_beside(name, (origin, device), codec, load);
        Ok(())
    }

    /// A model of texts of the BERT family.
    #[cfg(feature = "cpu")]
    fn add_texts<C, M>(
        &mut self,
        name: &str,
        place: (Origin, DeviceChoice),
        codec: impl FnOnce(Tokenizer) -> anyhow::Result<C> + Send + 'static,
        load: Load<bert::Source, M, On<bert::Source, M>>,
    ) where
        C: Codec,
        M: Model<Input = C::Input, Output = C::Output>,
    {
        self.add_beside(name, place, |dir| codec(timed(dir, Tokenizer::load)?), load);
    }

    /// A model whose tokenizer is read while the device starts and takes the weights.
    #[cfg(feature = "cpu")]
    fn add_beside<C, M, S, F>(
        &mut self,
        name: &str,
        (origin, device): (Origin, DeviceChoice),
        codec: impl FnOnce(&Path) -> anyhow::Result<C> + Send + 'static,
        mut load: Load<S, M, F>,
    ) where
        C: Codec,
        M: Model<Input = C::Input, Output = C::Output>,
        S: Send + 'static,
        F: FnMut(S, &Opened) -> Result<M, LoadError> + Send + 'static,
    {
        // Nothing is sent on it: the other end is dropped.
        let (tokenizer_is_read, reading) = sync_channel::<()>(0);
        let for_codec = origin.clone();
        let make = move || {
            let codec = codec(for_codec.dir());
            for_codec.check().context("--model")?;
            drop(tokenizer_is_read);
            codec
        };
        self.add(name, make, move |phases: &mut Phases| {
            let model = load.run(origin.dir(), device, phases)?;
            origin.check()?;
            // Only what the start still waits for it, so that the phases add up to the start.
            phases.time("tokenizer", || reading.recv().ok());
            Ok(model)
        });
    }

    fn add<C, M>(
        &mut self,
        name: &str,
        codec: impl FnOnce() -> anyhow::Result<C> + Send + 'static,
        mut build: impl FnMut(&mut Phases) -> Result<M, BuildError> + Send + 'static,
    ) where
        C: Codec,
        M: Model<Input = C::Input, Output = C::Output>,
    {
        // Only the first model has waited for the process, and only at its first load.
        let mut is_first = self.codecs.is_empty();
        let own = (!self.is_one).then(|| name.to_owned());
        let device = self.builder.add(move |phases| {
            if std::mem::take(&mut is_first)
                && let Some(age) = age_of_process()
            {
                phases.add("process", age);
            }
            let mut of_this = Phases::default();
            let built = build(&mut of_this);
            phases.extend(of_this, own.as_deref());
            built
        });
        let name = name.to_owned();
        self.codecs.push(Box::new(move || Ok(ModelParts::new(name, codec()?, device))));
    }
}

/// What a model is made of; taken before any of it is read.
#[cfg(feature = "cpu")]
fn origin(dir: &Path) -> anyhow::Result<Origin> {
    Origin::of(dir).with_context(|| format!("--model: {} cannot be read", dir.display()))
}

#[cfg(feature = "cpu")]
fn read_settings(dir: &Path) -> anyhow::Result<bert::Settings> {
    bert::Settings::read(dir).context("--model")
}

/// Reads a tokenizer, and logs how long that takes.
#[cfg(feature = "cpu")]
fn timed<T>(dir: &Path, load: impl FnOnce(&Path) -> Result<T, LoadError>) -> anyhow::Result<T> {
    let start = Instant::now();
    let tokenizer = load(dir).context("--model")?;
    info!(dir = %dir.display(), took_seconds = start.elapsed().as_secs_f64(), "the tokenizer is read");
    Ok(tokenizer)
}

/// How a model of texts comes onto a device.
#[cfg(feature = "cpu")]
struct Load<S, M, F> {
    open: fn(&Path) -> Result<S, LoadError>,
    on: F,
    warm_up: fn(&mut M) -> Result<(), InferError>,
}

/// From an opened directory to a model.
#[cfg(feature = "cpu")]
type On<S, M> = fn(S, &Opened) -> Result<M, LoadError>;

/// How one of the BERT family does.
#[cfg(feature = "cpu")]
fn load<M>(
    on: On<bert::Source, M>,
    warm_up: fn(&mut M) -> Result<(), InferError>,
) -> Load<bert::Source, M, On<bert::Source, M>> {
    Load { open: bert::Source::open, on, warm_up }
}

#[cfg(feature = "cpu")]
impl<S, M, F> Load<S, M, F>
where
    S: Send,
    F: FnMut(S, &Opened) -> Result<M, LoadError>,
{
    fn run(
        &mut self,
        dir: &Path,
        device: DeviceChoice,
        phases: &mut Phases,
    ) -> Result<M, BuildError> {
        thread::scope(|scope| {
            // The disk is at the weights while the device starts, which is this thread's own.
            let open = self.open;
            let source = scope.spawn(move || open(dir));
            let opened = start(device, phases)?;
            let mut model = phases.time("weights", || (self.on)(join(source)?, &opened))?;
            phases.time("warm-up", || (self.warm_up)(&mut model))?;
            Ok(model)
        })
    }
}

/// Starts a device; a phase of its own where that takes time.
#[cfg(feature = "cpu")]
fn start(device: DeviceChoice, phases: &mut Phases) -> Result<Opened, DeviceError> {
    if device.keeps_kernels() { phases.time("device", || device.start()) } else { device.start() }
}

#[cfg(feature = "cpu")]
fn sentinel(
    dir: Option<PathBuf>,
    device: DeviceChoice,
) -> impl FnMut(&mut Phases) -> Result<Sentinel, BuildError> + Send + 'static {
    move |phases| {
        let opened = start(device, phases)?;
        let mut model = phases.time("weights", || Sentinel::on(dir.as_deref(), &opened))?;
        phases.time("warm-up", || model.warm_up())?;
        Ok(model)
    }
}

/// How long this process has been running, where the system tells: to 10 ms.
pub(crate) fn age_of_process() -> Option<Duration> {
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
