//! What a generator does in a turn, on any device. The clock stands outside.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::forward::{Feed, Forward};
use super::growing::{self, Growing, Kept, Past};
use super::pace::{Pace, Read};
use super::reuse::Reuse;
use super::turn::{Ended, Sequence, Turn};
use super::{plan, sampler};
use crate::{InferError, ItemError};

/// Tokens that a sequence may gain in one turn: it has room for so many from the beginning.
const MOST_NEW: usize = 64;

/// Turns after which a sequence that was in none of them is taken to be gone, if nobody has let it go
/// before: what is kept for it no longer keeps others from their room. More turns than others have
/// between two of the same batch.
const MOST_AWAY: u64 = 256;

/// Turns in a row in which nobody found room, after which those that are in none of them are taken to
/// be gone. Whoever runs them lets some time pass between two of such turns.
const MOST_EMPTY: u64 = 8;

/// What bounds a generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) vocabulary: usize,
    /// Tokens that a sequence may have.
    pub(super) positions: usize,
    /// Tokens of prompts that are read in a pass at most.
    pub(super) pass_tokens: usize,
    /// How long a turn takes, from which on it ends with its pass.
    pub(super) turn: Duration,
    /// Bytes of keys and values.
    pub(super) cache_bytes: u64,
    /// Whether what a sequence has read is kept for those that begin alike.
    pub(super) keeps_prefixes: bool,
}

/// The layers of a decoder, with what is kept of sequences between turns.
pub(super) struct Engine<F: Forward> {
    pub(super) forward: F,
    limits: Limits,
    kept: HashMap<u64, Kept<F::Cache>>,
    reuse: Reuse<F>,
    pace: Pace,
    /// Sequences of late that have not ended.
    seen: HashMap<u64, Seen>,
    n_turns: u64,
    /// Turns of late in which nobody found room.
    n_empty: u64,
    /// How many sequences came.
    n_seen: u64,
    /// Set while a turn is under way: if the next one finds it, a panic came between.
    is_broken: bool,
}

/// When a sequence was there.
struct Seen {
    /// Its place in the order in which they came.
    since: u64,
    /// The last turn.
    turn: u64,
    past: Past,
    /// Of the sequence, as it was then.
    life: Weak<()>,
}

/// What becomes of a sequence of the batch.
enum Place<'a, C> {
    /// Without a pass.
    Told(Result<Turn, ItemError>),
    /// For room.
    Waits,
    Grows(Growing<'a, C>),
}

impl<F: Forward> Engine<F> {
    /// Sequences may have fewer tokens than `limits` says where more of one do not fit.
    pub(super) fn new(forward: F, limits: Limits) -> Self {
        let mut engine = Self {
            reuse: Reuse::new(&forward, limits.keeps_prefixes),
            forward,
            limits,
            kept: HashMap::new(),
            pace: Pace::default(),
            seen: HashMap::new(),
            n_turns: 0,
            n_empty: 0,
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
        if limits.keeps_prefixes != self.limits.keeps_prefixes {
            self.reuse.want(&self.forward, limits.keeps_prefixes);
        }
        self.limits = Limits { positions, ..limits };
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn keeps_prefixes(&self) -> bool {
        self.reuse.is_on()
    }

    /// Lets sequences grow until the turn is over, after at least one pass. `clock` says how long it has
    /// taken so far.
    ///
    /// After an error nothing is kept of any sequence.
    pub(super) fn turn(
        &mut self,
        batch: &[Sequence],
        clock: &mut dyn FnMut() -> Duration,
    ) -> Result<Vec<Result<Turn, ItemError>>, InferError> {
        self.n_turns += 1;
        if std::mem::replace(&mut self.is_broken, true) {
            self.forget();
        }
        let mut places = self.enter(batch);
        let grown = self.grow(&mut places, clock);
        self.is_broken = false;
        if let Err(error) = grown {
            self.forget();
            return Err(error);
        }
        let places = places.into_iter().zip(batch);
        Ok(places.map(|(place, sequence)| self.leave(place, sequence)).collect())
    }

    fn forget(&mut self) {
        self.kept.clear();
        self.reuse.forget();
    }

    /// Takes what is kept of the sequences that are to grow, and makes room for them.
    fn enter<'a>(&mut self, batch: &'a [Sequence]) -> Vec<Place<'a, F::Cache>> {
        self.note(batch);
        let mut places: Vec<_> = batch.iter().map(|sequence| self.refused(sequence)).collect();
        let open = batch.iter().zip(&places).filter(|(_, place)| place.is_none());
        let needs: HashMap<u64, u64> = open.map(|(it, _)| (it.key, self.need(it))).collect();
        let growing = self.growing_keys(&needs);
        let is_empty = growing.is_empty() && !needs.is_empty();
        self.n_empty = if is_empty { self.n_empty + 1 } else { 0 };
        let taken = growing.iter().fold(0u64, |sum, key| sum.saturating_add(needs[key]));
        for (place, sequence) in places.iter_mut().zip(batch) {
            if place.is_none() && !growing.contains(&sequence.key) {
                *place = Some(Place::Waits);
            }
        }
        // What is kept of those that wait stays where it is, as far as there is room.
        let take = |(sequence, place): (&Sequence, &Option<Place<'_, _>>)| match place {
            Some(Place::Waits) => None,
            _ => self.kept.remove(&sequence.key),
        };
        let kept: Vec<Option<Kept<_>>> = batch.iter().zip(&places).map(take).collect();
        let left = self.make_room(self.limits.cache_bytes.saturating_sub(taken));
        let grows = |((place, sequence), kept): ((Option<Place<'a, _>>, &'a Sequence), _)| {
            place.unwrap_or_else(|| Place::Grows(self.growing(sequence, kept)))
        };
        let places = places.into_iter().zip(batch).zip(kept).map(grows).collect();
        // Last, for what those that grow have in common with others is theirs by now.
        self.reuse.shrink(&self.forward, left);
        places
    }

    /// Who grows in this turn, of those that want to and need so many bytes.
    fn growing_keys(&mut self, needs: &HashMap<u64, u64>) -> HashSet<u64> {
        let most = if self.n_empty < MOST_EMPTY { MOST_AWAY } else { 0 };
        let n_turns = self.n_turns;
        self.seen.retain(|_, it| n_turns - it.turn <= most && it.life.strong_count() > 0);
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
            let (since, turn, past) = (self.n_seen, self.n_turns, Past::default());
            let seen = self.seen.entry(sequence.key);
            let seen = seen.or_insert(Seen { since, turn, past, life: Weak::new() });
            (seen.turn, seen.life) = (turn, Arc::downgrade(&sequence.life));
            self.n_seen += 1;
        }
    }

    /// What a sequence is told that does not grow at all.
    fn refused<'a>(&self, sequence: &Sequence) -> Option<Place<'a, F::Cache>> {
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
        // Those that were read have been looked at.
        let kept = self.kept.get(&sequence.key).filter(|kept| kept.goes_on(tokens));
        let new = &tokens[kept.map_or(0, |kept| kept.read.len())..];
        if let Some(token) = new.iter().find(|token| **token as usize >= vocabulary) {
            let words = format!(
                "prompt has token {token}; the model knows {vocabulary}, use the tokenizer beside it"
            );
            return Some(Place::Told(Err(ItemError::of_model(words))));
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

    /// Drops what is kept until it is at most so much, and says what is left: first what is of no late
    /// turn, then that of whoever came last.
    fn make_room(&mut self, budget: u64) -> u64 {
        let mut kept = Vec::with_capacity(self.kept.len());
        let mut keys = Vec::with_capacity(self.kept.len());
        for (key, one) in &self.kept {
            let rank = self.seen.get(key).map_or(0, |seen| u64::MAX - seen.since);
            kept.push((rank, self.forward.cache_bytes(one.read.len())));
            keys.push(*key);
        }
        let mut taken = kept.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        for place in plan::dropped(&kept, budget) {
            self.kept.remove(&keys[place]);
            taken -= kept[place].1.min(taken);
        }
        budget.saturating_sub(taken)
    }

    fn growing<'a>(
        &mut self,
        sequence: &'a Sequence,
        kept: Option<Kept<F::Cache>>,
    ) -> Growing<'a, F::Cache> {
        let kept = kept.filter(|kept| kept.goes_on(&sequence.tokens));
        let past = self.seen.get(&sequence.key).map(|seen| seen.past).unwrap_or_default();
        let kept = kept.unwrap_or_else(|| Kept::new(self.forward.cache(), past));
        let mut growing = Growing::new(sequence, kept);
        self.reuse.give(&mut self.forward, &mut growing);
        growing
    }

    fn grow(
        &mut self,
        places: &mut [Place<'_, F::Cache>],
        clock: &mut dyn FnMut() -> Duration,
    ) -> Result<(), InferError> {
        let mut since = clock();
        loop {
            let growing = places.iter_mut().filter_map(|place| match place {
                Place::Grows(growing) if growing.end.is_none() => Some(growing),
                Place::Grows(_) | Place::Waits | Place::Told(_) => None,
            });
            let mut growing: Vec<&mut Growing<'_, F::Cache>> = growing.collect();
            if growing.is_empty() {
                return Ok(());
            }
            let read = self.pass(&mut growing)?;
            let now = clock();
            self.pace.learn(read, now.saturating_sub(since));
            since = now;
            let is_full = growing.iter().any(|one| one.gained.len() >= MOST_NEW);
            if is_full || now >= self.limits.turn {
                return Ok(());
            }
        }
    }

    /// Reads once, and gives a token to each that has read all it has.
    fn pass(&mut self, growing: &mut [&mut Growing<'_, F::Cache>]) -> Result<Read, InferError> {
        for one in growing.iter_mut() {
            self.reuse.give(&mut self.forward, one);
        }
        let unread = self.reuse.unread(growing);
        let n_rows = unread.iter().filter(|n| **n == 1).count();
        let n_prompt = self.pace.prompt_tokens(n_rows, self.limits.pass_tokens);
        let shares = plan::shares(&unread, n_prompt);
        let n_prompt = shares.iter().sum::<usize>() - n_rows;
        let mut feeds = Vec::with_capacity(growing.len());
        let mut all_plain = true;
        for (one, share) in growing.iter_mut().zip(&shares).filter(|(_, share)| **share > 0) {
            let wants = *share == one.n_unread();
            all_plain &= !wants || sampler::is_plain(&one.of.sampling);
            let (cache, tokens) = one.read(*share);
            feeds.push(Feed { cache, tokens, wants });
        }
        let n_wanted = feeds.iter().filter(|feed| feed.wants).count();
        let chosen = if all_plain {
            self.forward.likeliest(&mut feeds, self.limits.vocabulary)?
        } else {
            let logits = self.forward.forward(&mut feeds)?;
            growing::choose(growing, logits, self.limits.vocabulary)
        };
        if chosen.len() != n_wanted {
            return Err(InferError::Device("the logits of a sequence did not come back".into()));
        }
        self.take_all(growing, chosen);
        Ok(Read { n_rows, n_prompt })
    }

    /// Gives who has read all it has the token chosen for it, and keeps what was read for others,
    /// unless the logits behind it are spoilt: so may be what they were made of.
    fn take_all(
        &mut self,
        growing: &mut [&mut Growing<'_, F::Cache>],
        chosen: impl IntoIterator<Item = Option<u32>>,
    ) {
        let mut chosen = chosen.into_iter();
        for one in growing.iter_mut() {
            if one.n_unread() > 0 {
                self.reuse.keep(&mut self.forward, one);
                continue;
            }
            let token = chosen.next().flatten();
            match token {
                Some(_) => self.reuse.keep(&mut self.forward, one),
                None => self.reuse.take_back(one),
            }
            one.take(token, self.limits.positions);
        }
    }

    /// What a sequence gained; what it has read is kept where it goes on.
    fn leave(&mut self, place: Place<'_, F::Cache>, of: &Sequence) -> Result<Turn, ItemError> {
        let has_ended = match &place {
            Place::Told(_) => true,
            Place::Waits => false,
            Place::Grows(growing) => growing.end.is_some(),
        };
        if has_ended {
            self.seen.remove(&of.key);
        }
        let Growing { kept, gained, end, .. } = match place {
            Place::Told(told) => return told,
            Place::Waits => {
                let kept = self.kept.get(&of.key).filter(|kept| kept.goes_on(&of.tokens));
                let (n_read, n_reused) = kept.map_or((0, 0), |it| (it.read.len(), it.n_reused));
                return Ok(Turn { n_read, n_reused, ..Turn::default() });
            }
            Place::Grows(growing) => growing,
        };
        let ended = end.transpose()?;
        let (n_read, n_reused) = (kept.read.len(), kept.n_reused);
        if let Some(seen) = self.seen.get_mut(&of.key) {
            seen.past = kept.past();
        }
        if ended.is_none() {
            self.kept.insert(of.key, kept);
        }
        Ok(Turn { tokens: gained, ended, n_read, n_reused })
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
