//! Rounds in which sides take turns, and the part of one that counts. Pure.

/// The sides of a round in their order: who goes first changes from round to round.
pub(crate) fn order(round: usize, n_sides: usize) -> impl Iterator<Item = usize> {
    (0..n_sides).map(move |place| (round + place) % n_sides)
}

/// The two looks between which `n_jobs` were worked off steadily: the first that finds a tenth done, and
/// the first that finds a tenth left. Where that is the same look, since looks came too late, the look
/// before and that: then the rate may have been higher, as what was slow at first counts too. `None`
/// before a tenth is left.
pub(crate) fn steady<L>(
    n_jobs: usize,
    looks: &[L],
    n_done: impl Fn(&L) -> usize,
) -> Option<(&L, &L)> {
    let (first, last) = (n_jobs / 10, n_jobs - n_jobs / 10);
    let end = looks.iter().position(|look| n_done(look) >= last)?;
    let begun = looks[..end].iter().position(|look| n_done(look) >= first);
    Some((&looks[begun.or(end.checked_sub(1))?], &looks[end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_goes_first_in_its_turn_and_all_have_one_in_each_round() {
        let orders: Vec<Vec<usize>> = (0..4).map(|round| order(round, 3).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert_eq!(order(7, 2).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(order(3, 1).collect::<Vec<_>>(), [0]);
        assert_eq!(order(3, 0).count(), 0);
    }

    /// Looks are second and jobs done.
    fn between(n_jobs: usize, looks: &[(u32, usize)]) -> Option<(u32, u32)> {
        steady(n_jobs, looks, |(_, n_done)| *n_done).map(|(first, last)| (first.0, last.0))
    }

    #[test]
    fn a_round_counts_from_a_tenth_done_to_a_tenth_left() {
        let looks = [(0, 0), (1, 9), (2, 10), (3, 50), (4, 89), (5, 90), (6, 100)];
        assert_eq!(between(100, &looks), Some((2, 5)));
        assert_eq!(between(100, &looks[..5]), None);
        assert_eq!(between(100, &[]), None);
    }

    #[test]
    fn a_round_of_which_no_look_sees_the_middle_counts_from_the_look_before() {
        assert_eq!(between(100, &[(0, 0), (1, 100)]), Some((0, 1)));
        assert_eq!(between(100, &[(0, 0), (1, 9), (2, 95), (3, 100)]), Some((1, 2)));
        assert_eq!(between(1, &[(0, 0), (1, 0), (2, 1)]), Some((0, 2)));
        // Without a look before there is nothing to count.
        assert_eq!(between(100, &[(1, 100)]), None);
    }
}
