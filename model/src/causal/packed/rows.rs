//! How the rows of a pass are cut: a row per token, those of a feed one behind the other.

use std::ops::Range;

use crate::causal::config::Config;

/// Most rows of a block.
const MOST_ROWS: usize = 128;
/// Least rows of a block that is not the only one: enough that weights are not read too often.
const LEAST_ROWS: usize = 24;
/// Numbers of a block's rows that stay in the second cache.
const CACHED: usize = 1 << 18;
/// Queries of a span: enough that they share what they read of the keys.
const QUERIES: usize = 96;
/// Pieces of a product for each thread: those that are done with theirs help the others.
const PIECES: usize = 4;

/// The rows of a pass.
#[derive(Debug)]
pub(super) struct Rows {
    /// Where each block of rows begins and ends.
    pub(super) blocks: Vec<Range<usize>>,
    /// In the order of their rows.
    pub(super) spans: Vec<Span>,
    /// The first span of each block, and their number.
    spans_of: Vec<usize>,
    /// The rows behind which logits are wanted.
    pub(super) wanted: Vec<usize>,
}

/// Some tokens of one sequence, in one block.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) feed: usize,
    pub(super) block: usize,
    pub(super) rows: Range<usize>,
    /// The place of the first token in its sequence.
    pub(super) first: usize,
}

impl Rows {
    /// Of feeds with so many tokens that are read, so many that were, and whether logits are wanted.
    pub(super) fn new(config: &Config, feeds: &[(usize, usize, bool)]) -> Self {
        let n_rows = feeds.iter().map(|(n, ..)| n).sum::<usize>();
        let widest = config.hidden.max(config.intermediate).max(config.query_width());
        let most = (CACHED / widest).clamp(LEAST_ROWS, MOST_ROWS);
        let blocks: Vec<Range<usize>> = split(n_rows, n_rows.div_ceil(most)).collect();
        let most = QUERIES.div_ceil(config.heads / config.kv_heads);
        let (mut spans, mut spans_of, mut wanted) = (Vec::new(), vec![0], Vec::new());
        let (mut row, mut block) = (0, 0);
        for (feed, (n, before, wants)) in feeds.iter().enumerate() {
            let end = row + n;
            let start = row;
            while row < end {
                if row == blocks[block].end {
                    block += 1;
                    spans_of.push(spans.len());
                }
                let rows = row..end.min(blocks[block].end).min(row + most);
                row = rows.end;
                spans.push(Span { feed, block, first: before + rows.start - start, rows });
            }
            if *wants && *n > 0 {
                wanted.push(end - 1);
            }
        }
        spans_of.push(spans.len());
        Self { blocks, spans, spans_of, wanted }
    }

    /// The spans of a block.
    pub(super) fn spans_of(&self, block: usize) -> Range<usize> {
        self.spans_of[block]..self.spans_of[block + 1]
    }

    /// The block of a row.
    pub(super) fn block_of(&self, row: usize) -> usize {
        self.blocks.partition_point(|block| block.end <= row)
    }
}

/// Groups of panels, for so many threads.
pub(super) fn groups(n_panels: usize, n_threads: usize) -> Vec<Range<usize>> {
    split(n_panels, n_panels.min(PIECES * n_threads)).collect()
}

/// `n` things in so many parts, alike but for one.
fn split(n: usize, n_parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_parts).map(move |part| part * n / n_parts..(part + 1) * n / n_parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::causal::config::Rope;

    fn config(kv_heads: usize) -> Config {
        Config {
            architecture: String::new(),
            layers: 1,
            hidden: 64,
            intermediate: 8192,
            heads: 12,
            kv_heads,
            head_width: 64,
            vocabulary: 10,
            positions: 4096,
            norm_eps: 1e-6,
            rope: Rope { theta: 1e4, scaling: None },
            qkv_bias: false,
            out_bias: false,
            qk_norm: false,
            tied: true,
        }
    }

    proptest! {
        #[test]
        fn spans_cover_the_rows_in_order_and_lie_in_one_feed_and_block(
            feeds in prop::collection::vec((1usize..200, 0usize..50, any::<bool>()), 0..20),
            kv_heads in prop::sample::select(vec![1, 2, 12]),
        ) {
            let cut = Rows::new(&config(kv_heads), &feeds);
            let mut places = Vec::new();
            for (nth, span) in cut.spans.iter().enumerate() {
                prop_assert_eq!(span.rows.start, places.len());
                prop_assert!(span.rows.len() * 12 / kv_heads <= QUERIES);
                prop_assert!(cut.spans_of(span.block).contains(&nth));
                for row in span.rows.clone() {
                    prop_assert_eq!(cut.block_of(row), span.block);
                    places.push((span.feed, span.first + row - span.rows.start));
                }
            }
            let of_feed = |(feed, (n, before, _)): (usize, &(usize, usize, bool))| {
                (*before..before + n).map(move |place| (feed, place)).collect::<Vec<_>>()
            };
            let expected: Vec<_> = feeds.iter().enumerate().flat_map(of_feed).collect();
            prop_assert_eq!(&places, &expected);
            prop_assert!(cut.blocks.iter().all(|rows| (1..=32).contains(&rows.len())));
            let last = |row: &usize| feeds[places[*row].0];
            prop_assert_eq!(cut.wanted.len(), feeds.iter().filter(|feed| feed.2).count());
            for row in &cut.wanted {
                prop_assert_eq!(places[*row].1 + 1, last(row).0 + last(row).1);
            }
        }
    }

    #[test]
    fn every_panel_is_in_one_group() {
        for (n_panels, n_threads) in [(1, 2), (18, 2), (48, 64), (1536, 3)] {
            let groups = groups(n_panels, n_threads);
            let all: Vec<usize> = groups.iter().flat_map(Clone::clone).collect();
            assert_eq!(all, (0..n_panels).collect::<Vec<_>>());
            assert!(groups.iter().all(|group| !group.is_empty()));
        }
    }
}
