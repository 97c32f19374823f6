//! Learns how long a batch takes: `seconds = base + per_cost * cost`. Pure.

use std::time::Duration;

use ebb_queue::BatchTime;
use tokio::time::Instant;

use crate::batcher::View;

/// What a batch of long ago counts, by the batch: about the last 100 matter.
const FORGETTING: f64 = 0.98;
/// Batches before the fit is trusted.
const ENOUGH: u64 = 5;
/// A batch of this many times what it takes before its first row gains little by more rows.
const WELL_FILLED: usize = 16;
/// And nobody minds a batch that is as short as this.
const SHORT: Duration = Duration::from_millis(25);
/// A batch that took a smaller share than this of what the line says counts as one of this.
const QUICKEST: f64 = 0.01;
/// The quickest of so many batches counts: of fewer it is soon passed by the next one.
const RECENT: u64 = 200;
/// What is claimed of the least time of a batch: times scatter, and a job is not to be refused for
/// that.
const CERTAIN: f64 = 0.8;
/// How unsure the fit is of its parameters at first.
const UNSURE: f64 = 1e6;

/// What the device has to do, as far as the next batch is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Nothing.
    Free,
    /// A batch of this cost, since then.
    Running {
        /// When it began.
        since: Instant,
        /// Tokens that it works through.
        cost: usize,
    },
    /// The next batch waits before it already.
    Bound,
}

/// A line through the times of batches, by recursive least squares with forgetting.
#[derive(Debug, Clone)]
pub struct Fit {
    base: f64,
    per_cost: f64,
    // Covariance of (base, per_cost): symmetric, so three numbers.
    covariance: [f64; 3],
    // Costs are divided by the first one, so that both parameters are of one order.
    scale: f64,
    per_job: f64,
    n_batches: u64,
    // The least and the largest cost of late: outside of these the line is a guess.
    costs: [f64; 2],
    // The least share of what the line says that a batch of late has taken.
    quickest: f64,
}

impl Default for Fit {
    fn default() -> Self {
        let covariance = [UNSURE, 0.0, UNSURE];
        Self {
            base: 0.0,
            per_cost: 0.0,
            covariance,
            scale: 1.0,
            per_job: 0.0,
            n_batches: 0,
            costs: [f64::INFINITY, 0.0],
            quickest: 1.0,
        }
    }
}

impl Fit {
    /// Learns from a batch that succeeded.
    pub fn learn(&mut self, n_jobs: usize, cost: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        if self.n_batches == 0 {
            self.scale = (cost as f64).max(1.0);
        }
        self.widen(cost, seconds);
        self.n_batches += 1;
        let per_job = seconds / n_jobs.max(1) as f64;
        // An average of all at first, then of about the last 20.
        self.per_job += (per_job - self.per_job) / self.n_batches.min(20) as f64;

        let x = cost as f64 / self.scale;
        let [p00, p01, p11] = self.covariance;
        let (g0, g1) = (p00 + p01 * x, p01 + p11 * x);
        let weight = FORGETTING + g0 + x * g1;
        let (k0, k1) = (g0 / weight, g1 / weight);
        let error = seconds - (self.base + self.per_cost * x);
        self.base += k0 * error;
        self.per_cost += k1 * error;
        let covariance = [p00 - k0 * g0, p01 - k0 * g1, p11 - k1 * g1];
        // Batches of one size say nothing of the slope: without a limit its doubt would grow on.
        if covariance[0].max(covariance[2]) < UNSURE * FORGETTING {
            self.covariance = covariance.map(|p| p / FORGETTING);
        } else {
            self.covariance = covariance;
        }
    }

    /// Takes in what bounds the line; what did so long ago is forgotten as the rest is.
    fn widen(&mut self, cost: usize, seconds: f64) {
        let cost = (cost as f64).max(1.0);
        let said = self.line(cost);
        if said > 0.0 {
            // While there are few the line is still far off, and what it made of them soon forgotten.
            let kept = 1.0 - 1.0 / self.n_batches.clamp(2, RECENT) as f64;
            let quickest = (seconds / said).min(self.quickest / kept);
            self.quickest = quickest.clamp(QUICKEST, 1.0);
        }
        let [least, most] = self.costs;
        self.costs = [cost.min(least / FORGETTING), cost.max(most * FORGETTING)];
    }

    fn line(&self, cost: f64) -> f64 {
        self.base.max(0.0) + (self.per_cost / self.scale).max(0.0) * cost
    }

    /// What a batch of this cost takes at least, once enough have been seen: four fifths of the line,
    /// less what the quickest of late were below it. Of other sizes than those that were seen no more is claimed
    /// than that neither part of the line is negative.
    #[must_use]
    pub fn at_least(&self, cost: usize) -> Option<Duration> {
        self.batch_time()?;
        let cost = (cost as f64).max(1.0);
        let [least, most] = self.costs;
        let seconds = self.line(cost.clamp(least, most)) * (cost / least).min(1.0);
        Duration::try_from_secs_f64(seconds * self.quickest * CERTAIN).ok()
    }

    /// How long a batch of this cost will take, once enough have been seen.
    #[must_use]
    pub fn predict(&self, cost: usize) -> Option<Duration> {
        self.batch_time()?;
        Duration::try_from_secs_f64(self.line(cost as f64)).ok()
    }

    /// What the batcher needs to know of the world; `more` says that jobs will be here in a moment.
    #[must_use]
    pub fn view(&self, device: Device, more: bool, max_cost: usize, now: Instant) -> View {
        let (overhead, enough) = (self.worth(max_cost), self.enough());
        View { free_at: self.free_at(device, now), more, overhead, enough }
    }

    /// When the device is about to be free, where this is the fit of what runs on it.
    #[must_use]
    pub fn free_at(&self, device: Device, now: Instant) -> Option<Instant> {
        match device {
            Device::Bound => None,
            Device::Free => Some(now),
            Device::Running { since, cost } => self.predict(cost).map(|predicted| {
                // Early enough that the next batch is there when this one ends. What comes after it
                // is closed has to wait for another one, and a device that ends early says so.
                let lead = predicted / 32 + Duration::from_millis(1);
                since + predicted.saturating_sub(lead)
            }),
        }
    }

    /// How much padding is cheaper than another batch, in units of cost.
    #[must_use]
    pub fn worth(&self, max_cost: usize) -> usize {
        self.overhead().unwrap_or(max_cost / 32).min(max_cost / 4)
    }

    /// What a batch takes before its first row, in units of cost.
    #[must_use]
    pub fn overhead(&self) -> Option<usize> {
        let time = self.batch_time().filter(|time| time.per_cost > 0.0)?;
        // A float to integer cast saturates, and a quotient that is not a number becomes 0.
        Some((time.base / time.per_cost) as usize)
    }

    /// The cost from which more rows would keep those of a batch waiting for next to nothing: what
    /// it takes before its first row is a small share of it then. No limit where that is unknown.
    #[must_use]
    pub fn enough(&self) -> usize {
        let known = self.batch_time().filter(|time| time.per_cost > 0.0).zip(self.overhead());
        known.map_or(usize::MAX, |(time, overhead)| {
            let short = (SHORT.as_secs_f64() - time.base) / time.per_cost;
            overhead.saturating_mul(WELL_FILLED).max(short as usize).max(1)
        })
    }

    /// The line, once enough batches have been seen. No part of it is negative.
    #[must_use]
    pub fn batch_time(&self) -> Option<BatchTime> {
        let is_known = self.n_batches >= ENOUGH;
        is_known.then(|| BatchTime {
            base: self.base.max(0.0),
            per_cost: (self.per_cost / self.scale).max(0.0),
            per_job: self.per_job,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn learnt(costs: &[usize], time: impl Fn(usize) -> f64) -> Fit {
        let mut fit = Fit::default();
        for cost in costs {
            fit.learn(4, *cost, Duration::from_secs_f64(time(*cost)));
        }
        fit
    }

    proptest! {
        #[test]
        fn a_line_is_found(
            base in 0.0..0.5f64,
            per_cost in 1e-6..1e-3f64,
            costs in prop::collection::vec(1..10_000usize, 30..60),
        ) {
            prop_assume!(costs.iter().max().unwrap() > &(2 * costs.iter().min().unwrap()));
            let line = |cost: usize| base + per_cost * cost as f64;
            let fit = learnt(&costs, line);
            for cost in [1, 100, 5_000] {
                let predicted = fit.predict(cost).unwrap().as_secs_f64();
                prop_assert!((predicted - line(cost)).abs() < 0.01 * line(cost) + 1e-4);
            }
        }

        #[test]
        fn no_batch_is_quicker_than_it_takes_at_least_though_its_size_was_never_seen(
            base in 0.0..0.5f64,
            per_cost in 1e-6..1e-3f64,
            costs in prop::collection::vec(1..10_000usize, 1..60),
            asked in 1..20_000usize,
        ) {
            let line = |cost: usize| base + per_cost * cost as f64;
            // The quickest of the beginning, when there was no line to speak of, is forgotten by then.
            let fit = learnt(&costs.repeat(250 / costs.len() + 5), line);
            let at_least = |cost| fit.at_least(cost).unwrap().as_secs_f64();
            let (claimed, true_one) = (at_least(asked), line(asked));
            prop_assert!(claimed <= 0.81 * true_one + 1e-4, "{claimed} and not {true_one}");
            // And yet it says something of those that were.
            let last = costs[costs.len() - 1];
            prop_assert!(at_least(last) > 0.4 * line(last) - 1e-4);
        }

        #[test]
        fn of_times_that_scatter_next_to_no_batch_is_quicker_than_was_claimed(
            base in 0.0..0.5f64,
            per_cost in 1e-6..1e-3f64,
            scatter in 0.0..0.6f64,
            slow in 0.0..0.2f64,
            seed in any::<u64>(),
        ) {
            let mut dice = StdRng::seed_from_u64(seed);
            let mut fit = Fit::default();
            let (mut n_wrong, mut claims, mut times) = (0, 0.0, 0.0);
            for nth in 0..3_000 {
                let cost = dice.random_range(256..8_192usize);
                // About the line, and now and then much slower: somebody else has the device.
                let noise: f64 = (scatter * (dice.random::<f64>() + dice.random::<f64>() - 1.0)).exp();
                let busy = if dice.random_bool(slow) { dice.random_range(1.0..5.0) } else { 1.0 };
                let took = (base + per_cost * cost as f64) * noise * busy;
                // Until then the line is one through a handful of batches.
                if nth >= 100 {
                    let claimed = fit.at_least(cost).unwrap().as_secs_f64();
                    n_wrong += usize::from(claimed > took);
                    claims += claimed;
                    times += took;
                }
                fit.learn(4, cost, Duration::from_secs_f64(took));
            }
            prop_assert!(n_wrong <= 29, "{n_wrong} of 2900 jobs would be refused that had the time");
            prop_assert!(claims > 0.1 * times, "{claims} of {times} s: nobody would be refused");
        }

        #[test]
        fn whatever_the_times_the_fit_stays_finite(
            batches in prop::collection::vec((1..64usize, 0..100_000usize, 0..10_000u64), 1..500),
        ) {
            let mut fit = Fit::default();
            for (n_jobs, cost, ms) in batches {
                fit.learn(n_jobs, cost, Duration::from_millis(ms));
                if let (Some(predicted), Some(at_least)) = (fit.predict(cost), fit.at_least(cost)) {
                    prop_assert!(at_least <= predicted.max(Duration::from_nanos(1)));
                }
                if let Some(time) = fit.batch_time() {
                    prop_assert!(time.base.is_finite() && time.base >= 0.0);
                    prop_assert!(time.per_cost.is_finite() && time.per_cost >= 0.0);
                    prop_assert!(time.per_job.is_finite());
                }
            }
        }
    }

    #[test]
    fn a_device_that_became_slower_is_learnt_anew() {
        let mut fit = learnt(&[100, 200, 300, 400].repeat(50), |cost| 0.01 + 1e-4 * cost as f64);
        for cost in [100, 200, 300, 400].repeat(75) {
            fit.learn(4, cost, Duration::from_secs_f64(0.02 + 2e-4 * cost as f64));
        }
        let predicted = fit.predict(300).unwrap().as_secs_f64();
        assert!((predicted - 0.08).abs() < 0.004, "{predicted}");
    }

    #[test]
    fn a_device_is_about_to_be_free_a_little_before_its_batch_ends() {
        let fit = learnt(&[100, 200, 300, 400].repeat(20), |cost| 0.01 + 1e-4 * cost as f64);
        let now = Instant::now();
        let free_at = |fit: &Fit, device| fit.view(device, false, 8192, now).free_at;
        assert_eq!(free_at(&fit, Device::Free), Some(now));
        assert_eq!(free_at(&fit, Device::Bound), None);
        let running = Device::Running { since: now, cost: 300 };
        let after = free_at(&fit, running).unwrap() - now;
        assert!((0.03..0.04).contains(&after.as_secs_f64()), "{after:?}");
        assert_eq!(free_at(&Fit::default(), running), None, "nothing is known yet");
    }

    #[test]
    fn a_batch_is_large_enough_when_its_beginning_is_a_small_share_of_it() {
        let costs = [100, 200, 300, 400].repeat(20);
        assert_eq!(learnt(&[100], |_| 0.01).enough(), usize::MAX, "nothing is known yet");
        assert!(learnt(&costs, |_| 0.01).enough() > 1_000_000_000, "rows cost nothing");
        let near = |fit: &Fit, expected: usize| fit.enough().abs_diff(expected) <= expected / 50;
        // 2 ms before the first row are 20 tokens, and 25 ms hold 230.
        let slow = learnt(&costs, |cost| 2e-3 + 1e-4 * cost as f64);
        assert!(near(&slow, 320), "{}", slow.enough());
        let even = learnt(&costs, |cost| 1e-4 * cost as f64);
        assert!(near(&even, 250), "{}", even.enough());
    }

    #[test]
    fn one_slow_beginning_does_not_make_a_device_slow_for_long() {
        let mut fit = Fit::default();
        for ms in [3_000, 100, 100, 100, 100] {
            fit.learn(4, 100, Duration::from_millis(ms));
        }
        assert!(fit.predict(100).unwrap() > Duration::from_millis(500));
        assert!(fit.at_least(100).unwrap() <= Duration::from_millis(100));
        let steady = learnt(&[100; 100], |_| 0.1);
        assert!(steady.at_least(100).unwrap() > Duration::from_millis(79));
        // Of small ones it is only known that they take no more.
        assert!(steady.at_least(10).unwrap() <= Duration::from_millis(10));
        assert!(steady.at_least(1_000).unwrap() > Duration::from_millis(79));
    }

    #[test]
    fn batches_of_one_size_are_predicted_and_two_are_not_enough() {
        assert_eq!(learnt(&[100, 100], |_| 0.05).predict(100), None);
        assert_eq!(learnt(&[100, 100], |_| 0.05).at_least(100), None);
        let fit = learnt(&[100; 5_000], |_| 0.05);
        let predicted = fit.predict(100).unwrap().as_secs_f64();
        assert!((predicted - 0.05).abs() < 1e-3, "{predicted}");
        let per_job = fit.batch_time().unwrap().per_job;
        assert!((per_job - 0.0125).abs() < 1e-6, "{per_job}");
    }
}
