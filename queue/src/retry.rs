//! When to try again, and when to stop. Pure: chance comes in as an argument.

use std::time::Duration;

/// Nothing is tried as often as this: who says so makes a mistake, or means harm.
pub(crate) const MOST_ATTEMPTS: u32 = 1_000_000;

/// Exponential backoff with jitter, and a limit on the attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts a job may take in all, at least 1.
    pub max_attempts: u32,
    /// The delay before the second attempt.
    pub base: Duration,
    /// No delay is longer.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 5, base: Duration::from_secs(1), cap: Duration::from_secs(300) }
    }
}

impl RetryPolicy {
    /// The delay after `attempt` failed, or `None` when it was the last.
    ///
    /// `chance` in `[0, 1)` spreads the delay over the upper half of `base * 2^(attempt - 1)`, so
    /// that jobs that failed together do not come back together.
    #[must_use]
    pub fn after(&self, attempt: u32, chance: f64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let doublings = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX).min(63);
        let full = (self.base.as_secs_f64() * 2f64.powi(doublings)).min(self.cap.as_secs_f64());
        let delay = full * (0.5 + chance.clamp(0.0, 1.0) / 2.0);
        Some(Duration::try_from_secs_f64(delay).unwrap_or(self.cap).min(self.cap))
    }

    /// Whether a job on this attempt has had its share already and must not run again.
    #[must_use]
    pub fn exhausted(&self, attempt: u32) -> bool {
        attempt > self.max_attempts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> impl Strategy<Value = RetryPolicy> {
        (1u32..100, 0u64..100_000, 0u64..1_000_000).prop_map(|(max_attempts, base, cap)| {
            let (base, cap) = (Duration::from_millis(base), Duration::from_millis(cap));
            RetryPolicy { max_attempts, base, cap }
        })
    }

    #[test]
    fn the_default_doubles_from_a_second_and_gives_up_after_five() {
        let policy = RetryPolicy::default();
        let delays: Vec<_> = (1..=5).map(|attempt| policy.after(attempt, 0.0)).collect();
        let half = |seconds: u64| Some(Duration::from_millis(seconds * 500));
        assert_eq!(delays, [half(1), half(2), half(4), half(8), None]);
    }

    #[test]
    fn a_job_is_exhausted_only_past_its_last_attempt() {
        let policy = RetryPolicy { max_attempts: 3, ..RetryPolicy::default() };
        assert!(!policy.exhausted(3));
        assert!(policy.exhausted(4));
    }

    #[test]
    fn the_last_attempt_has_no_delay_even_when_only_one_is_allowed() {
        let policy = RetryPolicy { max_attempts: 1, ..RetryPolicy::default() };
        assert_eq!(policy.after(1, 0.5), None);
    }

    proptest! {
        #[test]
        fn no_delay_is_longer_than_the_cap_or_shorter_than_half_of_it_all(
            policy in policy(), attempt in 0u32..200, chance in 0f64..1.0,
        ) {
            let delay = policy.after(attempt, chance);
            prop_assert_eq!(delay.is_none(), attempt >= policy.max_attempts);
            if let Some(delay) = delay {
                let lowest = policy.after(attempt, 0.0).unwrap();
                prop_assert!(delay <= policy.cap);
                prop_assert!(lowest <= delay && delay <= lowest * 2 + Duration::from_nanos(2));
            }
        }

        #[test]
        fn a_later_attempt_never_waits_less_for_the_same_chance(
            policy in policy(), attempt in 1u32..100, chance in 0f64..1.0,
        ) {
            let pair = policy.after(attempt, chance).zip(policy.after(attempt + 1, chance));
            if let Some((sooner, later)) = pair {
                prop_assert!(sooner <= later);
            }
        }

        #[test]
        fn a_greater_chance_never_waits_less(policy in policy(), chances in any::<[f64; 2]>()) {
            let [a, b] = chances.map(|chance| chance.clamp(0.0, 1.0));
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(policy.after(1, a) <= policy.after(1, b));
        }

        #[test]
        fn nothing_makes_it_panic(
            max_attempts: u32,
            spans in prop::array::uniform2(prop_oneof![any::<u64>(), Just(u64::MAX)]),
            attempt: u32,
            chance in prop_oneof![any::<f64>(), Just(f64::NAN)],
        ) {
            let [base, cap] = spans.map(Duration::from_secs);
            let policy = RetryPolicy { max_attempts, base, cap };
            prop_assert_eq!(policy.after(attempt, chance).is_some(), attempt < max_attempts);
        }
    }
}
