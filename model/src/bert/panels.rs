//! Products of rows with weights that are packed once, where a general product packs them anew at
//! each call.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::config::Activation;
use super::kernels::activate_row;
use crate::processor::tile::{self, Single, height, multiply_tile};

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
        tile::suit()
    }

    /// Packs a matrix as it is stored, `[to, from]`.
    pub(crate) fn pack(stored: &[f32], from: usize, to: usize) -> Self {
        let width = tile::width();
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
                multiply_tile::<S, Single>(simd, height, (rows, from), panel, tile);
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
