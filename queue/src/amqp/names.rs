//! What everything is called on the broker, and the way of a delayed job through its levels.

use std::time::Duration;

use crate::owed::check_address;
use crate::{Priority, Result};

/// The exchange that producers publish to, with the name of their queue as the routing key.
pub(super) const EXCHANGE: &str = "ebb";
/// Delays are multiples of this, rounded up: a job waits a little longer, never less.
const TICK: Duration = Duration::from_millis(100);
/// Level k holds a job for 2^k ticks; all of them together for about 77 days.
pub(super) const LEVELS: u32 = 26;
/// Levels that exist from the start, for delays of up to three minutes.
pub(super) const FIRST_LEVELS: u32 = 11;

/// The names of the parts of one queue. A colon is in no queue's name, so none can meet another's.
#[derive(Debug, Clone)]
pub(super) struct Names {
    queue: String,
}

/// Where ready jobs wait, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Jobs that were handed out before: released, retried, left by a worker.
    Back,
    /// New jobs.
    New(Priority),
}

/// All lanes, the first to be served first.
pub(super) const LANES: [Lane; 4] =
    [Lane::Back, Lane::New(Priority::High), Lane::New(Priority::Normal), Lane::New(Priority::Low)];

/// The way of a delayed job: where it is published and how it is marked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) level: u32,
    pub(super) key: String,
}

impl Lane {
    fn label(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::New(priority) => priority.as_str(),
        }
    }

    /// What matches the keys of delayed jobs that end in this lane.
    pub(super) fn due_pattern(self) -> String {
        format!("#.{}", self.label())
    }
}

impl Names {
    pub(super) fn new(queue: &str) -> Self {
        Self { queue: queue.to_owned() }
    }

    /// The queue of a lane, and the key that leads there from the exchange. The normal lane is named
    /// as the queue itself, so that a producer needs to know nothing else.
    pub(super) fn lane(&self, lane: Lane) -> String {
        match lane {
            Lane::New(Priority::Normal) => self.queue.clone(),
            lane => self.part(lane.label()),
        }
    }

    /// The queue of dead letters.
    pub(super) fn dead(&self) -> String {
        self.part("dead")
    }

    /// The exchange on which handles tell what they hold and workers what they do.
    pub(super) fn status(&self) -> String {
        self.part("status")
    }

    /// The exchange that delayed jobs leave their last level for.
    pub(super) fn due(&self) -> String {
        self.part("due")
    }

    /// The exchange and the queue of a level.
    pub(super) fn level(&self, level: u32) -> String {
        self.part(&format!("delay-{level}"))
    }

    /// The queues of the jobs that wait, in the order in which a job goes. Whoever looks at one after the
    /// other meets a job that moves on meanwhile twice rather than not at all.
    pub(super) fn waiting(&self, n_levels: u32) -> Vec<String> {
        let levels = (0..n_levels).rev().map(|level| self.level(level));
        levels.chain(LANES.map(|lane| self.lane(lane))).collect()
    }

    fn part(&self, part: &str) -> String {
        format!("ebb:{}:{part}", self.queue)
    }
}

/// Whether a reply may go there: to any queue with a name, but see [`check_address`]. In a part of
/// Ebb's it would pass for a job that came back or for a dead letter, of whatever attempt it says.
pub(super) fn check_reply_to(to: &str) -> Result<()> {
    let why_not = match to {
        "" => Some("is no queue"),
        _ if to.len() > usize::from(u8::MAX) => Some("is longer than any queue's name"),
        _ if to.starts_with("ebb:") => {
            Some("belongs to Ebb; a queue of jobs takes replies by its own name")
        }
        _ => None,
    };
    check_address(to, why_not)
}

/// How long a level holds a job, in milliseconds.
pub(super) fn hold_millis(level: u32) -> i64 {
    let tick = i64::try_from(TICK.as_millis()).unwrap_or(i64::MAX);
    tick.saturating_mul(1 << level.min(LEVELS))
}

/// What matches the keys of jobs that this level holds, or lets pass.
pub(super) fn level_pattern(level: u32, holds: Holds) -> String {
    let above = "*.".repeat((LEVELS - 1).saturating_sub(level) as usize);
    let bit = match holds {
        Holds::It => '1',
        Holds::Not => '0',
    };
    format!("{above}{bit}.#")
}

/// Whether a level holds a job.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holds {
    It,
    Not,
}

/// The way to a lane that takes this long; none when that is longer than all levels together.
pub(super) fn way(delay: Duration, lane: Lane) -> Option<Way> {
    let ticks = delay.as_micros().div_ceil(TICK.as_micros()).max(1);
    let ticks = u32::try_from(ticks).ok().filter(|ticks| *ticks < 1 << LEVELS)?;
    let bits = (0..LEVELS).rev().map(|level| if ticks >> level & 1 == 1 { "1." } else { "0." });
    let key = bits.chain([lane.label()]).collect();
    Some(Way { level: ticks.ilog2(), key })
}

/// The longest delay.
pub(super) fn longest() -> Duration {
    TICK * ((1 << LEVELS) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether a topic pattern matches a key, for patterns of stars, words and a hash at an end.
    fn matches(pattern: &str, key: &str) -> bool {
        let mut words = key.split('.');
        for part in pattern.split('.') {
            match (part, words.next()) {
                ("#", _) => return true,
                ("*", Some(_)) => {}
                (part, word) if Some(part) == word => {}
                _ => return false,
            }
        }
        words.next().is_none()
    }

    #[test]
    fn a_delay_that_is_too_long_has_no_way() {
        assert!(way(longest(), LANES[0]).is_some());
        assert_eq!(way(longest() + Duration::from_millis(1), LANES[0]), None);
        assert_eq!(way(Duration::MAX, LANES[0]), None);
    }

    #[test]
    fn a_job_that_goes_on_while_it_is_looked_for_is_met_where_it_gets_to() {
        let (names, key) = (Names::new("jobs"), way(longest(), LANES[2]).unwrap().key);
        let waiting = names.waiting(LEVELS);
        let place = |queue: &str| waiting.iter().position(|one| one == queue).unwrap();
        let holds = |level: &u32| matches(&level_pattern(*level, Holds::It), &key);
        let stops = (0..LEVELS).rev().filter(holds).map(|level| names.level(level));
        let stops: Vec<_> = stops.chain([names.lane(LANES[2])]).collect();
        assert_eq!(stops.len(), 1 + LEVELS as usize);
        assert!(stops.is_sorted_by_key(|stop| place(stop)), "{waiting:?}");
        // A plain job of low priority goes on from the lane of normal ones.
        assert!(place("jobs") < place("ebb:jobs:low"));
        assert_eq!(waiting.len(), LEVELS as usize + LANES.len());
    }

    #[test]
    fn a_key_fits_into_a_short_string() {
        assert!(way(longest(), Lane::New(Priority::Normal)).unwrap().key.len() < 255);
    }

    proptest! {
        #[test]
        fn the_levels_on_the_way_hold_a_job_as_long_as_asked(millis in 0..6_700_000_000u64) {
            let delay = Duration::from_millis(millis);
            let way = way(delay, LANES[1]).unwrap();
            let mut held = 0;
            for level in (0..=way.level).rev() {
                let holds = matches(&level_pattern(level, Holds::It), &way.key);
                prop_assert_eq!(!holds, matches(&level_pattern(level, Holds::Not), &way.key));
                held += if holds { hold_millis(level).unsigned_abs() } else { 0 };
            }
            prop_assert!(held >= millis && held <= millis.max(1) + 100);
        }
    }
}
