//! Products of rows with weights that are packed once, where a general product packs them anew at
//! each call.
//!
//! A panel holds two vector registers' worth of columns, row after row, so that the innermost loop
//! reads it from end to end. It keeps a tile of sums in registers: as many rows as leave room for the
//! two vectors of weights and one of the input, which is read where it lies.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::config::Activation;
use super::kernels::activate_row;

/// Lanes of the narrowest registers for which tiles pay.
const LEAST_LANES: usize = 8;
/// Lanes from which there are twice as many registers, too.
const MANY_LANES: usize = 16;

/// A matrix `[from, to]` in panels, the last one filled up with zeros.
#[derive(Debug)]
pub(crate) struct Panels {
    values: Vec<f32>,
    from: usize,
    to: usize,
    /// Columns of a panel.
    width: usize,
}

/// What becomes of each number of a product: its column's bias is added, then this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish<'a> {
    pub(crate) bias: &'a [f32],
    pub(crate) activation: Activation,
}

impl Panels {
    /// Whether this processor has registers for which tiles pay.
    pub(crate) fn suit() -> bool {
        lanes() >= LEAST_LANES
    }

    /// Packs a matrix as it is stored, `[to, from]`.
    pub(crate) fn pack(stored: &[f32], from: usize, to: usize) -> Self {
        let width = 2 * lanes();
        let mut values = vec![0.0; to.div_ceil(width) * width * from];
        let panels = values.par_chunks_exact_mut(from * width);
        panels.zip(stored.par_chunks(from * width)).for_each(|(panel, columns)| {
            for (place, column) in columns.chunks_exact(from).enumerate() {
                for (packed, value) in panel.chunks_exact_mut(width).zip(column) {
                    packed[place] = *value;
                }
            }
        });
        Self { values, from, to, width }
    }

    /// Rows that come out for each row that goes in are this long.
    pub(crate) fn to(&self) -> usize {
        self.to
    }

    /// `out = finish(rows x matrix)`, on this thread.
    pub(crate) fn multiply(&self, rows: &[f32], finish: Option<Finish<'_>>, out: &mut [f32]) {
        Arch::new().dispatch(Product { panels: self, rows, finish, out });
    }
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
fn height(n_left: usize, lanes: usize) -> usize {
    let tallest = if lanes >= MANY_LANES { 12 } else { 6 };
    n_left.div_ceil(n_left.div_ceil(tallest))
}

struct Product<'a> {
    panels: &'a Panels,
    rows: &'a [f32],
    finish: Option<Finish<'a>>,
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panels, rows, finish, out } = self;
        let Panels { from, to, width, .. } = *panels;
        let n_rows = rows.len() / from;
        for (nth, panel) in panels.values.chunks_exact(from * width).enumerate() {
            let (panel, _) = S::as_simd_f32s(panel);
            let (panel, _) = panel.as_chunks::<2>();
            let columns = nth * width..to.min((nth + 1) * width);
            let mut at = 0;
            while at < n_rows {
                let height = height(n_rows - at, S::F32_LANES);
                let (rows, out) = (&rows[at * from..], &mut out[at * to..][..height * to]);
                let tile = out.chunks_exact_mut(to).map(|row| &mut row[columns.clone()]);
                multiply_tile(simd, height, rows, panel, tile);
                if let Some(Finish { bias, activation }) = finish {
                    for row in out.chunks_exact_mut(to) {
                        activate_row(&mut row[columns.clone()], &bias[columns.clone()], activation);
                    }
                }
                at += height;
            }
        }
    }
}

#[inline(always)]
fn multiply_tile<'a, S: Simd>(
    simd: S,
    height: usize,
    rows: &[f32],
    panel: &[[S::f32s; 2]],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    match height {
        12 => multiply_rows::<S, 12>(simd, rows, panel, out),
        11 => multiply_rows::<S, 11>(simd, rows, panel, out),
        10 => multiply_rows::<S, 10>(simd, rows, panel, out),
        9 => multiply_rows::<S, 9>(simd, rows, panel, out),
        8 => multiply_rows::<S, 8>(simd, rows, panel, out),
        7 => multiply_rows::<S, 7>(simd, rows, panel, out),
        6 => multiply_rows::<S, 6>(simd, rows, panel, out),
        5 => multiply_rows::<S, 5>(simd, rows, panel, out),
        4 => multiply_rows::<S, 4>(simd, rows, panel, out),
        3 => multiply_rows::<S, 3>(simd, rows, panel, out),
        2 => multiply_rows::<S, 2>(simd, rows, panel, out),
        _ => multiply_rows::<S, 1>(simd, rows, panel, out),
    }
}

#[inline(always)]
fn multiply_rows<'a, S: Simd, const HEIGHT: usize>(
    simd: S,
    rows: &[f32],
    panel: &[[S::f32s; 2]],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    let from = panel.len();
    // Made in one go, so that the compiler knows how long they are.
    let inputs: [&[f32]; HEIGHT] = std::array::from_fn(
        #[inline(always)]
        |row| &rows[row * from..][..from],
    );
    let mut sums = [[simd.splat_f32s(0.0); 2]; HEIGHT];
    for (k, weights) in panel.iter().enumerate() {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Finish, Panels};
    use crate::bert::config::Activation;
    use crate::bert::kernels::activate;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let number = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(number).take(n).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_product_is_that_of_the_matrix(
            n_rows in 0usize..30,
            from in 1usize..50,
            to in 1usize..80,
            seed in any::<u64>(),
        ) {
            let (rows, matrix) = (numbers(n_rows * from, seed), numbers(from * to, seed ^ 0xff00));
            let bias = numbers(to, !seed);
            let panels = Panels::pack(&matrix, from, to);
            let mut out = vec![f32::NAN; n_rows * to];
            panels.multiply(&rows, None, &mut out);
            for (at, found) in out.iter().enumerate() {
                let (row, column) = (at / to, at % to);
                let products = (0..from)
                    .map(|k| f64::from(rows[row * from + k]) * f64::from(matrix[column * from + k]));
                let expected: f64 = products.sum();
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{} {}", found, expected);
            }
            let mut finished = vec![f32::NAN; n_rows * to];
            let finish = Finish { bias: &bias, activation: Activation::Gelu };
            panels.multiply(&rows, Some(finish), &mut finished);
            activate(&mut out, &bias, Activation::Gelu);
            for (found, expected) in finished.iter().zip(&out) {
                prop_assert!((found - expected).abs() < 1e-6, "{} {}", found, expected);
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        let panels = Panels::pack(&[1.0; 6], 2, 3);
        let mut out = [0.0; 9];
        panels.multiply(&[1.0, 2.0, f32::NAN, 1.0, 3.0, 4.0], None, &mut out);
        assert!(out[3..6].iter().all(|x| x.is_nan()), "{out:?}");
        assert_eq!((&out[..3], &out[6..]), (&[3.0; 3][..], &[7.0; 3][..]));
    }
}
