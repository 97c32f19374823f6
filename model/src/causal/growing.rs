//! A sequence while it grows, and what is kept of it between two turns.

use super::prefixes::Place;
use super::sampler::Counts;
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
    /// How many of them another sequence had read.
    pub(super) n_reused: usize,
    /// Whole blocks of them that are among the prefixes, and where the last of them is; without one it
    /// keeps nothing for others any more.
    pub(super) n_blocks: usize,
    pub(super) place: Option<Place>,
    /// How often they are there, as far as anybody asked.
    pub(super) counts: Counts,
}

impl<C> Kept<C> {
    /// Of a sequence of which nothing was read.
    pub(super) fn new(cache: C) -> Self {
        let (place, counts) = (Some(Place::START), Counts::default());
        Self { cache, read: Vec::new(), n_reused: 0, n_blocks: 0, place, counts }
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
            self.end = Some(Err(ItemError::new(message)));
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
