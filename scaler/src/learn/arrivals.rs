//! How much arrives: what the depth, the completions and the deaths together say.

use ebb_queue::Timestamp;
use jiff::SignedDuration;

/// Jobs per second that arrive, over a short and a long time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Arrivals {
    /// Over the last seconds.
    pub fast: f64,
    /// Over the last minutes.
    pub slow: f64,
}

/// Time constants of the two, in seconds.
const FAST: f64 = 10.0;
const SLOW: f64 = 60.0;

/// Standard deviations by which the fast rate has to differ before it says anything.
const CERTAINTY: f64 = 2.0;

/// A worker tells of completions up to a period late; a missing job that is not made up for by
/// then was taken away and not completed.
const LATE: f64 = 3.0;

impl Arrivals {
    /// What to reckon with: the slow rate, and less where the fast one is so far below that chance
    /// does not explain it. So the end of a burst is seen soon. Its begin is not taken for a rate
    /// that lasts: the jobs that came ask for replicas themselves, and more will come only if the
    /// slow rate says so. A rate averaged with time constant `t` over a Poisson process of rate `a`
    /// has the variance `a / 2t`.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let noise = CERTAINTY * (self.fast / (2.0 * FAST)).sqrt();
        self.slow.min(self.fast + noise)
    }
}

/// What comes in less than this many seconds, right after the first look, is no rate yet: it counts
/// as what came in all of them.
const LEAST_KNOWN: f64 = 10.0;

/// Turns differences of counts into rates.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flow {
    fast: Mean,
    slow: Mean,
    /// Jobs that are gone and not told as completed yet; never above zero.
    missing: f64,
    missing_for: f64,
}

impl Flow {
    /// How many of the jobs that are gone nothing accounts for yet, after this net change.
    pub(super) fn lacking(&self, net: f64) -> f64 {
        (-(net + self.missing)).max(0.0)
    }

    /// Adds the net change of a time in seconds, above zero; says what arrives, and what arrived.
    pub(super) fn add(&mut self, net: f64, elapsed: f64) -> (Arrivals, f64) {
        let net = net + self.missing;
        let arrived = net.max(0.0);
        self.missing = net.min(0.0);
        self.missing_for = if net < 0.0 { self.missing_for + elapsed } else { 0.0 };
        if self.missing_for > LATE {
            (self.missing, self.missing_for) = (0.0, 0.0);
        }
        let mean = arrived / elapsed;
        let fast = self.fast.follow(mean, elapsed, FAST);
        let slow = self.slow.follow(mean, elapsed, SLOW);
        (Arrivals { fast, slow }, arrived)
    }
}

/// A mean over the past that weighs it less and less. It begins at nothing, and would say for
/// minutes that little arrives; so it is divided by the weight of what was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    /// From 0 to 1.
    weight: f64,
}

impl Mean {
    /// Adds what a time in seconds brought, and tells the mean.
    fn follow(&mut self, value: f64, elapsed: f64, time: f64) -> f64 {
        let share = |seconds: f64| -(-seconds / time).exp_m1();
        let new = share(elapsed);
        self.sum += (value - self.sum) * new;
        self.weight += (1.0 - self.weight) * new;
        self.sum / self.weight.max(share(LEAST_KNOWN))
    }
}

/// A look at the dead letters of a broker that hides them for that while is over by then.
const LOOKED_THROUGH: SignedDuration = SignedDuration::from_secs(60);

/// Turns counts of dead letters into deaths. A count rises also when somebody gives back what was
/// only looked at, as on RabbitMQ.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deaths {
    before: Option<u64>,
    /// The most that there were lately, and in the time before that once it is known.
    most: u64,
    most_before: Option<u64>,
    since: Option<Timestamp>,
}

impl Deaths {
    /// How many jobs died since the look before, where so many are lacking: those for which there
    /// are more dead letters than there were for a while, and else only as many as are lacking.
    pub(super) fn add(&mut self, dead: u64, lacking: f64, now: Timestamp) -> f64 {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= LOOKED_THROUGH {
            (self.most_before, self.most, self.since) = (Some(self.most), 0, Some(now));
        }
        let risen = dead.saturating_sub(self.before.replace(dead).unwrap_or(dead)) as f64;
        let known = self.most_before.map(|before| before.max(self.most));
        let certain = known.map_or(0, |known| dead.saturating_sub(known)) as f64;
        self.most = self.most.max(dead);
        certain.max(risen.min(lacking))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
    use proptest::{collection, option};

    use super::{Deaths, Flow};
    use crate::kit::NOW;

    const DEAD: u64 = 1_000;

    /// How much arrived, as it seems, from the second of this number on, where so many came and so
    /// many died in each, and so many dead letters were to be seen.
    fn arrived(seconds: impl Iterator<Item = (u32, u32, u64)>, from: u32) -> f64 {
        let (mut flow, mut deaths, mut sum) = (Flow::default(), Deaths::default(), 0.0);
        deaths.add(DEAD, 0.0, NOW);
        for (nth, (came, died, dead)) in (1..).zip(seconds) {
            let net = f64::from(came) - f64::from(died);
            let died = deaths.add(dead, flow.lacking(net), NOW + Duration::from_secs(1) * nth);
            let (_, arrived) = flow.add(net + died, 1.0);
            sum += if nth >= from { arrived } else { 0.0 };
        }
        sum
    }

    /// The rates after so many seconds of which each brought as many jobs as is told.
    fn after(seconds: u32, jobs: impl Fn(u32) -> f64) -> super::Arrivals {
        let mut flow = Flow::default();
        (0..seconds).map(|nth| flow.add(jobs(nth), 1.0).0).last().unwrap_or_default()
    }

    #[test]
    fn a_steady_rate_is_known_ten_seconds_after_the_first_look() {
        for seconds in [10, 11, 30, 60, 600] {
            let told = after(seconds, |_| 20.0);
            assert!((told.fast - 20.0).abs() < 1e-6, "{told:?} after {seconds} s");
            assert!((told.slow - 20.0).abs() < 1e-6, "{told:?} after {seconds} s");
            assert!((told.rate() - 20.0).abs() < 1e-6, "{told:?} after {seconds} s");
        }
    }

    #[test]
    fn a_burst_right_after_the_first_look_counts_as_what_came_in_ten_seconds() {
        for seconds in [1, 2, 10] {
            let told = after(seconds, |nth| if nth == 0 { 100.0 } else { 0.0 });
            assert!(told.slow < 11.0, "{told:?} after {seconds} s");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn who_looks_at_dead_letters_makes_nothing_arrive(
            looks in collection::vec((0..5u32, option::of(0..=DEAD)), 1..300),
        ) {
            let came: u32 = looks.iter().map(|(came, _)| came).sum();
            let seconds = looks.iter().enumerate().map(|(nth, (came, shown))| {
                // No look lasts for ever.
                let dead = shown.filter(|_| nth % 30 != 0).unwrap_or(DEAD);
                (*came, 0, dead)
            });
            prop_assert_eq!(arrived(seconds, 0), f64::from(came));
        }

        #[test]
        fn what_dies_has_arrived_however_much_comes_at_the_same_time(
            jobs in collection::vec((0..5u32, 0..5u32), 62..300),
        ) {
            let came: u32 = jobs.iter().skip(61).map(|(came, _)| came).sum();
            let mut dead = DEAD;
            let seconds = jobs.iter().map(|(came, died)| {
                dead += u64::from(*died);
                (*came, *died, dead)
            });
            prop_assert_eq!(arrived(seconds, 62), f64::from(came));
        }
    }
}
