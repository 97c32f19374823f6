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
use crate::{DeviceChoice, FirstRuns, InferError, ItemError, Layout, LoadError, Model, Opened};

/// How long a turn lasts where nothing else is said: what is generated in it is seen at its end, and
/// whoever comes during it waits for it.
const TURN: Duration = Duration::from_millis(50);
/// Bytes of keys and values where nothing else is said.
const CACHE_BYTES: u64 = 1 << 30;
/// Tokens of prompts that a pass reads at most where nothing else is said; fewer where these take
/// long.
pub(super) const PASS_TOKENS: usize = 256;

/// A generator on its device.
///
/// # Behavior
/// - It keeps nothing that a [`Sequence`] does not say, but keys and values, which spare it to read the
///   same tokens again. Where they are lost it reads again, and goes on to the same end.
/// - A turn lasts until its time has passed, one pass at least: each pass reads the last token of every
///   sequence that has read all others, and a piece of the prompts that are being read: as much as
///   takes about 150 ms beside sequences that grow, or a second alone, by how long passes took before.
/// - On a processor, what a sequence has read is kept for others that begin alike, block by block, in
///   what sequences leave of the bytes below; what was used last is kept longest. Numbers are the same,
///   to the last bit, as if each had read all by itself.
/// - Keys and values have a budget of bytes. A sequence that does not fit beside those that came before
///   it, in this batch or another, gains nothing and waits; whoever came first of all always fits.
///   Whoever was let go, or was in no batch for long, keeps nobody from room.
pub struct Generator {
    way: Way,
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
            turn: TURN,
            cache_bytes: CACHE_BYTES,
            keeps_prefixes: true,
        };
        let way = if device.launches || !Packed::suits() {
            let graph = Graph::load(&config, &reader, device)?;
            Way::Graph(Box::new(Engine::new(graph, limits)))
        } else {
            let packed = Packed::load(&config, &reader)?;
            Way::Packed(Box::new(Engine::new(packed, limits)))
        };
        Ok(Self { way, positions, probe }.with_cache_bytes(CACHE_BYTES))
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
        let limits = Limits { turn, ..self.way.limits() };
        self.way.bound(limits);
        self
    }

    /// Whether what a sequence has read is kept for others that begin alike; it is where nothing else
    /// is said.
    #[must_use]
    pub fn with_prefixes(mut self, keeps_prefixes: bool) -> Self {
        let limits = Limits { keeps_prefixes, ..self.way.limits() };
        self.way.bound(limits);
        self
    }

    /// Whether what a sequence has read is kept for others that begin alike: where that is wanted and
    /// the device can.
    pub fn keeps_prefixes(&self) -> bool {
        match &self.way {
            Way::Packed(engine) => engine.keeps_prefixes(),
            Way::Graph(engine) => engine.keeps_prefixes(),
        }
    }

    /// Reads at most so many tokens of prompts in a pass.
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
    /// When there is no room for their keys and values, when the device does not read them, when their
    /// numbers are not finite, when those of a text are others alone than beside others, or when the
    /// token that the device chooses is not the likeliest.
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
    let (mut together, mut chosen) = (Vec::new(), Vec::new());
    // The same twice, for most answers get their tokens without their logits.
    for chooses in [false, true] {
        let mut caches = [forward.cache(), forward.cache()];
        // All but the last token, and then the last of both side by side.
        for wants in [false, true] {
            let cut = |text: &Vec<u32>| text.len() - 1;
            let tokens = texts
                .iter()
                .map(|text| if wants { &text[cut(text)..] } else { &text[..cut(text)] });
            let feeds = caches.iter_mut().zip(tokens).filter(|(_, tokens)| !tokens.is_empty());
            let mut feeds: Vec<_> =
                feeds.map(|(cache, tokens)| Feed { cache, tokens, wants }).collect();
            match chooses {
                false => together = forward.forward(&mut feeds)?,
                true => chosen = forward.likeliest(&mut feeds, vocabulary)?,
            }
        }
    }
    let together: Vec<Vec<f32>> = together.chunks(vocabulary).map(<[f32]>::to_vec).collect();
    probe.compare(&alone, &together)?;
    probe.check_chosen(&together, &chosen)
}

impl Model for Generator {
    type Input = Sequence;
    type Output = Turn;

    fn layout(&self) -> Layout {
        Layout::Packed
    }

    fn tell_first_runs(&mut self, first_runs: FirstRuns) {
        if let Way::Graph(engine) = &mut self.way {
            engine.forward.shapes.tell(first_runs);
        }
    }

    fn infer(&mut self, batch: &[Sequence]) -> Result<Vec<Result<Turn, ItemError>>, InferError> {
        let start = Instant::now();
        let mut clock = || start.elapsed();
        match &mut self.way {
            Way::Packed(engine) => engine.turn(batch, &mut clock),
            Way::Graph(engine) => engine.turn(batch, &mut clock),
        }
    }
}

#[cfg(test)]
#[path = "golden_tests.rs"]
mod golden_tests;
