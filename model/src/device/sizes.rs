//! Sizes that batches are padded to where kernels are launched: few, so that each kernel is compiled
//! and tuned for few of them.
//!
//! They are powers of two and the numbers halfway between: at most a third of a size is padding. The
//! tuner of products takes all sizes up to a power of two for one, so those halfway cost it nothing.

/// The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 ...
pub(crate) fn round_up(n: usize) -> usize {
    let power = n.next_power_of_two();
    if power >= 4 && n <= power / 4 * 3 { power / 4 * 3 } else { power }
}

/// The largest of them that is not above `n`, of a number that is not 0.
pub(crate) fn round_down(n: usize) -> usize {
    let power = 1 << n.max(1).ilog2();
    if power >= 2 && n >= power / 2 * 3 { power / 2 * 3 } else { power }
}

/// The sizes that [`round_up`] gives, from this one on.
pub(crate) fn steps(first: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(round_up(first)), |size| Some(round_up(size + 1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_two_and_halfway_between() {
        let sizes: Vec<usize> = steps(1).take(12).collect();
        assert_eq!(sizes, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]);
        let lengths: Vec<usize> = steps(16).take_while(|length| *length <= 512).collect();
        assert_eq!(lengths, [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]);
    }

    proptest! {
        #[test]
        fn a_number_lies_between_two_sizes_that_follow_each_other(n in 1usize..100_000) {
            let (below, above) = (round_down(n), round_up(n));
            prop_assert!(below <= n && n <= above && above <= below * 2);
            prop_assert_eq!(round_up(below), below);
            prop_assert_eq!(below == n, above == n);
            prop_assert!(below == n || round_up(below + 1) == above);
        }
    }
}
