//! What a seed has in store for the calls to come.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::{Faults, Injected};
use crate::{Delivery, Job, Receipt, Verdict};

/// What goes wrong next, and what has so far.
pub(super) struct Fate {
    dice: StdRng,
    pub(super) faults: Faults,
    pub(super) injected: Injected,
    /// Leases that will end early.
    pub(super) doomed: Vec<Doomed>,
    /// Tokens of leases that did.
    pub(super) ended: HashSet<Arc<str>>,
}

/// A lease that will end early.
pub(super) struct Doomed {
    pub(super) at: Instant,
    pub(super) job: Job,
    pub(super) attempt: u32,
    pub(super) receipt: Receipt,
}

/// When a call fails: before it had its effect, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Before,
    After,
}

impl Fate {
    pub(super) fn new(faults: Faults, seed: u64) -> Self {
        Self {
            dice: StdRng::seed_from_u64(seed),
            faults,
            injected: Injected::default(),
            doomed: Vec::new(),
            ended: HashSet::new(),
        }
    }

    pub(super) fn draw(&mut self) -> (Duration, Option<Failure>) {
        let Faults { fail_before, fail_after, delay, .. } = self.faults;
        let pause = delay.mul_f64(self.dice.random());
        let chance: f64 = self.dice.random();
        if chance < fail_before {
            self.injected.failed_before += 1;
            return (pause, Some(Failure::Before));
        }
        if chance < fail_before + fail_after {
            self.injected.failed_after += 1;
            return (pause, Some(Failure::After));
        }
        (pause, None)
    }

    /// Whether a call for jobs fails though others of its kind do not.
    pub(super) fn fails_to_give(&mut self) -> bool {
        let chance = self.faults.fail_receive;
        // Drawn only where it counts: seeds of others stay what they are.
        let fails = chance > 0.0 && self.dice.random_bool(chance);
        self.injected.failed_before += u64::from(fails);
        fails
    }

    /// Loses some deliveries and dooms the leases of others.
    pub(super) fn afflict(&mut self, deliveries: Vec<Delivery>, lease: Duration) -> Vec<Delivery> {
        let mut left = Vec::new();
        for delivery in deliveries {
            if self.dice.random::<f64>() < self.faults.drop_delivery {
                self.injected.dropped += 1;
                continue;
            }
            if self.dice.random::<f64>() < self.faults.end_lease {
                self.doomed.push(Doomed {
                    at: Instant::now() + lease.mul_f64(self.dice.random()),
                    job: delivery.job.clone(),
                    attempt: delivery.attempt,
                    receipt: delivery.receipt().clone(),
                });
            }
            left.push(delivery);
        }
        left
    }

    pub(super) fn refuses(&mut self, verdict: &Verdict) -> bool {
        let chance = self.faults.refuse_rejection;
        let refuses = matches!(verdict, Verdict::Reject { .. }) && self.dice.random_bool(chance);
        self.injected.refused += u64::from(refuses);
        refuses
    }

    /// How many of the jobs of a publication are stored.
    pub(super) fn stores(&mut self, n_jobs: usize) -> usize {
        let chance = self.faults.refuse_half;
        // Drawn only where it counts: seeds of others stay what they are.
        let halves = chance > 0.0 && self.dice.random_bool(chance);
        if halves { n_jobs / 2 } else { n_jobs }
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.doomed.iter().map(|doomed| doomed.at).min()
    }

    pub(super) fn is_ended(&self, receipt: &Receipt) -> bool {
        self.ended.contains(&receipt.token)
    }
}
