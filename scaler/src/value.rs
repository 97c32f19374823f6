//! The value of the metric, by mode. Pure.

use std::fmt;
use std::time::Duration;

use ebb_queue::{Phase, Timestamp, WorkerStatus};

use crate::learn::{Pace, low};
use crate::snapshot::{Jobs, Snapshot};
use crate::trigger::{Low, Mode, Trigger};

/// What a value is made of, so that a person can follow it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Basis {
    /// Jobs that are ready, and those in flight that count.
    Jobs {
        /// Ready.
        ready: u64,
        /// In flight on workers that stay; 0 where these do not count.
        in_flight: u64,
    },
    /// Seconds of one replica's work.
    Drain {
        /// Ready, and in flight on workers that stay.
        jobs: u64,
        /// How fast they go.
        pace: Pace,
    },
    /// Replicas; the largest of the three counts.
    Slo {
        /// The fewest with which every job that waits, and what arrives until a further replica
        /// works, is done in its time: for each age, the jobs of this age and older by the moment
        /// at which the youngest of them is to be done. This is the processor demand criterion of
        /// real-time scheduling (Baruah, Rosier and Howell, 1990) with replicas for processors.
        ///
        /// Replicas that are there work from now on, those that start from their readiness, and
        /// further ones after a cold start and most of a period of the HPA, reckoned from when the
        /// jobs came that ask for them. A job is planned to be done within 0.9 of the objective
        /// less half of its own time, since what does not fit in whole does not fit; however late
        /// it is, 0.35 of that always counts, since more replicas do not turn time back.
        backlog: f64,
        /// What those of the running jobs fill that outlast the HPA's next decision:
        /// `b / c * exp(-15 / s)` with `s` seconds a job, if these are distributed exponentially.
        /// Of what a worker holds, no more runs than it has slots; the rest is backlog.
        busy: f64,
        /// What arrives, at the wanted utilisation: `a / (x * utilization)`.
        arriving: f64,
        /// How fast all goes.
        pace: Pace,
        /// What the objective is not for, where there is such.
        left_out: Option<LeftOut>,
    },
    /// Cost.
    Cost {
        /// Ready, and in flight on workers that stay.
        jobs: u64,
        /// What the broker says that all cost, if it does.
        told: Option<f64>,
    },
}

/// Ready jobs that an objective is not for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// So many, of low priority.
    Ready(u64),
    /// Some may be, but the broker tells no priorities: all count.
    Untold,
}

/// The HPA looks this often, in seconds.
const HPA_PERIOD: f64 = 15.0;

/// The part of it that passes until it looks: half of it on average, and seldom more than this.
const UNTIL_HPA: f64 = 0.75 * HPA_PERIOD;

/// The share of an objective that is planned with.
const PLANNED: f64 = 0.9;

/// The share of the planned time that counts, however much of it is gone.
const NEVER_LESS: f64 = 0.35;

/// The value, and what it is made of.
pub(crate) fn value(
    snapshot: &Snapshot,
    jobs: &Jobs,
    trigger: &Trigger,
    pace: &Pace,
    now: Timestamp,
) -> (f64, Basis) {
    let &Jobs { ready, staying, .. } = jobs;
    let all = ready.saturating_add(staying);
    match trigger.mode {
        Mode::Jobs { .. } => (all as f64, Basis::Jobs { ready, in_flight: staying }),
        Mode::Waiting { .. } => (ready as f64, Basis::Jobs { ready, in_flight: 0 }),
        Mode::Drain { .. } => {
            (all as f64 / pace.throughput, Basis::Drain { jobs: all, pace: *pace })
        }
        Mode::Slo { within, utilization } => {
            let backlog = Plan::new(within, snapshot, pace).replicas(snapshot, jobs, now);
            let outlasting = (-HPA_PERIOD / pace.service).exp();
            let busy = running(snapshot, jobs) / pace.slots * outlasting;
            let arriving = pace.arrivals / (pace.throughput * utilization);
            let most = backlog.max(busy).max(arriving);
            // KEDA writes three decimals; a rate that fades never comes to an end by itself.
            let replicas = if all == 0 && most < 0.001 { 0.0 } else { most };
            (replicas, Basis::Slo { backlog, busy, arriving, pace: *pace, left_out: None })
        }
        Mode::Cost { per_job, .. } => {
            let told = snapshot.depth.cost.filter(|cost| cost.is_finite() && *cost >= 0.0);
            let share = all as f64 / ready.saturating_add(jobs.in_flight).max(1) as f64;
            let hinted = told.unwrap_or(0.0) * share;
            (hinted.max(all as f64 * per_job), Basis::Cost { jobs: all, told })
        }
    }
}

/// What is there for an objective. All times are in seconds.
struct Plan {
    /// From publication to the moment at which a job is to be done.
    window: f64,
    /// Until a replica works that is asked for now.
    lead: f64,
    /// Replicas that work.
    at_work: f64,
    /// For each replica that starts: until it works. The soonest first.
    starting: Vec<f64>,
    pace: Pace,
}

impl Plan {
    fn new(within: Duration, snapshot: &Snapshot, pace: &Pace) -> Self {
        let within = within.as_secs_f64();
        let workers = || snapshot.workers.iter();
        let n_at_work = workers().filter(|w| matches!(w.phase, Phase::Idle | Phase::Busy)).count();
        let to_come = |worker: &WorkerStatus| {
            let begun: f64 = worker.cold_start.iter().map(|(_, seconds)| seconds.max(0.0)).sum();
            (pace.loading - begun).max(0.0)
        };
        let starting = workers().filter(|worker| worker.phase == Phase::Starting);
        let mut starting: Vec<f64> = starting.map(to_come).collect();
        starting.sort_by(f64::total_cmp);
        Self {
            window: (PLANNED * within - pace.service / 2.0).max(within * NEVER_LESS),
            lead: pace.cold_start + UNTIL_HPA,
            at_work: n_at_work as f64,
            starting,
            pace: *pace,
        }
    }

    /// The fewest replicas that do all there is, and all that comes soon, in time.
    fn replicas(&self, snapshot: &Snapshot, jobs: &Jobs, now: Timestamp) -> f64 {
        let ready = jobs.ready as f64;
        // Of what runs, half is done on average; what is held beyond that has not begun.
        let running = jobs.staying as f64 - running(snapshot, jobs) / 2.0;
        let coming = self.pace.arrivals * self.lead;
        let mut most = self.needed(ready + running + coming, -self.lead);
        let oldest = oldest_age(snapshot, now);
        // In order of arrival, the ready jobs of at most this age are those that arrived since.
        let (mut age, mut younger) = (0.0, 0.0);
        let spans = snapshot.learned.recent.spans();
        for (span, arrived) in spans.take_while(|(span, _)| *span < oldest) {
            if arrived > younger && ready > younger {
                // Those between two ages are taken to be in the middle.
                let middle = f64::midpoint(age, span);
                most = most.max(self.needed(ready - younger + running, middle));
            }
            (age, younger) = (span, arrived);
        }
        let rest = (ready - younger).max(0.0);
        most.max(self.needed(rest + running, if rest > 0.0 { oldest } else { 0.0 }))
    }

    /// The fewest replicas that do so many jobs before the youngest of them, of this age, is late.
    /// A negative age is of jobs that are still to come.
    fn needed(&self, jobs: f64, age: f64) -> f64 {
        let least = self.window * NEVER_LESS;
        let left = (self.window - age).max(least);
        // A further replica was asked for when the jobs came.
        let spent = if age < 0.0 { age + self.lead } else { age.max(self.lead) };
        let left_to_new = (self.window - spent).max(least).min(left);
        let mut work = jobs / self.pace.throughput;
        if work <= self.at_work * left {
            return work / left;
        }
        work -= self.at_work * left;
        let mut replicas = self.at_work;
        for to_come in &self.starting {
            // One that starts already is there no later than one that is still to be asked for.
            let time = (left - to_come).max(left_to_new);
            if work <= time {
                return replicas + work / time;
            }
            work -= time;
            replicas += 1.0;
        }
        replicas + work / left_to_new
    }
}

/// The jobs that run on workers that stay: of what they hold, as many as they have slots.
fn running(snapshot: &Snapshot, jobs: &Jobs) -> f64 {
    let staying = snapshot.workers.iter().filter(|worker| worker.phase != Phase::Draining);
    let held = staying.clone().map(|worker| worker.in_flight.min(worker.slots.max(1)));
    let running = held.fold(0u64, u64::saturating_add);
    // Where no worker reports, all that is in flight may run.
    if staying.count() == 0 { jobs.staying as f64 } else { running.min(jobs.staying) as f64 }
}

/// For how many seconds the oldest ready job has been ready.
fn oldest_age(snapshot: &Snapshot, now: Timestamp) -> f64 {
    let since = snapshot.depth.oldest_ready.into_iter().chain(snapshot.learned.waiting_since).max();
    since.map_or(0.0, |since| now.duration_since(since).as_secs_f64().max(0.0))
}

impl Basis {
    /// The same with what is left out of it.
    pub(crate) fn leaving_out(mut self, all: &Snapshot, jobs_of_low: Low) -> Self {
        if let (Self::Slo { left_out, .. }, Low::LeftOut { .. }) = (&mut self, jobs_of_low) {
            let is_told = all.depth.ready == 0 || all.depth.ready_by_priority.is_some();
            *left_out = Some(match low(&all.depth) {
                n if is_told => LeftOut::Ready(n),
                _ => LeftOut::Untold,
            });
        }
        self
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(n) => {
                write!(f, "{n} ready of low priority left out, since sloPriority is normal")
            }
            Self::Untold => f.write_str(
                "none left out though sloPriority is normal, since the broker tells no priorities",
            ),
        }
    }
}

impl Basis {
    /// The same for a person who reads it of this trigger.
    pub(crate) fn words(&self, trigger: &Trigger) -> String {
        let note = trigger.note().map(|note| format!("; {note}"));
        format!("{self}{}", note.unwrap_or_default())
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jobs { ready, in_flight: 0 } => write!(f, "{ready} ready"),
            Self::Jobs { ready, in_flight } => write!(f, "{ready} ready and {in_flight} in flight"),
            Self::Drain { jobs, pace } => {
                write!(f, "{jobs} jobs at {:.3} jobs/s of a replica", pace.throughput)
            }
            Self::Slo { backlog, busy, arriving, pace, left_out } => {
                write!(
                    f,
                    "the largest of {backlog:.2} for the backlog, {busy:.2} busy and \
                     {arriving:.2} for {:.3} arrivals/s, at {:.3} jobs/s of a replica, {:.1} s a \
                     job and {:.0} s to start",
                    pace.arrivals, pace.throughput, pace.service, pace.cold_start
                )?;
                left_out.map_or(Ok(()), |left_out| write!(f, "; {left_out}"))
            }
            Self::Cost { jobs, told: Some(cost) } => write!(f, "a cost of {cost} for {jobs} jobs"),
            Self::Cost { jobs, told: None } => {
                write!(f, "{jobs} jobs, whose costs the broker does not sum")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ebb_queue::Phase;
    use proptest::prelude::{ProptestConfig, prop_assert, proptest};

    use super::Basis;
    use crate::decision::decide;
    use crate::kit::{NOW, at, queue, trigger};
    use crate::learn::{Arrivals, Recent};
    use crate::snapshot::Snapshot;
    use crate::trigger::{Mode, Priors, Trigger};

    /// A job a second for each replica, 10 s to start.
    fn slo(within: u64) -> Trigger {
        trigger(Mode::Slo { within: Duration::from_secs(within), utilization: 1.0 })
    }

    #[track_caller]
    fn assert_value(snapshot: &Snapshot, trigger: &Trigger, seconds: i64, expected: f64) {
        let decision = decide(snapshot, trigger, at(seconds));
        assert!((decision.value - expected).abs() < 0.01, "{decision:?} is not {expected}");
    }

    #[test]
    fn a_burst_asks_for_the_replicas_that_do_it_in_time() {
        // 53.5 s are planned with, and 21.25 s are gone before a new replica works.
        assert_value(&queue(100, 0, &[]), &slo(60), 0, 100.0 / 32.25);
        // Those that work have all the time, those that start have 43.5 s.
        let two = [(Phase::Idle, 0), (Phase::Idle, 0)];
        assert_value(&queue(100, 0, &two), &slo(60), 0, 100.0 / 53.5);
        assert_value(&queue(140, 0, &two), &slo(60), 0, 2.0 + 33.0 / 32.25);
        assert_value(&queue(50, 0, &[(Phase::Starting, 0)]), &slo(60), 0, 1.0 + 6.5 / 32.25);
        // What was asked for when the jobs came has started since.
        assert_value(&queue(100, 0, &[]), &slo(60), 15, 100.0 / 32.25);
        assert_value(&queue(100, 0, &[]), &slo(60), 30, 100.0 / 23.5);
        // However late it is, more than this does not help.
        assert_value(&queue(100, 0, &[]), &slo(60), 500, 100.0 / (0.35 * 53.5));
    }

    #[test]
    fn a_cold_start_that_was_given_is_planned_with_whatever_workers_report_of_theirs() {
        let mut trigger = slo(600);
        trigger.priors.least_cold_start = Duration::from_secs(180);
        trigger.priors.cold_start = trigger.priors.least_cold_start;
        let mut burst = queue(3000, 0, &[]);
        let at_first = decide(&burst, &trigger, NOW).value;
        burst.learned.cold_start = Some(25.0);
        assert_value(&burst, &trigger, 0, at_first);
        // A worker that has begun is past what it cannot see: it is there in 25 s.
        burst.workers.push(crate::kit::worker(Phase::Starting, 0));
        let left = 0.9 * 600.0 - 0.5;
        let to_new = left - 180.0 - 0.75 * 15.0;
        assert_value(&burst, &trigger, 0, 1.0 + (3000.0 - (left - 25.0)) / to_new);
    }

    #[test]
    fn jobs_that_came_one_after_the_other_ask_for_less_than_a_burst_of_their_age() {
        let mut snapshot = queue(200, 0, &[(Phase::Busy, 1); 4]);
        let burst = decide(&snapshot, &slo(60), at(40)).value;
        let mut learner = crate::learn::Learner::new();
        for second in 0..=40 {
            snapshot = queue(5 * second, 0, &[(Phase::Busy, 1); 4]);
            learner.observe(&snapshot.depth, &snapshot.workers, at(second.cast_signed()));
        }
        snapshot.learned = crate::learn::Learned { slots: None, ..learner.learned() };
        let stream = decide(&snapshot, &slo(60), at(40)).value;
        // No fewer than do all of it within the time that is planned with.
        assert!(stream < 0.7 * burst && stream > 200.0 / 53.5, "{stream} {burst}");
    }

    #[test]
    fn what_arrives_and_what_outlasts_the_next_decision_are_floors() {
        let mut snapshot = queue(0, 0, &[(Phase::Busy, 0); 9]);
        snapshot.learned.arrivals = Arrivals { fast: 4.0, slow: 4.0 };
        assert_value(&snapshot, &slo(60), 0, 4.0);
        let relaxed = Mode::Slo { within: Duration::from_secs(60), utilization: 0.5 };
        assert_value(&snapshot, &trigger(relaxed), 0, 8.0);
        let mut running = queue(0, 9, &[(Phase::Busy, 1); 9]);
        let long = |service| {
            let service = Duration::from_secs(service);
            Trigger { priors: Priors { service, ..slo(0).priors }, ..slo(6000) }
        };
        running.learned.slots = Some(1.0);
        assert_value(&running, &long(1500), 0, 9.0 * 0.99);
        assert!(decide(&running, &long(2), NOW).value < 0.1);
        // What a worker fetched ahead runs nowhere yet, and asks for no other worker by being there.
        let mut ahead = queue(0, 16, &[(Phase::Busy, 16)]);
        ahead.learned.slots = Some(8.0);
        assert_value(&ahead, &long(1500), 0, 0.99);
    }

    #[test]
    fn costs_are_what_the_broker_says_and_else_by_the_job() {
        let cost = trigger(Mode::Cost { per_replica: 100.0, per_job: 3.0 });
        let mut snapshot = queue(6, 4, &[(Phase::Busy, 2), (Phase::Draining, 2)]);
        assert_value(&snapshot, &cost, 0, 24.0);
        snapshot.depth.cost = Some(1000.0);
        assert_value(&snapshot, &cost, 0, 800.0);
        // Jobs without a hint cost nothing by what the broker sums, and are work all the same.
        snapshot.depth.cost = Some(0.0);
        assert_value(&snapshot, &cost, 0, 24.0);
    }

    #[test]
    fn a_person_can_read_what_a_value_is_made_of() {
        let slo = decide(&queue(7, 3, &[(Phase::Busy, 3)]), &slo(60), NOW);
        assert!(matches!(slo.basis, Basis::Slo { .. }));
        let words = slo.basis.to_string();
        assert!(words.contains("for the backlog") && words.contains("1.000 jobs/s"), "{words}");
        let jobs = trigger(Mode::Jobs { per_replica: 1.0 });
        let words = decide(&queue(7, 3, &[]), &jobs, NOW).basis.to_string();
        assert_eq!(words, "7 ready and 3 in flight");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn of_jobs_that_came_in_spurts_more_ask_for_no_less_and_a_burst_of_their_age_for_no_less(
            spurts in proptest::collection::vec(0..400u32, 1..20),
            (ready, more, oldest) in (1..4000u64, 1..400u64, 1..400u64),
            (within, workers) in (30..600u64, 0..6usize),
        ) {
            let value = |ready, spurts: &[f64]| {
                let mut snapshot = queue(ready, 0, &vec![(Phase::Busy, 1); workers]);
                snapshot.depth.oldest_ready = Some(NOW - Duration::from_secs(oldest));
                snapshot.learned.recent = Recent::of(spurts);
                decide(&snapshot, &slo(within), NOW).value
            };
            let spurts: Vec<f64> = spurts.into_iter().map(f64::from).collect();
            let (one, other) = (value(ready, &spurts), value(ready + more, &spurts));
            prop_assert!(other >= one * (1.0 - 1e-12), "{} {}", one, other);
            let burst = value(ready, &[]);
            prop_assert!(one <= burst * (1.0 + 1e-12), "{} {}", one, burst);
        }

        #[test]
        fn a_pool_of_this_size_drains_a_burst_from_nothing_within_the_objective(
            jobs in 1..100_000u64, within in 60..3600u64,
        ) {
            let replicas = decide(&queue(jobs, 0, &[]), &slo(within), NOW).value.ceil();
            // They work from 10 s after the next of the HPA's looks on, which is 15 s away at most.
            let done = 25.0 + jobs as f64 / replicas;
            prop_assert!(done <= within as f64, "{} replicas need {} s", replicas, done);
        }

        #[test]
        fn twice_the_jobs_at_twice_the_speed_are_the_same_to_an_objective(
            jobs in 0..1000u64, within in 5..600u64, workers in 0..9usize,
        ) {
            let twice = |times: u64| {
                let service = Duration::from_secs(8) / u32::try_from(times).unwrap();
                let mut trigger = slo(within);
                trigger.priors = Priors { service, slots: 4.0, ..trigger.priors };
                let mut snapshot = queue(times * jobs, 0, &vec![(Phase::Idle, 0); workers]);
                // The time of a job itself counts in seconds, and must not change.
                snapshot.learned.service = crate::learn::Evidence { jobs: 1e12, seconds: 1e12 };
                snapshot.learned.throughput =
                    crate::learn::Evidence { jobs: 1e12 * times as f64, seconds: 1e12 };
                decide(&snapshot, &trigger, NOW).value
            };
            let (once, again) = (twice(1), twice(2));
            prop_assert!((once - again).abs() <= 1e-6 * once.max(1.0), "{} {}", once, again);
        }
    }
}
