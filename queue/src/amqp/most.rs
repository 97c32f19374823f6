//! The most that was held within a while: what others are told, so that less is told only a while after it
//! is less. What they hear may be too much for that long, and hardly ever too little: what went back is
//! counted elsewhere by then.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// For so long what was held counts after it is less, and from one word of less to the next: under load it
/// changes with every batch, and each word goes to all handles.
const REST: Duration = Duration::from_millis(250);
/// From one word to the next where it is more. Shorter than the doubt of who finds the queue empty.
const REST_OF_MORE: Duration = Duration::from_millis(20);
/// Changes within this are told as one: what came is in somebody's hands a moment later.
const MOMENT: Duration = Duration::from_millis(3);

/// How much is held, and how much was fetched and handed to nobody.
pub(super) type Counts = (u64, u64);

/// What was held lately: since when, until the next of them. Each has more than the one behind it, of what is
/// held or of all.
#[derive(Debug)]
pub(super) struct Lately(VecDeque<(Instant, Counts)>);

impl Lately {
    pub(super) fn new(now: Instant, counts: Counts) -> Self {
        Self(VecDeque::from([(now, counts)]))
    }

    /// Notes what is held now.
    pub(super) fn note(&mut self, now: Instant, counts: Counts) {
        let mut since = now;
        while let Some((at, _)) = self.0.pop_back_if(|(_, before)| !is_more(*before, counts)) {
            // As if it had been as much before: that ends no sooner.
            since = at;
        }
        self.0.push_back((since, counts));
        while self.0.get(1).is_some_and(|(until, _)| *until + REST <= now) {
            self.0.pop_front();
        }
    }

    /// The most that was held, and held and ahead together.
    pub(super) fn most(&self) -> Counts {
        let most =
            |figure: fn(&Counts) -> u64| self.0.iter().map(|(_, counts)| figure(counts)).max();
        let held = most(|(held, _)| *held).unwrap_or(0);
        let all = most(|(held, ahead)| held + ahead).unwrap_or(0);
        (held, all - held)
    }

    /// When to look again what the most is, and tell it: that there is more, nearly at once, and less only a
    /// while after it. None where all is told.
    pub(super) fn tells_at(&self, told: Counts, told_at: Instant) -> Option<Instant> {
        if let Some((since, _)) = self.0.iter().find(|(_, counts)| is_more(*counts, told)) {
            return Some((told_at + REST_OF_MORE).max(*since + MOMENT));
        }
        let less_at = match self.0.get(1) {
            Some((until, _)) => *until + REST,
            None if self.most() == told => return None,
            None => told_at,
        };
        Some(less_at.max(told_at + REST))
    }
}

/// Whether more is held, or held and ahead together, than was told.
fn is_more((held, ahead): Counts, told: Counts) -> bool {
    held > told.0 || held + ahead > told.0 + told.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn less_is_told_a_while_after_it_is_less_however_long_ago_the_last_word_was() {
        let now = Instant::now() + 4 * REST;
        let long_ago = now - 4 * REST;
        let mut lately = Lately::new(long_ago, (2, 0));
        assert_eq!(lately.tells_at((2, 0), long_ago), None);
        assert_eq!(lately.tells_at((1, 2), long_ago), Some(long_ago + REST_OF_MORE));
        lately.note(now, (1, 0));
        assert_eq!(lately.tells_at((2, 0), long_ago), Some(now + REST));
        assert_eq!(lately.tells_at((2, 0), now + REST / 2), Some(now + REST + REST / 2));
        lately.note(now + 2 * REST, (1, 1));
        assert_eq!(lately.tells_at((1, 0), long_ago), Some(now + MOMENT));
    }

    #[test]
    fn what_was_ahead_and_is_held_is_not_counted_twice() {
        let now = Instant::now();
        let mut lately = Lately::new(now, (0, 5));
        lately.note(now, (5, 0));
        assert_eq!(lately.most(), (5, 0));
        // More of what is held, and less of what is ahead, is as much.
        assert!(is_more((2, 0), (1, 2)) && is_more((1, 2), (2, 0)) && !is_more((1, 1), (1, 1)));
    }

    proptest! {
        #[test]
        fn all_that_was_held_within_the_while_is_told_and_no_more_than_that(
            steps in prop::collection::vec((0..200u64, 0..9u64, 0..9u64), 1..40),
        ) {
            let mut now = Instant::now();
            let mut lately = Lately::new(now, (0, 0));
            // Since when, until when, and how much.
            let mut all: Vec<(Instant, Counts)> = vec![(now, (0, 0))];
            for (millis, held, ahead) in steps {
                now += Duration::from_millis(millis);
                lately.note(now, (held, ahead));
                all.push((now, (held, ahead)));
                let ends = all.iter().skip(1).map(|(at, _)| *at + REST).chain([now + REST]);
                let counts = all.iter().zip(ends).filter(|(_, end)| *end > now);
                let counts: Vec<Counts> = counts.map(|((_, counts), _)| *counts).collect();
                let most_held = counts.iter().map(|(held, _)| *held).max().unwrap();
                let most_of_all = counts.iter().map(|(held, ahead)| held + ahead).max().unwrap();
                prop_assert_eq!(lately.most(), (most_held, most_of_all - most_held));
                prop_assert!(lately.0.len() <= counts.len());
                // Whatever was told, it is looked at again until that is the most.
                let due = lately.tells_at((held, ahead), now);
                prop_assert_eq!(due.is_none(), lately.0.len() == 1);
                prop_assert!(due.is_none_or(|due| due <= now + REST));
            }
        }
    }
}
