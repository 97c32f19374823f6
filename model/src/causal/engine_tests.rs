//! Sequences that grow in turns, held against each of them alone.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::InferErrorKind;
use crate::causal::Sampling;
use crate::causal::sampler::Counts;

#[path = "engine_reuse_tests.rs"]
mod reuse;
#[path = "engine_room_tests.rs"]
mod room;

const VOCABULARY: usize = 13;
/// A token that spoils the logits behind it.
const POISON: u32 = 12;
/// Bytes of a token, so that a slip in units shows.
const TOKEN_BYTES: u64 = 3;

/// Tokens of a block that sequences have in common.
const BLOCK: usize = 4;
/// How long a turn is.
const TURN: Duration = Duration::from_secs(1);

/// Layers of which the logits behind some tokens are any function of them.
#[derive(Default)]
struct Fake {
    /// Tokens in all caches that live.
    n_held: Rc<Cell<usize>>,
    most_held: usize,
    /// Tokens that each pass read.
    reads: Rc<RefCell<Vec<usize>>>,
    fails: bool,
    /// The next pass spoils what it writes.
    spoils: bool,
    /// No pass says anything of its last feed.
    loses: bool,
}

struct FakeCache {
    tokens: Vec<u32>,
    blocks: Vec<Rc<FakeBlock>>,
    n_held: Rc<Cell<usize>>,
}

/// Memory of up to so many tokens.
struct FakeBlock {
    /// All tokens of the text up to its end.
    tokens: RefCell<Vec<u32>>,
    n: Cell<usize>,
    is_spoilt: Cell<bool>,
    n_held: Rc<Cell<usize>>,
}

impl Fake {
    fn n_read(&self) -> usize {
        self.reads.borrow().iter().sum()
    }
}

impl FakeCache {
    fn read(&mut self, token: u32) {
        if self.tokens.len().is_multiple_of(BLOCK) {
            let (tokens, n_held) = (RefCell::new(self.tokens.clone()), Rc::clone(&self.n_held));
            let (n, is_spoilt) = (Cell::new(0), Cell::new(false));
            self.blocks.push(Rc::new(FakeBlock { tokens, n, is_spoilt, n_held }));
        }
        self.tokens.push(token);
        let block = self.blocks.last().unwrap();
        assert_eq!(Rc::strong_count(block), 1, "nobody has a block that is not full");
        block.tokens.borrow_mut().push(token);
        block.n.set(block.n.get() + 1);
        self.n_held.set(self.n_held.get() + 1);
    }
}

impl Drop for FakeBlock {
    fn drop(&mut self) {
        self.n_held.set(self.n_held.get() - self.n.get());
    }
}

fn logits(tokens: &[u32]) -> Vec<f32> {
    if tokens.contains(&POISON) {
        return vec![f32::NAN; VOCABULARY];
    }
    let mix = |hash: u64, token: &u32| (hash ^ u64::from(*token)).wrapping_mul(0x100_0000_01b3);
    let hash = tokens.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    let number = |n: usize| (hash.rotate_left(7 * n as u32) % 997) as f32 / 100.0;
    // The last is never likely, so that no answer is spoilt.
    (0..VOCABULARY).map(|n| if n as u32 == POISON { -99.0 } else { number(n) }).collect()
}

impl Forward for Fake {
    type Cache = FakeCache;
    type Block = Rc<FakeBlock>;

    fn cache(&mut self) -> FakeCache {
        FakeCache { tokens: Vec::new(), blocks: Vec::new(), n_held: Rc::clone(&self.n_held) }
    }

    fn cache_bytes(&self, n_tokens: usize) -> u64 {
        n_tokens as u64 * TOKEN_BYTES
    }

    fn block_tokens(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(BLOCK)
    }

    fn block(&self, cache: &FakeCache, nth: usize) -> Option<Rc<FakeBlock>> {
        assert!(cache.tokens.len() >= (nth + 1) * BLOCK);
        Some(Rc::clone(&cache.blocks[nth]))
    }

    fn put(&mut self, cache: &mut FakeCache, nth: usize, block: &Rc<FakeBlock>) {
        let (tokens, end) = (block.tokens.borrow(), (nth + 1) * BLOCK);
        assert_eq!(tokens.len(), end);
        assert!(tokens.starts_with(&cache.tokens[..end.min(cache.tokens.len())]));
        if nth < cache.blocks.len() {
            cache.blocks[nth] = Rc::clone(block);
        } else {
            assert_eq!(cache.tokens.len(), nth * BLOCK);
            cache.tokens.clone_from(&tokens);
            cache.blocks.push(Rc::clone(block));
        }
    }

    fn is_in_cache(&self, block: &Rc<FakeBlock>) -> bool {
        Rc::strong_count(block) > 1
    }

    fn forward(&mut self, feeds: &mut [Feed<'_, FakeCache>]) -> Result<Vec<f32>, InferError> {
        if self.fails {
            return Err(InferError::OutOfMemory("no room".into()));
        }
        let mut rows = Vec::new();
        let spoils = std::mem::take(&mut self.spoils);
        self.reads.borrow_mut().push(feeds.iter().map(|feed| feed.tokens.len()).sum());
        for feed in feeds {
            assert!(!feed.tokens.is_empty());
            feed.tokens.iter().for_each(|token| feed.cache.read(*token));
            let blocks = &feed.cache.blocks;
            let last = &blocks.last().unwrap().is_spoilt;
            last.set(last.get() || spoils);
            if feed.wants {
                let is_spoilt = blocks.iter().any(|block| block.is_spoilt.get());
                let text = if is_spoilt { &[POISON][..] } else { &feed.cache.tokens };
                rows.extend(logits(text));
            }
        }
        if self.loses {
            rows.truncate(rows.len().saturating_sub(VOCABULARY));
        }
        self.most_held = self.most_held.max(self.n_held.get());
        Ok(rows)
    }
}

fn engine(positions: usize, pass_tokens: usize, n_kept: usize) -> Engine<Fake> {
    let limits = Limits {
        vocabulary: VOCABULARY,
        positions,
        pass_tokens,
        turn: TURN,
        cache_bytes: n_kept as u64 * TOKEN_BYTES + 1,
        keeps_prefixes: true,
    };
    let mut engine = Engine::new(Fake::default(), limits);
    // One that takes no time, which it knows.
    for n_rows in 0..16 {
        while engine.pace.prompt_tokens(n_rows, pass_tokens) < pass_tokens {
            let n_prompt = engine.pace.prompt_tokens(n_rows, pass_tokens);
            engine.pace.learn(Read { n_rows, n_prompt }, Duration::ZERO);
        }
    }
    engine
}

/// A turn ends after so many passes.
fn after(n_passes: usize) -> impl FnMut() -> Duration {
    let mut n = 0;
    move || {
        n += 1;
        if n > n_passes { TURN } else { Duration::ZERO }
    }
}

fn sequence(key: u64, tokens: &[u32], max_new: usize) -> Sequence {
    let sampling = Sampling { temperature: 1.0, seed: key, ..Sampling::default() };
    let (tokens, n_prompt) = (tokens.to_vec(), tokens.len());
    let (ends, life) = (Arc::from([3]), Arc::default());
    Sequence { key, tokens, n_prompt, max_new, ends, sampling, life }
}

/// Where a sequence comes to, token by token, and why it ends there.
fn alone(sequence: &Sequence, positions: usize) -> (Vec<u32>, Ended) {
    let mut sequence = sequence.clone();
    loop {
        let n_new = sequence.tokens.len() - sequence.n_prompt;
        if n_new >= sequence.max_new || sequence.tokens.len() >= positions {
            return (sequence.tokens, Ended::Length);
        }
        let mut counts = Counts::default();
        counts.read(&sequence.tokens, sequence.n_prompt);
        let mut logits = logits(&sequence.tokens);
        match sampler::choose(&mut logits, &sequence.sampling, &counts, n_new) {
            token if sequence.ends.contains(&token) => return (sequence.tokens, Ended::Stop),
            token => sequence.tokens.push(token),
        }
    }
}

/// One turn of so many passes, in which every sequence is sound.
fn turn(engine: &mut Engine<Fake>, batch: &[Sequence], n_passes: usize) -> Vec<Turn> {
    let turns = engine.turn(batch, &mut after(n_passes)).unwrap();
    turns.into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_turn_ends_with_its_time_and_the_cache_of_who_has_ended_is_gone() {
    let mut engine = engine(1000, 64, 1000);
    let mut long = Sequence { ends: Arc::from([]), ..sequence(1, &[1; 100], 500) };
    let turns = turn(&mut engine, &[long.clone()], 1);
    assert_eq!(turns, [Turn { n_read: 64, ..Turn::default() }]);
    let turns = turn(&mut engine, &[long.clone()], 3);
    assert_eq!((turns[0].tokens.len(), turns[0].n_read), (3, 102));
    long.tokens.extend(&turns[0].tokens);
    // However much time there is, it has room for so many alone.
    let turns = turn(&mut engine, &[long.clone()], usize::MAX);
    assert_eq!((turns[0].tokens.len(), turns[0].ended), (MOST_NEW, None));
    assert_eq!(engine.forward.n_held.get(), 102 + MOST_NEW);
    long.tokens.extend(&turns[0].tokens);
    long.max_new = long.tokens.len() - long.n_prompt + 1;
    let turns = turn(&mut engine, &[long], 9);
    assert_eq!((turns[0].tokens.len(), turns[0].ended), (1, Some(Ended::Length)));
    engine.forget();
    assert_eq!(engine.forward.n_held.get(), 0);
}

#[test]
fn what_is_no_prompt_fails_alone_and_says_why() {
    let mut engine = engine(50, 64, 1000);
    let spoilt = [1, POISON, 2];
    let good = [sequence(1, &[1, 2, 3, 4], 9), sequence(2, &[5], 9)];
    let bad = [
        (sequence(3, &[], 9), "prompt is empty"),
        (sequence(4, &[1; 51], 9), "prompt has 51 tokens; this worker takes at most 50"),
        (sequence(7, &[1; 50], 9), "prompt has 50 tokens, all that this worker takes"),
        (sequence(5, &[1, 13], 9), "prompt has token 13; the model knows 13"),
        (sequence(6, &spoilt, 9), "output is not finite"),
    ];
    let mut batch = vec![good[0].clone()];
    batch.extend(bad.iter().map(|(sequence, _)| sequence.clone()));
    batch.push(good[1].clone());
    let mut turns = engine.turn(&batch, &mut after(usize::MAX)).unwrap();
    for (found, (_, says)) in turns.drain(1..6).zip(&bad) {
        let error = found.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        let is_models = says.contains("token 13") || says.contains("not finite");
        assert_eq!(error.is_models(), is_models, "{error}");
    }
    for (found, sequence) in turns.into_iter().zip(good) {
        let (tokens, ended) = alone(&sequence, 50);
        let found = found.unwrap();
        assert_eq!((&found.tokens[..], found.ended), (&tokens[sequence.n_prompt..], Some(ended)));
    }
    engine.forget();
    assert_eq!(engine.forward.n_held.get(), 0);
}

#[test]
fn a_slow_device_reads_a_prompt_in_small_pieces() {
    let mut engine = engine(1000, 256, 1000);
    engine.pace = Pace::default();
    engine.bound(Limits { turn: Duration::MAX, ..engine.limits });
    let long = Sequence { ends: Arc::from([]), ..sequence(1, &[1; 200], 9) };
    // A tenth of a second for a token.
    let reads = Rc::clone(&engine.forward.reads);
    let mut clock = || Duration::from_millis(100) * reads.borrow().iter().sum::<usize>() as u32;
    engine.turn(&[long], &mut clock).unwrap();
    let expected = [&[8, 16][..], &[8; 22], &[1; 8]].concat();
    assert_eq!(*reads.borrow(), expected);
}

/// A load, and what a worker does with it.
#[derive(Debug)]
struct Load {
    jobs: Vec<(Vec<u32>, usize)>,
    at_once: usize,
    pass_tokens: usize,
    n_kept: usize,
    n_passes: Vec<usize>,
    keeps_prefixes: bool,
}

fn load() -> impl Strategy<Value = Load> {
    // Many begin alike, or are alike.
    let prompt = prop_oneof![
        proptest::collection::vec(0..POISON, 1..60),
        proptest::collection::vec(0u32..2, 1..12),
        (0usize..50, proptest::collection::vec(0..POISON, 1..9))
            .prop_map(|(n, rest)| { vec![5; n].into_iter().chain(rest).collect() }),
    ];
    let passes = proptest::collection::vec(1usize..12, 1..8);
    let jobs = proptest::collection::vec((prompt, 1usize..90), 1..9);
    (jobs, 1usize..6, 1usize..80, 90usize..400, passes, any::<bool>()).prop_map(
        |(jobs, at_once, pass_tokens, n_kept, n_passes, keeps_prefixes)| Load {
            jobs,
            at_once,
            pass_tokens,
            n_kept,
            n_passes,
            keeps_prefixes,
        },
    )
}

proptest! {
    #[test]
    fn every_sequence_comes_to_its_own_end_however_turns_are_cut_and_caches_are_lost(
        load in load(), losses in proptest::collection::vec(0u64..40, 0..4),
    ) {
        let mut engine = engine(100, load.pass_tokens, load.n_kept);
        engine.bound(Limits { keeps_prefixes: load.keeps_prefixes, ..engine.limits });
        let positions = engine.limits().positions;
        let make = |(key, (prompt, max_new)): (usize, &(Vec<u32>, usize))| {
            sequence(key as u64, prompt, *max_new)
        };
        let mut waiting: Vec<Sequence> = load.jobs.iter().enumerate().map(make).rev().collect();
        let mut running: Vec<Sequence> = Vec::new();
        let mut passes = load.n_passes.iter().cycle();
        for n_turn in 0u64.. {
            prop_assert!(n_turn < 5000, "they do not end");
            while running.len() < load.at_once && let Some(next) = waiting.pop() {
                running.push(next);
            }
            if running.is_empty() {
                break;
            }
            if losses.contains(&n_turn) {
                engine.kept.clear();
                prop_assert!(load.keeps_prefixes || engine.forward.n_held.get() == 0);
            }
            let turns = turn(&mut engine, &running, *passes.next().unwrap());
            let mut grew = false;
            for (sequence, turn) in running.iter_mut().zip(&turns) {
                let (n_before, read) = (sequence.tokens.len(), turn.n_read);
                sequence.tokens.extend(&turn.tokens);
                prop_assert!(read < sequence.tokens.len() || turn.ended == Some(Ended::Stop));
                prop_assert!(turn.tokens.is_empty() || read >= n_before);
                grew |= turn.ended.is_some() || read > 0;
            }
            prop_assert!(grew);
            let ends: Vec<_> = turns.iter().map(|turn| turn.ended).collect();
            let mut ended = ends.iter();
            for (sequence, ended) in running.iter().zip(&ends) {
                let Some(ended) = ended else { continue };
                let (prompt, max_new) = &load.jobs[sequence.key as usize];
                let of_prompt = self::sequence(sequence.key, prompt, *max_new);
                prop_assert_eq!((sequence.tokens.clone(), *ended), alone(&of_prompt, positions));
            }
            running.retain(|_| ended.next().is_some_and(Option::is_none));
        }
        prop_assert!(engine.forward.most_held <= load.n_kept);
        prop_assert!(*engine.forward.reads.borrow().iter().max().unwrap() <= load.pass_tokens + load.at_once);
        if !load.keeps_prefixes {
            prop_assert_eq!(engine.forward.n_held.get(), 0);
        }
        engine.forget();
        prop_assert_eq!(engine.forward.n_held.get(), 0);
    }
}
