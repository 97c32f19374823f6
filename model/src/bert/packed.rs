//! A transformer's layers with packed weights, on the processor: texts lie end to end, cut into blocks
//! of rows. All of a layer but attention is done for a block while it is in the cache, and the next
//! layer's queries, keys and values with it, so that threads meet once a layer.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::attention::{self, Heads, attend_rows};
use super::config::{Activation, Config};
use super::kernels::{self, Norm};
use super::panels::{Finish, Panels};
use super::weights::Layer;
use crate::processor::crew::{self, Phased};

/// Rows of a block: their numbers stay in the second cache but for those between the two wide products,
/// and all weights of a layer are read once for them.
const BLOCK: usize = 128;

/// Makes of `rows`, which go into the first layer once normalised, what comes out of the last, in blocks
/// of so many. `texts` cover all of them.
pub(super) fn run(
    block: usize,
    layers: &Arc<Vec<Layer<Panels>>>,
    rows: &mut [f32],
    norm: &Norm,
    texts: &[Range<usize>],
    config: &Config,
) {
    let width = config.hidden;
    let blocks = || rows.chunks(block * width);
    debug_assert_eq!(texts.last().map_or(0, |text| text.end), rows.len() / width);
    let room = || blocks().map(|_| RwLock::default()).collect();
    let forward = Arc::new(Forward {
        layers: Arc::clone(layers),
        norm: norm.clone(),
        texts: texts.to_vec(),
        heads: Heads::new(config.heads, width / config.heads),
        activation: config.activation,
        block,
        rows: blocks().map(|rows| Mutex::new(rows.to_vec())).collect(),
        qkv: [room(), room()],
    });
    crew::run(&forward, layers.len() + 1);
    for (out, rows) in rows.chunks_mut(block * width).zip(&forward.rows) {
        out.copy_from_slice(&rows.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Rows of each block: at most [`BLOCK`], and as many blocks for each thread. A short text on many
/// threads is cut finely, which makes it sooner and costs more in all: each thread reads all weights.
pub(super) fn block_rows(n_rows: usize, n_threads: usize) -> usize {
    let n_blocks = n_rows.div_ceil(BLOCK).next_multiple_of(n_threads);
    n_rows.div_ceil(n_blocks.max(1)).max(1)
}

/// Its phase `n` ends layer `n - 1` and begins layer `n`, for each block.
struct Forward {
    layers: Arc<Vec<Layer<Panels>>>,
    /// Of the rows that go into the first.
    norm: Norm,
    texts: Vec<Range<usize>>,
    heads: Heads,
    activation: Activation,
    /// Rows of all blocks but the last, which may have fewer.
    block: usize,
    /// What goes into a layer, then what comes out of it.
    rows: Vec<Mutex<Vec<f32>>>,
    /// Queries, keys and values of the blocks, for layers that are even and odd: those of one are read
    /// where those of the next are written.
    qkv: [Vec<RwLock<Vec<f32>>>; 2],
}

/// What one thread needs for a block.
#[derive(Default)]
struct Scratch {
    attention: attention::Scratch,
    context: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
}

impl Phased for Forward {
    type Scratch = Scratch;

    fn pieces(&self, _: usize) -> usize {
        self.rows.len()
    }

    fn piece(&self, phase: usize, piece: usize, scratch: &mut Scratch) {
        let mut rows = self.rows[piece].lock().unwrap_or_else(PoisonError::into_inner);
        match phase.checked_sub(1) {
            None => kernels::norm_here(&mut rows, &self.norm),
            Some(layer) => {
                self.attend(layer, piece, scratch);
                self.finish(&self.layers[layer], &mut rows, scratch);
            }
        }
        if let Some(layer) = self.layers.get(phase) {
            let qkv = &self.qkv[phase % 2][piece];
            let mut qkv = qkv.write().unwrap_or_else(PoisonError::into_inner);
            qkv.resize(3 * rows.len(), 0.0);
            layer.qkv.matrix.multiply(&rows, None, &mut qkv);
        }
    }
}

impl Forward {
    /// What the rows of a block get of their texts.
    fn attend(&self, layer: usize, piece: usize, scratch: &mut Scratch) {
        let blocks = &self.qkv[layer % 2];
        let bias = &self.layers[layer].qkv.bias;
        let width = bias.len() / 3;
        let first = piece * self.block;
        let n_tokens = self.texts.last().map_or(0, |text| text.end);
        let own = first..n_tokens.min(first + self.block);
        // The texts of the block, and the blocks in which they lie.
        let start = self.texts.partition_point(|text| text.end <= own.start);
        let end = self.texts.partition_point(|text| text.start < own.end);
        let texts = &self.texts[start..end];
        let read = texts[0].start / self.block..texts[texts.len() - 1].end.div_ceil(self.block);
        let offset = read.start * self.block;
        let qkv: Vec<RwLockReadGuard<'_, Vec<f32>>> = blocks[read]
            .iter()
            .map(|qkv| qkv.read().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let tokens: Vec<&[f32]> = qkv.iter().flat_map(|qkv| qkv.chunks_exact(3 * width)).collect();
        scratch.context.resize(own.len() * width, 0.0);
        let mut context = &mut scratch.context[..];
        for text in texts {
            let rows = own.start.max(text.start)..own.end.min(text.end);
            let (out, rest) = context.split_at_mut(rows.len() * width);
            context = rest;
            let tokens = &tokens[text.start - offset..text.end - offset];
            let rows = rows.start - text.start..rows.end - text.start;
            attend_rows(tokens, rows, bias, self.heads, &mut scratch.attention, out);
        }
    }

    /// All that follows attention.
    fn finish(&self, layer: &Layer<Panels>, rows: &mut [f32], scratch: &mut Scratch) {
        let Scratch { context, attended, inner, .. } = scratch;
        let n_rows = rows.len() / layer.out.matrix.to();
        attended.resize(rows.len(), 0.0);
        inner.resize(n_rows * layer.up.matrix.to(), 0.0);
        layer.out.matrix.multiply(context, None, attended);
        kernels::add_norm_here(attended, &layer.out.bias, rows, &layer.attention_norm);
        let finish = Finish { bias: &layer.up.bias, activation: self.activation };
        layer.up.matrix.multiply(attended, Some(finish), inner);
        layer.down.matrix.multiply(inner, None, rows);
        kernels::add_norm_here(rows, &layer.down.bias, attended, &layer.output_norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_many_for_each_thread_and_fit_the_cache() {
        for (n_rows, n_threads) in [(0, 2), (1, 2), (8, 2), (32, 2), (200, 2), (1024, 3), (8192, 7)]
        {
            let rows = block_rows(n_rows, n_threads);
            assert!((1..=BLOCK).contains(&rows), "{n_rows} rows on {n_threads}: {rows}");
            assert!(n_rows.div_ceil(rows) <= n_rows.div_ceil(BLOCK).next_multiple_of(n_threads));
        }
    }
}
