//! How often a key may ask: a bucket that is full at first and fills as time passes. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the requests of one minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// As many requests as one minute has.
    pub(crate) fn full(per_minute: u32, now: Instant) -> Self {
        Self { level: f64::from(per_minute), at: now }
    }

    /// Takes one request; else how long it is until there is one.
    pub(crate) fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let most = f64::from(per_minute);
        let per_second = most / 60.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * per_second).min(most);
        self.at = now.max(self.at);
        if self.level >= 1.0 {
            self.level -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.level) / per_second))
    }

    /// Gives one back that was taken.
    pub(crate) fn give_back(&mut self, per_minute: u32) {
        self.level = (self.level + 1.0).min(f64::from(per_minute));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_full_bucket_gives_a_minutes_requests_at_once_and_then_one_by_one() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        assert!((0..60).all(|_| bucket.take(60, start).is_ok()));
        assert_eq!(bucket.take(60, start), Err(Duration::from_secs(1)));
        assert!(bucket.take(60, start + Duration::from_secs(1)).is_ok());
        assert!(bucket.take(60, start + Duration::from_millis(1500)).is_err());
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| bucket.take(60, later).is_ok()).count(), 60);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn who_waits_as_long_as_he_is_told_gets_in(
            per_minute in 1..10_000u32,
            pauses in proptest::collection::vec(0..5_000u64, 1..50),
        ) {
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0_u32);
            let mut bucket = Bucket::full(per_minute, start);
            for pause in pauses {
                now += Duration::from_millis(pause);
                if let Err(wait) = bucket.take(per_minute, now) {
                    now += wait + Duration::from_micros(1);
                    prop_assert_eq!(bucket.take(per_minute, now), Ok(()));
                }
                taken += 1;
            }
            let most = f64::from(per_minute) * (1.0 + (now - start).as_secs_f64() / 60.0);
            prop_assert!(f64::from(taken) <= most + 1e-6);
        }
    }
}
