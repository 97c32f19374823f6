//! What became of the jobs, and how it is told. No clock in here.

use std::collections::HashMap;

use ebb_queue::{JobId, JobResult};
use serde::Serialize;

use crate::output::{grouped, seconds};

/// What the demo saw; the last line of `ebb demo --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// The model that ran.
    pub(crate) model: String,
    /// Jobs that the queue accepted.
    pub(crate) enqueued: u64,
    /// Jobs with an answer.
    pub(crate) completed: u64,
    /// Jobs that failed, with a reason.
    pub(crate) failed: u64,
    /// Jobs with neither.
    pub(crate) lost: u64,
    /// See [`Audit::duplicated`].
    pub(crate) duplicated: u64,
    /// The most worker processes at once.
    pub(crate) max_workers: usize,
    /// Worker processes at the end.
    pub(crate) final_workers: usize,
    /// Workers that ended by themselves.
    pub(crate) crashed: u64,
    /// Jobs that the results raised on the queue of alerts, where the model raises any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alerts: Option<u64>,
    /// Jobs that each worker completed.
    pub(crate) completed_by_worker: Vec<u64>,
    /// From the first `publish` being called to `true` on the scaler's stream.
    pub(crate) first_enqueue_to_active_ms: Option<f64>,
    /// To the first worker that says it is ready.
    pub(crate) first_enqueue_to_first_worker_ready_ms: Option<f64>,
    /// To the first result in the hands of who asked.
    pub(crate) first_enqueue_to_first_result_ms: Option<f64>,
    /// To the last one.
    pub(crate) first_enqueue_to_last_result_ms: Option<f64>,
    /// To no worker process.
    pub(crate) first_enqueue_to_zero_ms: Option<f64>,
    /// From the enqueuing of a job to its result: half of the jobs took no longer.
    pub job_p50_ms: Option<f64>,
    /// The same for all but the slowest twentieth.
    pub job_p95_ms: Option<f64>,
}

impl Verdict {
    /// Whether each promise was kept.
    #[must_use]
    pub(crate) fn is_good(&self) -> bool {
        let bad = self.lost + self.failed + self.duplicated + self.final_workers as u64;
        bad == 0 && self.enqueued > 0 && self.completed == self.enqueued
    }

    /// For people.
    #[must_use]
    pub(crate) fn words(&self) -> String {
        let time = |ms: Option<f64>| seconds(ms.map(|ms| ms / 1e3));
        let shares: Vec<String> = self.completed_by_worker.iter().map(|n| grouped(*n)).collect();
        let shares = if shares.len() > 1 {
            format!(" (jobs each: {})", shares.join(", "))
        } else {
            String::new()
        };
        let alerts = self.alerts.map(|n| format!("alerts raised        {}\n", grouped(n)));
        [
            format!("jobs in              {}", grouped(self.enqueued)),
            format!("results stored       {}", grouped(self.completed)),
            format!("failed {}, lost {}, duplicated {}", self.failed, self.lost, self.duplicated),
            alerts.unwrap_or_default(),
            "from the first enqueue".to_owned(),
            format!("  to active          {}", time(self.first_enqueue_to_active_ms)),
            format!("  to a ready worker  {}", time(self.first_enqueue_to_first_worker_ready_ms)),
            format!("  to a result        {}", time(self.first_enqueue_to_first_result_ms)),
            format!("  to all results     {}", time(self.first_enqueue_to_last_result_ms)),
            format!("  to zero workers    {}", time(self.first_enqueue_to_zero_ms)),
            format!(
                "a job waited         {} at the median, {} at p95, until its result",
                time(self.job_p50_ms),
                time(self.job_p95_ms)
            ),
            format!(
                "workers              0, then {}, then {}{shares}",
                self.max_workers, self.final_workers
            ),
        ]
        .join("\n")
    }
}

/// Counts what became of each job.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Ids that the queue gave out, in order.
    ids: Vec<JobId>,
    /// Each result when it was first seen.
    seen: HashMap<JobId, JobResult>,
    /// What each worker said last that it had completed.
    by_worker: HashMap<String, u64>,
    changed: u64,
    repeated: u64,
    gone: u64,
}

impl Audit {
    /// The queue accepted a job under this id.
    pub(crate) fn accepted(&mut self, id: JobId, duplicate: bool) {
        // All jobs of the demo are different: one taken for another is one answered twice.
        self.repeated += u64::from(duplicate);
        self.ids.push(id);
    }

    /// The ids in the order of acceptance.
    #[must_use]
    pub(crate) fn ids(&self) -> &[JobId] {
        &self.ids
    }

    /// A result was there.
    pub(crate) fn saw(&mut self, result: &JobResult) {
        if let Some(before) = self.seen.insert(result.id.clone(), result.clone()) {
            self.changed += u64::from(before != *result);
        }
    }

    /// A result that was there is there no more.
    pub(crate) fn missed(&mut self, id: &JobId) {
        self.gone += u64::from(self.seen.remove(id).is_some_and(|it| it.outcome.is_completed()));
    }

    /// A worker said how many jobs it has completed since it started.
    pub(crate) fn worker(&mut self, id: &str, completed: u64) {
        let known = self.by_worker.entry(id.to_owned()).or_default();
        *known = completed.max(*known);
    }

    /// The result of a job.
    #[must_use]
    pub(crate) fn result(&self, id: &JobId) -> Option<&JobResult> {
        self.seen.get(id)
    }

    /// Jobs with an answer.
    #[must_use]
    pub(crate) fn completed(&self) -> u64 {
        self.seen.values().filter(|result| result.outcome.is_completed()).count() as u64
    }

    /// Jobs that failed with a reason.
    #[must_use]
    pub(crate) fn failed(&self) -> u64 {
        self.seen.len() as u64 - self.completed()
    }

    /// Jobs with neither an answer nor a reason.
    #[must_use]
    pub(crate) fn lost(&self) -> u64 {
        let there = self.ids.iter().filter(|id| self.seen.contains_key(*id)).count();
        (self.ids.len() - there) as u64
    }

    /// Everything that happened more than once: results that changed after they were first seen or
    /// went away, jobs that the queue took for others, and jobs that workers were allowed to
    /// acknowledge beyond one for each answer.
    #[must_use]
    pub(crate) fn duplicated(&self) -> u64 {
        let acknowledged: u64 = self.by_worker.values().sum();
        self.changed + self.gone + self.repeated + acknowledged.saturating_sub(self.completed())
    }

    /// Jobs that each worker completed, most first.
    #[must_use]
    pub(crate) fn shares(&self) -> Vec<u64> {
        let mut shares: Vec<u64> = self.by_worker.values().copied().filter(|n| *n > 0).collect();
        shares.sort_by_key(|n| std::cmp::Reverse(*n));
        shares
    }
}

/// A quantile of sorted numbers, by rank.
#[must_use]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use ebb_queue::{Outcome, Timestamp};

    use super::*;

    fn id(name: &str) -> JobId {
        name.parse().unwrap()
    }

    fn done(name: &str, body: &'static str) -> JobResult {
        let outcome =
            Outcome::Completed { content_type: "application/json".into(), body: body.into() };
        JobResult {
            id: id(name),
            attempt: 1,
            outcome,
            finished_at: Timestamp::UNIX_EPOCH,
            queue: None,
        }
    }

    fn audit() -> Audit {
        let mut audit = Audit::default();
        audit.accepted(id("a"), false);
        audit.accepted(id("b"), false);
        audit
    }

    #[test]
    fn a_job_without_a_result_is_lost_and_one_with_a_reason_has_failed() {
        let mut audit = audit();
        assert_eq!((audit.completed(), audit.failed(), audit.lost()), (0, 0, 2));
        audit.saw(&done("a", "1"));
        assert_eq!((audit.completed(), audit.failed(), audit.lost()), (1, 0, 1));
        let outcome = Outcome::Failed("expired".into());
        audit.saw(&JobResult { outcome, ..done("b", "") });
        assert_eq!((audit.completed(), audit.failed(), audit.lost()), (1, 1, 0));
    }

    #[test]
    fn all_is_well_when_each_result_stays_and_each_job_is_acknowledged_once() {
        let mut audit = audit();
        for _ in 0..2 {
            audit.saw(&done("a", "1"));
            audit.saw(&done("b", "2"));
        }
        audit.worker("w1", 1);
        audit.worker("w2", 0);
        audit.worker("w2", 1);
        assert_eq!((audit.duplicated(), audit.lost()), (0, 0));
        assert_eq!(audit.shares(), [1, 1]);
    }

    #[test]
    fn whatever_happens_twice_is_counted() {
        let mut changed = audit();
        changed.saw(&done("a", "1"));
        changed.saw(&done("a", "2"));
        assert_eq!(changed.duplicated(), 1);

        let mut gone = audit();
        gone.saw(&done("a", "1"));
        gone.missed(&id("a"));
        assert_eq!((gone.duplicated(), gone.lost()), (1, 2));

        let mut taken_for_another = audit();
        taken_for_another.accepted(id("a"), true);
        assert_eq!(taken_for_another.duplicated(), 1);

        let mut acknowledged = audit();
        acknowledged.saw(&done("a", "1"));
        acknowledged.saw(&done("b", "1"));
        acknowledged.worker("w1", 2);
        acknowledged.worker("w2", 1);
        assert_eq!(acknowledged.duplicated(), 1);
    }

    #[test]
    fn a_quantile_is_one_of_the_numbers() {
        let numbers: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(quantile(&numbers, 0.5), Some(10.0));
        assert_eq!(quantile(&numbers, 0.95), Some(19.0));
        assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    fn verdict() -> Verdict {
        Verdict {
            model: "sentinel".into(),
            enqueued: 1500,
            completed: 1500,
            failed: 0,
            lost: 0,
            duplicated: 0,
            max_workers: 2,
            final_workers: 0,
            crashed: 0,
            alerts: None,
            completed_by_worker: vec![800, 700],
            first_enqueue_to_active_ms: Some(7.4),
            first_enqueue_to_first_worker_ready_ms: Some(412.0),
            first_enqueue_to_first_result_ms: Some(431.0),
            first_enqueue_to_last_result_ms: Some(3210.0),
            first_enqueue_to_zero_ms: Some(5800.0),
            job_p50_ms: Some(1800.0),
            job_p95_ms: None,
        }
    }

    #[test]
    fn the_verdict_reads_well() {
        insta::assert_snapshot!(verdict().words(), @r"
        jobs in              1,500
        results stored       1,500
        failed 0, lost 0, duplicated 0

        from the first enqueue
          to active          7.4 ms
          to a ready worker  412 ms
          to a result        431 ms
          to all results     3.2 s
          to zero workers    5.8 s
        a job waited         1.8 s at the median, - at p95, until its result
        workers              0, then 2, then 0 (jobs each: 800, 700)
        ");
    }

    #[test]
    fn one_broken_promise_spoils_the_verdict() {
        let good = verdict();
        assert!(good.is_good());
        for bad in [
            Verdict { lost: 1, completed: 1499, ..good.clone() },
            Verdict { failed: 1, completed: 1499, ..good.clone() },
            Verdict { duplicated: 1, ..good.clone() },
            Verdict { final_workers: 1, ..good.clone() },
            Verdict { completed: 1499, ..good.clone() },
            Verdict { enqueued: 0, completed: 0, ..good.clone() },
        ] {
            assert!(!bad.is_good(), "{bad:?}");
        }
    }
}
