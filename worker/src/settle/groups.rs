//! How many jobs are stored at the same time, and together.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::CHUNK;

/// Groups that are stored at the same time: the next one is on its way while a broker waits for its
/// disk, and more would only make each smaller.
const AT_ONCE: usize = 2;

/// A group that is stored later than this does not hold up the next one.
const SLOW: Duration = Duration::from_secs(1);

/// The groups that are being stored.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// When each was begun, and how many of its jobs are not concluded; the oldest first.
    open: BTreeMap<u64, (Instant, usize)>,
    n_begun: u64,
}

impl Groups {
    /// Whether another group may begin.
    ///
    /// A group that takes long is not waited for: one job of it may have an address that nobody
    /// answers at. So many jobs that all of them have is another matter.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        let n_jobs: usize = self.open.values().map(|(_, n_jobs)| n_jobs).sum();
        let n_prompt = self.open.values().filter(|(since, _)| now < *since + SLOW).count();
        n_prompt < AT_ONCE && n_jobs < AT_ONCE * CHUNK
    }

    /// When there may be room though no job was concluded.
    pub(super) fn next_room(&self, now: Instant) -> Option<Instant> {
        self.open.values().map(|(since, _)| *since + SLOW).find(|end| *end > now)
    }

    pub(super) fn begin(&mut self, n_jobs: usize, now: Instant) -> u64 {
        self.n_begun += 1;
        self.open.insert(self.n_begun, (now, n_jobs));
        self.n_begun
    }

    pub(super) fn concluded(&mut self, group: u64, n_jobs: usize) {
        let Some((_, n_open)) = self.open.get_mut(&group) else { return };
        *n_open -= n_jobs;
        if *n_open == 0 {
            self.open.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_group_holds_up_the_next_for_a_second_and_not_for_ever() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut groups = Groups::default();
        assert_eq!((groups.has_room(begin), groups.next_room(begin)), (true, None));
        let (slow, quick) = (groups.begin(2, begin), groups.begin(3, at(10)));
        assert_eq!((groups.has_room(at(10)), groups.next_room(at(10))), (false, Some(at(1000))));
        groups.concluded(quick, 2);
        assert!(!groups.has_room(at(20)), "one of the three is left");
        groups.concluded(quick, 1);
        assert!(groups.has_room(at(20)));

        let next = groups.begin(CHUNK, at(30));
        assert_eq!((groups.has_room(at(999)), groups.has_room(at(1000))), (false, true));
        // When nobody is answered there is no sense in more.
        groups.begin(CHUNK, at(1000));
        assert_eq!((groups.has_room(at(9000)), groups.next_room(at(9000))), (false, None));
        groups.concluded(next, CHUNK);
        groups.concluded(slow, 2);
        assert!(groups.has_room(at(9000)));
    }
}
