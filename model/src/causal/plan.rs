//! Who reads how much in a pass, and who keeps keys and values in a turn. No clock and no device here.

/// How many tokens each sequence reads in a pass, given how many it has not read: one where it is the
/// only one, since that sequence grows by this pass; of the others, whose prompts are read, the first
/// in order as much as there is for prompts.
pub(super) fn shares(unread: &[usize], n_prompt: usize) -> Vec<usize> {
    let mut left = n_prompt;
    let share = |n: &usize| match n {
        0 | 1 => *n,
        n => {
            let share = left.min(*n);
            left -= share;
            share
        }
    };
    unread.iter().map(share).collect()
}

/// What a sequence has of the memory, or wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Bytes by the end of the turn, of a sequence that is to grow in it.
    pub(super) need: Option<u64>,
    /// Bytes that are kept for it.
    pub(super) kept: u64,
}

/// Which sequences have room, those of other batches among them, given who came first: in order,
/// whoever fits beside those before it. The first always does. Whoever waits keeps what it has, as
/// long as that fits, and nobody who came later gets it.
///
/// So two batches that take turns do not throw each other's keys and values away for ever: of any
/// two, the later waits.
pub(super) fn rooms(claims: &[Claim], budget: u64) -> Vec<bool> {
    let mut taken = 0u64;
    let has_room = |(place, claim): (usize, &Claim)| {
        let fits = |bytes: &u64| place == 0 || taken.saturating_add(*bytes) <= budget;
        let need = claim.need.filter(fits);
        let kept = Some(claim.kept).filter(fits);
        taken = taken.saturating_add(need.or(kept).unwrap_or(0));
        need.is_some()
    };
    claims.iter().enumerate().map(has_room).collect()
}

/// Which of what is kept for sequences that do not grow has to go, so that what is kept is at most
/// `budget`: of `(rank, bytes)`, the lowest rank first. Says their places.
pub(super) fn dropped(kept: &[(u64, u64)], budget: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|place| kept[*place].0);
    let mut sum = kept.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let mut gone = Vec::new();
    for place in order {
        if sum <= budget {
            break;
        }
        sum -= kept[place].1.min(sum);
        gone.push(place);
    }
    gone
}

/// The most tokens of which a cache takes at most `budget`, up to `most`; `bytes` never falls.
pub(super) fn most_tokens(most: usize, budget: u64, bytes: impl Fn(usize) -> u64) -> usize {
    let (mut fits, mut beyond) = (0, most + 1);
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        if bytes(middle) <= budget { fits = middle } else { beyond = middle }
    }
    fits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_prompt_is_read_beside_those_that_grow() {
        assert_eq!(shares(&[1, 900, 1, 30, 0], 510), [1, 510, 1, 0, 0]);
        assert_eq!(shares(&[20, 1, 30], 512), [20, 1, 30]);
        assert_eq!(shares(&[1; 600], 512), [1; 600]);
        assert_eq!(shares(&[], 512), [0; 0]);
    }

    fn need(bytes: u64) -> Claim {
        Claim { need: Some(bytes), kept: 0 }
    }

    #[test]
    fn whoever_does_not_fit_waits_and_lets_others_pass() {
        let found = rooms(&[50, 60, 40, 20, 10].map(need), 100);
        assert_eq!(found, [true, false, true, false, true]);
        assert_eq!(rooms(&[500, 1].map(need), 100), [true, false]);
        assert_eq!(rooms(&[u64::MAX, u64::MAX].map(need), u64::MAX), [true, true]);
    }

    #[test]
    fn what_is_kept_for_another_batch_stays_where_it_came_first() {
        let kept = |bytes| Claim { need: None, kept: bytes };
        assert_eq!(rooms(&[kept(60), need(50), need(40)], 100), [false, false, true]);
        assert_eq!(rooms(&[need(50), kept(60), need(50)], 100), [true, false, true]);
        // Who waits keeps what it has.
        let waits = Claim { need: Some(60), kept: 40 };
        assert_eq!(rooms(&[need(50), waits, need(20), need(10)], 100), [true, false, false, true]);
    }

    #[test]
    fn what_has_the_lowest_rank_goes_first() {
        assert_eq!(dropped(&[(3, 10), (1, 10), (2, 10)], 15), [1, 2]);
        assert_eq!(dropped(&[(3, 10), (1, 10)], 20), [0; 0]);
        assert_eq!(dropped(&[(3, 10), (1, 10)], 0), [1, 0]);
    }

    proptest! {
        #[test]
        fn a_pass_keeps_its_budget_and_the_order_and_everybody_comes_to_grow(
            unread in proptest::collection::vec(0usize..2000, 0..40), budget in 1usize..600,
        ) {
            let mut unread = unread;
            let n_prompt_tokens: usize = unread.iter().filter(|n| **n > 1).sum();
            for _ in 0..=n_prompt_tokens.div_ceil(budget) + unread.len() {
                let found = shares(&unread, budget);
                prop_assert_eq!(found.len(), unread.len());
                let n_growing = unread.iter().filter(|n| **n == 1).count();
                let sum: usize = found.iter().sum();
                prop_assert!(sum <= budget + n_growing);
                let mut a_prompt_waits = false;
                for (share, n) in found.iter().zip(&unread) {
                    prop_assert!(share <= n && (*n != 1 || *share == 1));
                    if *n > 1 {
                        prop_assert!(!a_prompt_waits || *share == 0, "{:?} {:?}", found, unread);
                        a_prompt_waits |= share < n;
                    }
                }
                let reads = |(n, share): (&usize, usize)| if *n == 1 { 1 } else { n - share };
                // One that has read its last token of several grows in this very pass.
                unread = unread.iter().zip(found).map(reads).map(|n| n.max(1)).collect();
            }
            prop_assert!(unread.iter().all(|n| *n == 1), "{:?}", unread);
        }

        #[test]
        fn rooms_keep_the_budget_and_are_given_to_all_who_fit(
            needs in proptest::collection::vec(0u64..100, 1..20), budget in 0u64..300,
        ) {
            let claims: Vec<Claim> = needs.iter().copied().map(need).collect();
            let found = rooms(&claims, budget);
            prop_assert!(found[0]);
            let taken: u64 = needs.iter().zip(&found).filter(|(_, has)| **has).map(|(n, _)| n).sum();
            prop_assert!(taken <= budget.max(needs[0]));
            for (place, need) in needs.iter().enumerate().filter(|(place, _)| !found[*place]) {
                let before: u64 = (0..place).filter(|n| found[*n]).map(|n| needs[n]).sum();
                prop_assert!(before + need > budget);
            }
        }

        #[test]
        fn the_most_tokens_are_those_that_just_fit(most in 0usize..500, budget in 0u64..4000) {
            let bytes = |n: usize| 7 * n.next_multiple_of(16) as u64;
            let found = most_tokens(most, budget, bytes);
            prop_assert!(found <= most && (found == 0 || bytes(found) <= budget));
            prop_assert!(found == most || bytes(found + 1) > budget);
        }
    }
}
