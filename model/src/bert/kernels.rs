//! What stands between two matrix products, on the processor: one pass over memory each.
//!
//! Plain loops over fixed-width blocks, which the compiler turns into vector instructions;
//! `pulp` picks the widest set the machine has. Texts lie end to end without padding.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use rayon::prelude::*;

use super::config::Activation;
use crate::processor::lanes::{exp, sum, widest};

/// Below so many numbers another thread costs more than it helps.
pub(super) const WORTH_SPLITTING: usize = 1 << 14;

/// The scale and shift of a layer norm.
#[derive(Debug, Clone)]
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
            for row in rows.chunks_exact_mut(width) {
                activate_row(row, bias, activation);
            }
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
    here(
        rows,
        0,
        #[inline(always)]
        |rows, _| add_norm_rows(rows, bias, residual, norm),
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

/// `rows = norm(rows)`, row by row, on this thread.
pub(crate) fn norm_here(rows: &mut [f32], norm: &Norm) {
    here(
        rows,
        0,
        #[inline(always)]
        |rows, _| {
            // Not `for_each`, whose insides would be compiled for any machine.
            for row in rows.chunks_exact_mut(norm.scale.len()) {
                normalise(row, norm);
            }
        },
    );
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

/// Runs `f(rows, index of the first)` on slices of whole rows, on all threads where it pays.
fn for_rows(values: &mut [f32], width: usize, f: impl Fn(&mut [f32], usize) + Sync) {
    if values.len() < WORTH_SPLITTING {
        return here(values, 0, f);
    }
    let n_rows = values.len() / width;
    let part = n_rows.div_ceil(4 * rayon::current_num_threads()).max(1);
    values
        .par_chunks_mut(part * width)
        .enumerate()
        .for_each(|(place, rows)| here(rows, place * part, &f));
}

/// Runs `f(rows, first)` with the widest registers, on this thread.
fn here(rows: &mut [f32], first: usize, f: impl Fn(&mut [f32], usize)) {
    widest(
        rows,
        #[inline(always)]
        |rows| f(rows, first),
    );
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
