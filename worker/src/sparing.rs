//! Lines of the log that come in crowds.

use std::time::Duration;

use tokio::time::Instant;

/// Lets a line into the log once in a second at most, so that a queue of bad jobs does not fill it.
#[derive(Debug, Default)]
pub(crate) struct Sparing {
    last: Option<Instant>,
    n_unsaid: u64,
}

impl Sparing {
    /// How many lines were left out before this one; none when this one is left out as well.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + Duration::from_secs(1)) {
            self.n_unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.n_unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_second_passes_and_tells_of_the_others() {
        let (begin, mut sparing) = (Instant::now(), Sparing::default());
        let passed = [0, 10, 999, 1000, 1500, 2000, 9000]
            .map(|ms| sparing.pass(begin + Duration::from_millis(ms)));
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }
}
