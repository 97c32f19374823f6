//! Knative's pod autoscaler at its defaults, with the jobs of the queue as its requests.
//! No clock in here.
//!
//! The source of the formulas is knative/serving: `pkg/autoscaler/scaling/autoscaler.go` for the
//! number of pods, `pkg/autoscaler/aggregation/bucketing.go` for the windows,
//! `pkg/reconciler/autoscaling/kpa/scaler.go` for the way to zero; the defaults stand in
//! `config-autoscaler`. What waits in the queue stands for what Knative's activator and pods hold
//! back: both are requests that are not answered yet. A pod takes as many at once as a batch has
//! slots (`containerConcurrency`).

use std::collections::VecDeque;
use std::time::Duration;

use super::world::{Policy, View};

const TICK: u64 = 2;
const STABLE_WINDOW: usize = 60;
const PANIC_WINDOW: usize = 6;
const PANIC_THRESHOLD: f64 = 2.0;
const UTILIZATION: f64 = 0.7;
const MAX_UP_RATE: f64 = 1000.0;
const MAX_DOWN_RATE: f64 = 2.0;
const TO_ZERO_GRACE: Duration = Duration::from_secs(30);

/// The autoscaler with its windows.
#[derive(Debug, Default)]
pub(crate) struct Kpa {
    /// Concurrency in each second, the newest last; none before the first report.
    seconds: VecDeque<f64>,
    panicking: Option<Duration>,
    /// The most pods of this panic.
    most: u32,
    /// Since when nothing was wanted.
    idle: Option<Duration>,
}

impl Kpa {
    /// The mean of the last seconds, or of all there are if they are fewer.
    fn mean(&self, window: usize) -> f64 {
        let recent = self.seconds.iter().rev().take(window);
        let n = recent.len().max(1);
        recent.sum::<f64>() / n as f64
    }

    /// `Scale` of autoscaler.go.
    fn scale(&mut self, view: &View<'_>) -> u32 {
        let target = UTILIZATION * view.settings.slots as f64;
        let ready = f64::from(view.ready_pods().max(1));
        let (most, least) = ((MAX_UP_RATE * ready).ceil(), (ready / MAX_DOWN_RATE).floor());
        let stable = (self.mean(STABLE_WINDOW) / target).ceil();
        let panic = (self.mean(PANIC_WINDOW) / target).ceil();
        let bounded = |pods: f64| pods.max(least).min(most) as u32;
        let over = panic / ready >= PANIC_THRESHOLD;
        let window = Duration::from_secs(STABLE_WINDOW as u64);
        match self.panicking {
            _ if over => self.panicking = Some(view.now),
            Some(since) if since + window < view.now => {
                self.panicking = None;
                self.most = 0;
            }
            Some(_) | None => {}
        }
        if self.panicking.is_none() {
            return bounded(stable);
        }
        self.most = self.most.max(bounded(stable)).max(bounded(panic));
        self.most
    }

    /// `handleScaleToZero` of scaler.go: the stable window is over when nothing is wanted, and
    /// the last pod stays for the grace.
    fn after_grace(&mut self, now: Duration, wanted: u32) -> u32 {
        if wanted > 0 {
            self.idle = None;
            return wanted;
        }
        let since = *self.idle.get_or_insert(now);
        u32::from(now < since + TO_ZERO_GRACE)
    }

    fn report(&mut self, view: &View<'_>) {
        if self.seconds.len() == STABLE_WINDOW {
            self.seconds.pop_front();
        }
        self.seconds.push_back((view.ready + view.in_flight) as f64);
    }
}

impl Policy for Kpa {
    fn arrived(&mut self, view: &View<'_>) -> u32 {
        if view.wanted > 0 {
            return view.wanted;
        }
        // The activator tells of the first request at once.
        self.report(view);
        self.scale(view).max(1).min(view.settings.max_replicas)
    }

    fn second(&mut self, view: &View<'_>) -> u32 {
        if view.wanted == 0 {
            // Nobody reports, and the windows run empty.
            self.seconds.clear();
            self.panicking = None;
            self.most = 0;
            self.idle = None;
            return 0;
        }
        self.report(view);
        if !view.now.as_secs().is_multiple_of(TICK) {
            return view.wanted;
        }
        let wanted = self.scale(view).min(view.settings.max_replicas);
        self.after_grace(view.now, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::kit::{pods, view};

    /// What is wanted after so many seconds of a steady number of jobs on so many ready pods.
    fn after(kpa: &mut Kpa, seconds: std::ops::Range<u64>, jobs: usize, n_pods: usize) -> u32 {
        let pods = pods(n_pods);
        seconds.map(|second| kpa.second(&view(second, jobs, &pods))).last().unwrap()
    }

    #[test]
    fn the_first_request_wakes_it_at_once() {
        assert_eq!(Kpa::default().arrived(&view(7, 1, &[])), 1);
        assert_eq!(
            Kpa::default().arrived(&view(7, 400, &[])),
            20,
            "at most as many as there may be"
        );
    }

    #[test]
    fn a_pod_is_to_have_seven_tenths_of_its_slots() {
        // 56 jobs at 5.6 each.
        assert_eq!(after(&mut Kpa::default(), 0..61, 56, 10), 10);
        assert_eq!(after(&mut Kpa::default(), 0..61, 57, 10), 11);
    }

    #[test]
    fn what_six_seconds_ask_for_counts_in_a_panic_and_nothing_goes_for_a_minute() {
        let mut kpa = Kpa::default();
        after(&mut kpa, 0..60, 5, 1);
        assert_eq!(after(&mut kpa, 60..67, 100, 1), 18, "100 jobs at 5.6 each");
        assert_eq!(after(&mut kpa, 67..121, 1, 18), 18, "still panicking");
        assert!(after(&mut kpa, 121..201, 1, 18) < 18);
    }

    #[test]
    fn it_is_at_zero_after_the_window_and_the_grace() {
        let mut kpa = Kpa::default();
        after(&mut kpa, 0..60, 5, 1);
        let pods = pods(1);
        let zero = (60..300).find(|second| kpa.second(&view(*second, 0, &pods)) == 0);
        // The window is empty at 119 s, and the grace counts from the tick that sees it.
        assert_eq!(zero, Some(150));
    }
}
