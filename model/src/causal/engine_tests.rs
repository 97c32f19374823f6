//! Sequences that grow in turns, held against each of them alone.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::InferErrorKind;
use crate::causal::Sampling;

const VOCABULARY: usize = 13;
/// A token that spoils the logits behind it.
const POISON: u32 = 12;
/// Bytes of a token, so that a slip in units shows.
const TOKEN_BYTES: u64 = 3;

/// Layers of which the logits behind some tokens are any function of them.
#[derive(Default)]
struct Fake {
    /// Tokens in all caches that live.
    n_held: Rc<Cell<usize>>,
    most_held: usize,
    most_read: usize,
    fails: bool,
}

struct FakeCache {
    tokens: Vec<u32>,
    n_held: Rc<Cell<usize>>,
}

impl Drop for FakeCache {
    fn drop(&mut self) {
        self.n_held.set(self.n_held.get() - self.tokens.len());
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

    fn cache(&mut self) -> FakeCache {
        FakeCache { tokens: Vec::new(), n_held: Rc::clone(&self.n_held) }
    }

    fn cache_bytes(&self, n_tokens: usize) -> u64 {
        n_tokens as u64 * TOKEN_BYTES
    }

    fn forward(&mut self, feeds: &mut [Feed<'_, FakeCache>]) -> Result<Vec<f32>, InferError> {
        if self.fails {
            return Err(InferError::OutOfMemory("no room".into()));
        }
        let mut rows = Vec::new();
        self.most_read = self.most_read.max(feeds.iter().map(|feed| feed.tokens.len()).sum());
        for feed in feeds {
            assert!(!feed.tokens.is_empty());
            feed.cache.tokens.extend(feed.tokens);
            self.n_held.set(self.n_held.get() + feed.tokens.len());
            if feed.wants {
                rows.extend(logits(&feed.cache.tokens));
            }
        }
        self.most_held = self.most_held.max(self.n_held.get());
        Ok(rows)
    }
}

fn engine(positions: usize, pass_tokens: usize, n_kept: usize) -> Engine<Fake> {
    let cache_bytes = n_kept as u64 * TOKEN_BYTES + 1;
    let limits = Limits { vocabulary: VOCABULARY, positions, pass_tokens, cache_bytes };
    Engine::new(Fake::default(), limits)
}

fn sequence(key: u64, tokens: &[u32], max_new: usize) -> Sequence {
    let sampling = Sampling { temperature: 1.0, seed: key, ..Sampling::default() };
    let (tokens, n_prompt) = (tokens.to_vec(), tokens.len());
    Sequence { key, tokens, n_prompt, max_new, ends: Arc::from([3]), sampling }
}

/// Where a sequence comes to, token by token, and why it ends there.
fn alone(sequence: &Sequence, positions: usize) -> (Vec<u32>, Ended) {
    let mut sequence = sequence.clone();
    loop {
        let n_new = sequence.tokens.len() - sequence.n_prompt;
        if n_new >= sequence.max_new || sequence.tokens.len() >= positions {
            return (sequence.tokens, Ended::Length);
        }
        match sampler::choose(&mut logits(&sequence.tokens), &sequence) {
            token if sequence.ends.contains(&token) => return (sequence.tokens, Ended::Stop),
            token => sequence.tokens.push(token),
        }
    }
}

/// One turn of so many passes, in which every sequence is sound.
fn turn(engine: &mut Engine<Fake>, batch: &[Sequence], n_passes: usize) -> Vec<Turn> {
    let mut n = 0;
    let mut is_over = || {
        n += 1;
        n >= n_passes
    };
    let turns = engine.turn(batch, &mut is_over).unwrap();
    turns.into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_turn_ends_with_its_time_and_the_cache_of_who_has_ended_is_gone() {
    let mut engine = engine(1000, 64, 1000);
    let mut long = Sequence { ends: Arc::from([]), ..sequence(1, &[1; 100], 500) };
    let turns = turn(&mut engine, &[long.clone()], 1);
    assert_eq!(turns, [Turn { tokens: vec![], ended: None, n_read: 64 }]);
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
    let mut turns = engine.turn(&batch, &mut || false).unwrap();
    for (found, (_, says)) in turns.drain(1..6).zip(&bad) {
        let error = found.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    for (found, sequence) in turns.into_iter().zip(good) {
        let (tokens, ended) = alone(&sequence, 50);
        let found = found.unwrap();
        assert_eq!((&found.tokens[..], found.ended), (&tokens[sequence.n_prompt..], Some(ended)));
    }
    assert_eq!(engine.forward.n_held.get(), 0);
}

#[test]
fn whoever_finds_no_room_waits_until_those_before_have_ended() {
    let mut engine = engine(1000, 64, 50);
    let [mut first, second] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[key as u32; 20], 20) });
    for _ in 0..4 {
        let turns = turn(&mut engine, &[first.clone(), second.clone()], 5);
        first.tokens.extend(&turns[0].tokens);
        assert_eq!((turns[0].tokens.len(), &turns[1]), (5, &Turn::default()));
    }
    let turns = turn(&mut engine, &[second], 5);
    assert_eq!(turns[0].tokens.len(), 5);
}

#[test]
fn a_budget_bounds_the_tokens_of_a_sequence() {
    let mut engine = engine(1000, 64, 30);
    assert_eq!(engine.limits().positions, 30);
    let long = Sequence { ends: Arc::from([]), ..sequence(1, &[1; 20], 500) };
    let turns = turn(&mut engine, &[long], usize::MAX);
    assert_eq!((turns[0].tokens.len(), turns[0].ended), (10, Some(Ended::Length)));
    let error = engine.turn(&[sequence(2, &[1; 31], 5)], &mut || true).unwrap();
    let error = error[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("takes at most 30"), "{error}");
}

#[test]
fn a_sequence_that_has_all_it_may_have_ends_without_a_pass() {
    let mut engine = engine(10, 64, 100);
    engine.forward.fails = true;
    for sequence in [sequence(1, &[1; 10], 0), sequence(2, &[1], 0)] {
        let turns = turn(&mut engine, &[sequence], 1);
        assert_eq!(turns, [Turn { ended: Some(Ended::Length), ..Turn::default() }]);
    }
}

#[test]
fn after_an_error_all_is_read_again() {
    let mut engine = engine(1000, 64, 1000);
    let mut one = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3], 40) };
    let (expected, _) = alone(&one, 1000);
    let found = turn(&mut engine, &[one.clone()], 4);
    one.tokens.extend(&found[0].tokens);
    engine.forward.fails = true;
    let error = engine.turn(&[one.clone()], &mut || true).unwrap_err();
    assert_eq!((error.kind(), engine.forward.n_held.get()), (InferErrorKind::OutOfMemory, 0));
    engine.forward.fails = false;
    let found = turn(&mut engine, &[one.clone()], 100);
    one.tokens.extend(&found[0].tokens);
    assert_eq!(one.tokens, expected);
}

#[test]
fn a_turn_that_was_lost_is_made_again_with_the_same_tokens() {
    let mut engine = engine(1000, 64, 1000);
    let mut one = Sequence { ends: Arc::from([]), ..sequence(1, &[1, 2, 3], 40) };
    for n_passes in [1, 1, 7] {
        let lost = turn(&mut engine, &[one.clone()], n_passes);
        let found = turn(&mut engine, &[one.clone()], n_passes);
        assert_eq!(lost, found);
        one.tokens.extend(&found[0].tokens);
    }
}

#[test]
fn two_batches_that_take_turns_come_to_their_ends_where_only_one_has_room() {
    let mut engine = engine(1000, 64, 60);
    let mut running =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 20], 40) });
    let expected = running.clone().map(|sequence| alone(&sequence, 60));
    let mut ended = [false; 2];
    for n_turn in 0.. {
        assert!(n_turn < 400, "they do not end: {running:?}");
        let set = n_turn % 2;
        if ended == [true; 2] {
            break;
        }
        if ended[set] {
            continue;
        }
        let found = turn(&mut engine, &running[set..=set], 1).swap_remove(0);
        running[set].tokens.extend(&found.tokens);
        ended[set] = found.ended.is_some();
    }
    for (sequence, (tokens, _)) in running.into_iter().zip(expected) {
        assert_eq!(sequence.tokens, tokens);
    }
}

#[test]
fn what_is_kept_for_a_sequence_that_never_comes_back_gives_way() {
    let mut engine = engine(1000, 64, 60);
    let [gone, mut next] =
        [1, 2].map(|key| Sequence { ends: Arc::from([]), ..sequence(key, &[1; 50], 9) });
    turn(&mut engine, &[gone], 1);
    for n_turn in 0..=MOST_AWAY {
        let found = turn(&mut engine, &[next.clone()], 1).swap_remove(0);
        next.tokens.extend(&found.tokens);
        assert_eq!(found.tokens.len(), usize::from(n_turn == MOST_AWAY), "turn {n_turn}");
    }
}

/// A load, and what a worker does with it.
#[derive(Debug)]
struct Load {
    jobs: Vec<(Vec<u32>, usize)>,
    at_once: usize,
    pass_tokens: usize,
    n_kept: usize,
    n_passes: Vec<usize>,
}

fn load() -> impl Strategy<Value = Load> {
    let job = (proptest::collection::vec(0..POISON, 1..60), 1usize..90);
    let passes = proptest::collection::vec(1usize..12, 1..8);
    (proptest::collection::vec(job, 1..9), 1usize..6, 1usize..80, 90usize..400, passes).prop_map(
        |(jobs, at_once, pass_tokens, n_kept, n_passes)| Load {
            jobs,
            at_once,
            pass_tokens,
            n_kept,
            n_passes,
        },
    )
}

proptest! {
    #[test]
    fn every_sequence_comes_to_its_own_end_however_turns_are_cut_and_caches_are_lost(
        load in load(), losses in proptest::collection::vec(0u64..40, 0..4),
    ) {
        let mut engine = engine(100, load.pass_tokens, load.n_kept);
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
        prop_assert!(engine.forward.most_read <= load.pass_tokens.max(load.at_once + 32));
        prop_assert_eq!(engine.forward.n_held.get(), 0);
    }
}
