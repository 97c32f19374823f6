//! What stands between two products of a decoder, for one row at a time: each number comes out the
//! same whatever rows are beside it.

use crate::processor::lanes::{exp, sum};

/// `row = row / (its root mean square) * scale`.
#[inline(always)]
pub(super) fn norm_row(row: &mut [f32], scale: &[f32], eps: f32) {
    let square = sum(row, |x| x * x) / row.len() as f32;
    let factor = 1.0 / (square + eps).sqrt();
    for (x, scale) in row.iter_mut().zip(scale) {
        *x = (*x * factor) * scale;
    }
}

/// Turns the pairs of a head, which stand half of its width apart.
#[inline(always)]
pub(super) fn turn_row(row: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let (first, second) = row.split_at_mut(cosines.len());
    for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
    }
}

/// `gates = silu(gates) * ups`.
#[inline(always)]
pub(super) fn gate_row(gates: &mut [f32], ups: &[f32]) {
    for (gate, up) in gates.iter_mut().zip(ups) {
        let small = exp(-gate.abs());
        let share = if *gate < 0.0 { small } else { 1.0 };
        *gate = *gate * share / (1.0 + small) * up;
    }
}

/// `row = row + other`.
#[inline(always)]
pub(super) fn add_row(row: &mut [f32], other: &[f32]) {
    for (x, other) in row.iter_mut().zip(other) {
        *x += other;
    }
}
