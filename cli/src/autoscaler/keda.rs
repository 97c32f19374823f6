//! KEDA's decisions for one ScaledObject: from zero, to zero, and how it reads numbers.
//! No clock and no task in here: time comes in as an argument.
//!
//! The source of each rule is KEDA: `pkg/scaling/executor/scale_scaledobjects.go` for the executor,
//! `pkg/scalers/external_scaler.go` for streams and numbers.

use std::time::Duration;

/// Time between two polls (`pollingInterval`), KEDA's default.
pub const POLLING_INTERVAL: Duration = Duration::from_secs(30);

/// How KEDA scales one object; the defaults are KEDA's.
#[derive(Debug, Clone, PartialEq)]
pub struct ExecutorPolicy {
    /// Replicas that are kept without work (`minReplicaCount`).
    pub min: u32,
    /// Replicas that are kept while nothing is active, fewer than `min` (`idleReplicaCount`; KEDA
    /// supports no other value than 0). The first work then asks for `min` at once.
    pub idle: Option<u32>,
    /// How long after the last sign of activity the replicas are kept (`cooldownPeriod`).
    pub cooldown: Duration,
    /// How long an object that was never active keeps its replicas (`initialCooldownPeriod`),
    /// counted from the moment 0.
    pub initial_cooldown: Duration,
    /// Whether replicas may go while the scaler does not answer.
    pub outage: Outage,
}

/// What an outage of the scaler means to the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Nothing changes: no `fallback`, or one with replicas.
    Hold,
    /// As if inactive: with `fallback.replicas: 0` KEDA goes to zero after the cooldown.
    Release,
}

impl Default for ExecutorPolicy {
    fn default() -> Self {
        Self {
            min: 0,
            idle: None,
            cooldown: Duration::from_secs(300),
            initial_cooldown: Duration::ZERO,
            outage: Outage::Hold,
        }
    }
}

/// What a poll found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// There is work.
    Active,
    /// There is none.
    Inactive,
    /// The scaler did not answer, or not well.
    Unknown,
}

/// The part of KEDA that takes an object from zero and back to zero.
///
/// Between zero and zero it leaves the number to the HorizontalPodAutoscaler.
#[derive(Debug, Clone)]
pub struct Executor {
    policy: ExecutorPolicy,
    last_active: Option<Duration>,
}

impl Executor {
    /// An object that has never been active.
    #[must_use]
    pub fn new(policy: ExecutorPolicy) -> Self {
        Self { policy, last_active: None }
    }

    /// A poll's outcome: how many replicas there should be, given how many there are.
    ///
    /// # Behavior
    /// - What is not known changes nothing, unless the policy says otherwise.
    /// - Active at zero, or below `min` with an idle number: one replica, or `min` if that is more.
    /// - Inactive: to zero, or the idle number, in one step, once the cooldown since the last
    ///   activity is over. An object that was never active has the initial cooldown instead.
    pub fn on_poll(&mut self, now: Duration, replicas: u32, activity: Activity) -> u32 {
        match (activity, self.policy.outage) {
            (Activity::Active, _) => self.on_active(now, replicas),
            (Activity::Unknown, Outage::Hold) => replicas,
            (Activity::Inactive, _) | (Activity::Unknown, Outage::Release) => {
                self.on_inactive(now, replicas)
            }
        }
    }

    /// The scaler pushed `true`. A pushed `false` is ignored, and so has no method.
    pub fn on_push(&mut self, now: Duration, replicas: u32) -> u32 {
        self.on_active(now, replicas)
    }

    fn on_active(&mut self, now: Duration, replicas: u32) -> u32 {
        self.last_active = Some(now);
        let idling = self.policy.idle.is_some() && replicas < self.policy.min;
        if replicas == 0 || idling { self.policy.min.max(1) } else { replicas }
    }

    fn on_inactive(&mut self, now: Duration, replicas: u32) -> u32 {
        match self.policy.idle {
            Some(idle) if replicas > idle && !self.cooling(now) => idle,
            Some(_) => replicas,
            None if self.policy.min > 0 => replicas.max(self.policy.min),
            None if self.cooling(now) => replicas,
            None => 0,
        }
    }

    fn cooling(&self, now: Duration) -> bool {
        match self.last_active {
            Some(at) => now.saturating_sub(at) <= self.policy.cooldown,
            None => now < self.policy.initial_cooldown,
        }
    }
}

/// How long KEDA waits before it opens a stream again.
///
/// Doubled by each error up to a minute, and reset by nothing but a clean end.
#[derive(Debug, Clone)]
pub struct Reconnect {
    next: Duration,
}

impl Reconnect {
    const FIRST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(60);

    /// The delay after the stream ended as the server wished.
    pub fn after_end(&mut self) -> Duration {
        self.next = Self::FIRST;
        Self::FIRST
    }

    /// The delay after the stream broke.
    pub fn after_error(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(Self::LONGEST);
        delay
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { next: Self::FIRST }
    }
}

/// The number KEDA takes from a pair of a float and an integer field.
///
/// The float counts if it is above zero, else the integer; what is no number, or below zero, is
/// zero; three decimals are kept, rounded as KEDA does from 2.20.2 on. Before, it cut off what is
/// behind them: a thousandth less at most.
#[must_use]
pub fn number(float: f64, int: i64) -> f64 {
    let value = if float > 0.0 { float } else { int as f64 };
    if !value.is_finite() || value < 0.0 {
        return 0.0;
    }
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn policy(min: u32, cooldown: u64) -> ExecutorPolicy {
        ExecutorPolicy { min, cooldown: seconds(cooldown), ..ExecutorPolicy::default() }
    }

    fn executor(min: u32, cooldown: u64) -> Executor {
        Executor::new(policy(min, cooldown))
    }

    #[test]
    fn activation_from_zero_sets_one_or_the_least_number() {
        for (min, expected) in [(0, 1), (1, 1), (3, 3)] {
            assert_eq!(executor(min, 10).on_poll(seconds(0), 0, Activity::Active), expected);
            assert_eq!(executor(min, 10).on_push(seconds(0), 0), expected);
            assert_eq!(executor(min, 10).on_push(seconds(0), 7), 7);
        }
    }

    #[test]
    fn zero_comes_in_one_step_after_the_cooldown() {
        let mut executor = executor(0, 10);
        assert_eq!(executor.on_push(seconds(5), 0), 1);
        assert_eq!(executor.on_poll(seconds(15), 8, Activity::Inactive), 8);
        assert_eq!(executor.on_poll(seconds(16), 8, Activity::Inactive), 0);
    }

    #[test]
    fn a_push_and_an_active_poll_both_start_the_cooldown_anew() {
        let mut executor = executor(0, 10);
        executor.on_push(seconds(0), 0);
        executor.on_poll(seconds(8), 2, Activity::Active);
        assert_eq!(executor.on_poll(seconds(18), 2, Activity::Inactive), 2);
        executor.on_push(seconds(18), 2);
        assert_eq!(executor.on_poll(seconds(28), 2, Activity::Inactive), 2);
        assert_eq!(executor.on_poll(seconds(29), 2, Activity::Inactive), 0);
    }

    #[test]
    fn an_object_that_was_never_active_has_no_cooldown() {
        assert_eq!(executor(0, 300).on_poll(seconds(0), 4, Activity::Inactive), 0);
    }

    #[test]
    fn the_least_number_is_kept_without_work() {
        let mut executor = executor(2, 0);
        assert_eq!(executor.on_poll(seconds(0), 0, Activity::Inactive), 2);
        assert_eq!(executor.on_poll(seconds(99), 5, Activity::Inactive), 5);
    }

    #[test]
    fn an_idle_number_is_left_for_the_least_number_at_once_and_taken_after_the_cooldown() {
        let mut executor = Executor::new(ExecutorPolicy { idle: Some(0), ..policy(4, 10) });
        assert_eq!(executor.on_push(seconds(0), 0), 4);
        assert_eq!(executor.on_poll(seconds(5), 2, Activity::Active), 4);
        assert_eq!(executor.on_poll(seconds(15), 6, Activity::Inactive), 6);
        assert_eq!(executor.on_poll(seconds(16), 6, Activity::Inactive), 0);
        assert_eq!(executor.on_poll(seconds(17), 0, Activity::Inactive), 0);
    }

    #[test]
    fn the_initial_cooldown_keeps_what_was_never_active() {
        let initial_cooldown = seconds(60);
        let mut executor = Executor::new(ExecutorPolicy { initial_cooldown, ..policy(0, 10) });
        assert_eq!(executor.on_poll(seconds(59), 3, Activity::Inactive), 3);
        assert_eq!(executor.on_poll(seconds(60), 3, Activity::Inactive), 0);
    }

    #[test]
    fn an_outage_changes_nothing_unless_the_fallback_is_zero() {
        let mut executor = executor(0, 10);
        assert_eq!(executor.on_poll(seconds(99), 3, Activity::Unknown), 3);
        let outage = Outage::Release;
        let mut executor = Executor::new(ExecutorPolicy { outage, ..policy(0, 10) });
        executor.on_push(seconds(0), 0);
        assert_eq!(executor.on_poll(seconds(10), 3, Activity::Unknown), 3);
        assert_eq!(executor.on_poll(seconds(11), 3, Activity::Unknown), 0);
    }

    #[test]
    fn streams_are_opened_again_as_keda_does() {
        let mut reconnect = Reconnect::default();
        let delays: Vec<u64> = (0..7).map(|_| reconnect.after_error().as_secs()).collect();
        assert_eq!(delays, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(reconnect.after_end(), seconds(2));
        assert_eq!(reconnect.after_error(), seconds(2));
    }

    #[test]
    fn numbers_are_read_as_keda_reads_them() {
        for (float, int, expected) in [
            (22.222, 22, 22.222),
            (0.0, 7, 7.0),
            (-1.0, 7, 7.0),
            (0.0, -7, 0.0),
            (f64::NAN, 3, 3.0),
            (f64::INFINITY, 3, 0.0),
            (1.234_56, 1, 1.235),
            (0.000_4, 9, 0.0),
        ] {
            assert_eq!(number(float, int), expected, "{float} {int}");
        }
    }
}
