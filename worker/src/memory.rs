//! How large a batch may be for the memory of its device. Pure.
//!
//! Others may have had the memory for a while, or one job may have needed all of it: what a lack
//! taught is put to the test again, and no worker has to be started anew for that.

/// Batches that use most of what is allowed and succeed, before twice as much is tried.
const TRUST: u32 = 100;

/// The largest cost of a batch.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    /// The limit that was configured.
    most: usize,
    /// Successes since the limit changed.
    n_good: u32,
}

impl Memory {
    pub(crate) fn new(most: usize) -> Self {
        Self { limit: most, most, n_good: 0 }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// There was no memory for a batch of this cost; the new limit, if it is another one.
    pub(crate) fn lacked(&mut self, cost: usize) -> Option<usize> {
        self.change(self.limit.min((cost / 2).max(1)))
    }

    /// There was enough for a batch of this cost; the new limit, if it is another one.
    pub(crate) fn sufficed(&mut self, cost: usize) -> Option<usize> {
        // What is far below the limit says nothing of it.
        self.n_good += u32::from(cost > self.limit / 2);
        if self.n_good < TRUST {
            return None;
        }
        self.n_good = 0;
        self.change(self.limit.saturating_mul(2).min(self.most))
    }

    fn change(&mut self, limit: usize) -> Option<usize> {
        if limit == self.limit {
            return None;
        }
        (self.limit, self.n_good) = (limit, 0);
        Some(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(n: u32, mut work: impl FnMut() -> Option<usize>) -> Option<usize> {
        (0..n).filter_map(|_| work()).last()
    }

    #[test]
    fn a_lack_halves_the_limit_and_is_forgotten_step_by_step() {
        let mut memory = Memory::new(100);
        assert_eq!((memory.lacked(90), memory.lacked(200), memory.limit()), (Some(45), None, 45));
        assert_eq!(times(99, || memory.sufficed(40)), None);
        assert_eq!(memory.sufficed(40), Some(90));
        // It was no passing lack.
        assert_eq!((memory.lacked(90), memory.limit()), (Some(45), 45));
        assert_eq!(times(100, || memory.sufficed(45)), Some(90));
        assert_eq!(times(100, || memory.sufficed(80)), Some(100), "as configured, and no more");
        assert_eq!(times(1000, || memory.sufficed(100)), None);
    }

    #[test]
    fn small_batches_say_nothing_of_a_limit_and_the_smallest_is_one() {
        let mut memory = Memory::new(100);
        assert_eq!(memory.lacked(80), Some(40));
        assert_eq!(times(1000, || memory.sufficed(20)), None);
        assert_eq!((memory.lacked(2), memory.lacked(1)), (Some(1), None));
        assert_eq!(times(100, || memory.sufficed(1)), Some(2));
    }
}
