//! What sequences that begin alike have in common: the first to read it keeps it for the others.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::forward::Forward;
use super::growing::{Growing, Kept};
use super::prefixes::Prefixes;

/// Blocks that were read, of layers whose caches can have them in common.
pub(super) struct Reuse<F: Forward> {
    prefixes: Prefixes<F::Block>,
    /// Tokens of a block, where there are any and they are wanted.
    block_tokens: Option<NonZeroUsize>,
}

impl<F: Forward> Reuse<F> {
    pub(super) fn new(forward: &F, is_wanted: bool) -> Self {
        let block_tokens = forward.block_tokens().filter(|_| is_wanted);
        Self { prefixes: Prefixes::default(), block_tokens }
    }

    pub(super) fn is_on(&self) -> bool {
        self.block_tokens.is_some()
    }

    /// Sets whether it is wanted, and forgets all of it: what sequences have read meanwhile stands behind
    /// nothing that is kept.
    pub(super) fn want(&mut self, forward: &F, is_wanted: bool) {
        self.block_tokens = forward.block_tokens().filter(|_| is_wanted);
        self.prefixes.clear();
    }

    /// Forgets all of it: of layers that lost theirs.
    pub(super) fn forget(&mut self) {
        self.prefixes.clear();
    }

    /// Gives a sequence what another has read of its tokens. One is left to read.
    pub(super) fn give(&mut self, forward: &mut F, one: &mut Growing<'_, F::Cache>) {
        let Some(n_tokens) = self.block_tokens.map(NonZeroUsize::get) else { return };
        while let Some((before, tokens)) = one.next_block(n_tokens)
            && let Some((next, block)) = self.prefixes.next(before, tokens)
        {
            let kept = &mut one.kept;
            forward.put(&mut kept.cache, kept.n_blocks, block);
            kept.reuse(tokens);
            (kept.place, kept.n_blocks) = (Some(next), kept.n_blocks + 1);
        }
    }

    /// How many tokens each has to read in the next pass. None for whoever is about to read the very
    /// block that one before it reads: it has that from there.
    pub(super) fn unread(&self, growing: &[&mut Growing<'_, F::Cache>]) -> Vec<usize> {
        let n_tokens = self.block_tokens.map(NonZeroUsize::get);
        let mut about = HashSet::new();
        let unread = growing.iter().map(|one| {
            let waits = n_tokens.is_some_and(|n_tokens| {
                let is_next = one.next_block(n_tokens).is_some();
                one.block(n_tokens).is_some_and(|block| !about.insert(block) && is_next)
            });
            if waits { 0 } else { one.n_unread() }
        });
        unread.collect()
    }

    /// Keeps the whole blocks that a sequence has read for those that begin alike.
    pub(super) fn keep(&mut self, forward: &mut F, one: &mut Growing<'_, F::Cache>) {
        let Some(n_tokens) = self.block_tokens.map(NonZeroUsize::get) else { return };
        let Kept { cache, read, place, n_blocks, .. } = &mut one.kept;
        for tokens in read.chunks_exact(n_tokens).skip(*n_blocks) {
            let Some(before) = *place else { return };
            if let Some((next, block)) = self.prefixes.next(before, tokens) {
                // It was read by both. So whoever holds a block holds those before it as well.
                forward.put(cache, *n_blocks, block);
                *place = Some(next);
            } else {
                let block = forward.block(cache, *n_blocks);
                *place = block.and_then(|block| self.prefixes.put(before, tokens, block));
            }
            *n_blocks += 1;
        }
    }

    /// Takes what a sequence has read from those that begin alike, and keeps nothing more of it.
    pub(super) fn take_back(&mut self, one: &mut Growing<'_, F::Cache>) {
        if let Some(place) = one.kept.place.take() {
            self.prefixes.forget_text(place);
        }
    }

    /// Forgets what no sequence has of what was read, but for so many bytes.
    pub(super) fn shrink(&mut self, forward: &F, budget: u64) {
        let Some(n_tokens) = self.block_tokens else { return };
        let most = budget / forward.cache_bytes(n_tokens.get()).max(1);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.prefixes.shrink(most, |block| forward.is_in_cache(block));
    }
}
