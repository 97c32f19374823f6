//! What the statuses of the workers say, from one to the next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use ebb_queue::{Phase, Timestamp, WorkerId, WorkerStatus};
use jiff::SignedDuration;

use super::Learned;
use super::evidence::FAR;

/// Workers, as they last reported.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet {
    workers: HashMap<WorkerId, Seen>,
    cold_starts: VecDeque<f64>,
    looked: Option<Timestamp>,
}

/// What a look brought.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    /// Jobs completed since the look before.
    pub(super) completed: f64,
    /// Whether a worker is there to stay.
    pub(super) up: bool,
}

/// A worker as it last reported, and its time that no completion accounts for yet.
#[derive(Debug, Clone)]
struct Seen {
    at: Timestamp,
    looked: Timestamp,
    completed: u64,
    in_flight: u64,
    is_busy: bool,
    started: bool,
    /// Seconds for which it held jobs, summed over these.
    held: f64,
    /// Seconds for which it had more than enough to do.
    loaded: f64,
    /// Mean of the jobs it held when it was busy.
    batch: f64,
}

/// From one status to the next; what lies in a longer gap is not known.
const GAP: SignedDuration = SignedDuration::from_secs(10);

/// A worker that was not seen for so long is forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// The median of so many cold starts counts.
const COLD_STARTS: usize = 9;

/// A worker that has completed so many full batches tells what one takes, if it ever does.
const UNTOLD: u64 = 16;

/// The part that a new sighting has in the mean of the jobs held.
const NEW: f64 = 0.1;

impl Fleet {
    pub(super) fn observe(
        &mut self,
        workers: &[WorkerStatus],
        deep: bool,
        now: Timestamp,
        learned: &mut Learned,
    ) -> News {
        let elapsed = self.looked.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let is_first = self.looked.replace(now).is_none();
        let mut news = News::default();
        let (mut service, mut throughput) = (Vec::new(), Vec::new());
        for worker in workers {
            news.up |= worker.phase != Phase::Draining;
            self.note_cold_start(worker, learned);
            let Some(seen) = self.workers.get_mut(&worker.id) else {
                // One that was not there before has done all it did since.
                let completed = plausible(worker.completed as f64, elapsed, learned);
                news.completed += if is_first { 0.0 } else { completed };
                self.workers.insert(worker.id.clone(), Seen::new(worker, now));
                continue;
            };
            seen.looked = now;
            if worker.at <= seen.at {
                // Its clock was set back.
                if seen.at.duration_since(worker.at) > GAP {
                    *seen = Seen::new(worker, now);
                }
                continue;
            }
            let done = seen.advance(worker, deep, learned.service.seen());
            news.completed += plausible(done.completed, done.seconds, learned);
            service.extend(done.held.map(|seconds| (done.completed, seconds)));
            throughput.extend(done.loaded.map(|seconds| (done.completed, seconds)));
        }
        let jobs = |all: &[(f64, f64)]| all.iter().map(|(jobs, _)| jobs).sum();
        learned.service.fade(jobs(&service), elapsed);
        learned.throughput.fade(jobs(&throughput), elapsed);
        service.into_iter().for_each(|(jobs, seconds)| learned.service.add(jobs, seconds));
        throughput
            .into_iter()
            .for_each(|(jobs, seconds)| learned.throughput.add_rate(jobs, seconds));
        let reporting = |worker: &&WorkerStatus| worker.phase != Phase::Draining;
        let slots = workers.iter().filter(reporting).map(|worker| worker.slots.max(1) as f64);
        learned.slots = median(slots.collect()).or(learned.slots);
        let fitted = workers.iter().filter_map(|worker| self.fitted(worker));
        let fitted = median(fitted.collect());
        // A worker that has begun a while ago and tells none has none: a model that takes several turns
        // for a job came in the place of one that takes one.
        let tells_none = |worker: &WorkerStatus| {
            worker.batch_time.is_none()
                && worker.completed >= worker.slots.max(1).saturating_mul(UNTOLD)
        };
        let is_void = workers.iter().filter(reporting).any(tells_none);
        learned.fitted = fitted.or(learned.fitted.filter(|_| !is_void));
        self.workers.retain(|_, seen| seen.looked + FORGET > now);
        news
    }

    /// Forgets the workers, and keeps what they taught.
    pub(super) fn move_on(&mut self) {
        self.workers.clear();
        self.looked = None;
    }

    /// Goes on from where the clock was set back to.
    pub(super) fn set_back(&mut self, now: Timestamp) {
        self.looked = None;
        self.workers.values_mut().for_each(|seen| seen.looked = seen.looked.min(now));
    }

    fn note_cold_start(&mut self, worker: &WorkerStatus, learned: &mut Learned) {
        let known = self.workers.get(&worker.id).is_some_and(|seen| seen.started);
        let seconds: f64 = worker.cold_start.iter().map(|(_, seconds)| seconds).sum();
        if known || worker.phase == Phase::Starting || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        if let Some(seen) = self.workers.get_mut(&worker.id) {
            seen.started = true;
        }
        self.cold_starts.push_back(seconds);
        if self.cold_starts.len() > COLD_STARTS {
            self.cold_starts.pop_front();
        }
        learned.cold_start = median(self.cold_starts.iter().copied().collect());
    }

    /// Seconds per job in a full batch: the mean is of batches as they were, and the part of a job
    /// in the time that any batch takes shrinks as the batch grows. It ran no more at once than it
    /// held, so the figure is at most too great.
    fn fitted(&self, worker: &WorkerStatus) -> Option<f64> {
        let time = worker.batch_time?;
        let fits = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        if !fits(time.base) || !fits(time.per_job) || time.per_job <= 0.0 {
            return None;
        }
        let slots = worker.slots.max(1) as f64;
        let batch = self.workers.get(&worker.id)?.batch.clamp(1.0, slots);
        let of_itself = (time.per_job - time.base / batch).max(0.0);
        Some((of_itself + time.base / slots).min(time.per_job))
    }
}

/// What a worker did from one status to the next.
struct Done {
    completed: f64,
    /// The time from one to the other.
    seconds: f64,
    held: Option<f64>,
    loaded: Option<f64>,
}

impl Seen {
    fn new(worker: &WorkerStatus, now: Timestamp) -> Self {
        Self {
            at: worker.at,
            looked: now,
            completed: worker.completed,
            in_flight: worker.in_flight,
            is_busy: worker.phase == Phase::Busy,
            started: worker.phase != Phase::Starting && !worker.cold_start.is_empty(),
            held: 0.0,
            loaded: 0.0,
            batch: worker.in_flight as f64,
        }
    }

    fn advance(&mut self, worker: &WorkerStatus, deep: bool, service: Option<f64>) -> Done {
        let elapsed = worker.at.duration_since(self.at);
        let known = elapsed <= GAP;
        let seconds = elapsed.as_secs_f64();
        // A counter that went back began anew.
        let is_anew = worker.completed < self.completed;
        let completed = worker.completed - if is_anew { 0 } else { self.completed };
        let is_busy = worker.phase == Phase::Busy;
        let share = self.loaded_share(worker, deep, service.is_some_and(|s| s >= 2.0 * seconds));
        if known {
            self.held += self.in_flight as f64 * seconds;
            self.loaded += share * seconds;
        } else {
            (self.held, self.loaded) = (0.0, 0.0);
        }
        let counts = known && !is_anew && completed > 0;
        let done = Done {
            completed: completed as f64,
            seconds,
            held: counts.then(|| std::mem::take(&mut self.held)),
            loaded: (counts && share > 0.0).then(|| std::mem::take(&mut self.loaded)),
        };
        if worker.in_flight > 0 {
            self.batch += (worker.in_flight as f64 - self.batch) * NEW;
        }
        (self.at, self.completed, self.in_flight) = (worker.at, worker.completed, worker.in_flight);
        self.is_busy = is_busy;
        done
    }

    /// For which part of the time since its last status the worker had more than enough to do.
    fn loaded_share(&self, worker: &WorkerStatus, deep: bool, are_jobs_long: bool) -> f64 {
        let slots = worker.slots.max(1);
        if deep && self.is_busy && worker.phase == Phase::Busy {
            return 1.0;
        }
        // Jobs that outlast a status are what it held in between.
        match (self.in_flight >= slots && are_jobs_long, worker.in_flight >= slots) {
            (false, _) => 0.0,
            (true, true) => 1.0,
            (true, false) => 0.5,
        }
    }
}

/// At most what a worker can have completed in this time, by all that is known of it.
fn plausible(completed: f64, seconds: f64, learned: &Learned) -> f64 {
    let slots = learned.slots.unwrap_or(1.0);
    let alone = || learned.service.known().map(|seconds| slots / seconds);
    let Some(rate) = learned.throughput.known().map(f64::recip).or_else(alone) else {
        return completed;
    };
    completed.min(FAR * rate * seconds + 2.0 * slots)
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}
