//! Matrices as a processor multiplies with them: packed once, in as few bytes as lose nothing.
//!
//! A pass of few rows waits for the weights to come from memory. Those that are bf16 in the checkpoint
//! stay so, and become single floats in registers.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::processor::tile::{self, Brain, Kept, Single, height, multiply_tile};

/// A matrix `[from, to]` in panels, the last one filled up with zeros.
#[derive(Debug)]
pub(super) struct Panels {
    values: Values,
    from: usize,
    to: usize,
    /// Columns of a panel.
    width: usize,
}

#[derive(Debug)]
enum Values {
    Single(Vec<f32>),
    /// The upper halves of the numbers: one of the left half of a panel's columns below one of the
    /// right half.
    Brain(Vec<u32>),
}

impl Panels {
    /// Packs a matrix as it is stored, `[to, from]`.
    pub(super) fn pack(stored: &[f32], from: usize, to: usize) -> Self {
        let width = tile::width();
        let half = width / 2;
        let is_brain = stored.par_chunks(1 << 16).all(are_brain);
        let values = if is_brain {
            let upper = |value: f32| value.to_bits() >> 16;
            Values::Brain(packed(stored, (from, to), half, |row: &mut u32, place, value| {
                *row |= upper(value) << (16 * (place / half));
            }))
        } else {
            Values::Single(packed(stored, (from, to), width, |row: &mut f32, _, value| {
                *row = value;
            }))
        };
        Self { values, from, to, width }
    }

    /// Numbers of a row that goes in.
    pub(super) fn from(&self) -> usize {
        self.from
    }

    /// Numbers of a row that comes out.
    pub(super) fn to(&self) -> usize {
        self.to
    }

    /// How many panels there are.
    pub(super) fn n(&self) -> usize {
        self.to.div_ceil(self.width)
    }

    /// The columns of some panels.
    pub(super) fn columns(&self, panels: Range<usize>) -> Range<usize> {
        panels.start * self.width..self.to.min(panels.end * self.width)
    }

    /// `out = rows x` the columns of some panels, on this thread.
    pub(super) fn multiply(&self, panels: Range<usize>, rows: &[f32], out: &mut [f32]) {
        Arch::new().dispatch(Product { matrix: self, panels, rows, out });
    }

    /// A column: a row of the matrix as it was stored.
    pub(super) fn column(&self, column: usize) -> impl Iterator<Item = f32> {
        let (panel, place) = (column / self.width, column % self.width);
        let half = self.width / 2;
        let first = panel * self.from;
        (first..first + self.from).map(move |row| match &self.values {
            Values::Single(values) => values[row * self.width + place],
            Values::Brain(values) => {
                let both = values[row * half + place % half];
                f32::from_bits(if place < half { both << 16 } else { both & 0xffff_0000 })
            }
        })
    }
}

/// Whether these numbers have nothing in their lower halves.
fn are_brain(values: &[f32]) -> bool {
    values.iter().fold(0, |bits, value| bits | value.to_bits()) & 0xffff == 0
}

/// Panels of rows of `n` units. `put` puts a number into the unit that its place in the row falls to.
fn packed<T: Copy + Default + Send>(
    stored: &[f32],
    (from, to): (usize, usize),
    n: usize,
    put: impl Fn(&mut T, usize, f32) + Sync,
) -> Vec<T> {
    let width = tile::width();
    let mut values = vec![T::default(); to.div_ceil(width) * from * n];
    let panels = values.par_chunks_exact_mut(from * n);
    panels.zip(stored.par_chunks(from * width)).for_each(|(panel, columns)| {
        for (place, column) in columns.chunks_exact(from).enumerate() {
            for (row, value) in panel.chunks_exact_mut(n).zip(column) {
                put(&mut row[place % n], place, *value);
            }
        }
    });
    values
}

struct Product<'a> {
    matrix: &'a Panels,
    panels: Range<usize>,
    rows: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Panels { from, width, .. } = *self.matrix;
        match &self.matrix.values {
            Values::Single(values) => {
                let of = from * width;
                let rows = |panel: usize| {
                    let (rows, _) = S::as_simd_f32s(&values[panel * of..][..of]);
                    rows.as_chunks::<2>().0
                };
                self.run::<S, Single>(simd, rows);
            }
            Values::Brain(values) => {
                let of = from * width / 2;
                let rows = |panel: usize| S::as_simd_u32s(&values[panel * of..][..of]).0;
                self.run::<S, Brain>(simd, rows);
            }
        }
    }
}

impl<'a> Product<'a> {
    #[inline(always)]
    fn run<S: Simd, K: Kept<S>>(self, simd: S, panel: impl Fn(usize) -> &'a [K::Row])
    where
        K::Row: 'a,
    {
        let Self { matrix, panels, rows, out } = self;
        let Panels { from, .. } = *matrix;
        let all = matrix.columns(panels.clone());
        let n_rows = rows.len() / from;
        for nth in panels {
            let panel = panel(nth);
            let columns = matrix.columns(nth..nth + 1);
            let columns = columns.start - all.start..columns.end - all.start;
            let mut at = 0;
            while at < n_rows {
                let height = height(n_rows - at, S::F32_LANES);
                let out = out[at * all.len()..][..height * all.len()].chunks_exact_mut(all.len());
                let tile = out.map(|row| &mut row[columns.clone()]);
                multiply_tile::<S, K>(simd, height, (&rows[at * from..], from), panel, tile);
                at += height;
            }
        }
    }
}
