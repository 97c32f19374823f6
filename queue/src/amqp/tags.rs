//! Which delivery tags of a channel are settled, so that many are acknowledged in one frame.

use std::collections::BTreeSet;

/// The tags of one channel. The broker counts them from 1 without a gap.
#[derive(Debug, Default)]
pub(super) struct Tags {
    /// This one and all before it are settled.
    low: u64,
    /// Settled ones above.
    done: BTreeSet<u64>,
}

/// What to tell the broker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Acks {
    /// This one and all before it.
    pub(super) up_to: Option<u64>,
    /// These by themselves.
    pub(super) single: Vec<u64>,
}

impl Tags {
    /// Notes that these are settled. What was fetched and not seen yet is a gap, so it is never
    /// acknowledged along with what came after it.
    pub(super) fn settle(&mut self, tags: &[u64]) -> Acks {
        let new: BTreeSet<u64> = tags.iter().copied().filter(|tag| self.is_open(*tag)).collect();
        self.done.extend(&new);
        while self.done.remove(&(self.low + 1)) {
            self.low += 1;
        }
        let up_to = new.range(..=self.low).next_back().copied();
        let single = new.into_iter().filter(|tag| *tag > self.low).collect();
        Acks { up_to, single }
    }

    /// Whether any is settled.
    pub(super) fn are_touched(&self) -> bool {
        self.low > 0 || !self.done.is_empty()
    }

    fn is_open(&self, tag: u64) -> bool {
        tag > self.low && !self.done.contains(&tag)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_from_the_first_on_is_one_frame() {
        let mut tags = Tags::default();
        assert!(!tags.are_touched());
        assert_eq!(tags.settle(&[3, 1, 2]), Acks { up_to: Some(3), single: vec![] });
        assert_eq!(tags.settle(&[5, 6]), Acks { up_to: None, single: vec![5, 6] });
        assert_eq!(tags.settle(&[4, 9]), Acks { up_to: Some(4), single: vec![9] });
        assert_eq!(tags.settle(&[7, 8, 7, 3]), Acks { up_to: Some(8), single: vec![] });
        assert!(tags.are_touched());
    }

    #[test]
    fn one_that_is_settled_before_its_turn_is_settled() {
        let mut tags = Tags::default();
        tags.settle(&[2]);
        assert!(tags.are_touched());
    }

    proptest! {
        #[test]
        fn what_is_told_acknowledges_what_is_settled_and_nothing_else(
            order in Just((1..40u64).collect::<Vec<_>>()).prop_shuffle(),
            cuts in prop::collection::vec(1..6usize, 40),
        ) {
            let (mut tags, mut open) = (Tags::default(), (1..40u64).collect::<BTreeSet<_>>());
            let mut rest = &order[..];
            for cut in cuts {
                let (batch, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                let acks = tags.settle(batch);
                let mut told: BTreeSet<u64> = acks.single.iter().copied().collect();
                if let Some(up_to) = acks.up_to {
                    prop_assert!(open.contains(&up_to));
                    told.extend(open.range(..=up_to));
                }
                prop_assert_eq!(&told, &batch.iter().copied().collect());
                open.retain(|tag| !told.contains(tag));
            }
        }
    }
}
