//! What stands between two matrix products, on the processor: one pass over memory each.
//!
//! Plain loops over fixed-width blocks, which the compiler turns into vector instructions;
//! `pulp` picks the widest set the machine has. Texts lie end to end without padding.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LN_2, LOG2_E};
use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use super::config::Activation;

/// Numbers handled at once: a whole number of registers on every machine.
const LANES: usize = 16;
/// Query rows that share the keys they read.
const ROWS: usize = 4;
/// Below so many numbers another thread costs more than it helps.
const WORTH_SPLITTING: usize = 1 << 14;

/// The scale and shift of a layer norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    pub(crate) eps: f32,
}

/// `rows = activation(rows + bias)`, row by row.
pub(crate) fn activate(rows: &mut [f32], bias: &[f32], activation: Activation) {
    let width = bias.len();
    for_rows(
        rows,
        width,
        #[inline(always)]
        |rows, _| {
            rows.chunks_exact_mut(width).for_each(|row| activate_row(row, bias, activation));
        },
    );
}

/// The same for one row, inside of what is compiled for the widest registers.
#[inline(always)]
pub(crate) fn activate_row(row: &mut [f32], bias: &[f32], activation: Activation) {
    match activation {
        Activation::Gelu => map_biased(row, bias, gelu),
        Activation::GeluTanh => map_biased(row, bias, gelu_tanh),
        Activation::Relu => map_biased(row, bias, relu),
    }
}

/// `rows = norm(rows + bias + residual)`, row by row.
pub(crate) fn add_norm(rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm) {
    let width = bias.len();
    for_rows(
        rows,
        width,
        #[inline(always)]
        |rows, first| {
            add_norm_rows(rows, bias, &residual[first * width..][..rows.len()], norm);
        },
    );
}

/// The same, on this thread.
pub(crate) fn add_norm_here(rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm) {
    Arch::new().dispatch(
        #[inline(always)]
        || add_norm_rows(rows, bias, residual, norm),
    );
}

#[inline(always)]
fn add_norm_rows(rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm) {
    let width = bias.len();
    for (row, residual) in rows.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
        for ((x, bias), residual) in row.iter_mut().zip(bias).zip(residual) {
            *x += bias + residual;
        }
        normalise(row, norm);
    }
}

/// `rows = norm(rows)`, row by row.
pub(crate) fn norm(rows: &mut [f32], norm: &Norm) {
    for_rows(
        rows,
        norm.scale.len(),
        #[inline(always)]
        |rows, _| rows.chunks_exact_mut(norm.scale.len()).for_each(|row| normalise(row, norm)),
    );
}

/// Attention of each text on itself. `qkv` holds a row of queries, keys and values per token,
/// without their biases; `out` gets a row of all heads per token.
///
/// The bias of the keys moves all scores of a query alike, so the softmax does not see it;
/// that of the values comes out of the weighted mean as it went in.
pub(crate) fn attend(
    qkv: &[f32],
    texts: &[Range<usize>],
    heads: usize,
    bias: &[f32],
    out: &mut [f32],
) {
    let width = bias.len() / 3;
    let n_tokens = out.len() / width;
    let wanted = n_tokens.div_ceil(4 * rayon::current_num_threads());
    let block_rows = wanted.next_multiple_of(ROWS).clamp(ROWS, 64);
    let mut blocks = Vec::new();
    let mut rest = out;
    for text in texts {
        for start in text.clone().step_by(block_rows) {
            let rows = start..text.end.min(start + block_rows);
            let (block, after) = rest.split_at_mut(rows.len() * width);
            rest = after;
            blocks.push((rows, text, block));
        }
    }
    let head_width = width / heads;
    let scale = 1.0 / (head_width as f32).sqrt();
    let shape = Heads { heads, head_width, scale };
    let run = |scratch: &mut Scratch,
               (rows, text, block): (Range<usize>, &Range<usize>, &mut [f32])| {
        Arch::new().dispatch(
            #[inline(always)]
            || attend_block(qkv, rows, text.clone(), bias, shape, scratch, block),
        );
    };
    if blocks.len() > 1 && n_tokens * width >= WORTH_SPLITTING {
        blocks.into_par_iter().for_each_init(Scratch::default, run);
    } else {
        let mut scratch = Scratch::default();
        blocks.into_iter().for_each(|block| run(&mut scratch, block));
    }
}

#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    head_width: usize,
    scale: f32,
}

/// Buffers of one thread, padded to whole lanes with zeros.
#[derive(Default)]
struct Scratch {
    /// One head's keys, a row per dimension.
    keys: Vec<f32>,
    /// One head's values, a row per token.
    values: Vec<f32>,
    scores: Vec<f32>,
    query: Vec<f32>,
}

#[inline(always)]
fn attend_block(
    qkv: &[f32],
    rows: Range<usize>,
    text: Range<usize>,
    bias: &[f32],
    shape: Heads,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Heads { heads, head_width, scale } = shape;
    let width = heads * head_width;
    let n_keys = text.len();
    let key_stride = n_keys.next_multiple_of(LANES);
    let value_stride = head_width.next_multiple_of(LANES);
    scratch.keys.clear();
    scratch.keys.resize(head_width * key_stride, 0.0);
    scratch.values.clear();
    scratch.values.resize(n_keys * value_stride, 0.0);
    scratch.scores.resize(ROWS * key_stride, 0.0);
    scratch.query.resize(ROWS * head_width, 0.0);
    for head in 0..heads {
        let column = head * head_width;
        for (place, token) in text.clone().enumerate() {
            let row = &qkv[token * 3 * width..][..3 * width];
            for (d, key) in row[width + column..][..head_width].iter().enumerate() {
                scratch.keys[d * key_stride + place] = *key;
            }
            scratch.values[place * value_stride..][..head_width]
                .copy_from_slice(&row[2 * width + column..][..head_width]);
        }
        for start in rows.clone().step_by(ROWS) {
            let n_rows = ROWS.min(rows.end - start);
            for row in 0..n_rows {
                let query = &qkv[(start + row) * 3 * width + column..][..head_width];
                let bias = &bias[column..][..head_width];
                let into = &mut scratch.query[row * head_width..][..head_width];
                for ((into, query), bias) in into.iter_mut().zip(query).zip(bias) {
                    *into = (query + bias) * scale;
                }
            }
            score(&scratch.query, &scratch.keys, key_stride, head_width, &mut scratch.scores);
            let mut inverse = [0.0; ROWS];
            for (row, inverse) in inverse.iter_mut().enumerate() {
                *inverse =
                    1.0 / exp_row(&mut scratch.scores[row * key_stride..][..key_stride], n_keys);
            }
            for lane in (0..value_stride).step_by(LANES) {
                let sums = weigh(&scratch.scores, key_stride, &scratch.values, value_stride, lane);
                let n_lanes = LANES.min(head_width - lane);
                for row in 0..n_rows {
                    let at = (start - rows.start + row) * width + column + lane;
                    let bias = &bias[2 * width + column + lane..][..n_lanes];
                    let out = &mut out[at..][..n_lanes];
                    for ((out, sum), bias) in out.iter_mut().zip(&sums[row]).zip(bias) {
                        *out = sum.mul_add(inverse[row], *bias);
                    }
                }
            }
        }
    }
}

/// The scores of `ROWS` queries on all keys.
#[inline(always)]
fn score(query: &[f32], keys: &[f32], key_stride: usize, head_width: usize, scores: &mut [f32]) {
    for at in (0..key_stride).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; ROWS];
        for d in 0..head_width {
            let keys = lanes(&keys[d * key_stride + at..]);
            for (row, sums) in sums.iter_mut().enumerate() {
                fused(sums, query[row * head_width + d], keys);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            scores[row * key_stride + at..][..LANES].copy_from_slice(sums);
        }
    }
}

/// `ROWS` weighted sums of the values, `LANES` dimensions of them.
#[inline(always)]
fn weigh(
    weights: &[f32],
    weight_stride: usize,
    values: &[f32],
    value_stride: usize,
    lane: usize,
) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0.0f32; LANES]; ROWS];
    for (place, values) in values.chunks_exact(value_stride).enumerate() {
        let values = lanes(&values[lane..]);
        for (row, sums) in sums.iter_mut().enumerate() {
            fused(sums, weights[row * weight_stride + place], values);
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

/// `row = exp(row - max)` over the first `n` numbers, zero after them; the sum of it.
#[inline(always)]
fn exp_row(row: &mut [f32], n: usize) -> f32 {
    row[n..].fill(f32::NEG_INFINITY);
    let mut max = [f32::NEG_INFINITY; LANES];
    for values in row.as_chunks::<LANES>().0 {
        for (max, value) in max.iter_mut().zip(values) {
            *max = if *max > *value { *max } else { *value };
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; LANES];
    for values in row.as_chunks_mut::<LANES>().0 {
        for (sum, value) in sums.iter_mut().zip(values) {
            *value = exp(*value - max);
            *sum += *value;
        }
    }
    row[n..].fill(0.0);
    sums.into_iter().sum()
}

/// The exponential of a number that is not above zero, to 2e-7 of its value.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let scaled = x * LOG2_E;
    // Not `f32::max`, which would make a number of a NaN.
    let scaled = if scaled < -126.0 { -126.0 } else { scaled };
    let shifted = scaled + ROUND;
    let rest = scaled - (shifted - ROUND);
    let mut power = 0.000_153_533_62;
    for c in [0.001_339_887_5, 0.009_618_437, 0.055_503_324, 0.240_226_48, LN_2, 1.0] {
        power = rest.mul_add(power, c);
    }
    // The whole part goes into the exponent bits; its low byte stands in `shifted`.
    let exponent = shifted.to_bits().wrapping_add(127) << 23;
    power * f32::from_bits(exponent)
}

/// `x` times the normal distribution at `x`, to 1e-6 of the larger of 1 and the result.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    (0.5 * x) * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// A quotient of polynomials fitted to the error function on [0, 3.92], where it reaches one.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let square = x * x;
    let mut over = 2.034_761_3e-6;
    for c in [0.000_287_478_38, 0.003_868_242_5, 0.053_060_215, 0.192_761_96, FRAC_2_SQRT_PI] {
        over = square.mul_add(over, c);
    }
    let mut under = 3.807_086_6e-5;
    for c in [0.001_188_096_4, 0.015_172_123, 0.115_083_76, 0.504_162_5, 1.0] {
        under = square.mul_add(under, c);
    }
    if x.abs() < 3.92 { x * over / under } else { 1f32.copysign(x) }
}

/// The tanh form, written with the exponential: `x * sigmoid(2 y)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let y = 0.797_884_6 * (0.044_715 * x * x).mul_add(x, x);
    let small = exp(-2.0 * y.abs());
    let upper = x / (1.0 + small);
    if y >= 0.0 { upper } else { upper * small }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn map_biased(row: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    for (x, bias) in row.iter_mut().zip(bias) {
        *x = f(*x + bias);
    }
}

#[inline(always)]
fn normalise(row: &mut [f32], norm: &Norm) {
    let mean = sum(row, |x| x) / row.len() as f32;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    let factor = 1.0 / (variance + norm.eps).sqrt();
    for ((x, scale), shift) in row.iter_mut().zip(&norm.scale).zip(&norm.shift) {
        *x = ((*x - mean) * factor).mul_add(*scale, *shift);
    }
}

#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block) {
            *sum += f(*x);
        }
    }
    sums.into_iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// Runs `f(rows, index of the first)` on slices of whole rows, on all threads where it pays.
fn for_rows(values: &mut [f32], width: usize, f: impl Fn(&mut [f32], usize) + Sync) {
    let run = |values: &mut [f32], first: usize| {
        Arch::new().dispatch(
            #[inline(always)]
            || f(values, first),
        );
    };
    if values.len() < WORTH_SPLITTING {
        return run(values, 0);
    }
    let n_rows = values.len() / width;
    let part = n_rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    values
        .par_chunks_mut(part * width)
        .enumerate()
        .for_each(|(place, rows)| run(rows, place * part));
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
