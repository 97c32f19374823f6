//! The spans of a job: one for its way through this worker, one in it per stage, and one per batch.
//!
//! The way of a job travels with it and notes each stage as it ends; nothing is noted when traces
//! are off, or when the job's trace is not sampled. What a job holds or answers is in no span.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ebb_queue::{Clock, Delivery, Job};
use ebb_telemetry::{
    KeyValue, NewSpan, Span, SpanContext, SpanKind, Traces, read_traceparent, traceparent,
};
use tokio::time::Instant;

/// Where a job is when nobody says otherwise: it is waiting for the device.
const WAIT: &str = "wait";

/// A job's way through this worker.
#[derive(Debug)]
pub(crate) struct Way {
    /// When the job was received.
    pub(crate) since: Instant,
    /// Missing when nobody sees it.
    trace: Option<Box<Trace>>,
}

/// The span of a job that is here. Dropped, the job has left: settled, or lost to somebody else.
#[derive(Debug)]
struct Trace {
    job: Span,
    traces: Traces,
    clock: Arc<dyn Clock>,
    stage: &'static str,
    stage_since: SystemTime,
    outcome: &'static str,
}

/// A batch that ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRun {
    /// Its jobs.
    pub(crate) n_items: usize,
    /// Its size, in tokens with padding counted.
    pub(crate) cost: usize,
    /// How long it took, until now.
    pub(crate) took: Duration,
    /// Whether it failed as a whole.
    pub(crate) failed: bool,
}

impl Way {
    /// Begins with a job that was just received: it has been in the queue since its publication.
    pub(crate) fn begin(traces: &Traces, clock: &Arc<dyn Clock>, delivery: &Delivery) -> Self {
        let since = Instant::now();
        if !traces.is_on() {
            return Self { since, trace: None };
        }
        let job = &delivery.job;
        let now = clock.now();
        // The producer's clock may be ahead of ours.
        let enqueued = SystemTime::from(job.enqueued_at.min(now));
        let parent = job.headers.traceparent.as_deref();
        let span = traces.begin(|| NewSpan {
            parent: parent.and_then(|parent| read_traceparent(parent, None)),
            since: enqueued,
            fields: vec![
                KeyValue::new("job.id", job.id.to_string()),
                KeyValue::new("attempt", i64::from(delivery.attempt)),
                KeyValue::new("priority", job.headers.priority.as_str()),
            ],
            ..NewSpan::new("job", SpanKind::Consumer)
        });
        let trace = span.is_recorded().then(|| {
            let (traces, clock) = (traces.clone(), Arc::clone(clock));
            let (stage, outcome) = ("queue", "lost");
            let mut trace =
                Trace { job: span, traces, clock, stage, stage_since: enqueued, outcome };
            trace.enter("decode", now.into());
            Box::new(trace)
        });
        Self { since, trace }
    }

    /// The job can run.
    pub(crate) fn decoded(&mut self) {
        self.enter(WAIT);
    }

    /// The job has run, or will not.
    pub(crate) fn finished(&mut self) {
        self.enter("store");
    }

    /// How the job ended is stored.
    pub(crate) fn stored(&mut self) {
        self.enter("settle");
    }

    /// The broker has answered.
    pub(crate) fn settled(mut self, outcome: &'static str) {
        if let Some(trace) = &mut self.trace {
            trace.outcome = outcome;
        }
    }

    /// What a reply to the job belongs to: the span of its way here, or what the job came with.
    pub(crate) fn traceparent(&self, job: &Job) -> Option<String> {
        let own = self.trace.as_ref().and_then(|trace| trace.job.context());
        own.map(|own| traceparent(&own)).or_else(|| job.headers.traceparent.clone())
    }

    fn enter(&mut self, stage: &'static str) {
        if let Some(trace) = &mut self.trace {
            let now = trace.clock.now().into();
            trace.enter(stage, now);
        }
    }
}

impl BatchRun {
    /// Notes the batch, linked to its jobs, and in each of them that it ran in this batch.
    pub(crate) fn note<'a>(self, ways: impl Iterator<Item = &'a mut Way>) {
        let mut jobs: Vec<&mut Trace> = ways.filter_map(|way| way.trace.as_deref_mut()).collect();
        let Some(first) = jobs.first() else { return };
        let (traces, ended) = (first.traces.clone(), SystemTime::from(first.clock.now()));
        let begun = ended - self.took;
        let mut batch = traces.begin(|| NewSpan {
            links: jobs.iter().filter_map(|job| job.job.context()).collect(),
            since: begun,
            fields: vec![
                KeyValue::new("batch.items", count(self.n_items)),
                KeyValue::new("batch.cost", count(self.cost)),
            ],
            ..NewSpan::new("batch", SpanKind::Internal)
        });
        if self.failed {
            batch.fail();
        }
        let context = batch.context();
        batch.end(ended);
        // A batch that failed is taken apart, and its jobs wait again.
        let next = if self.failed { WAIT } else { "store" };
        for job in &mut jobs {
            job.enter("infer", begun);
            job.leave(ended, context.clone().into_iter().collect(), self.failed);
            job.stage = next;
        }
    }
}

impl Trace {
    /// Ends the stage that the job is in, and begins another.
    fn enter(&mut self, stage: &'static str, now: SystemTime) {
        if self.stage != stage {
            self.leave(now, Vec::new(), false);
            self.stage = stage;
        }
    }

    fn leave(&mut self, now: SystemTime, links: Vec<SpanContext>, failed: bool) {
        let since = std::mem::replace(&mut self.stage_since, now);
        let mut stage = self.traces.begin(|| NewSpan {
            parent: self.job.context(),
            links,
            since: since.min(now),
            ..NewSpan::new(self.stage, SpanKind::Internal)
        });
        if failed {
            stage.fail();
        }
        stage.end(now);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let now = self.clock.now().into();
        self.leave(now, Vec::new(), false);
        let mut job = std::mem::take(&mut self.job);
        job.set(KeyValue::new("outcome", self.outcome));
        if !matches!(self.outcome, "completed" | "released") {
            job.fail();
        }
        job.end(now);
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
