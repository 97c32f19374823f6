//! Which tokens of a pass attend side by side on a device that kernels are launched on.

use super::pool::BLOCK;

/// Tokens of a prompt that attend at once: their scores are all in memory, and of a longer piece half
/// would be of what a token does not see.
const PIECE: usize = 128;

/// Tokens that attend side by side: one of each of several sequences, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Whose they are.
    pub(super) feeds: Vec<usize>,
    /// Which of a feed's tokens is the first.
    pub(super) first: usize,
    /// How many each has.
    pub(super) n_tokens: usize,
    /// Tokens that the last of them sees, in the sequence that sees most, rounded up.
    pub(super) length: usize,
}

impl Group {
    /// The tokens, sequence by sequence: the feed, and which of its tokens.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let Self { first, n_tokens, .. } = *self;
        self.feeds.iter().flat_map(move |feed| (first..first + n_tokens).map(move |n| (*feed, n)))
    }
}

/// Puts the tokens of feeds into groups, given how many tokens each has read and how many it reads.
pub(super) fn groups(feeds: &[(usize, usize)]) -> Vec<Group> {
    let length = |n: usize| n.next_multiple_of(BLOCK);
    let mut groups = Vec::new();
    let mut growing: Vec<(usize, usize)> = Vec::new();
    for (feed, (n_read, n_tokens)) in feeds.iter().enumerate() {
        if *n_tokens == 1 {
            growing.push((length(n_read + 1), feed));
            continue;
        }
        for first in (0..*n_tokens).step_by(PIECE) {
            let n_tokens = PIECE.min(n_tokens - first);
            let length = length(n_read + first + n_tokens);
            groups.push(Group { feeds: vec![feed], first, n_tokens, length });
        }
    }
    // Like beside like: each is padded to the longest, which is at most twice as long.
    growing.sort_unstable();
    for of_like in growing.chunk_by(|(one, _), (other, _)| one.ilog2() == other.ilog2()) {
        let feeds = of_like.iter().map(|(_, feed)| *feed).collect();
        let length = of_like.last().map_or(0, |(length, _)| *length);
        groups.push(Group { feeds, first: 0, n_tokens: 1, length });
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequences_that_grow_are_beside_their_like_and_prompts_are_cut() {
        let group = |feeds: &[usize], first, n_tokens, length| Group {
            feeds: feeds.to_vec(),
            first,
            n_tokens,
            length,
        };
        let found = groups(&[(40, 1), (10, 300), (1000, 1), (50, 1), (0, 1)]);
        let expected = [
            group(&[1], 0, 128, 160),
            group(&[1], 128, 128, 288),
            group(&[1], 256, 44, 320),
            group(&[4], 0, 1, 32),
            group(&[0, 3], 0, 1, 64),
            group(&[2], 0, 1, 1024),
        ];
        assert_eq!(found, expected);
    }

    proptest! {
        #[test]
        fn every_token_is_in_one_group_and_little_is_padded(
            feeds in proptest::collection::vec((0usize..3000, prop_oneof![Just(1), 1usize..400]), 0..30),
        ) {
            let groups = groups(&feeds);
            let mut found: Vec<_> = groups.iter().flat_map(Group::places).collect();
            found.sort_unstable();
            let all = feeds.iter().enumerate();
            let all: Vec<_> = all.flat_map(|(feed, (_, n))| (0..*n).map(move |n| (feed, n))).collect();
            prop_assert_eq!(found, all);
            for group in &groups {
                for feed in &group.feeds {
                    let n_seen = feeds[*feed].0 + group.first + group.n_tokens;
                    prop_assert!(n_seen <= group.length);
                    prop_assert!(group.length < 2 * (n_seen + BLOCK), "{:?} {}", group, n_seen);
                }
            }
        }
    }
}
