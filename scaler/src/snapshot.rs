//! What is known of a queue at one moment, and what of it counts for a trigger. No clock in here:
//! time comes in as an argument.

use std::borrow::Cow;
use std::time::Duration;

use ebb_queue::{Depth, Phase, Timestamp, WorkerStatus};

use crate::learn::{Inflow, Learned, Pace, low};
use crate::trigger::{Low, Mode, Trigger};

/// All that is known of a queue at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its jobs by state.
    pub depth: Depth,
    /// Its workers, as far as they report.
    pub workers: Vec<WorkerStatus>,
    /// What was learned of it so far; the default is nothing, and the priors count.
    pub learned: Learned,
}

/// A snapshot, and what of it counts for the objective and the wait of a trigger.
pub(crate) struct Known<'a> {
    pub(crate) all: &'a Snapshot,
    /// The same without the ready jobs that are left out.
    pub(crate) counted: &'a Snapshot,
    /// All jobs.
    pub(crate) jobs: &'a Jobs,
    /// The ready jobs that are left out.
    pub(crate) n_left_out: u64,
}

/// The same queue without the ready jobs that are left out.
pub(crate) fn counted(snapshot: &Snapshot, jobs_of_low: Low) -> Cow<'_, Snapshot> {
    if jobs_of_low == Low::Counts {
        return Cow::Borrowed(snapshot);
    }
    let mut counted = snapshot.clone();
    counted.depth.ready -= low(&snapshot.depth);
    // Of two that wait nobody tells which is the oldest; where only others wait it is none of
    // these.
    counted.depth.oldest_ready = snapshot.depth.oldest_ready.filter(|_| counted.depth.ready > 0);
    let Inflow { arrivals, recent, waiting_since, last_work } = snapshot.learned.without_low;
    counted.learned = Learned { arrivals, recent, waiting_since, last_work, ..snapshot.learned };
    Cow::Owned(counted)
}

/// How long the oldest ready job has waited by now: zero when none is ready, nothing where the broker
/// does not tell. Without jobs of low priority where these are left out; of those beside them nobody
/// tells the oldest, and it is as old as it can be.
pub(crate) fn oldest(snapshot: &Snapshot, jobs_of_low: Low, now: Timestamp) -> Option<Duration> {
    let depth = &snapshot.depth;
    let waited = |since| Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let oldest = match depth.oldest_ready {
        Some(published) => waited(published),
        None => return (depth.ready == 0).then_some(Duration::ZERO),
    };
    let n_low = low(depth);
    if jobs_of_low == Low::Counts || n_low == 0 {
        return Some(oldest);
    }
    let counting = depth.ready - n_low;
    if counting == 0 {
        return Some(Duration::ZERO);
    }
    let inflow = &snapshot.learned.without_low;
    let has_high = depth.ready_by_priority.is_some_and(|by| by.high > 0);
    // In order of arrival, those that wait are those that came last. High priority is out of order.
    let mut recent = inflow.recent.spans().filter(|_| !has_high);
    let arrived = recent.find(|(_, arrived)| *arrived >= counting as f64);
    let arrived = arrived.map(|(seconds, _)| waited(depth.as_of) + span(seconds));
    let seen = inflow.waiting_since.map(waited);
    Some([seen, arrived].into_iter().flatten().fold(oldest, Duration::min))
}

/// How long before it is due a delayed job counts.
pub(crate) fn ahead(trigger: &Trigger, pace: &Pace) -> Duration {
    match trigger.mode {
        Mode::Slo { .. } => span(pace.cold_start),
        _ => Duration::ZERO,
    }
}

/// Seconds of ours: finite, not negative, and far below what a span can hold.
pub(crate) fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The jobs of a snapshot as they are at a moment.
pub(crate) struct Jobs {
    pub(crate) ready: u64,
    /// Held by anybody.
    pub(crate) in_flight: u64,
    /// The part that does not go away with a draining worker.
    pub(crate) staying: u64,
    /// Counted as ready though it was delayed when the queue was looked at.
    pub(crate) came_due: u64,
}

impl Jobs {
    pub(crate) fn count(snapshot: &Snapshot, at: Timestamp) -> Self {
        let depth = &snapshot.depth;
        let held = |draining: bool| {
            let workers = snapshot.workers.iter();
            let those = workers.filter(|worker| (worker.phase == Phase::Draining) == draining);
            those.fold(0u64, |sum, worker| sum.saturating_add(worker.in_flight))
        };
        let (staying, draining) = (held(false), held(true));
        // One may have come due since the look. A lease that ends makes no job of one more: what is
        // in flight counts already.
        let is_due = depth.next_delayed.is_some_and(|due| due <= at);
        let came_due = u64::from(depth.delayed > 0 && is_due);
        Self {
            ready: depth.ready.saturating_add(came_due),
            // Not every broker tells what is in flight: the workers then do.
            in_flight: depth.in_flight.max(staying.saturating_add(draining)),
            staying: depth.in_flight.saturating_sub(draining).max(staying),
            came_due,
        }
    }
}

#[cfg(test)]
mod tests {
    use ebb_queue::ByPriority;

    use super::{Snapshot, oldest};
    use crate::kit::{NOW, at, queue};
    use crate::learn::Recent;
    use crate::trigger::Low;

    #[test]
    fn the_oldest_job_of_an_objective_is_none_of_low_priority_that_it_leaves_out() {
        let left_out = Low::LeftOut { wait: None };
        let seconds =
            |snapshot: &Snapshot, low| oldest(snapshot, low, at(7201)).map(|age| age.as_secs());
        let mut look = queue(2003, 0, &[]);
        look.depth.as_of = at(7200);
        let by = |high, normal| Some(ByPriority { high, normal, low: 2003 - high - normal });
        // Of a broker that tells no priorities all count.
        assert_eq!(seconds(&look, left_out), Some(7201));
        look.depth.ready_by_priority = by(0, 0);
        assert_eq!(seconds(&look, Low::Counts), Some(7201));
        assert_eq!(seconds(&look, left_out), Some(0));
        // Nobody saw when this one came.
        look.depth.ready_by_priority = by(0, 1);
        assert_eq!(seconds(&look, left_out), Some(7201));
        look.learned.without_low.waiting_since = Some(at(7170));
        assert_eq!(seconds(&look, left_out), Some(31));
        // One waited all the time, and never the same.
        look.learned.without_low.waiting_since = Some(NOW);
        look.learned.without_low.recent = Recent::of(&[0.0, 0.0, 4.0]);
        assert_eq!(seconds(&look, left_out), Some(1 + 2));
        look.depth.ready_by_priority = by(0, 5);
        assert_eq!(seconds(&look, left_out), Some(7201), "no more than four came lately");
        // Those that came may be of high priority, and gone.
        look.depth.ready_by_priority = by(1, 1);
        assert_eq!(seconds(&look, left_out), Some(7201));
        look.depth.ready_by_priority = by(0, 2003);
        assert_eq!(seconds(&look, left_out), Some(7201), "none is left out");
        (look.depth.oldest_ready, look.depth.ready_by_priority) = (None, by(0, 0));
        assert_eq!(seconds(&look, left_out), None, "what the broker does not tell");
        assert_eq!(seconds(&queue(0, 0, &[]), left_out), Some(0));
    }
}
