//! Keys and values of a sequence in plain memory, in blocks of tokens that lie as products read them.

use std::sync::{Arc, PoisonError, RwLock};

use crate::processor::tile;

/// Tokens of a block: whole panels on every machine.
pub(super) const BLOCK: usize = 64;

/// What a sequence has read. Its memory grows by a block in each layer and head. Blocks that are full
/// may be those of other sequences, too.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(super) n_tokens: usize,
    /// Layer after layer.
    pub(super) heads: Arc<Vec<RwLock<Head>>>,
}

/// What one head of one layer knows of the tokens.
#[derive(Debug)]
pub(super) struct Head {
    width: usize,
    /// First the keys of a block, turned, as a matrix of a column per token; then the values, as one of
    /// a row per token. Both lie in panels.
    blocks: Vec<Arc<[f32]>>,
}

/// A full block of tokens in all layers and heads.
#[derive(Debug)]
pub(crate) struct Block(Vec<Arc<[f32]>>);

impl Block {
    /// Whether a cache has it.
    pub(super) fn is_in_cache(&self) -> bool {
        self.0.first().is_some_and(|block| Arc::strong_count(block) > 1)
    }
}

impl Cache {
    pub(super) fn new(n_heads: usize, width: usize) -> Self {
        let head = || RwLock::new(Head { width, blocks: Vec::new() });
        Self { n_tokens: 0, heads: Arc::new((0..n_heads).map(|_| head()).collect()) }
    }

    /// Bytes that it takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        let of_block = |block: &[f32]| size_of_val(block) as u64;
        let of_head = |head: &RwLock<Head>| {
            let head = head.read().expect("no piece panicked");
            head.blocks.iter().map(|block| of_block(block)).sum::<u64>()
        };
        self.heads.iter().map(of_head).sum()
    }

    /// Makes room for so many tokens in all.
    pub(super) fn grow(&self, n_tokens: usize) {
        for head in &*self.heads {
            let mut head = head.write().unwrap_or_else(PoisonError::into_inner);
            let n_numbers = n_numbers(head.width);
            while head.blocks.len() * BLOCK < n_tokens {
                head.blocks.push(std::iter::repeat_n(0.0, n_numbers).collect());
            }
        }
    }

    /// A full block.
    pub(super) fn block(&self, nth: usize) -> Block {
        let of_head = |head: &RwLock<Head>| {
            let head = head.read().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&head.blocks[nth])
        };
        Block(self.heads.iter().map(of_head).collect())
    }

    /// Has a full block of the same tokens as its own, or behind full ones as its next.
    pub(super) fn put(&mut self, nth: usize, block: &Block) {
        for (head, block) in self.heads.iter().zip(&block.0) {
            let mut head = head.write().unwrap_or_else(PoisonError::into_inner);
            match head.blocks.get_mut(nth) {
                Some(own) => *own = Arc::clone(block),
                None => head.blocks.push(Arc::clone(block)),
            }
        }
        self.n_tokens = self.n_tokens.max((nth + 1) * BLOCK);
    }
}

/// Bytes that one head takes for so many tokens.
pub(super) fn bytes(n_tokens: usize, width: usize) -> u64 {
    (n_tokens.div_ceil(BLOCK) * n_numbers(width) * size_of::<f32>()) as u64
}

/// Numbers of a block: those of a value are filled up to whole panels.
fn n_numbers(width: usize) -> usize {
    BLOCK * (width + width.next_multiple_of(tile::width()))
}

impl Head {
    /// Puts in the key of a token for which there is room.
    pub(super) fn put_key(&mut self, token: usize, key: &[f32]) {
        let panel = tile::width();
        let place = token % BLOCK;
        let first = place / panel * panel * self.width + place % panel;
        let block = &mut self.own_block(token)[first..];
        for (to, x) in block.iter_mut().step_by(panel).zip(key) {
            *to = *x;
        }
    }

    /// Puts in the value of a token for which there is room.
    pub(super) fn put_value(&mut self, token: usize, value: &[f32]) {
        let panel = tile::width();
        let first = BLOCK * self.width + token % BLOCK * panel;
        let block = &mut self.own_block(token)[first..];
        for (to, value) in block.chunks_mut(BLOCK * panel).zip(value.chunks(panel)) {
            to[..value.len()].copy_from_slice(value);
        }
    }

    /// The block of a token that is written.
    fn own_block(&mut self, token: usize) -> &mut [f32] {
        let block = &mut self.blocks[token / BLOCK];
        Arc::get_mut(block).expect("only full blocks are had by others")
    }

    /// The keys and the values of each block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.blocks.iter().map(|block| block.split_at(BLOCK * self.width))
    }
}
