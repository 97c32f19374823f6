//! What a queue teaches: how fast its workers are, how much arrives, how long a start takes.
//! Pure: a [`Learner`] is fed with the looks of an observer, and time comes in with them.
//!
//! Nothing is kept on disk: after a restart, the fitted times, slots and cold starts are in the
//! next status of each worker, and the rest is learned anew within a few dozen jobs. Until then
//! the priors of the trigger count.

mod arrivals;
mod evidence;
mod fleet;
mod history;

use std::time::Duration;

use ebb_queue::{Depth, Timestamp, WorkerStatus};

pub use arrivals::Arrivals;
pub use evidence::Evidence;
pub use history::Recent;

use arrivals::{Deaths, Flow};
use fleet::Fleet;
use history::History;

use crate::trigger::Priors;

/// What was learned of a queue; the default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Learned {
    /// Jobs that replicas completed while there was more than enough to do, and the seconds that
    /// it took them.
    pub throughput: Evidence,
    /// Jobs that workers completed, and the seconds for which they held them.
    pub service: Evidence,
    /// Seconds of a worker's device for a job in a full batch, from the fitted time of a batch.
    pub fitted: Option<f64>,
    /// Jobs that a worker runs at once.
    pub slots: Option<f64>,
    /// Seconds from the start of a worker's process to its readiness.
    pub cold_start: Option<f64>,
    /// How much arrives.
    pub arrivals: Arrivals,
    /// How much arrived lately, at the last look.
    pub recent: Recent,
    /// Since when there were ready jobs at every look.
    pub waiting_since: Option<Timestamp>,
    /// When there last was work.
    pub last_work: Option<Timestamp>,
    /// The same of arrivals and waiting for jobs that are not of low priority.
    pub without_low: Inflow,
}

/// What comes in and waits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Inflow {
    /// How much arrives.
    pub arrivals: Arrivals,
    /// How much arrived lately, at the last look.
    pub recent: Recent,
    /// Since when there were ready jobs at every look.
    pub waiting_since: Option<Timestamp>,
    /// When there was work last.
    pub last_work: Option<Timestamp>,
}

/// How fast a queue goes, by what was learned and else by the priors. All figures are finite and
/// above zero; only `arrivals`, `cold_start` and `loading` may be zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Jobs per second of a replica that has more than enough to do.
    pub throughput: f64,
    /// Seconds from receiving a job to settling it.
    pub service: f64,
    /// Jobs that a replica runs at once.
    pub slots: f64,
    /// Seconds from nothing to readiness.
    pub cold_start: f64,
    /// The part of it that a worker sees: from the start of its process on.
    pub loading: f64,
    /// Jobs per second that arrive.
    pub arrivals: f64,
}

impl Pace {
    /// What was learned counts for more with every job; the priors weigh as much as two jobs.
    ///
    /// # Formulas
    /// - `service`: held seconds per completed job, which is Little's law.
    /// - `throughput`: completions per second of loaded replicas. Before there were any, `1 / f` for
    ///   a fitted time `f` of a job in a full batch; without one `slots / service`, at least one
    ///   job at a time. A mean of both is the posterior mean of a Poisson rate under a gamma prior.
    /// - `cold_start`: what workers report, and no less than the trigger gives. They do not know
    ///   what passed before: scheduling, a node that was made, the pull of the image.
    #[must_use]
    pub fn of(learned: &Learned, priors: &Priors) -> Self {
        let slots = learned.slots.unwrap_or(priors.slots).clamp(FEWEST, MOST);
        let prior_service = priors.service.as_secs_f64().clamp(FEWEST, MOST);
        let service = learned.service.mean(prior_service).clamp(FEWEST, MOST);
        let fitted = learned.fitted.map(|seconds| seconds.clamp(FEWEST, MOST).recip());
        let expected = fitted.unwrap_or_else(|| {
            let prior = slots / prior_service;
            let (least, most) = learned.service.rates_of_one();
            // Without completions nothing is known, and the limits are 0 and infinity.
            prior.clamp(least, (most * slots).max(least))
        });
        let loading = learned.cold_start.unwrap_or(priors.cold_start.as_secs_f64());
        Self {
            throughput: learned.throughput.rate(expected).clamp(FEWEST, MOST),
            service,
            slots,
            cold_start: loading.max(priors.least_cold_start.as_secs_f64()).clamp(0.0, MOST),
            loading: loading.clamp(0.0, MOST),
            arrivals: learned.arrivals.rate().clamp(0.0, MOST),
        }
    }
}

/// No figure of a pace is smaller or greater: whatever is made of them is finite.
const FEWEST: f64 = 1e-9;
const MOST: f64 = 1e9;

/// A clock that goes back by more was set back.
const BACK: Duration = Duration::from_secs(60);

/// Learns from looks at one queue.
#[derive(Debug, Clone, Default)]
pub struct Learner {
    fleet: Fleet,
    all: Stream,
    without_low: Stream,
    deaths: Deaths,
    learned: Learned,
    before: Option<Before>,
}

/// Learns of the jobs that come in one after the other.
#[derive(Debug, Clone, Default)]
struct Stream {
    flow: Flow,
    history: History,
}

/// The look before.
#[derive(Debug, Clone, Copy)]
struct Before {
    at: Timestamp,
    ready: u64,
    /// Those of low priority among them.
    low: u64,
    in_flight: u64,
    done: Option<u64>,
}

impl Learner {
    /// One that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was learned so far.
    #[must_use]
    pub fn learned(&self) -> Learned {
        self.learned
    }

    /// Learns from a look at the jobs and the workers of a queue.
    ///
    /// # Behavior
    /// - A look that is not newer than the last one teaches nothing.
    /// - No single look or worker moves a figure far: what is far from the mean is brought near it.
    pub fn observe(&mut self, depth: &Depth, workers: &[WorkerStatus], now: Timestamp) {
        let elapsed = self.before.map(|before| now.duration_since(before.at).as_secs_f64());
        if let Some(back) = elapsed.filter(|elapsed| *elapsed <= 0.0) {
            if -back > BACK.as_secs_f64() {
                self.set_back(now);
            }
            return;
        }
        // More waits than all workers together could take at once, at both ends of the time.
        let room: u64 = workers.iter().fold(1, |sum, w| sum.saturating_add(w.slots));
        let deep = depth.ready >= room && self.before.is_some_and(|before| before.ready >= room);
        let news = self.fleet.observe(workers, deep, now, &mut self.learned);
        let low = low(depth);
        let taken = |before: &Before| depth.in_flight as f64 - before.in_flight as f64;
        let done = self.before.map_or(0, |before| before.done_until(depth)) as f64;
        let taken = self.before.as_ref().map_or(0.0, taken) + news.completed + done;
        let risen = |before: &Before| depth.ready as f64 - before.ready as f64;
        let net = self.before.as_ref().map_or(0.0, risen) + taken;
        let died = self.deaths.add(depth.dead, self.all.flow.lacking(net), now);
        if let (Some(before), Some(elapsed)) = (self.before, elapsed) {
            let time = Time { since: before.at, until: now, elapsed };
            let (arrivals, recent) = self.all.add(net + died, time);
            (self.learned.arrivals, self.learned.recent) = (arrivals, recent);
            let net = before.net_without_low(depth.ready - low, taken);
            let died = died.min(self.without_low.flow.lacking(net));
            let (arrivals, recent) = self.without_low.add(net + died, time);
            let rest = self.learned.without_low;
            self.learned.without_low = Inflow { arrivals, recent, ..rest };
        }
        let is_first = self.before.is_none();
        let waits_since = |since: Option<Timestamp>, ready| match since {
            _ if ready == 0 => None,
            // Of the oldest nobody knows the priority.
            None if is_first => Some(depth.oldest_ready.map_or(now, |at| at.min(now))),
            None => Some(now),
            since => since,
        };
        let Learned { waiting_since, without_low, .. } = &mut self.learned;
        *waiting_since = waits_since(*waiting_since, depth.ready);
        without_low.waiting_since = waits_since(without_low.waiting_since, depth.ready - low);
        // Workers that are found running may just have had work; a job that waits while there are
        // none is none yet: the options of activation may hold it back.
        let held = depth.in_flight > 0 || done > 0.0;
        let held = held || workers.iter().any(|w| w.in_flight > 0);
        let has_work = |ready| held || ((is_first || ready > 0) && news.up);
        if has_work(depth.ready) {
            self.learned.last_work = Some(now);
        }
        if has_work(depth.ready - low) {
            self.learned.without_low.last_work = Some(now);
        }
        let Depth { ready, in_flight, done, .. } = *depth;
        self.before = Some(Before { at: now, ready, low, in_flight, done });
    }

    /// Learns on where the queue is on another broker: what is there now did not come since the last
    /// look at the one before. How fast its workers are and how they start stays known.
    pub fn move_on(&mut self) {
        self.before = None;
        (self.all, self.without_low) = Default::default();
        self.deaths = Deaths::default();
        self.fleet.move_on();
        let Learned { throughput, service, fitted, slots, cold_start, .. } = self.learned;
        self.learned =
            Learned { throughput, service, fitted, slots, cold_start, ..Learned::default() };
    }

    /// Learns on from where the clock was set back to: nothing that was noted lies ahead of it.
    fn set_back(&mut self, now: Timestamp) {
        self.before = None;
        (self.all.history, self.without_low.history) = Default::default();
        self.deaths = Deaths::default();
        self.fleet.set_back(now);
        let Learned { waiting_since, last_work, without_low, .. } = &mut self.learned;
        let Inflow { waiting_since: others, last_work: of_others, .. } = without_low;
        for noted in [waiting_since, last_work, others, of_others] {
            *noted = noted.map(|at| at.min(now));
        }
    }
}

/// From one look to the next.
#[derive(Clone, Copy)]
struct Time {
    since: Timestamp,
    until: Timestamp,
    /// In seconds, above zero.
    elapsed: f64,
}

impl Stream {
    /// Adds the net change of a time; says what arrives, and what arrived lately.
    fn add(&mut self, net: f64, time: Time) -> (Arrivals, Recent) {
        let (arrivals, arrived) = self.flow.add(net, time.elapsed);
        (arrivals, self.history.add(time.since, time.until, arrived))
    }
}

impl Before {
    /// Jobs that came to an end since, where the broker counts them and not the workers.
    fn done_until(&self, depth: &Depth) -> u64 {
        self.done.zip(depth.done).map_or(0, |(before, now)| now.saturating_sub(before))
    }

    /// The net change of the jobs that are not of low priority, where so many are ready now and so
    /// many of any were taken.
    ///
    /// Nobody tells the priority of what was taken. Jobs of low priority are taken when no other
    /// is ready, so where these wait, what was taken counts if there was another. In a pool that
    /// is kept busy by them, one that arrives waits for the next slot, and there is one as large a
    /// part of the time as such jobs are of all that are taken: the mean is right.
    fn net_without_low(&self, ready: u64, taken: f64) -> f64 {
        let before = self.ready - self.low;
        let risen = ready as f64 - before as f64;
        if self.low > 0 && before == 0 { risen } else { risen + taken }
    }
}

/// The ready jobs that are known to be of low priority.
pub(crate) fn low(depth: &Depth) -> u64 {
    depth.ready_by_priority.map_or(0, |by| by.low.min(depth.ready))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use ebb_queue::{BatchTime, ByPriority, Depth, Phase, Timestamp};
    use jiff::SignedDuration;
    use proptest::prelude::{ProptestConfig, prop_assert, prop_oneof, proptest};
    use proptest::strategy::Strategy;

    use super::{Learned, Learner, Pace};
    use crate::decision::decide;
    use crate::kit::{NOW, at, modes, queue, snapshots, trigger, triggers, worker};
    use crate::snapshot::Snapshot;
    use crate::trigger::{Activation, Priors, Trigger};

    const PRIORS: Priors = Priors {
        slots: 1.0,
        service: Duration::from_secs(1),
        cold_start: Duration::from_secs(30),
        least_cold_start: Duration::ZERO,
    };

    /// Workers that have all they can take, each with so many jobs at once and per second.
    struct Stream {
        n_workers: u64,
        held: u64,
        per_second: f64,
        /// From one look to the next.
        period: Duration,
    }

    const STREAM: Stream =
        Stream { n_workers: 3, held: 8, per_second: 4.0, period: Duration::from_secs(1) };

    impl Stream {
        fn look(&self, nth: u32) -> Snapshot {
            let now = NOW + self.period * nth;
            let completed = (self.per_second * (self.period * nth).as_secs_f64()) as u64;
            let workers = (0..self.n_workers).map(|n| ebb_queue::WorkerStatus {
                id: format!("w{n}"),
                slots: self.held,
                completed,
                cold_start: vec![("weights".into(), 9.0), ("warm-up".into(), 3.0)],
                at: now,
                ..worker(Phase::Busy, self.held)
            });
            let (ready, in_flight) = (10 * self.held * self.n_workers, self.held * self.n_workers);
            let depth = Depth { ready, in_flight, ..Depth::empty(now) };
            Snapshot { depth, workers: workers.collect(), learned: super::Learned::default() }
        }

        fn taught(&self, n_looks: u32) -> Learner {
            let mut learner = Learner::new();
            for nth in 0..n_looks {
                let look = self.look(nth);
                learner.observe(&look.depth, &look.workers, look.depth.as_of);
            }
            learner
        }

        fn pace(&self) -> Pace {
            Pace::of(&self.taught(400).learned(), &PRIORS)
        }
    }

    #[track_caller]
    fn assert_near(figure: f64, expected: f64) {
        assert!((figure / expected - 1.0).abs() < 0.05, "{figure} is not near {expected}");
    }

    #[test]
    fn a_steady_stream_is_known_after_a_while() {
        let pace = STREAM.pace();
        assert_near(pace.throughput, 4.0);
        assert_near(pace.service, 2.0);
        assert_near(pace.arrivals, 12.0);
        assert_eq!((pace.slots, pace.cold_start), (8.0, 12.0));
        let long = Stream { held: 1, per_second: 0.05, ..STREAM }.pace();
        assert_near(long.throughput, 0.05);
        assert_near(long.service, 20.0);
        // Three at once every 20 s.
        assert!((long.arrivals / 0.15 - 1.0).abs() < 0.25, "{long:?}");
    }

    /// Ready jobs of normal and of low priority, and what a worker of eight slots holds and has
    /// completed.
    fn mixed(second: i64, (normal, low): (u64, u64), (held, completed): (u64, u64)) -> Snapshot {
        let mut look = queue(normal + low, held, &[(Phase::Busy, held)]);
        look.depth.as_of = at(second);
        look.depth.ready_by_priority = Some(ByPriority { high: 0, normal, low });
        (look.workers[0].completed, look.workers[0].at) = (completed, at(second));
        look
    }

    #[test]
    fn jobs_of_low_priority_arrive_and_wait_apart_from_the_others() {
        let learned = |looks: &dyn Fn(i64) -> Snapshot| {
            let mut learner = Learner::new();
            (0..=300).for_each(|second| {
                let look = looks(second);
                learner.observe(&look.depth, &look.workers, at(second));
            });
            learner.learned()
        };
        // They come, wait and are taken, eight a second, and no other is there.
        let n = |second: i64| second.unsigned_abs();
        let only = learned(&|s| mixed(s, (0, 100 + n(s)), (8, 8 * n(s))));
        assert_near(only.arrivals.slow, 9.0);
        let of_others = super::Inflow { last_work: None, ..only.without_low };
        assert_eq!(of_others, super::Inflow::default());
        assert_eq!(only.waiting_since, Some(NOW));
        // Where others wait all the time, these are the ones that are taken.
        let behind = learned(&|s| mixed(s, (5, 100 + n(s)), (8, 8 * n(s))));
        assert_near(behind.without_low.arrivals.slow, 8.0);
        // Where others are found waiting at each fourth look, a fourth of what is taken is theirs.
        let normal = |s: i64| u64::from(s % 4 == 0);
        let beside = learned(&|s| mixed(s, (normal(s), 100_000), (8, 8 * n(s))));
        let mean = beside.without_low.arrivals.slow;
        assert!((1.6..2.6).contains(&mean), "{mean}");
        let one = learned(&|s| mixed(s, (u64::from(s >= 200), 100), (8, 8 * n(s))));
        assert_eq!(one.without_low.waiting_since, Some(at(200)));
        // Where none of low priority waits, all that is taken may be of another.
        let none = learned(&|s| mixed(s, (0, 0), (8, 8 * n(s))));
        assert_eq!(none.without_low.arrivals, none.arrivals);
    }

    #[test]
    fn what_waits_on_another_broker_has_not_arrived_and_the_pace_stays_known() {
        let mut learner = STREAM.taught(400);
        let before = Pace::of(&learner.learned(), &PRIORS);
        learner.move_on();
        let fresh = learner.learned();
        assert_eq!((fresh.waiting_since, fresh.last_work), (None, None));
        for second in 400..460u32 {
            let mut look = queue(5_000, 0, &[]);
            look.depth.as_of = NOW + Duration::from_secs(second.into());
            (look.depth.done, look.depth.dead) = (Some(7_000), 700);
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
            assert_eq!(learner.learned().arrivals.rate(), 0.0, "at {second} s");
            assert_eq!(learner.learned().last_work, None);
        }
        let after = Pace::of(&learner.learned(), &PRIORS);
        let kept = |pace: Pace| (pace.throughput, pace.service, pace.slots, pace.cold_start);
        assert_eq!(kept(after), kept(before));
    }

    #[test]
    fn figures_scale_with_jobs_and_with_time() {
        let base = STREAM.pace();
        let more = Stream { held: 80, per_second: 40.0, ..STREAM }.pace();
        assert_near(more.throughput, 10.0 * base.throughput);
        assert_near(more.service, base.service);
        assert_near(more.arrivals, 10.0 * base.arrivals);
        let slower = Stream { per_second: 1.0, period: Duration::from_secs(4), ..STREAM }.pace();
        assert_near(slower.throughput, base.throughput / 4.0);
        assert_near(slower.service, 4.0 * base.service);
        assert_near(slower.arrivals, base.arrivals / 4.0);
    }

    #[test]
    fn before_the_first_job_the_priors_count() {
        let pace = Pace::of(&Learner::new().learned(), &PRIORS);
        let Pace { throughput, service, slots, cold_start, loading, arrivals } = pace;
        assert_eq!((throughput, service, slots, arrivals), (1.0, 1.0, 1.0, 0.0));
        assert_eq!((cold_start, loading), (30.0, 30.0));
        // One report of a worker is enough for what it knows of itself.
        let time = BatchTime { base: 0.04, per_cost: 0.001, per_job: 0.05 };
        let mut look = STREAM.look(1);
        look.workers.iter_mut().for_each(|worker| worker.batch_time = Some(time));
        let mut learner = Learner::new();
        learner.observe(&look.depth, &look.workers, look.depth.as_of);
        let pace = Pace::of(&learner.learned(), &PRIORS);
        assert_eq!((pace.slots, pace.cold_start), (8.0, 12.0));
        assert_near(pace.throughput, 20.0);
    }

    #[test]
    fn what_workers_report_of_a_cold_start_never_makes_it_shorter_than_was_given() {
        let reported = |seconds| Learned { cold_start: Some(seconds), ..Learned::default() };
        let given = Priors { least_cold_start: PRIORS.cold_start, ..PRIORS };
        let cases = [(PRIORS, 25.0, 25.0), (given, 25.0, 30.0), (given, 40.0, 40.0)];
        for (priors, seconds, expected) in cases {
            let pace = Pace::of(&reported(seconds), &priors);
            assert_eq!((pace.cold_start, pace.loading), (expected, seconds), "{priors:?}");
        }
    }

    #[test]
    fn the_fitted_time_tells_what_full_batches_would_do() {
        // Batches of one: 10 ms for any, 1 ms for each job.
        let time = BatchTime { base: 0.010, per_cost: 0.001, per_job: 0.011 };
        let mut learner = Learner::new();
        for nth in 0..20 {
            let mut look = Stream { held: 1, n_workers: 1, ..STREAM }.look(nth);
            look.depth.ready = 0;
            look.workers[0].slots = 10;
            look.workers[0].batch_time = Some(time);
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
        }
        let pace = Pace::of(&learner.learned(), &PRIORS);
        assert_near(pace.throughput, 500.0);
    }

    #[test]
    fn a_fitted_time_is_forgotten_once_the_workers_that_are_there_tell_none() {
        let time = BatchTime { base: 0.010, per_cost: 0.001, per_job: 0.011 };
        let mut learner = Learner::new();
        let mut fitted = |nth, completed, batch_time| {
            let mut look = Stream { n_workers: 1, ..STREAM }.look(nth);
            (look.workers[0].slots, look.workers[0].completed) = (10, completed);
            look.workers[0].batch_time = batch_time;
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
            learner.learned().fitted
        };
        assert!(fitted(1, 1, Some(time)).is_some());
        assert!(fitted(2, 0, None).is_some(), "one that has just begun knows none yet");
        assert!(fitted(3, 159, None).is_some());
        assert_eq!(fitted(4, 160, None), None);
        assert!(fitted(5, 170, Some(time)).is_some());
    }

    #[test]
    fn what_is_told_late_does_not_arrive_twice() {
        let mut learner = Learner::new();
        for second in 0..300u32 {
            // A job arrives each second, ten are done at once, and that is told 2 s later.
            let mut look = Stream { n_workers: 1, ..STREAM }.look(second);
            look.depth.ready = u64::from(5 + second % 10);
            look.workers[0].completed = u64::from(second.saturating_sub(2) / 10 * 10);
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
        }
        let rate = learner.learned().arrivals.slow;
        assert!((rate - 1.0).abs() < 0.15, "{rate}");
    }

    /// Looks at a queue, and what is learned of when there was work.
    fn times(
        learner: &mut Learner,
        second: i64,
        mut look: Snapshot,
    ) -> (Option<Timestamp>, Option<Timestamp>) {
        look.depth.as_of = at(second);
        look.workers.iter_mut().for_each(|worker| worker.at = at(second));
        learner.observe(&look.depth, &look.workers, at(second));
        (learner.learned().waiting_since, learner.learned().last_work)
    }

    #[test]
    fn what_waits_beside_workers_is_work_for_those_whose_objective_it_has() {
        let mut learner = Learner::new();
        let mut look = |second, ready, low| {
            let mut look = queue(ready, 0, &[(Phase::Idle, 0)]);
            look.depth.ready_by_priority = Some(ByPriority { high: 0, normal: ready - low, low });
            look.depth.as_of = at(second);
            look.workers[0].at = at(second);
            learner.observe(&look.depth, &look.workers, at(second));
            let learned = learner.learned();
            (learned.last_work, learned.without_low.last_work)
        };
        assert_eq!(look(1, 0, 0), (Some(at(1)), Some(at(1))));
        assert_eq!(look(2, 5, 4), (Some(at(2)), Some(at(2))));
        assert_eq!(look(3, 4, 4), (Some(at(3)), Some(at(2))), "only what is left out waits");
        assert_eq!(look(900, 4, 4), (Some(at(900)), Some(at(2))));
    }

    #[test]
    fn work_is_remembered_as_long_as_it_waits_and_when_it_ended() {
        let mut learner = Learner::new();
        let mut look =
            |second, ready| times(&mut learner, second, queue(ready, 0, &[(Phase::Idle, 0)]));
        assert_eq!(look(1, 0), (None, Some(at(1))), "workers that are found have had some");
        assert_eq!(look(2, 3), (Some(at(2)), Some(at(2))));
        assert_eq!(look(3, 1), (Some(at(2)), Some(at(3))));
        assert_eq!(look(4, 0), (None, Some(at(3))));
        assert_eq!(look(5, 1), (Some(at(5)), Some(at(5))));
    }

    #[test]
    fn a_job_that_waits_for_a_pool_at_zero_is_no_work_yet() {
        let mut learner = Learner::new();
        let mut look = |second, look| times(&mut learner, second, look);
        assert_eq!(look(1, queue(0, 0, &[])), (None, None));
        assert_eq!(look(2, queue(3, 0, &[])), (Some(at(2)), None));
        assert_eq!(look(3, queue(3, 0, &[(Phase::Draining, 0)])), (Some(at(2)), None));
        assert_eq!(look(4, queue(3, 0, &[(Phase::Starting, 0)])), (Some(at(2)), Some(at(4))));
        // Not every broker tells what is in flight, nor every worker.
        assert_eq!(look(5, queue(3, 0, &[(Phase::Draining, 1)])), (Some(at(2)), Some(at(5))));
        assert_eq!(look(6, queue(0, 1, &[])), (None, Some(at(6))));
        assert_eq!(look(7, queue(2, 0, &[])), (Some(at(7)), Some(at(6))));
    }

    #[test]
    fn linger_wakes_no_pool_for_jobs_that_are_held_back() {
        let (linger, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let activation =
            Activation { jobs: 5, wait: hour, linger, ..trigger(modes()[0]).activation };
        let trigger = Trigger { activation, ..trigger(modes()[0]) };
        let mut learner = Learner::new();
        let mut is_active = |second, mut look: Snapshot| {
            times(&mut learner, second, look.clone());
            look.depth.as_of = at(second);
            look.learned = learner.learned();
            decide(&look, &trigger, at(second)).active
        };
        for second in 1..600 {
            assert!(!is_active(second, queue(1, 0, &[])), "after {second} s");
        }
        // And keeps one up after the last work, whatever waits then.
        assert!(is_active(600, queue(0, 1, &[(Phase::Busy, 1)])));
        assert!(is_active(601, queue(1, 0, &[])));
        assert!(is_active(659, queue(1, 0, &[])));
        assert!(!is_active(660, queue(1, 0, &[])));
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_figure_and_leaves_nothing_in_the_future() {
        for back in [90, 7_200, 2 * 86_400, 400 * 86_400i64] {
            let mut learner = STREAM.taught(400);
            let mut look = STREAM.look(400);
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
            let before = Pace::of(&learner.learned(), &PRIORS);
            // As the workers are on clocks of their own.
            for second in 0..5 {
                let now = NOW + Duration::from_secs(400 + second);
                let now = now - SignedDuration::from_secs(back);
                look = STREAM.look(401 + u32::try_from(second).unwrap());
                look.depth.as_of = now;
                learner.observe(&look.depth, &look.workers, now);
                let Learned { waiting_since, last_work, .. } = learner.learned();
                let noted = waiting_since.into_iter().chain(last_work);
                assert!(noted.max().unwrap() <= now, "{back} s back");
            }
            let after = Pace::of(&learner.learned(), &PRIORS);
            assert_near(after.throughput, before.throughput);
            assert_near(after.service, before.service);
            // And a change is still learned.
            let slower = Stream { per_second: 0.4, ..STREAM };
            for nth in 0..1_200 {
                let mut look = slower.look(nth);
                look.depth.as_of = NOW + Duration::from_secs(410 + u64::from(nth));
                look.depth.as_of -= SignedDuration::from_secs(back);
                look.workers.iter_mut().for_each(|worker| worker.id += "'");
                learner.observe(&look.depth, &look.workers, look.depth.as_of);
            }
            let learned = Pace::of(&learner.learned(), &PRIORS).throughput;
            assert!((0.36..0.44).contains(&learned), "{learned} per second, {back} s back");
        }
    }

    #[test]
    fn dead_letters_that_are_looked_at_do_not_arrive_when_they_are_given_back() {
        let mut learner = Learner::new();
        for nth in 0..300u32 {
            let now = NOW + Duration::from_millis(200) * nth;
            // Whoever looks at them holds them for that while.
            let dead = if nth % 4 < 2 { 3_000 } else { 1_000 * u64::from(nth % 3) };
            let depth = Depth { dead, ..Depth::empty(now) };
            learner.observe(&depth, &[], now);
            assert_eq!(learner.learned().arrivals.slow, 0.0, "after {nth} looks");
        }
    }

    #[test]
    fn jobs_that_die_have_arrived() {
        let mut learner = Learner::new();
        for second in 0..400u32 {
            // Of three each second, one is done and two die.
            let mut look = Stream { n_workers: 1, per_second: 1.0, ..STREAM }.look(second);
            look.depth.dead = 2 * u64::from(second);
            learner.observe(&look.depth, &look.workers, look.depth.as_of);
        }
        let rate = learner.learned().arrivals.slow;
        assert!((rate - 3.0).abs() < 0.1, "{rate}");
    }

    /// From a look to the next: mostly seconds, and what becomes of a clock that is set.
    fn steps() -> impl Strategy<Value = i64> {
        prop_oneof![8 => -5..30i64, 1 => -1_000_000..1_000_000i64]
    }

    #[test]
    fn where_the_broker_counts_what_is_done_arrivals_and_work_are_known_without_workers() {
        let mut learner = Learner::new();
        // Two jobs a second come and are done at once: no look finds any.
        for second in 0..300u64 {
            let mut snapshot = queue(0, 0, &[]);
            snapshot.depth.done = Some(7 + 2 * second);
            learner.observe(&snapshot.depth, &snapshot.workers, at(second.cast_signed()));
        }
        let learned = learner.learned();
        assert!((learned.arrivals.rate() - 2.0).abs() < 0.1, "{:?}", learned.arrivals);
        assert_eq!(learned.last_work, Some(at(299)));
        // One that was made anew counts from nothing.
        let mut snapshot = queue(0, 0, &[]);
        snapshot.depth.done = Some(0);
        learner.observe(&snapshot.depth, &snapshot.workers, at(300));
        assert_eq!(learner.learned().last_work, Some(at(299)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_seen_every_figure_can_be_reckoned_with(
            looks in proptest::collection::vec((snapshots(), steps()), 1..20), t in triggers(),
        ) {
            let mut learner = Learner::new();
            let mut second = 0;
            for (mut look, step) in looks {
                second += step;
                look.workers.iter_mut().for_each(|worker| worker.at = at(second));
                learner.observe(&look.depth, &look.workers, at(second));
                let pace = Pace::of(&learner.learned(), &t.priors);
                let all = [pace.throughput, pace.service, pace.slots];
                prop_assert!(all.iter().all(|x| x.is_finite() && *x > 0.0), "{:?}", pace);
                let rest = [pace.cold_start, pace.loading, pace.arrivals];
                prop_assert!(rest.iter().all(|x| x.is_finite() && *x >= 0.0), "{:?}", pace);
                let jobs = |(_, jobs): (f64, f64)| jobs.is_finite() && jobs >= 0.0;
                prop_assert!(learner.learned().recent.spans().all(jobs));
            }
        }

        #[test]
        fn one_mad_worker_moves_no_figure_far(mad in crate::kit::workers()) {
            static TAUGHT: LazyLock<Learner> = LazyLock::new(|| STREAM.taught(400));
            let mut learner = TAUGHT.clone();
            let before = Pace::of(&learner.learned(), &PRIORS);
            for (nth, mad) in (400..).zip(mad.into_iter().take(2)) {
                let mut look = STREAM.look(nth);
                let (id, at) = ("mad".to_owned(), look.depth.as_of);
                look.workers.push(ebb_queue::WorkerStatus { id, at, ..mad });
                learner.observe(&look.depth, &look.workers, look.depth.as_of);
            }
            let after = Pace::of(&learner.learned(), &PRIORS);
            let ratios = [
                after.throughput / before.throughput,
                after.service / before.service,
                after.slots / before.slots,
                (after.cold_start + 1.0) / (before.cold_start + 1.0),
                after.arrivals / before.arrivals,
            ];
            prop_assert!(ratios.iter().all(|r| (0.06..17.0).contains(r)), "{:?} {:?}", before, after);
        }
    }
}
