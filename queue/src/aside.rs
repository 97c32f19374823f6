//! How far a handle looks past plain messages that lie before their betters. Pure.
//!
//! A lane is first in, first out, and a plain client may put a job of low priority into that of
//! normal ones. What may lie behind it is known only once it is out of the way.

use std::time::Duration;

use tokio::time::Instant;

/// So many in a row are set aside at most, where nothing better lies among them.
pub(crate) const FAR: usize = 256;
/// So long those that follow are then taken as they come: to move each of a million that are all
/// alike would be work for nothing.
const REST: Duration = Duration::from_secs(10);

/// What a handle met in the lane last.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    n_in_a_row: usize,
    rests_until: Option<Instant>,
}

impl Aside {
    /// Whether messages are taken as they come.
    pub(crate) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// One more was met that lies above its priority.
    pub(crate) fn meet_lower(&mut self, now: Instant) {
        self.n_in_a_row += 1;
        if self.n_in_a_row >= FAR && !self.rests(now) {
            *self = Self { n_in_a_row: 0, rests_until: Some(now + REST) };
        }
    }

    /// One was met that lies where it belongs, or is better.
    pub(crate) fn meet_better(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_all_alike_is_looked_through_once_in_a_while() {
        let (mut aside, mut now) = (Aside::default(), Instant::now());
        for _ in 0..3 {
            for _ in 1..FAR {
                aside.meet_lower(now);
            }
            assert!(!aside.rests(now));
            aside.meet_lower(now);
            assert!(aside.rests(now));
            now += REST;
            assert!(!aside.rests(now));
        }
    }

    #[test]
    fn something_better_is_worth_another_look() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        for _ in 0..9 {
            for _ in 1..FAR {
                aside.meet_lower(now);
            }
            aside.meet_better();
            assert!(!aside.rests(now));
        }
        (0..FAR).for_each(|_| aside.meet_lower(now));
        assert!(aside.rests(now));
        aside.meet_better();
        assert!(!aside.rests(now));
    }
}
