//! The way of a job through this worker: how long it is in each stage, and its spans, one for the
//! way, one in it per stage, and one per batch.
//!
//! The way of a job travels with it and notes each stage as it ends; there are no spans when traces
//! are off, or when the job's trace is not sampled. What a job holds or answers is in no span.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ebb_queue::{Clock, Delivery, Job};
use ebb_telemetry::{
    KeyValue, NewSpan, Span, SpanContext, SpanKind, TraceId, Traces, read_traceparent, trace_of,
    traceparent,
};
use tokio::time::Instant;

use crate::stages::{Stage, Stages};

/// A job's way through this worker.
#[derive(Debug)]
pub(crate) struct Way {
    /// When the job was received.
    pub(crate) since: Instant,
    /// From publication to receipt.
    queued: Duration,
    stage: Stage,
    stage_since: Instant,
    /// When the last batch that it was in ended: until then it ran, however many turns it took.
    ran_until: Option<Instant>,
    stages: Arc<Stages>,
    /// Missing when nobody sees it.
    trace: Option<Box<Trace>>,
}

/// The span of a job that is here. Dropped, the job has left: settled, or lost to somebody else.
#[derive(Debug)]
struct Trace {
    job: Span,
    traces: Traces,
    clock: Arc<dyn Clock>,
    stage: Stage,
    stage_since: SystemTime,
    /// When the last batch that it was in ended, and its span.
    ran_until: Option<(SystemTime, Option<SpanContext>)>,
    outcome: &'static str,
}

/// A batch that ran.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRun {
    /// Its jobs.
    pub(crate) n_items: usize,
    /// Its size, in tokens that the device works through.
    pub(crate) cost: usize,
    /// How long it took, until now.
    pub(crate) took: Duration,
    /// Whether it failed as a whole.
    pub(crate) failed: bool,
}

impl Way {
    /// Begins with a job that was just received: it has been in the queue since its publication.
    pub(crate) fn begin(
        traces: &Traces,
        stages: &Arc<Stages>,
        clock: &Arc<dyn Clock>,
        delivery: &Delivery,
    ) -> Self {
        let (since, now) = (Instant::now(), clock.now());
        // The producer's clock may be ahead of ours.
        let enqueued = delivery.job.enqueued_at.min(now);
        let queued = Duration::try_from(now.duration_since(enqueued)).unwrap_or_default();
        stages.observe(Stage::Queue, queued);
        let trace = Trace::begin(traces, clock, delivery, (enqueued.into(), now.into()));
        let (stage, stages) = (Stage::Decode, Arc::clone(stages));
        Self { since, queued, stage, stage_since: since, ran_until: None, stages, trace }
    }

    /// From publication until now.
    pub(crate) fn since_publication(&self) -> Duration {
        self.queued + self.since.elapsed()
    }

    /// The job can run.
    pub(crate) fn decoded(&mut self) {
        self.enter(Stage::Wait);
    }

    /// The job has run in so many turns, or will not.
    pub(crate) fn finished(&mut self, n_turns: u32) {
        self.enter(Stage::Store);
        if let Some(trace) = self.trace.as_mut().filter(|_| n_turns > 1) {
            trace.job.set(KeyValue::new("turns", i64::from(n_turns)));
        }
    }

    /// How the job ended is stored.
    pub(crate) fn stored(&mut self) {
        self.enter(Stage::Settle);
    }

    /// The broker has answered.
    pub(crate) fn settled(mut self, outcome: &'static str) {
        self.leave(Instant::now());
        if let Some(trace) = &mut self.trace {
            trace.outcome = outcome;
        }
    }

    /// What a reply to the job belongs to: the span of its way here, or what the job came with.
    pub(crate) fn traceparent(&self, job: &Job) -> Option<String> {
        let own = self.trace.as_ref().and_then(|trace| trace.job.context());
        own.map(|own| traceparent(&own)).or_else(|| job.headers.traceparent.clone())
    }

    /// The trace of that, which log lines about the job name.
    pub(crate) fn trace_id(&self, job: &Job) -> Option<TraceId> {
        let own = self.trace.as_ref().and_then(|trace| trace.job.context());
        own.map(|own| own.trace_id()).or_else(|| trace_of(job.headers.traceparent.as_deref()?))
    }

    fn enter(&mut self, stage: Stage) {
        if self.stage != stage {
            let end = self.ran_until.take().unwrap_or_else(Instant::now);
            self.leave(end);
            self.stage = stage;
        }
        if let Some(trace) = &mut self.trace {
            let now = trace.clock.now().into();
            trace.enter(stage, now);
        }
    }

    fn leave(&mut self, now: Instant) {
        let since = std::mem::replace(&mut self.stage_since, now);
        self.stages.observe(self.stage, now.saturating_duration_since(since));
    }

    /// It was in a batch that took so long, until now. It may take another turn, or waits again when
    /// the batch failed.
    fn ran(&mut self, BatchRun { took, failed, .. }: BatchRun, now: Instant) {
        if self.stage != Stage::Infer {
            self.leave(now.checked_sub(took).unwrap_or(now));
            self.stage = Stage::Infer;
        }
        self.ran_until = Some(now);
        if failed {
            self.leave(now);
            (self.stage, self.ran_until) = (Stage::Wait, None);
        }
    }
}

impl BatchRun {
    /// Notes the batch, linked to its jobs, and in each of them that it ran in this batch.
    pub(crate) fn note<'a>(self, ways: impl Iterator<Item = &'a mut Way>) {
        let now = Instant::now();
        let ran = |way: &'a mut Way| {
            way.ran(self, now);
            way.trace.as_deref_mut()
        };
        let mut jobs: Vec<&mut Trace> = ways.filter_map(ran).collect();
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
        for job in &mut jobs {
            job.enter(Stage::Infer, begun);
            if self.failed {
                job.leave(ended, context.clone().into_iter().collect(), true);
                (job.stage, job.ran_until) = (Stage::Wait, None);
            } else {
                job.ran_until = Some((ended, context.clone()));
            }
        }
    }
}

impl Trace {
    /// Begins with the publication of the job, if anybody sees it.
    fn begin(
        traces: &Traces,
        clock: &Arc<dyn Clock>,
        delivery: &Delivery,
        (enqueued, now): (SystemTime, SystemTime),
    ) -> Option<Box<Self>> {
        if !traces.is_on() {
            return None;
        }
        let job = &delivery.job;
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
        span.is_recorded().then(|| {
            let (traces, clock) = (traces.clone(), Arc::clone(clock));
            let (stage, outcome) = (Stage::Queue, "lost");
            let (stage_since, ran_until) = (enqueued, None);
            let mut trace =
                Self { job: span, traces, clock, stage, stage_since, ran_until, outcome };
            trace.enter(Stage::Decode, now);
            Box::new(trace)
        })
    }

    /// Ends the stage that the job is in, and begins another.
    fn enter(&mut self, stage: Stage, now: SystemTime) {
        if self.stage != stage {
            let (end, batch) = self.ran_until.take().unwrap_or((now, None));
            self.leave(end, batch.into_iter().collect(), false);
            self.stage = stage;
        }
    }

    fn leave(&mut self, now: SystemTime, links: Vec<SpanContext>, failed: bool) {
        let since = std::mem::replace(&mut self.stage_since, now);
        let mut stage = self.traces.begin(|| NewSpan {
            parent: self.job.context(),
            links,
            since: since.min(now),
            ..NewSpan::new(self.stage.word(), SpanKind::Internal)
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
