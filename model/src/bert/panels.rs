//! Products of rows with weights that are packed once, where a general product packs them anew at
//! each call.
//!
//! A panel holds two vector registers' worth of columns, row after row, so that the innermost loop
//! reads it from end to end. It keeps a tile of sums in registers: as many rows as leave room for the
//! two vectors of weights and one of the input.

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

    /// `out = finish(rows x matrix)`, on this thread. `packed` is room that is used again.
    pub(crate) fn multiply(
        &self,
        rows: &[f32],
        finish: Option<Finish<'_>>,
        packed: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        Arch::new().dispatch(Product { panels: self, rows, finish, packed, out });
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

/// Rows of the next tile.
fn height(n_left: usize, lanes: usize) -> usize {
    let heights = if lanes >= MANY_LANES { [12, 8, 4] } else { [6, 4, 2] };
    let [tall, middle, low] = heights;
    if n_left > middle {
        tall
    } else if n_left > low {
        middle
    } else {
        low
    }
}

struct Product<'a> {
    panels: &'a Panels,
    rows: &'a [f32],
    finish: Option<Finish<'a>>,
    packed: &'a mut Vec<f32>,
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { panels, rows, finish, packed, out } = self;
        let Panels { from, to, width, .. } = *panels;
        let n_rows = rows.len() / from;
        pack_rows(rows, from, S::F32_LANES, packed);
        for (nth, panel) in panels.values.chunks_exact(from * width).enumerate() {
            let (panel, _) = S::as_simd_f32s(panel);
            let (panel, _) = panel.as_chunks::<2>();
            let column = nth * width;
            let n_columns = width.min(to - column);
            let (mut at, mut rest) = (0, &packed[..]);
            while at < n_rows {
                let height = height(n_rows - at, S::F32_LANES);
                let (tile, after) = rest.split_at(height * from);
                rest = after;
                let rows = out[at * to..].chunks_mut(to).take(height);
                let rows = rows.map(|row| &mut row[column..column + n_columns]);
                multiply_tile(simd, height, tile, panel, rows);
                let done = out[at * to..].chunks_mut(to).take(height);
                if let Some(Finish { bias, activation }) = finish {
                    let bias = &bias[column..][..n_columns];
                    done.for_each(|row| {
                        activate_row(&mut row[column..][..n_columns], bias, activation);
                    });
                }
                at += height;
            }
        }
    }
}

/// Packs rows tile by tile, column by column; a tile that is not full ends with zeros.
#[inline(always)]
fn pack_rows(rows: &[f32], from: usize, lanes: usize, packed: &mut Vec<f32>) {
    packed.clear();
    let (n_rows, mut at) = (rows.len() / from, 0);
    while at < n_rows {
        let (height, start) = (height(n_rows - at, lanes), packed.len());
        packed.resize(start + height * from, 0.0);
        let (tile, rows) = (&mut packed[start..], &rows[at * from..]);
        match height {
            12 => pack_tile::<12>(rows, from, tile),
            8 => pack_tile::<8>(rows, from, tile),
            6 => pack_tile::<6>(rows, from, tile),
            4 => pack_tile::<4>(rows, from, tile),
            _ => pack_tile::<2>(rows, from, tile),
        }
        at += height;
    }
}

#[inline(always)]
fn pack_tile<const HEIGHT: usize>(rows: &[f32], from: usize, tile: &mut [f32]) {
    let (columns, _) = tile.as_chunks_mut::<HEIGHT>();
    for (place, row) in rows.chunks_exact(from).take(HEIGHT).enumerate() {
        for (column, x) in columns.iter_mut().zip(row) {
            column[place] = *x;
        }
    }
}

#[inline(always)]
fn multiply_tile<'a, S: Simd>(
    simd: S,
    height: usize,
    tile: &[f32],
    panel: &[[S::f32s; 2]],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    match height {
        12 => multiply_rows::<S, 12>(simd, tile, panel, out),
        8 => multiply_rows::<S, 8>(simd, tile, panel, out),
        6 => multiply_rows::<S, 6>(simd, tile, panel, out),
        4 => multiply_rows::<S, 4>(simd, tile, panel, out),
        _ => multiply_rows::<S, 2>(simd, tile, panel, out),
    }
}

#[inline(always)]
fn multiply_rows<'a, S: Simd, const HEIGHT: usize>(
    simd: S,
    tile: &[f32],
    panel: &[[S::f32s; 2]],
    out: impl Iterator<Item = &'a mut [f32]>,
) {
    let mut sums = [[simd.splat_f32s(0.0); 2]; HEIGHT];
    let (columns, _) = tile.as_chunks::<HEIGHT>();
    for (column, weights) in columns.iter().zip(panel) {
        for (x, sums) in column.iter().zip(&mut sums) {
            let x = simd.splat_f32s(*x);
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
            let mut packed = vec![f32::NAN; 7];
            let mut out = vec![f32::NAN; n_rows * to];
            panels.multiply(&rows, None, &mut packed, &mut out);
            for (at, found) in out.iter().enumerate() {
                let (row, column) = (at / to, at % to);
                let products = (0..from)
                    .map(|k| f64::from(rows[row * from + k]) * f64::from(matrix[column * from + k]));
                let expected: f64 = products.sum();
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{} {}", found, expected);
            }
            let mut finished = vec![f32::NAN; n_rows * to];
            let finish = Finish { bias: &bias, activation: Activation::Gelu };
            panels.multiply(&rows, Some(finish), &mut packed, &mut finished);
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
        panels.multiply(&[1.0, 2.0, f32::NAN, 1.0, 3.0, 4.0], None, &mut Vec::new(), &mut out);
        assert!(out[3..6].iter().all(|x| x.is_nan()), "{out:?}");
        assert_eq!((&out[..3], &out[6..]), (&[3.0; 3][..], &[7.0; 3][..]));
    }
}
