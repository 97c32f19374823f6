//! Shapes that batches are padded to where kernels are launched: few, so that each kernel is compiled
//! and tuned once, and large, so that it pays.
//!
//! Lengths and numbers of texts are among [`sizes`](crate::device::sizes): at most a third of a shape is
//! padding in each direction, and up to 512 tokens there are eleven lengths.

use crate::device::sizes::{round_up, steps};

/// Texts of fewer tokens are padded to this, as the tiles of kernels are no narrower.
const SHORTEST: usize = 16;
/// Tokens of a shape, padding counted: from here on a forward only takes longer.
pub(crate) const MOST_TOKENS: usize = 16384;
/// Launching the kernels of a forward costs about as much as so many tokens: an estimate, which
/// `ebb-bench gpu` will tell where there is a GPU.
const LAUNCH: usize = 1024;

/// What a forward is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Tokens of each text.
    pub length: usize,
    /// Texts.
    pub rows: usize,
}

impl Shape {
    /// The smallest shape for so many texts, none with more than `length` tokens, of a model that
    /// takes texts of `longest`.
    pub(crate) fn of(rows: usize, length: usize, longest: usize) -> Self {
        Self { rows: round_up(rows), length: round_up(length.max(SHORTEST)).min(longest) }
    }

    /// Tokens, padding counted.
    #[must_use]
    pub fn tokens(self) -> usize {
        self.rows * self.length
    }
}

/// Texts that run in one forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Their places in the batch.
    pub(crate) texts: Vec<usize>,
    pub(crate) shape: Shape,
}

/// Cuts a batch of texts with these lengths into forwards: those of like length together, and as few
/// as pay.
pub(crate) fn plan(lengths: &[usize], longest: usize) -> Vec<Part> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(lengths[*place]));
    // The least cost of the texts from `start` on, and where their first forward ends.
    let mut best = vec![(0, 0); order.len() + 1];
    for start in (0..order.len()).rev() {
        let shapes = (start + 1..=order.len())
            .map(|end| (end, Shape::of(end - start, lengths[order[start]], longest)));
        let fits =
            |(end, shape): &(usize, Shape)| *end == start + 1 || shape.tokens() <= MOST_TOKENS;
        let costs = shapes.take_while(fits);
        let costs = costs.map(|(end, shape)| (shape.tokens() + LAUNCH + best[end].0, end));
        best[start] = costs.min().unwrap_or_default();
    }
    let mut parts = Vec::new();
    let mut start = 0;
    while start < order.len() {
        let end = best[start].1;
        let shape = Shape::of(end - start, lengths[order[start]], longest);
        parts.push(Part { texts: order[start..end].to_vec(), shape });
        start = end;
    }
    parts
}

/// All shapes that batches within these limits may be run with, the smallest first.
pub(crate) fn all(longest: usize, max_rows: usize, max_tokens: usize) -> Vec<Shape> {
    let lengths = steps(SHORTEST.min(longest)).map(|length| length.min(longest));
    let lengths = lengths.scan(0, |before, length| {
        let is_new = *before < longest;
        let previous = std::mem::replace(before, length);
        is_new.then_some((previous, length))
    });
    let mut shapes = Vec::new();
    for (shorter, length) in lengths {
        let mut fewer = 0;
        for rows in steps(1) {
            // The smallest batch that needs this shape must be within the limits.
            let (least_rows, least_length) = (fewer + 1, shorter + 1);
            let shape = Shape { length, rows };
            let is_split = rows > 1 && shape.tokens() > MOST_TOKENS;
            let is_over = least_rows > 1 && least_rows * least_length > max_tokens;
            if least_rows > max_rows || is_over || is_split {
                break;
            }
            shapes.push(shape);
            fewer = rows;
        }
    }
    shapes.sort_by_key(|shape| (shape.tokens(), *shape));
    shapes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_of_like_length_run_together_and_a_long_one_alone() {
        let lengths = |parts: &[Part]| {
            parts.iter().map(|part| (part.shape.rows, part.shape.length)).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&plan(&[7; 32], 512)), [(32, 16)]);
        // Another forward costs more than the padding would.
        assert_eq!(lengths(&plan(&[9, 17, 33], 512)), [(3, 48)]);
        let mut mixed = vec![12; 64];
        mixed.push(500);
        assert_eq!(lengths(&plan(&mixed, 512)), [(1, 512), (64, 16)]);
        assert_eq!(plan(&[], 512), []);
        assert_eq!(lengths(&plan(&[20], 20)), [(1, 20)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_text_runs_once_in_a_shape_that_it_fits(
            lengths in prop::collection::vec(1usize..=514, 0..200),
            longest in 514usize..700,
        ) {
            let parts = plan(&lengths, longest);
            let mut seen: Vec<usize> = parts.iter().flat_map(|part| part.texts.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for Part { texts, shape } in &parts {
                prop_assert!(texts.len() <= shape.rows && shape.rows <= texts.len() * 3 / 2);
                prop_assert!(texts.iter().all(|text| lengths[*text] <= shape.length));
                prop_assert!(texts.len() == 1 || shape.tokens() <= MOST_TOKENS);
            }
            // Never dearer than one forward for all, where that fits.
            let whole = Shape::of(lengths.len(), lengths.iter().copied().max().unwrap_or(1), longest);
            let cost: usize = parts.iter().map(|part| part.shape.tokens() + LAUNCH).sum();
            prop_assert!(whole.tokens() > MOST_TOKENS || cost <= whole.tokens() + LAUNCH);
        }

        #[test]
        fn a_batch_within_the_limits_needs_no_shape_but_those_that_are_warmed_up(
            lengths in prop::collection::vec(1usize..=300, 1..64),
            longest in 300usize..520,
        ) {
            let longest_text = lengths.iter().copied().max().unwrap_or(1);
            let shapes = all(longest, lengths.len(), lengths.len() * longest_text);
            for part in plan(&lengths, longest) {
                prop_assert!(shapes.contains(&part.shape), "{:?} of {:?}", part.shape, shapes);
            }
        }
    }
}
