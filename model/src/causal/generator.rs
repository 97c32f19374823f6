//! A decoder on its device, as a model: a turn for each sequence of a batch.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use super::engine::{Engine, Limits};
use super::forward::{Feed, Forward};
use super::graph::Graph;
use super::packed::Packed;
use super::{Sequence, Source, Turn, room};
use crate::probe::Probe;
use crate::{DeviceChoice, InferError, ItemError, Layout, LoadError, Model, Opened};

/// How long a turn lasts where nothing else is said: what is generated in it is seen at its end, and
/// whoever comes during it waits for it.
const TURN: Duration = Duration::from_millis(50);
/// Bytes of keys and values where nothing else is said.
const CACHE_BYTES: u64 = 1 << 30;
/// Tokens of a pass where nothing else is said: a prompt is read in so many at once, which those that
/// grow wait for.
pub(super) const PASS_TOKENS: usize = 256;

/// A generator on its device.
///
/// # Behavior
/// - It keeps nothing that a [`Sequence`] does not say, but keys and values, which spare it to read the
///   same tokens again. Where they are lost it reads again, and goes on to the same end.
/// - A turn lasts until its time has passed, one pass at least: each pass reads the last token of every
///   sequence that has read all others, and a piece of the prompts that are being read.
/// - Keys and values have a budget of bytes. A sequence that does not fit beside those that came before
///   it, in this batch or another, gains nothing and waits; whoever came first of all always fits.
///   Whoever was in no batch for long keeps nobody from room.
pub struct Generator {
    way: Way,
    turn: Duration,
    positions: usize,
    probe: Probe,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Generator");
        debug.field("device", &self.probe.device).field("limits", &self.way.limits());
        debug.finish_non_exhaustive()
    }
}

/// How it runs.
enum Way {
    /// On a processor, with weights that were packed.
    Packed(Box<Engine<Packed>>),
    /// By burn's operations.
    Graph(Box<Engine<Graph>>),
}

impl Generator {
    /// Reads the weights of a model directory.
    pub fn load(dir: &Path, device: DeviceChoice) -> Result<Self, LoadError> {
        Self::on(Source::open(dir)?, &device.start()?)
    }

    /// The same, once both are opened.
    pub fn on(source: Source, device: &Opened) -> Result<Self, LoadError> {
        let Source { config, reader } = source;
        let device = &device.clone().for_weights(reader.stored())?;
        let probe = Probe { device: device.full_name(), tolerance: device.tolerance() };
        let positions = config.positions;
        let limits = Limits {
            vocabulary: config.vocabulary,
            positions,
            pass_tokens: PASS_TOKENS,
            cache_bytes: CACHE_BYTES,
        };
        let way = if device.launches || !Packed::suits() {
            let graph = Graph::load(&config, &reader, device)?;
            Way::Graph(Box::new(Engine::new(graph, limits)))
        } else {
            let packed = Packed::load(&config, &reader)?;
            Way::Packed(Box::new(Engine::new(packed, limits)))
        };
        Ok(Self { way, turn: TURN, positions, probe }.with_cache_bytes(CACHE_BYTES))
    }

    /// Keeps at most so many bytes of keys and values: what a sequence may have, and how many grow at
    /// once. What a device needs while it computes comes on top.
    #[must_use]
    pub fn with_cache_bytes(mut self, bytes: u64) -> Self {
        let limits = Limits { cache_bytes: bytes, positions: self.positions, ..self.way.limits() };
        if let Way::Graph(engine) = &mut self.way {
            engine.forward.bound(bytes);
        }
        self.way.bound(limits);
        self
    }

    /// Ends a turn after the pass in which so much time is over.
    #[must_use]
    pub fn with_turn(mut self, turn: Duration) -> Self {
        self.turn = turn;
        self
    }

    /// Reads at most so many tokens in a pass, as long as no more sequences than that grow.
    #[must_use]
    pub fn with_pass_tokens(mut self, n_tokens: NonZeroUsize) -> Self {
        let limits = Limits { pass_tokens: n_tokens.get(), ..self.way.limits() };
        self.way.bound(limits);
        self
    }

    /// Tokens that a sequence may have here, its prompt counted: what the model was made for, or fewer
    /// where more of one sequence do not fit in the bytes of keys and values.
    pub fn positions(&self) -> usize {
        self.way.limits().positions
    }

    /// The device and its type of numbers, for people.
    pub fn device(&self) -> &str {
        &self.probe.device
    }

    /// Reads two fixed texts, alone, together and piece by piece, so that the first job does not pay
    /// for what happens once, and no job gets what a broken device makes.
    ///
    /// # Errors
    /// When there is no room for their keys and values, when the device does not read them, when their numbers are not finite, or when those of a text
    /// are others alone than beside others.
    pub fn warm_up(&mut self) -> Result<(), InferError> {
        let Limits { vocabulary, positions, cache_bytes, .. } = self.way.limits();
        let least = room::least_tokens(self.positions);
        if positions < least {
            return Err(InferError::Device(format!(
                "--kv-memory is {cache_bytes} bytes, which {least} tokens do not fit in; give it more"
            )));
        }
        let probe = &self.probe;
        match &mut self.way {
            Way::Packed(engine) => warm_up(&mut engine.forward, vocabulary, positions, probe),
            Way::Graph(engine) => warm_up(&mut engine.forward, vocabulary, positions, probe),
        }
    }
}

impl Way {
    fn limits(&self) -> Limits {
        match self {
            Self::Packed(engine) => engine.limits(),
            Self::Graph(engine) => engine.limits(),
        }
    }

    fn bound(&mut self, limits: Limits) {
        match self {
            Self::Packed(engine) => engine.bound(limits),
            Self::Graph(engine) => engine.bound(limits),
        }
    }
}

/// Tokens of the two texts of the self-test.
const PROBE: [usize; 2] = [8, 40];

fn warm_up<F: Forward>(
    forward: &mut F,
    vocabulary: usize,
    positions: usize,
    probe: &Probe,
) -> Result<(), InferError> {
    // From the middle of the vocabulary, where every model has some that it was trained on.
    let text = |(n, length): (usize, usize)| -> Vec<u32> {
        let tokens = vocabulary / 2 + n..;
        tokens.take(length.min(positions)).map(|token| (token % vocabulary) as u32).collect()
    };
    let texts: Vec<Vec<u32>> = PROBE.into_iter().enumerate().map(text).collect();
    let mut alone = Vec::new();
    for text in &texts {
        let mut cache = forward.cache();
        let feed = Feed { cache: &mut cache, tokens: text, wants: true };
        alone.push(forward.forward(&mut [feed])?);
    }
    let mut caches = [forward.cache(), forward.cache()];
    let mut together = Vec::new();
    // All but the last token, and then the last of both side by side.
    for wants in [false, true] {
        let cut = |text: &Vec<u32>| text.len() - 1;
        let tokens =
            texts.iter().map(|text| if wants { &text[cut(text)..] } else { &text[..cut(text)] });
        let feeds = caches.iter_mut().zip(tokens).filter(|(_, tokens)| !tokens.is_empty());
        let mut feeds: Vec<_> =
            feeds.map(|(cache, tokens)| Feed { cache, tokens, wants }).collect();
        together = forward.forward(&mut feeds)?;
    }
    let together: Vec<Vec<f32>> = together.chunks(vocabulary).map(<[f32]>::to_vec).collect();
    probe.compare(&alone, &together)
}

impl Model for Generator {
    type Input = Sequence;
    type Output = Turn;

    fn layout(&self) -> Layout {
        Layout::Packed
    }

    fn infer(&mut self, batch: &[Sequence]) -> Result<Vec<Result<Turn, ItemError>>, InferError> {
        let start = Instant::now();
        let mut is_over = || start.elapsed() >= self.turn;
        match &mut self.way {
            Way::Packed(engine) => engine.turn(batch, &mut is_over),
            Way::Graph(engine) => engine.turn(batch, &mut is_over),
        }
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden_tests;
