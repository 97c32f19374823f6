//! Attention on the processor: texts lie end to end, and each looks at itself alone.
//!
//! Sixteen queries go side by side through the lanes of registers, so that neither the keys have to
//! be turned nor a softmax summed across a register; a tile of keys shares what it reads of the
//! queries, as those of `panels` do.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::kernels::WORTH_SPLITTING;
use crate::processor::lanes::{LANES, exp};

/// Rows of a tile: of keys, and of queries.
const ROWS: usize = 6;

/// Attention of each text on itself. `qkv` holds a row of queries, keys and values per token,
/// without their biases; `out` gets a row of all heads per token.
pub(super) fn attend(
    qkv: &[f32],
    texts: &[Range<usize>],
    heads: usize,
    bias: &[f32],
    out: &mut [f32],
) {
    let width = bias.len() / 3;
    let n_tokens = out.len() / width;
    let tokens: Vec<&[f32]> = qkv.chunks_exact(3 * width).collect();
    let wanted = n_tokens.div_ceil(4 * rayon::current_num_threads());
    let block_rows = wanted.next_multiple_of(LANES).clamp(LANES, 64);
    let mut blocks = Vec::new();
    let mut rest = out;
    for text in texts {
        for start in (0..text.len()).step_by(block_rows) {
            let rows = start..text.len().min(start + block_rows);
            let (block, after) = rest.split_at_mut(rows.len() * width);
            rest = after;
            blocks.push((rows, &tokens[text.clone()], block));
        }
    }
    let heads = Heads::new(heads, width / heads);
    let run = |scratch: &mut Scratch,
               (rows, tokens, out): (Range<usize>, &[&[f32]], &mut [f32])| {
        attend_rows(tokens, rows, bias, heads, scratch, out);
    };
    if blocks.len() > 1 && n_tokens * width >= WORTH_SPLITTING {
        blocks.into_par_iter().for_each_init(Scratch::default, run);
    } else {
        let mut scratch = Scratch::default();
        blocks.into_iter().for_each(|block| run(&mut scratch, block));
    }
}

/// Attention of some rows of a text on all of it, on this thread. `tokens` are its rows of queries,
/// keys and values without their biases; `out` gets a row of all heads per token.
///
/// The bias of the keys moves all scores of a query alike, so the softmax does not see it;
/// that of the values comes out of the weighted mean as it went in.
pub(super) fn attend_rows(
    tokens: &[&[f32]],
    rows: Range<usize>,
    bias: &[f32],
    heads: Heads,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    Arch::new().dispatch(Block { tokens, rows, bias, heads, scratch, out });
}

/// How many heads look, and at what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    n: usize,
    /// Numbers of a query, a key or a value.
    width: usize,
    /// What scores are multiplied by.
    scale: f32,
}

impl Heads {
    pub(super) fn new(n: usize, width: usize) -> Self {
        Self { n, width, scale: 1.0 / (width as f32).sqrt() }
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Some queries, a row per dimension.
    queries: Vec<[f32; LANES]>,
    /// Their scores, a row per key.
    scores: Vec<[f32; LANES]>,
    /// One head's values, a row per token, padded to whole lanes.
    values: Vec<f32>,
}

/// Some queries of a text, and room for what they get.
struct Block<'a> {
    tokens: &'a [&'a [f32]],
    rows: Range<usize>,
    bias: &'a [f32],
    heads: Heads,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl<'a> WithSimd for Block<'a> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { tokens, rows, bias, heads, scratch, out } = self;
        let Heads { n: n_heads, width: head_width, scale } = heads;
        let Scratch { queries, scores, values } = scratch;
        let width = n_heads * head_width;
        let value_stride = head_width.next_multiple_of(LANES);
        queries.clear();
        queries.resize(head_width, [0.0; LANES]);
        scores.resize(tokens.len(), [0.0; LANES]);
        values.resize(tokens.len() * value_stride, 0.0);
        for head in 0..n_heads {
            let column = head * head_width;
            let part = |token: &'a [f32], of: usize| &token[of * width + column..][..head_width];
            for (values, token) in values.chunks_exact_mut(value_stride).zip(tokens) {
                for (value, from) in values.iter_mut().zip(part(token, 2)) {
                    *value = *from;
                }
            }
            for start in rows.clone().step_by(LANES) {
                let n_rows = LANES.min(rows.end - start);
                for row in 0..n_rows {
                    let query = part(tokens[start + row], 0).iter().zip(&bias[column..]);
                    for (queries, (query, bias)) in queries.iter_mut().zip(query) {
                        queries[row] = (query + bias) * scale;
                    }
                }
                let keys = |place: usize| part(tokens[place], 1);
                score(queries, keys, scores);
                let inverses = softmax(scores);
                for first in (0..n_rows).step_by(ROWS) {
                    for lane in (0..value_stride).step_by(LANES) {
                        let weighed = weigh(scores, first, values, value_stride, lane);
                        let n_lanes = LANES.min(head_width - lane);
                        let bias = &bias[2 * width + column + lane..][..n_lanes];
                        for row in first..n_rows.min(first + ROWS) {
                            let at = (start - rows.start + row) * width + column + lane;
                            let out = &mut out[at..][..n_lanes];
                            for ((out, sum), bias) in
                                out.iter_mut().zip(&weighed[row - first]).zip(bias)
                            {
                                *out = sum.mul_add(inverses[row], *bias);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The scores of `LANES` queries on all keys.
#[inline(always)]
fn score<'a>(
    queries: &[[f32; LANES]],
    keys: impl Fn(usize) -> &'a [f32],
    scores: &mut [[f32; LANES]],
) {
    let mut at = 0;
    while at < scores.len() {
        let n = ROWS.min(scores.len() - at);
        let scores = &mut scores[at..at + n];
        match n {
            6 => score_tile::<6>(queries, |row| keys(at + row), scores),
            5 => score_tile::<5>(queries, |row| keys(at + row), scores),
            4 => score_tile::<4>(queries, |row| keys(at + row), scores),
            3 => score_tile::<3>(queries, |row| keys(at + row), scores),
            2 => score_tile::<2>(queries, |row| keys(at + row), scores),
            _ => score_tile::<1>(queries, |row| keys(at + row), scores),
        }
        at += n;
    }
}

#[inline(always)]
fn score_tile<'a, const N: usize>(
    queries: &[[f32; LANES]],
    keys: impl Fn(usize) -> &'a [f32],
    scores: &mut [[f32; LANES]],
) {
    // Made in one go, so that the compiler knows how long they are.
    let rows: [&[f32]; N] = std::array::from_fn(
        #[inline(always)]
        |row| &keys(row)[..queries.len()],
    );
    let mut sums = [[0.0f32; LANES]; N];
    for (d, queries) in queries.iter().enumerate() {
        for (sums, key) in sums.iter_mut().zip(&rows) {
            fused(sums, key[d], queries);
        }
    }
    for (scores, sums) in scores.iter_mut().zip(sums) {
        *scores = sums;
    }
}

/// `scores = exp(scores - max)`, lane by lane; what to multiply them by for a sum of 1.
#[inline(always)]
fn softmax(scores: &mut [[f32; LANES]]) -> [f32; LANES] {
    let mut max = [f32::NEG_INFINITY; LANES];
    for scores in &*scores {
        for (max, score) in max.iter_mut().zip(scores) {
            *max = if *max > *score { *max } else { *score };
        }
    }
    let mut sums = [0.0; LANES];
    for scores in scores {
        for ((sum, score), max) in sums.iter_mut().zip(scores).zip(&max) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    for sum in &mut sums {
        *sum = 1.0 / *sum;
    }
    sums
}

/// Weighted sums of the values for `ROWS` queries, `LANES` dimensions of them.
#[inline(always)]
fn weigh(
    weights: &[[f32; LANES]],
    first: usize,
    values: &[f32],
    value_stride: usize,
    lane: usize,
) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0.0f32; LANES]; ROWS];
    for (weights, values) in weights.iter().zip(values.chunks_exact(value_stride)) {
        let values = lanes(&values[lane..]);
        for (row, sums) in sums.iter_mut().enumerate() {
            fused(sums, weights[(first + row) % LANES], values);
        }
    }
    sums
}

#[inline(always)]
fn lanes(values: &[f32]) -> &[f32; LANES] {
    values.first_chunk().expect("padded to whole lanes")
}

#[inline(always)]
fn fused(sums: &mut [f32; LANES], factor: f32, values: &[f32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = factor.mul_add(*value, *sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Attention as the paper has it, in double precision.
    fn exact_attention(
        qkv: &[f32],
        texts: &[Range<usize>],
        heads: usize,
        bias: &[f32],
    ) -> Vec<f64> {
        let width = bias.len() / 3;
        let d = width / heads;
        let at =
            |token: usize, column: usize| f64::from(qkv[token * 3 * width + column] + bias[column]);
        let mut out = vec![0.0; qkv.len() / 3];
        for text in texts {
            for (token, head) in
                text.clone().flat_map(|token| (0..heads).map(move |head| (token, head)))
            {
                let score = |key: usize| {
                    let products =
                        (head * d..(head + 1) * d).map(|c| at(token, c) * at(key, width + c));
                    (products.sum::<f64>() / (d as f64).sqrt()).exp()
                };
                let total: f64 = text.clone().map(score).sum();
                for column in head * d..(head + 1) * d {
                    let sum: f64 =
                        text.clone().map(|key| score(key) * at(key, 2 * width + column)).sum();
                    out[token * width + column] = sum / total;
                }
            }
        }
        out
    }

    #[test]
    fn what_is_not_finite_stays_with_its_query() {
        let mut out = [0.0; 4];
        let qkv = [[f32::NAN; 2], [1.0; 2], [1.0; 2], [1.0; 2], [1.0; 2], [1.0; 2]].concat();
        attend(&qkv, std::slice::from_ref(&(0..2)), 1, &[0.0; 6], &mut out);
        assert!(out[0].is_nan() && out[2] == 1.0, "{out:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_is_that_of_each_text_alone(
            lengths in prop::collection::vec(1usize..40, 1..6),
            heads in 1usize..4,
            d in 1usize..40,
            seed in any::<u64>(),
        ) {
            let width = heads * d;
            let n_tokens: usize = lengths.iter().sum();
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
            };
            let qkv: Vec<f32> = (0..n_tokens * 3 * width).map(|_| number()).collect();
            let bias: Vec<f32> = (0..3 * width).map(|_| number()).collect();
            let mut start = 0;
            let texts: Vec<_> = lengths.iter().map(|n| { start += n; start - n..start }).collect();
            let mut out = vec![f32::NAN; n_tokens * width];
            attend(&qkv, &texts, heads, &bias, &mut out);
            for (found, expected) in out.iter().zip(exact_attention(&qkv, &texts, heads, &bias)) {
                prop_assert!((f64::from(*found) - expected).abs() < 5e-6, "{} {}", found, expected);
            }
        }
    }
}
