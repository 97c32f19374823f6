//! How many dead letters RabbitMQ hands over at once.

/// Letters that the broker hands over at once: as many as have so many bytes together where each is as large
/// as the largest of the page before, but at most twice as many as in that one, never more than this, and as
/// few where they are large or none is known.
const PAGE_BYTES: u64 = 32 << 20;
pub(super) const LONGEST_PAGE: u64 = 1024;
pub(super) const FIRST_PAGE: u64 = 16;

/// How many letters are handed over next, after a page of so many of which the largest has so many bytes.
pub(super) fn n_next(before: Option<(u64, u64)>) -> u64 {
    let Some((n_letters, n_largest)) = before else { return FIRST_PAGE };
    let n_fitting = PAGE_BYTES / n_largest.max(1);
    n_fitting.min(2 * n_letters).clamp(FIRST_PAGE, LONGEST_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_long_as_its_letters_are_small() {
        assert_eq!(n_next(None), FIRST_PAGE);
        // Those that follow small ones may be large.
        assert_eq!(n_next(Some((16, 0))), 32);
        assert_eq!(n_next(Some((512, 1 << 10))), LONGEST_PAGE);
        assert_eq!(n_next(Some((1024, 1 << 10))), LONGEST_PAGE);
        assert_eq!(n_next(Some((512, 1 << 20))), 32);
        assert_eq!(n_next(Some((32, 4 << 20))), FIRST_PAGE);
        assert_eq!(n_next(Some((1024, u64::MAX))), FIRST_PAGE);
    }
}
