//! Which tokens of a pass attend side by side on a device that kernels are launched on, and to which
//! shapes they are padded. Pure.
//!
//! Launching the kernels of a group costs as much as padding others to its shape up to a point, so that
//! short prompts run together and so do sequences that grow; a few long ones run on their own.

use super::pool::BLOCK;
use crate::device::sizes::{round_down, round_up, steps};

/// Tokens of a prompt that attend at once, at most: of a longer piece half of the scores would be of
/// what a token does not see.
pub(super) const PIECE: usize = 128;
/// And at least, of more than one: the tiles of kernels are no narrower.
const SHORTEST: usize = 16;
/// Scores of a head that a group has in memory, unless a single short piece has more: a long prompt is
/// read in shorter pieces where it sees more than 8192 tokens.
const SCORES: usize = 1 << 20;
/// Tokens whose keys and values a group gathers, unless a single sequence has more.
const GATHERED: usize = 1 << 18;

/// What gathering a token's keys and values costs, in scores; an estimate by the bytes that a layer of
/// 32 heads of queries and 8 of keys moves, in 16 bits.
const GATHER: usize = 16;
/// What launching the kernels of a group costs, in scores; an estimate, which nothing was measured for:
/// a dozen launches of some microseconds, at 3 TB/s.
const LAUNCH: usize = 1 << 18;

/// What a group is padded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupShape {
    /// Pieces side by side.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Tokens that each of them may see.
    pub length: usize,
}

/// Tokens of one sequence that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Whose they are.
    pub(super) feed: usize,
    /// Which of the feed's tokens is the first.
    pub(super) first: usize,
    pub(super) n_tokens: usize,
    /// Tokens that the last of them sees, itself among them.
    pub(super) n_seen: usize,
}

/// Pieces that attend side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) pieces: Vec<Piece>,
    pub(super) shape: GroupShape,
}

/// Pieces of the same shape.
type Class = ((usize, usize), Vec<Piece>);

/// Puts the tokens of feeds into groups, given how many tokens each has read and how many it reads.
pub(super) fn groups(feeds: &[(usize, usize)]) -> Vec<Group> {
    let classes = classes(feeds);
    // The least cost of the classes from `start` on, and where those end that are padded to its shape.
    let mut best = vec![(0, 0); classes.len() + 1];
    for start in (0..classes.len()).rev() {
        let ends = (start + 1)..=classes.len();
        let costs = ends.map(|end| (cost(&classes[start..end]) + best[end].0, end));
        best[start] = costs.min().unwrap_or_default();
    }
    let mut groups = Vec::new();
    let mut start = 0;
    while start < classes.len() {
        let end = best[start].1;
        let (tokens, length) = widest(&classes[start..end]);
        let pieces = classes[start..end].iter().flat_map(|(_, pieces)| pieces);
        let pieces: Vec<Piece> = pieces.copied().collect();
        for pieces in pieces.chunks(most_rows(tokens, length)) {
            let shape = GroupShape { rows: round_up(pieces.len()), tokens, length };
            groups.push(Group { pieces: pieces.to_vec(), shape });
        }
        start = end;
    }
    groups
}

/// Cuts feeds into pieces, those of the same shape together: the longest first.
fn classes(feeds: &[(usize, usize)]) -> Vec<Class> {
    let mut pieces: Vec<((usize, usize), Piece)> = Vec::with_capacity(feeds.len());
    for (feed, (n_read, n_tokens)) in feeds.iter().enumerate() {
        let mut first = 0;
        while first < *n_tokens {
            let n_before = n_read + first;
            let n = (n_tokens - first).min(most_tokens(n_before));
            let n_seen = n_before + n;
            let piece = Piece { feed, first, n_tokens: n, n_seen };
            pieces.push(((tokens_of(n), length_of(n_seen)), piece));
            first += n;
        }
    }
    pieces.sort_by_key(|(shape, _)| std::cmp::Reverse(*shape));
    let mut classes: Vec<Class> = Vec::new();
    for (shape, piece) in pieces {
        match classes.last_mut() {
            Some((last, pieces)) if *last == shape => pieces.push(piece),
            _ => classes.push((shape, vec![piece])),
        }
    }
    classes
}

/// Tokens of the next piece behind so many, as a bound.
fn most_tokens(n_before: usize) -> usize {
    let mut most = PIECE;
    while most > SHORTEST && most * length_of(n_before + most) > SCORES {
        most /= 2;
    }
    most
}

/// To how many tokens a piece is padded.
fn tokens_of(n: usize) -> usize {
    if n == 1 { 1 } else { round_up(n.max(SHORTEST)) }
}

/// To how many tokens that are seen a piece is padded: whole blocks.
pub(super) fn length_of(n_seen: usize) -> usize {
    BLOCK * round_up(n_seen.div_ceil(BLOCK))
}

/// How many pieces of a shape run side by side, at most.
fn most_rows(tokens: usize, length: usize) -> usize {
    round_down((GATHERED / length).min(SCORES / (tokens * length)).max(1))
}

/// The shape that pieces of all these classes fit.
fn widest(classes: &[Class]) -> (usize, usize) {
    let tokens = classes.iter().map(|((tokens, _), _)| *tokens).max();
    let length = classes.iter().map(|((_, length), _)| *length).max();
    (tokens.unwrap_or(1), length.unwrap_or(BLOCK))
}

/// What these classes cost, padded to one shape.
fn cost(classes: &[Class]) -> usize {
    let (tokens, length) = widest(classes);
    let n_rows: usize = classes.iter().map(|(_, pieces)| pieces.len()).sum();
    let most = most_rows(tokens, length);
    let of_rows = |rows: usize| LAUNCH + round_up(rows) * length * (tokens + GATHER);
    let rest = n_rows % most;
    n_rows / most * of_rows(most) + if rest > 0 { of_rows(rest) } else { 0 }
}

/// All shapes that groups may have of at most `n_growing` sequences that grow, and of prompts of which
/// a pass reads `n_tokens`, of a model whose sequences have at most `positions`; the smallest first.
pub(super) fn all_shapes(n_growing: usize, n_tokens: usize, positions: usize) -> Vec<GroupShape> {
    let longest = length_of(positions);
    let lengths: Vec<usize> =
        steps(1).map(|n| n * BLOCK).take_while(|length| *length <= longest).collect();
    let mut shapes = Vec::new();
    let of_prompts = steps(SHORTEST).take_while(|tokens| *tokens <= PIECE);
    let of_prompts = of_prompts.filter(|tokens| least_tokens(*tokens) <= n_tokens);
    for tokens in std::iter::once(1).chain(of_prompts) {
        // Two tokens are a piece already, beside one of as many as it takes; a single one is what is
        // left of more than the shortest, or of what a pass reads.
        let of_prompts = match tokens {
            1 => n_tokens / (SHORTEST + 1) + n_tokens.min(1),
            _ => 1 + (n_tokens - least_tokens(tokens)).div_ceil(2),
        };
        let most = n_growing + of_prompts;
        let runs = |length: &usize| tokens <= SHORTEST || tokens * length <= SCORES;
        for length in lengths.iter().copied().filter(|length| *length >= tokens).filter(runs) {
            let is_bound = |rows: &usize| *rows <= round_up(most_rows(tokens, length).min(most));
            let rows = steps(1).take_while(is_bound);
            shapes.extend(rows.map(|rows| GroupShape { rows, tokens, length }));
        }
    }
    shapes.sort_by_key(|shape| (shape.rows * shape.tokens * shape.length, *shape));
    shapes
}

/// The fewest tokens of a piece that is padded to so many.
fn least_tokens(tokens: usize) -> usize {
    match tokens {
        1 => 1,
        SHORTEST => 2,
        _ => round_down(tokens - 1) + 1,
    }
}

impl Group {
    /// One of this shape, of feeds of a piece each that see all of its length: as full as so many
    /// tokens make it, at least one of each.
    pub(super) fn full(shape: GroupShape, most: usize) -> Self {
        let GroupShape { rows, tokens, length } = shape;
        let first = tokens.min(most.max(1));
        let n_pieces = rows.min(most.saturating_sub(first) + 1);
        let mut left = most.saturating_sub(first + n_pieces - 1);
        let piece = |feed| {
            let more = if feed == 0 { first - 1 } else { left.min(tokens - 1) };
            left -= if feed == 0 { 0 } else { more };
            Piece { feed, first: 0, n_tokens: 1 + more, n_seen: length }
        };
        Self { pieces: (0..n_pieces).map(piece).collect(), shape }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shapes(feeds: &[(usize, usize)]) -> Vec<(usize, usize, usize)> {
        let shape = |group: &Group| (group.shape.rows, group.shape.tokens, group.shape.length);
        groups(feeds).iter().map(shape).collect()
    }

    #[test]
    fn sequences_that_grow_run_together_and_so_do_short_prompts() {
        assert_eq!(shapes(&[]), []);
        assert_eq!(shapes(&[(40, 1), (90, 1), (300, 1), (50, 1), (0, 1)]), [(6, 1, 384)]);
        assert_eq!(shapes(&[(0, 20), (0, 30), (0, 9), (0, 31)]), [(4, 32, 32)]);
        // A prompt is cut; its pieces run side by side, each with what it sees.
        assert_eq!(shapes(&[(10, 300)]), [(3, 128, 384)]);
        // Padding many short ones to what a long one sees would cost more than another group.
        let mut feeds = vec![(40, 1); 63];
        feeds.push((8000, 1));
        assert_eq!(shapes(&feeds), [(1, 1, 8192), (64, 1, 64)]);
        assert_eq!(shapes(&[(1000, 1); 64].map(|it| it)), [(64, 1, 1024)]);
    }

    #[test]
    fn what_a_group_holds_is_bounded_however_long_the_prompt() {
        assert_eq!(shapes(&[(8000, 92)]), [(1, 96, 8192)]);
        assert_eq!(shapes(&[(60_000, 128)]), [(1, 16, 65_536); 8]);
        assert_eq!(shapes(&[(8100, 1); 64]), [(32, 1, 8192); 2]);
    }

    #[test]
    fn what_is_warmed_up_is_no_more_than_passes_can_have() {
        let (n_growing, n_tokens) = (64, 256);
        let all = all_shapes(n_growing, n_tokens, 131_072);
        let mut sizes = std::collections::BTreeSet::new();
        for shape in &all {
            let GroupShape { rows, tokens, length } = *shape;
            assert!(tokens <= SHORTEST || tokens * length <= SCORES, "{shape:?}");
            let group = Group::full(*shape, n_growing + n_tokens);
            let n_real: usize = group.pieces.iter().map(|piece| piece.n_tokens).sum();
            assert!(n_real <= n_growing + n_tokens, "{shape:?}: {n_real}");
            sizes.insert(round_up(n_real));
            assert_eq!(round_up(group.pieces.len()), rows);
            assert_eq!(
                group.pieces.iter().map(|piece| tokens_of(piece.n_tokens)).max(),
                Some(tokens)
            );
            for piece in &group.pieces {
                assert!(piece.n_tokens <= tokens && length_of(piece.n_seen) == length);
            }
        }
        // Whatever a pass has in all, its dense layers have run with as much.
        let steps: Vec<usize> = steps(1).take_while(|n| *n <= 384).collect();
        assert_eq!(Vec::from_iter(sizes), steps);
        // Of a prompt of few tokens no piece is long.
        assert!(all_shapes(4, 0, 64).iter().all(|shape| shape.tokens == 1 && shape.rows <= 4));
        assert!(all_shapes(4, 20, 64).iter().all(|shape| shape.tokens <= 24));
    }

    proptest! {
        #[test]
        fn every_token_is_in_one_group_that_is_no_larger_than_it_may_be(
            feeds in proptest::collection::vec(
                (0usize..20_000, prop_oneof![Just(1), 1usize..400]), 0..30,
            ),
        ) {
            let groups = groups(&feeds);
            let mut found = Vec::new();
            for Group { pieces, shape } in &groups {
                let GroupShape { rows, tokens, length } = *shape;
                prop_assert!(rows == round_up(pieces.len()));
                prop_assert!(rows == 1 || rows * tokens * length <= SCORES);
                prop_assert!(tokens * length <= SCORES || tokens == SHORTEST);
                prop_assert!(rows == 1 || rows * length <= GATHERED);
                for piece in pieces {
                    prop_assert!(piece.n_tokens <= tokens && piece.n_seen <= length);
                    prop_assert_eq!(piece.n_seen, feeds[piece.feed].0 + piece.first + piece.n_tokens);
                    found.extend((0..piece.n_tokens).map(|n| (piece.feed, piece.first + n)));
                }
            }
            found.sort_unstable();
            let all = feeds.iter().enumerate();
            let all: Vec<_> = all.flat_map(|(feed, (_, n))| (0..*n).map(move |n| (feed, n))).collect();
            prop_assert_eq!(found, all);
        }

        #[test]
        fn a_pass_within_the_limits_needs_no_shape_but_those_that_are_warmed_up(
            growing in proptest::collection::vec(0usize..1000, 0..40),
            prompts in proptest::collection::vec((0usize..700, 2usize..200), 0..12),
        ) {
            let n_tokens = prompts.iter().map(|(_, n)| n).sum();
            let feeds: Vec<_> = growing.iter().map(|n| (*n, 1)).chain(prompts).collect();
            let all = all_shapes(growing.len(), n_tokens, 1000);
            for Group { shape, .. } in groups(&feeds) {
                prop_assert!(all.contains(&shape), "{:?}", shape);
            }
        }
    }
}
