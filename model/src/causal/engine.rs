//! What a generator does in a turn, on any device. The clock stands outside.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::forward::{Feed, Forward};
use super::turn::{Ended, Sequence, Turn};
use super::{plan, sampler};
use crate::{InferError, ItemError};

/// Tokens that a sequence may gain in one turn: it has room for so many from the beginning.
const MOST_NEW: usize = 64;

/// Turns after which a sequence that was in none of them is taken to be gone: what is kept for it no
/// longer keeps others from their room. More turns than others have between two of the same batch.
const MOST_AWAY: u64 = 256;

/// What bounds a generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) vocabulary: usize,
    /// Tokens that a sequence may have.
    pub(super) positions: usize,
    /// Tokens that are read in a pass, as long as no more sequences than that grow.
    pub(super) pass_tokens: usize,
    /// Bytes of keys and values.
    pub(super) cache_bytes: u64,
}

/// The layers of a decoder, with what is kept of sequences between turns.
pub(super) struct Engine<F: Forward> {
    pub(super) forward: F,
    limits: Limits,
    kept: HashMap<u64, Kept<F::Cache>>,
    /// Sequences of late that have not ended.
    seen: HashMap<u64, Seen>,
    n_turns: u64,
    /// How many sequences came.
    n_seen: u64,
    /// Set while a turn is under way: if the next one finds it, a panic came between.
    is_broken: bool,
}

/// Keys and values of a sequence between two turns.
struct Kept<C> {
    cache: C,
    /// The tokens that were read: what goes on otherwise begins anew.
    read: Vec<u32>,
}

/// When a sequence was there.
#[derive(Clone, Copy)]
struct Seen {
    /// Its place in the order in which they came.
    since: u64,
    /// The last turn.
    turn: u64,
}

/// What becomes of a sequence of the batch.
enum Place<C> {
    /// Without a pass.
    Told(Result<Turn, ItemError>),
    /// For room.
    Waits,
    Grows(Growing<C>),
}

/// A sequence while it grows.
struct Growing<C> {
    sequence: Sequence,
    cache: C,
    n_read: usize,
    /// How many tokens it had before this turn.
    n_before: usize,
    /// Set once it does not go on.
    end: Option<Result<Ended, ItemError>>,
}

impl<F: Forward> Engine<F> {
    /// Sequences may have fewer tokens than `limits` says where more of one do not fit.
    pub(super) fn new(forward: F, limits: Limits) -> Self {
        let mut engine = Self {
            forward,
            limits,
            kept: HashMap::new(),
            seen: HashMap::new(),
            n_turns: 0,
            n_seen: 0,
            is_broken: false,
        };
        engine.bound(limits);
        engine
    }

    /// Sets other limits.
    pub(super) fn bound(&mut self, limits: Limits) {
        let Limits { positions, cache_bytes, .. } = limits;
        let bytes = |n_tokens| self.forward.cache_bytes(n_tokens);
        let positions = plan::most_tokens(positions, cache_bytes, bytes);
        self.limits = Limits { positions, ..limits };
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Lets sequences grow until `is_over`, after at least one pass.
    ///
    /// After an error nothing is kept of any sequence.
    pub(super) fn turn(
        &mut self,
        batch: &[Sequence],
        is_over: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Result<Turn, ItemError>>, InferError> {
        self.n_turns += 1;
        if std::mem::replace(&mut self.is_broken, true) {
            self.kept.clear();
        }
        let mut places = self.enter(batch);
        let grown = self.grow(&mut places, is_over);
        self.is_broken = false;
        if let Err(error) = grown {
            self.kept.clear();
            return Err(error);
        }
        let places = places.into_iter().zip(batch);
        Ok(places.map(|(place, sequence)| self.leave(place, sequence)).collect())
    }

    /// Takes what is kept of the sequences that are to grow, and makes room for them.
    fn enter(&mut self, batch: &[Sequence]) -> Vec<Place<F::Cache>> {
        self.note(batch);
        let mut places: Vec<_> = batch.iter().map(|sequence| self.refused(sequence)).collect();
        let open = batch.iter().zip(&places).filter(|(_, place)| place.is_none());
        let needs: HashMap<u64, u64> = open.map(|(it, _)| (it.key, self.need(it))).collect();
        let growing = self.growing_keys(&needs);
        let taken = growing.iter().fold(0u64, |sum, key| sum.saturating_add(needs[key]));
        for (place, sequence) in places.iter_mut().zip(batch) {
            if place.is_none() && !growing.contains(&sequence.key) {
                *place = Some(Place::Waits);
            }
        }
        // What is kept of those that wait stays where it is, as far as there is room.
        let take = |(sequence, place): (&Sequence, &Option<Place<_>>)| match place {
            Some(Place::Waits) => None,
            _ => self.kept.remove(&sequence.key),
        };
        let kept: Vec<Option<Kept<_>>> = batch.iter().zip(&places).map(take).collect();
        self.make_room(self.limits.cache_bytes.saturating_sub(taken));
        let grows = |((place, sequence), kept): ((Option<Place<_>>, _), _)| {
            place.unwrap_or_else(|| Place::Grows(self.growing(sequence, kept)))
        };
        places.into_iter().zip(batch).zip(kept).map(grows).collect()
    }

    /// Who grows in this turn, of those that want to and need so many bytes.
    fn growing_keys(&mut self, needs: &HashMap<u64, u64>) -> HashSet<u64> {
        let n_turns = self.n_turns;
        self.seen.retain(|_, seen| n_turns - seen.turn <= MOST_AWAY);
        let mut order = Vec::with_capacity(self.seen.len());
        for (key, seen) in &self.seen {
            let kept = self.kept.get(key).map(|kept| self.forward.cache_bytes(kept.read.len()));
            let claim = plan::Claim { need: needs.get(key).copied(), kept: kept.unwrap_or(0) };
            // Of what is neither kept nor to grow nobody has to make room.
            if claim.need.is_some() || kept.is_some() {
                order.push((seen.since, *key, claim));
            }
        }
        order.sort_unstable_by_key(|(since, ..)| *since);
        let claims: Vec<plan::Claim> = order.iter().map(|(.., claim)| *claim).collect();
        let rooms = plan::rooms(&claims, self.limits.cache_bytes);
        order.into_iter().zip(rooms).filter(|(_, has)| *has).map(|((_, key, _), _)| key).collect()
    }

    /// Notes that these are there in this turn, in their order.
    fn note(&mut self, batch: &[Sequence]) {
        for sequence in batch {
            let seen = Seen { since: self.n_seen, turn: self.n_turns };
            self.seen.entry(sequence.key).or_insert(seen).turn = self.n_turns;
            self.n_seen += 1;
        }
    }

    /// What a sequence is told that does not grow at all.
    fn refused(&self, sequence: &Sequence) -> Option<Place<F::Cache>> {
        let Limits { vocabulary, positions, .. } = self.limits;
        let Sequence { tokens, n_prompt, max_new, .. } = sequence;
        let error = |message: String| Some(Place::Told(Err(ItemError::new(message))));
        if *n_prompt == 0 || tokens.len() < *n_prompt {
            return error("prompt is empty; it must have at least one token".to_owned());
        }
        if *n_prompt > positions {
            return error(format!(
                "prompt has {n_prompt} tokens; this worker takes at most {positions}, shorten it"
            ));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return error(format!(
                "prompt has token {token}; the model knows {vocabulary}, use the tokenizer beside it"
            ));
        }
        let ended = Some(Ended::Length);
        if *n_prompt == positions && tokens.len() == *n_prompt && *max_new > 0 {
            return error(format!(
                "prompt has {n_prompt} tokens, all that this worker takes with the answer; shorten it"
            ));
        }
        let is_long = tokens.len() - n_prompt >= *max_new || tokens.len() >= positions;
        is_long.then_some(Place::Told(Ok(Turn { ended, ..Turn::default() })))
    }

    /// Bytes that a sequence may have by the end of this turn.
    fn need(&self, sequence: &Sequence) -> u64 {
        let most = sequence.n_prompt.saturating_add(sequence.max_new).min(self.limits.positions);
        self.forward.cache_bytes((sequence.tokens.len() + MOST_NEW).min(most))
    }

    /// Drops what is kept until it is at most so much: first what is of no late turn, then that of
    /// whoever came last.
    fn make_room(&mut self, budget: u64) {
        let mut kept = Vec::with_capacity(self.kept.len());
        let mut keys = Vec::with_capacity(self.kept.len());
        for (key, one) in &self.kept {
            let rank = self.seen.get(key).map_or(0, |seen| u64::MAX - seen.since);
            kept.push((rank, self.forward.cache_bytes(one.read.len())));
            keys.push(*key);
        }
        for place in plan::dropped(&kept, budget) {
            self.kept.remove(&keys[place]);
        }
    }

    fn growing(&mut self, sequence: &Sequence, kept: Option<Kept<F::Cache>>) -> Growing<F::Cache> {
        let tokens = &sequence.tokens;
        let (cache, n_read) = match kept.filter(|kept| kept.goes_on(tokens)) {
            Some(kept) => (kept.cache, kept.read.len()),
            None => (self.forward.cache(), 0),
        };
        Growing { sequence: sequence.clone(), cache, n_read, n_before: tokens.len(), end: None }
    }

    fn grow(
        &mut self,
        places: &mut [Place<F::Cache>],
        is_over: &mut dyn FnMut() -> bool,
    ) -> Result<(), InferError> {
        loop {
            let growing = places.iter_mut().filter_map(|place| match place {
                Place::Grows(growing) if growing.end.is_none() => Some(growing),
                Place::Grows(_) | Place::Waits | Place::Told(_) => None,
            });
            let mut growing: Vec<&mut Growing<F::Cache>> = growing.collect();
            if growing.is_empty() {
                return Ok(());
            }
            self.pass(&mut growing)?;
            let is_full =
                |one: &&mut Growing<_>| one.sequence.tokens.len() - one.n_before >= MOST_NEW;
            if growing.iter().any(is_full) || is_over() {
                return Ok(());
            }
        }
    }

    /// Reads once, and gives a token to each that has read all it has.
    fn pass(&mut self, growing: &mut [&mut Growing<F::Cache>]) -> Result<(), InferError> {
        let unread = growing.iter().map(|one| one.sequence.tokens.len() - one.n_read);
        let shares = plan::shares(&unread.collect::<Vec<_>>(), self.limits.pass_tokens);
        let mut feeds = Vec::with_capacity(growing.len());
        let mut all_plain = true;
        for (one, share) in growing.iter_mut().zip(shares).filter(|(_, share)| *share > 0) {
            let unread = &one.sequence.tokens[one.n_read..];
            let (tokens, wants) = (&unread[..share], share == unread.len());
            one.n_read += share;
            all_plain &= !wants || sampler::is_plain(&one.sequence.sampling);
            feeds.push(Feed { cache: &mut one.cache, tokens, wants });
        }
        let is_done = |one: &Growing<_>| one.n_read == one.sequence.tokens.len();
        if all_plain {
            let chosen = self.forward.likeliest(&mut feeds)?;
            let wanted = growing.iter_mut().filter(|one| is_done(one));
            wanted.zip(chosen).for_each(|(one, token)| one.take(token, self.limits.positions));
            return Ok(());
        }
        let mut logits = self.forward.forward(&mut feeds)?;
        let mut wanted: Vec<&mut &mut Growing<_>> = growing.iter_mut().collect();
        wanted.retain(|one| is_done(one));
        let rows = logits.chunks_exact_mut(self.limits.vocabulary);
        if rows.len() < wanted.len() {
            return Err(InferError::Device("the logits of a sequence did not come back".into()));
        }
        // What a cache is made of may stay on this thread; the choice is of the rows alone.
        let rows: Vec<_> = rows.zip(wanted.iter().map(|one| &one.sequence)).collect();
        let chosen: Vec<Option<u32>> = rows.into_par_iter().map(choose).collect();
        for (one, token) in wanted.into_iter().zip(chosen) {
            one.take(token, self.limits.positions);
        }
        Ok(())
    }

    /// What a sequence gained; what it has read is kept where it goes on.
    fn leave(&mut self, place: Place<F::Cache>, of: &Sequence) -> Result<Turn, ItemError> {
        let has_ended = match &place {
            Place::Told(_) => true,
            Place::Waits => false,
            Place::Grows(growing) => growing.end.is_some(),
        };
        if has_ended {
            self.seen.remove(&of.key);
        }
        let Growing { mut sequence, cache, n_read, n_before, end } = match place {
            Place::Told(told) => return told,
            Place::Waits => {
                let kept = self.kept.get(&of.key).filter(|kept| kept.goes_on(&of.tokens));
                let n_read = kept.map_or(0, |kept| kept.read.len());
                return Ok(Turn { n_read, ..Turn::default() });
            }
            Place::Grows(growing) => growing,
        };
        let ended = end.transpose()?;
        let tokens = sequence.tokens[n_before..].to_vec();
        if ended.is_none() {
            sequence.tokens.truncate(n_read);
            self.kept.insert(sequence.key, Kept { cache, read: sequence.tokens });
        }
        Ok(Turn { tokens, ended, n_read })
    }
}

impl<C> Kept<C> {
    /// Whether these tokens go on where it ends. There must be one left to read: behind it come the
    /// logits.
    fn goes_on(&self, tokens: &[u32]) -> bool {
        self.read.len() < tokens.len() && tokens.starts_with(&self.read)
    }
}

/// The token behind those of a sequence, unless the logits are spoilt.
fn choose((logits, sequence): (&mut [f32], &Sequence)) -> Option<u32> {
    logits.iter().all(|x| x.is_finite()).then(|| sampler::choose(logits, sequence))
}

impl<C> Growing<C> {
    /// Gains a token, or ends; there is none where the logits behind its last token are spoilt.
    fn take(&mut self, token: Option<u32>, positions: usize) {
        let Some(token) = token else {
            let message = "output is not finite; the weights do not suit this input";
            self.end = Some(Err(ItemError::new(message)));
            return;
        };
        let sequence = &mut self.sequence;
        if sequence.ends.contains(&token) {
            self.end = Some(Ok(Ended::Stop));
            return;
        }
        sequence.tokens.push(token);
        let n_new = sequence.tokens.len() - sequence.n_prompt;
        if n_new >= sequence.max_new || sequence.tokens.len() >= positions {
            self.end = Some(Ok(Ended::Length));
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
