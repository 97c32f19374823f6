//! What came of a trace under a policy.

use std::time::Duration;

use super::trace::Trace;

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    objective: Duration,
    jobs: Vec<Job>,
    /// Pod time from start to end, loading and draining included.
    gpu: Duration,
    /// Pods that were started.
    pub(crate) n_starts: usize,
    /// Executions that a pod did not finish within its grace.
    pub(crate) n_killed: usize,
    /// Once in a second.
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    arrived: Duration,
    /// When the execution began that ended it.
    begun: Option<Duration>,
    ended: Option<Duration>,
}

/// The pool and the queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    /// In seconds from the start.
    pub(crate) at: u64,
    /// Those that load and those that drain included.
    pub(crate) pods: u32,
    /// Jobs that nobody holds.
    pub(crate) ready: u32,
}

impl Outcome {
    pub(super) fn new(trace: &Trace, objective: Duration) -> Self {
        let jobs = trace.arrivals.iter().map(|arrival| Job {
            arrived: Duration::from_secs_f64(arrival.at),
            begun: None,
            ended: None,
        });
        Self {
            objective,
            jobs: jobs.collect(),
            gpu: Duration::ZERO,
            n_starts: 0,
            n_killed: 0,
            samples: Vec::new(),
        }
    }

    pub(super) fn begun(&mut self, job: usize, now: Duration) {
        self.jobs[job].begun = Some(now);
    }

    pub(super) fn done(&mut self, job: usize, now: Duration) {
        self.jobs[job].ended = Some(now);
    }

    pub(super) fn ended(&mut self, lived: Duration) {
        self.gpu += lived;
    }

    pub(super) fn sample(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// What was not done has waited until now.
    pub(super) fn close(&mut self, now: Duration) {
        for job in self.jobs.iter_mut().filter(|job| job.ended.is_none()) {
            job.begun = Some(now);
        }
    }

    /// Seconds from the arrival of each job to the moment at which it began to run.
    pub(crate) fn waits(&self) -> Vec<f64> {
        self.jobs.iter().map(|job| job.wait().as_secs_f64()).collect()
    }

    /// The share of jobs that ended within the objective after they came.
    pub(crate) fn attainment(&self) -> f64 {
        let met = |job: &&Job| job.ended.is_some_and(|at| at <= job.arrived + self.objective);
        self.jobs.iter().filter(met).count() as f64 / self.jobs.len() as f64
    }

    pub(crate) fn gpu_seconds(&self) -> f64 {
        self.gpu.as_secs_f64()
    }

    pub(crate) fn n_undone(&self) -> usize {
        self.jobs.iter().filter(|job| job.ended.is_none()).count()
    }
}

impl Job {
    fn wait(&self) -> Duration {
        self.begun.unwrap_or_default().saturating_sub(self.arrived)
    }
}
