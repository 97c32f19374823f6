//! A sequence while it grows, and what is kept of it between two turns.

use rayon::prelude::*;

use super::prefixes::Place;
use super::sampler::{self, Counts};
use super::turn::{Ended, Sequence};
use crate::ItemError;

/// A sequence in a turn.
pub(super) struct Growing<'a, C> {
    pub(super) of: &'a Sequence,
    pub(super) kept: Kept<C>,
    /// The tokens that it gained in this turn.
    pub(super) gained: Vec<u32>,
    /// Set once it does not go on.
    pub(super) end: Option<Result<Ended, ItemError>>,
}

/// What is known of the tokens that were read.
pub(super) struct Kept<C> {
    pub(super) cache: C,
    /// The tokens themselves: what goes on otherwise begins anew.
    pub(super) read: Vec<u32>,
    /// How many of its tokens another sequence had read before it did.
    pub(super) n_reused: usize,
    /// How many it had read by itself or from another before what was kept of it was lost: what it gets
    /// back of these is its own.
    pub(super) n_before: usize,
    /// Whole blocks of them that are among the prefixes, and where the last of them is; without one it
    /// keeps nothing for others any more.
    pub(super) n_blocks: usize,
    pub(super) place: Option<Place>,
    /// How often they are there, as far as anybody asked.
    pub(super) counts: Counts,
}

/// What stays known of a sequence when what was kept of it is lost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Past {
    n_read: usize,
    n_reused: usize,
}

impl<C> Kept<C> {
    /// Of a sequence of which nothing was read, or all was lost.
    pub(super) fn new(cache: C, past: Past) -> Self {
        let (place, counts) = (Some(Place::START), Counts::default());
        let Past { n_read: n_before, n_reused } = past;
        Self { cache, read: Vec::new(), n_reused, n_before, n_blocks: 0, place, counts }
    }

    pub(super) fn past(&self) -> Past {
        Past { n_read: self.n_before.max(self.read.len()), n_reused: self.n_reused }
    }

    /// Reads what another has read.
    pub(super) fn reuse(&mut self, tokens: &[u32]) {
        let n_had = self.n_before.max(self.read.len());
        self.read.extend_from_slice(tokens);
        self.n_reused += self.read.len().saturating_sub(n_had);
    }

    /// Whether these tokens go on where it ends. There must be one left to read: behind it come the
    /// logits.
    pub(super) fn goes_on(&self, tokens: &[u32]) -> bool {
        self.read.len() < tokens.len() && tokens.starts_with(&self.read)
    }
}

impl<'a, C> Growing<'a, C> {
    pub(super) fn new(of: &'a Sequence, kept: Kept<C>) -> Self {
        Self { of, kept, gained: Vec::new(), end: None }
    }

    /// Tokens that it has by now.
    pub(super) fn n_tokens(&self) -> usize {
        self.of.tokens.len() + self.gained.len()
    }

    pub(super) fn n_unread(&self) -> usize {
        self.n_tokens() - self.kept.read.len()
    }

    /// The block of so many tokens in which the next one is that it has to read: what is before it,
    /// and the tokens. `None` where they are not all known, or what is before them is not kept.
    pub(super) fn block(&self, n_tokens: usize) -> Option<(Place, &'a [u32])> {
        let Kept { read, n_blocks, place, .. } = &self.kept;
        let start = n_blocks * n_tokens;
        let place = place.filter(|_| start == read.len() - read.len() % n_tokens)?;
        Some((place, self.of.tokens.get(start..start + n_tokens)?))
    }

    /// The same of one of which it has read nothing, and behind which it has another token.
    pub(super) fn next_block(&self, n_tokens: usize) -> Option<(Place, &'a [u32])> {
        let is_whole = self.kept.read.len().is_multiple_of(n_tokens);
        self.block(n_tokens).filter(|_| is_whole && self.n_unread() > n_tokens)
    }

    /// What it has to read, so many tokens of it, and where they go: they count as read from now on.
    pub(super) fn read(&mut self, n_tokens: usize) -> (&mut C, &[u32]) {
        let Self { of, kept: Kept { cache, read, .. }, gained, .. } = self;
        // It gains one only when all before are read.
        let unread = match read.len().checked_sub(of.tokens.len()) {
            Some(n_before) => &gained[n_before..],
            None => &of.tokens[read.len()..],
        };
        let tokens = &unread[..n_tokens];
        read.extend_from_slice(tokens);
        (cache, tokens)
    }

    /// Counts what it has read, where its next token depends on that.
    pub(super) fn count(&mut self) {
        if self.of.sampling.counts_tokens() {
            self.kept.counts.read(&self.kept.read, self.of.n_prompt);
        }
    }

    /// Gains a token, or ends; there is none where the logits behind its last token are spoilt.
    pub(super) fn take(&mut self, token: Option<u32>, positions: usize) {
        let Some(token) = token else {
            let message = "output is not finite; the weights do not suit this input";
            self.end = Some(Err(ItemError::of_model(message)));
            return;
        };
        if self.of.ends.contains(&token) {
            self.end = Some(Ok(Ended::Stop));
            return;
        }
        self.gained.push(token);
        let n_new = self.n_tokens() - self.of.n_prompt;
        if n_new >= self.of.max_new || self.n_tokens() >= positions {
            self.end = Some(Ok(Ended::Length));
        }
    }
}

/// The next token of each that has read all it has, by the logits behind it; `None` where they are
/// spoilt. Of those whose logits are not there nothing is said.
pub(super) fn choose<C>(
    growing: &mut [&mut Growing<'_, C>],
    mut logits: Vec<f32>,
    vocabulary: usize,
) -> Vec<Option<u32>> {
    let mut wanted = Vec::from_iter(growing.iter_mut().filter(|one| one.n_unread() == 0));
    wanted.iter_mut().for_each(|one| one.count());
    // What a cache is made of may stay on this thread; the choice is of the rows alone.
    let asked = wanted.iter().map(|one| {
        let n_generated = one.n_tokens().saturating_sub(one.of.n_prompt);
        (&one.of.sampling, &one.kept.counts, n_generated)
    });
    let rows: Vec<_> = logits.chunks_exact_mut(vocabulary).zip(asked).collect();
    let choose = |(logits, (sampling, counts, n_generated)): (&mut [f32], (_, _, usize))| {
        let is_sound = logits.iter().all(|x| x.is_finite());
        is_sound.then(|| sampler::choose(logits, sampling, counts, n_generated))
    };
    rows.into_par_iter().map(choose).collect()
}
