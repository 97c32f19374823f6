//! The innermost loop of products with packed weights.
//!
//! A panel holds two vector registers' worth of columns, row after row, so that the loop reads it from
//! end to end. A tile of sums stays in registers: as many rows as leave room for the two vectors of
//! weights and one of the input, which is read where it lies. Each sum runs through the panel in order,
//! so a row's numbers are the same whatever rows are beside it, and on whatever processor.

use pulp::{Arch, Simd, WithSimd};

/// Lanes of the narrowest registers for which tiles pay.
const LEAST_LANES: usize = 8;
/// Lanes from which there are twice as many registers, too.
const MANY_LANES: usize = 16;

/// Whether this processor has registers for which tiles pay.
pub(crate) fn suit() -> bool {
    lanes() >= LEAST_LANES
}

/// Columns of a panel.
pub(crate) fn width() -> usize {
    2 * lanes()
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

fn lanes() -> usize {
    Arch::new().dispatch(Lanes)
}

/// Rows of the next tile: all are as tall as they can be alike.
pub(crate) fn height(n_left: usize, lanes: usize) -> usize {
    let tallest = if lanes >= MANY_LANES { 12 } else { 6 };
    n_left.div_ceil(n_left.div_ceil(tallest))
}

/// How a panel keeps a row of its weights.
pub(crate) trait Kept<S: Simd> {
    type Row;

    fn weights(simd: S, row: &Self::Row) -> [S::f32s; 2];
}

/// As they are.
pub(crate) struct Single;

impl<S: Simd> Kept<S> for Single {
    type Row = [S::f32s; 2];

    #[inline(always)]
    fn weights(_: S, row: &Self::Row) -> [S::f32s; 2] {
        *row
    }
}

/// The upper halves of single floats, those of the second vector above those of the first: exact for
/// what a checkpoint has as bf16.
pub(crate) struct Brain;

impl<S: Simd> Kept<S> for Brain {
    type Row = S::u32s;

    #[inline(always)]
    fn weights(simd: S, row: &Self::Row) -> [S::f32s; 2] {
        let first = simd.wrapping_dyn_shl_u32s(*row, simd.splat_u32s(16));
        let second = simd.and_u32s(*row, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
    }
}

/// The product of `height` rows, each `stride` numbers behind the one before, with a panel.
#[inline(always)]
pub(crate) fn multiply_tile<'a, S: Simd, K: Kept<S>>(
    simd: S,
    height: usize,
    (rows, stride): (&[f32], usize),
    panel: &[K::Row],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    match height {
        12 => multiply_rows::<S, K, 12>(simd, rows, stride, panel, out),
        11 => multiply_rows::<S, K, 11>(simd, rows, stride, panel, out),
        10 => multiply_rows::<S, K, 10>(simd, rows, stride, panel, out),
        9 => multiply_rows::<S, K, 9>(simd, rows, stride, panel, out),
        8 => multiply_rows::<S, K, 8>(simd, rows, stride, panel, out),
        7 => multiply_rows::<S, K, 7>(simd, rows, stride, panel, out),
        6 => multiply_rows::<S, K, 6>(simd, rows, stride, panel, out),
        5 => multiply_rows::<S, K, 5>(simd, rows, stride, panel, out),
        4 => multiply_rows::<S, K, 4>(simd, rows, stride, panel, out),
        3 => multiply_rows::<S, K, 3>(simd, rows, stride, panel, out),
        2 => multiply_rows::<S, K, 2>(simd, rows, stride, panel, out),
        _ => multiply_rows::<S, K, 1>(simd, rows, stride, panel, out),
    }
}

#[inline(always)]
fn multiply_rows<'a, S: Simd, K: Kept<S>, const HEIGHT: usize>(
    simd: S,
    rows: &[f32],
    stride: usize,
    panel: &[K::Row],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    let from = panel.len();
    // Made in one go, so that the compiler knows how long they are.
    let inputs: [&[f32]; HEIGHT] = std::array::from_fn(
        #[inline(always)]
        |row| &rows[row * stride..][..from],
    );
    let mut sums = [[simd.splat_f32s(0.0); 2]; HEIGHT];
    for (k, row) in panel.iter().enumerate() {
        let weights = K::weights(simd, row);
        for (input, sums) in inputs.iter().zip(&mut sums) {
            let x = simd.splat_f32s(input[k]);
            sums[0] = simd.mul_add_e_f32s(x, weights[0], sums[0]);
            sums[1] = simd.mul_add_e_f32s(x, weights[1], sums[1]);
        }
    }
    for (row, sums) in out.zip(&sums) {
        let (whole, rest) = S::as_mut_simd_f32s(row);
        let n_whole = whole.len();
        whole.copy_from_slice(&sums[..n_whole]);
        if !rest.is_empty() {
            simd.partial_store_f32s(rest, sums[n_whole]);
        }
    }
}
