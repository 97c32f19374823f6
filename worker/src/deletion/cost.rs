//! What the deletion of a pod would cost, and when that is worth a word. Pure.

use std::time::Duration;

use ebb_queue::RetryPolicy;
use tokio::time::Instant;

/// From one patch to the next, at least: a thousand pods share one API server.
const INTERVAL: Duration = Duration::from_secs(5);
/// A cost that falls is told when it has been lower for so long: the gaps between batches are not.
const LINGER: Duration = Duration::from_secs(10);
/// Below this all work costs the same.
const FIRST_STEP: u64 = 8;
/// The cost grows no further; about 18 hours.
const LAST_STEP: u64 = 1 << 16;
/// Pauses after failures, longer each time.
const PAUSES: RetryPolicy =
    RetryPolicy { max_attempts: u32::MAX, base: INTERVAL, cap: Duration::from_secs(300) };

/// The cost: 0 when idle, else the seconds of work that would be lost, in steps that double.
///
/// `sunk` is how long the device has been at what it works on; `None` when no job is held.
pub(super) fn cost(sunk: Option<Duration>) -> u64 {
    match sunk.map(|sunk| sunk.as_secs()) {
        None => 0,
        Some(..FIRST_STEP) => 1,
        Some(seconds) => 1 << seconds.min(LAST_STEP).ilog2(),
    }
}

/// Decides when a cost is told.
#[derive(Debug)]
pub(super) struct Debounce {
    /// What the API server knows; `None` when that is not sure.
    told: Option<u64>,
    /// No patch before this.
    earliest: Instant,
    /// Since when the cost has been lower than what was told.
    lower_since: Option<Instant>,
    n_failures: u32,
}

impl Debounce {
    /// Nothing is known of the pod: a container before this one may have left a cost there.
    pub(super) fn new(now: Instant) -> Self {
        Self { told: None, earliest: now, lower_since: None, n_failures: 0 }
    }

    /// The cost to be told now, if any. One that rises is told as soon as the last patch allows.
    pub(super) fn look(&mut self, cost: u64, now: Instant) -> Option<u64> {
        if self.told == Some(cost) {
            self.lower_since = None;
            return None;
        }
        let is_lower = self.told.map_or(cost == 0, |told| cost < told);
        let settled = if is_lower {
            let since = *self.lower_since.get_or_insert(now);
            now >= since + LINGER
        } else {
            self.lower_since = None;
            true
        };
        (settled && now >= self.earliest).then_some(cost)
    }

    /// The API server has it.
    pub(super) fn told(&mut self, cost: u64, now: Instant) {
        *self =
            Self { told: Some(cost), earliest: now + INTERVAL, lower_since: None, n_failures: 0 };
    }

    /// The patch failed, or nobody knows; `chance` in `[0, 1)` spreads the pods. Returns how many
    /// have failed in a row.
    pub(super) fn failed(&mut self, now: Instant, chance: f64) -> u32 {
        self.told = None;
        self.n_failures = self.n_failures.saturating_add(1);
        let pause = PAUSES.after(self.n_failures, chance).unwrap_or(PAUSES.cap);
        self.earliest = now + pause.max(INTERVAL);
        self.n_failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_idle_pod_costs_nothing_and_work_costs_its_seconds_in_coarse_steps() {
        let seconds = |seconds| cost(Some(Duration::from_secs(seconds)));
        assert_eq!(cost(None), 0);
        assert_eq!([0, 7, 8, 15, 16, 100].map(seconds), [1, 1, 8, 8, 16, 64]);
        assert_eq!(seconds(u64::MAX), 65_536, "the annotation is an int32");
    }

    #[test]
    fn a_busy_worker_is_told_at_once_and_gaps_between_its_batches_are_not() {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        assert_eq!(debounce.look(1, start), Some(1));
        debounce.told(1, start);
        for second in 1..600 {
            assert_eq!(debounce.look(u64::from(second % 2 == 1), start + second * SECOND), None);
        }
        let idle = start + 600 * SECOND;
        assert_eq!(debounce.look(0, idle), None);
        assert_eq!(debounce.look(0, idle + 9 * SECOND), None);
        assert_eq!(debounce.look(0, idle + 10 * SECOND), Some(0));
    }

    #[test]
    fn a_start_tells_what_the_container_before_left_wrong() {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        assert_eq!(debounce.look(0, start), None, "a job may be here in a moment");
        assert_eq!(debounce.look(0, start + LINGER), Some(0));
    }

    #[test]
    fn a_patch_of_unknown_fate_is_put_right() {
        let start = Instant::now();
        let mut debounce = Debounce::new(start);
        debounce.told(0, start);
        assert_eq!(debounce.look(1, start + INTERVAL), Some(1));
        assert_eq!(debounce.failed(start + INTERVAL, 0.0), 1);
        let idle = start + 2 * INTERVAL;
        assert_eq!(debounce.look(0, idle), None);
        assert_eq!(debounce.look(0, idle + LINGER), Some(0), "it may have arrived");
    }

    proptest! {
        #[test]
        fn the_cost_grows_with_the_work_and_takes_few_values(a in 0..200_000u64, b in 0..200_000u64) {
            let (a, b) = (a.min(b), a.max(b));
            let [low, high] = [a, b].map(|seconds| cost(Some(Duration::from_secs(seconds))));
            prop_assert!(low <= high && low >= 1 && high <= b.max(1));
            prop_assert!(low.is_power_of_two() && high.is_power_of_two());
        }

        #[test]
        fn however_the_work_changes_patches_are_rare_and_the_last_word_is_right(
            works in prop::collection::vec(
                (prop::option::of(0..10_000u64), 1..100u64, any::<bool>()), 1..400,
            ),
        ) {
            let mut now = Instant::now();
            let mut debounce = Debounce::new(now);
            // When it was last tried, and what the API server has.
            let (mut last, mut known): (Option<Instant>, u64) = (None, 99);
            let mut try_it = |debounce: &mut Debounce, cost, now: Instant, fails: bool| {
                let Some(told) = debounce.look(cost, now) else { return Ok(()) };
                prop_assert_eq!(told, cost);
                prop_assert!(last.is_none_or(|last| now >= last + INTERVAL));
                last = Some(now);
                if fails {
                    debounce.failed(now, 0.5);
                } else {
                    prop_assert!(known != cost || debounce.told.is_none(), "only what changed");
                    debounce.told(cost, now);
                    known = cost;
                }
                Ok(())
            };
            for (work, tenths, fails) in works {
                now += Duration::from_millis(100 * tenths);
                try_it(&mut debounce, cost(work.map(Duration::from_secs)), now, fails)?;
            }
            for _ in 0..400 {
                now += SECOND;
                try_it(&mut debounce, 0, now, false)?;
            }
            prop_assert_eq!(known, 0);
        }
    }
}
