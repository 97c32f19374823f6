//! Attention of some tokens on what their sequence has read, for the heads that share keys.
//!
//! Both halves are products of panels: queries with keys, then weights with values. The softmax goes
//! along block by block from the first token on, so that a token's numbers are the same whether it was
//! read alone or in the midst of a prompt.

use pulp::{Arch, Simd, WithSimd};

use super::cache::{BLOCK, Head};
use crate::processor::lanes::{LANES, exp, sum};
use crate::processor::tile::{Single, height, multiply_tile};

/// Queries, and where they look from.
pub(super) struct Queries<'a> {
    /// A row per token and head, those of a token side by side, already multiplied by the scale.
    pub(super) rows: &'a [f32],
    /// Heads that share keys.
    pub(super) n_heads: usize,
    /// Numbers of a row.
    pub(super) width: usize,
    /// The place of the first token in its sequence; the others follow.
    pub(super) first: usize,
}

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// A row of a block's tokens per query.
    weights: Vec<f32>,
    /// What a tile of queries gets of a block, in one panel.
    part: Vec<f32>,
    /// The largest score and the sum of the weights of each query so far, and what the last block made
    /// of what was before.
    maxima: Vec<f32>,
    sums: Vec<f32>,
    factors: Vec<f32>,
}

/// What the queries get, a row for each.
pub(super) fn attend(queries: &Queries<'_>, head: &Head, scratch: &mut Scratch, out: &mut [f32]) {
    Arch::new().dispatch(Attention { queries, head, scratch, out });
}

struct Attention<'a> {
    queries: &'a Queries<'a>,
    head: &'a Head,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl WithSimd for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { queries, head, scratch, out } = self;
        let n_rows = queries.rows.len() / queries.width;
        scratch.weights.resize(n_rows * BLOCK, 0.0);
        for (values, start) in [
            (&mut scratch.maxima, f32::NEG_INFINITY),
            (&mut scratch.sums, 0.0),
            (&mut scratch.factors, 0.0),
        ] {
            values.clear();
            values.resize(n_rows, start);
        }
        out.fill(0.0);
        let n_seen = queries.first + n_rows / queries.n_heads;
        for (nth, (keys, values)) in head.blocks().take(n_seen.div_ceil(BLOCK)).enumerate() {
            score(simd, queries, keys, (n_seen - nth * BLOCK).min(BLOCK), &mut scratch.weights);
            soften(queries, nth * BLOCK, scratch);
            gather(simd, queries.width, values, scratch, out);
        }
        for (row, sum) in out.chunks_exact_mut(queries.width).zip(&scratch.sums) {
            for x in row {
                *x /= sum;
            }
        }
    }
}

/// The scores of all queries on the first `n` keys of a block.
#[inline(always)]
fn score<S: Simd>(simd: S, queries: &Queries<'_>, keys: &[f32], n: usize, scores: &mut [f32]) {
    let (width, panel) = (queries.width, 2 * S::F32_LANES);
    let n_rows = queries.rows.len() / width;
    let panels = keys.chunks_exact(width * panel).take(n.div_ceil(panel));
    for (nth, keys) in panels.enumerate() {
        let (keys, _) = S::as_simd_f32s(keys);
        let (keys, _) = keys.as_chunks::<2>();
        let mut at = 0;
        while at < n_rows {
            let height = height(n_rows - at, S::F32_LANES);
            let rows = &queries.rows[at * width..];
            let tile = scores[at * BLOCK..][..height * BLOCK].chunks_exact_mut(BLOCK);
            let tile = tile.map(|row| &mut row[nth * panel..][..panel]);
            multiply_tile::<S, Single>(simd, height, (rows, width), keys, tile);
            at += height;
        }
    }
}

/// Makes weights of the scores on a block: of tokens that a query does not see they are zero.
#[inline(always)]
fn soften(queries: &Queries<'_>, start: usize, scratch: &mut Scratch) {
    for (row, weights) in scratch.weights.chunks_exact_mut(BLOCK).enumerate() {
        let n = (queries.first + row / queries.n_heads + 1).saturating_sub(start).min(BLOCK);
        weights[n..].fill(f32::NEG_INFINITY);
        let before = scratch.maxima[row];
        let max = largest(before, weights);
        for score in &mut *weights {
            *score = exp(*score - max);
        }
        weights[n..].fill(0.0);
        let factor = if n > 0 { exp(before - max) } else { 1.0 };
        scratch.factors[row] = factor;
        scratch.sums[row] = scratch.sums[row] * factor + sum(weights, |x| x);
        scratch.maxima[row] = max;
    }
}

/// The largest of a block's scores and the one before.
#[inline(always)]
fn largest(before: f32, scores: &[f32]) -> f32 {
    // Not `f32::max`, which would make a number of a NaN.
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut maxima = [before; LANES];
    for scores in scores.as_chunks::<LANES>().0 {
        for (max, score) in maxima.iter_mut().zip(scores) {
            *max = larger(*max, *score);
        }
    }
    maxima.into_iter().fold(before, larger)
}

/// Adds a block's values, by their weights, to what all queries got of the blocks before.
#[inline(always)]
fn gather<S: Simd>(simd: S, width: usize, values: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
    let panel = 2 * S::F32_LANES;
    let Scratch { weights, part, factors, .. } = scratch;
    let n_rows = factors.len();
    part.resize(n_rows * panel, 0.0);
    for (nth, values) in values.chunks_exact(BLOCK * panel).enumerate() {
        let (values, _) = S::as_simd_f32s(values);
        let (values, _) = values.as_chunks::<2>();
        let mut at = 0;
        while at < n_rows {
            let height = height(n_rows - at, S::F32_LANES);
            let tile = part[at * panel..][..height * panel].chunks_exact_mut(panel);
            let weights = &weights[at * BLOCK..];
            multiply_tile::<S, Single>(simd, height, (weights, BLOCK), values, tile);
            at += height;
        }
        let columns = nth * panel..width.min((nth + 1) * panel);
        for ((row, part), factor) in
            out.chunks_exact_mut(width).zip(part.chunks_exact(panel)).zip(&*factors)
        {
            for (x, part) in row[columns.clone()].iter_mut().zip(part) {
                *x = x.mul_add(*factor, *part);
            }
        }
    }
}
