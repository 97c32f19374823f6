//! The observer of one queue: looks when something arrives, when something falls due, and every
//! now and then; opens the queue anew when the broker fails.

use std::sync::Arc;
use std::time::Duration;

use ebb_queue::{
    Backlog, Depth, Error, ErrorKind, QueueUrl, Result, RetryPolicy, Warning, WorkerStatus,
};
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::cause::Cause;
use crate::learn::Learner;
use crate::place::Place;
use crate::shared::Shared;
use crate::site::ANSWER;
use crate::snapshot::Snapshot;
use crate::trace::{self, LookSpan};
use crate::view::{Look, View};

/// An idle queue is looked at this many times less often than a busy one.
const IDLE: u32 = 5;

/// Looks take at most a tenth of the broker's time, and come at most this close and this far apart.
const CLOSEST: Duration = Duration::from_millis(20);
const FARTHEST: Duration = Duration::from_millis(500);
/// An arrival may be told before its job is on disk: where the first look finds nothing, the second
/// comes as soon as this.
const EAGER: Duration = Duration::from_millis(4);

/// The share by which chance shortens a period: the first, and those after it.
const AT_FIRST: f64 = 0.9;
const LATER: f64 = 0.1;

/// What a broker has to be left in order; one that answers takes about a second.
const FAREWELL: Duration = Duration::from_secs(2);

const BACKOFF: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    base: Duration::from_millis(200),
    // A broker that is back is to be seen again within 5 s, the time to connect included.
    cap: Duration::from_secs(2),
};

/// Looks at one queue and shows what it sees.
pub(crate) struct Observer {
    place: Place,
    shared: Arc<Shared>,
    view: watch::Sender<View>,
    learner: Learner,
    /// Why the broker was asked last, and when.
    asked: (Cause, Instant),
    /// What is looked at.
    open: Option<Arc<dyn Backlog>>,
}

impl Observer {
    pub(crate) fn new(place: &Place, shared: Arc<Shared>, view: watch::Sender<View>) -> Self {
        let asked = (Cause::Open, Instant::now());
        let (place, learner) = (place.clone(), Learner::new());
        Self { place, shared, view, learner, asked, open: None }
    }

    /// Looks at the queue where it is, until nobody asks for it any more.
    pub(crate) async fn run(&mut self, url: &QueueUrl) {
        let mut failures = 0;
        self.leave();
        loop {
            let opened = Instant::now();
            let Err(error) = self.session(url).await else { return };
            self.open = None;
            // A session that lasted is a fresh start.
            failures = if opened.elapsed() > BACKOFF.cap { 1 } else { failures + 1 };
            self.failed(&error, url);
            if self.shared.retire(&self.place) {
                return;
            }
            let pause = BACKOFF.after(failures, rand::random()).unwrap_or(BACKOFF.cap);
            sleep(pause).await;
        }
    }

    /// The queue is on another broker from now on.
    pub(crate) fn move_on(&mut self) {
        self.learner.move_on();
    }

    /// Leaves the broker in order; to be called when it is not looked at any more. Nobody waits for that
    /// but who ends the scaler.
    pub(crate) fn leave(&mut self) {
        let Some(open) = self.open.take() else { return };
        let place = self.place.clone();
        self.shared.tasks.spawn(async move {
            let closed = timeout(FAREWELL, open.close()).await;
            let closed = closed.unwrap_or_else(|_| Err(unavailable("the broker does not answer")));
            if let Err(error) = closed {
                tracing::debug!(profile = %place.profile, queue = %place.source, %error, "the queue is left as it is");
            }
        });
    }

    /// The queue is nowhere any more, and whoever watches it is to know.
    pub(crate) fn dismiss(&self) {
        self.shared.forget(&self.place);
    }

    /// Opens the queue and looks at it until an error; ends well when it is not wanted any more.
    async fn session(&mut self, url: &QueueUrl) -> Result<()> {
        self.asked = (Cause::Open, Instant::now());
        let backlog = answered(self.shared.connect.connect(url, &self.place.source)).await?;
        self.open = Some(Arc::clone(&backlog));
        // Armed before the first look, so that nothing falls in between.
        let mut arrivals = answered(backlog.arrivals()).await?;
        let warnings = answered(backlog.info()).await?.warnings;
        // Where nobody tells of arrivals, time alone does.
        let is_deaf = warnings.iter().any(|warning| warning.code == "no_push");
        let on_told = if is_deaf { Cause::Refresh } else { Cause::Arrival };
        self.weigh(warnings);
        let (mut cause, mut before) = (Cause::Open, Instant::now());
        loop {
            let asked = Instant::now();
            self.asked = (cause, asked);
            let seen = answered(see(&*backlog, |depth| self.glimpse(depth, asked))).await?;
            let snapshot = learn(&mut self.learner, seen);
            self.shared.metrics.looked(cause);
            // What it only waited for it does not know either.
            let at = asked + snapshot.depth.waited;
            let (next, next_cause) = self.plan(&snapshot, at, rand::random());
            // After a while without a look: not for each of many.
            let is_edge = cause == Cause::Arrival && asked - before > FARTHEST;
            let waited = snapshot.depth.waited;
            let is_early = is_edge && snapshot.depth.ready + snapshot.depth.in_flight == 0;
            self.show(snapshot, at, url);
            if self.shared.retire(&self.place) {
                return Ok(());
            }
            let spacing = (asked.elapsed().saturating_sub(waited) * 9).clamp(CLOSEST, FARTHEST);
            sleep_until(asked + if is_early { EAGER } else { spacing }).await;
            before = asked;
            cause = tokio::select! {
                told = arrivals.next() => match told {
                    Some(()) => on_told,
                    None => return Err(unavailable("the broker tells of no more arrivals")),
                },
                () = sleep_until(next) => next_cause,
            };
            // What was told in the meantime is answered by the same look.
            let mut left = 64;
            while left > 0 && arrivals.next().now_or_never().flatten().is_some() {
                left -= 1;
            }
        }
    }

    /// Shows where a setting of the broker is weaker than our promises; logged when it is news.
    fn weigh(&self, warnings: Vec<Warning>) {
        self.view.send_if_modified(|view| {
            if *view.warnings == warnings {
                return false;
            }
            for Warning { code, text } in &warnings {
                tracing::warn!(profile = %self.place.profile, queue = %self.place.source, code, "{text}");
            }
            view.warnings = warnings.into();
            true
        });
    }

    /// When to look again though nothing arrives, where this was true then; chance is from 0 to 1.
    fn plan(&self, snapshot: &Snapshot, at: Instant, chance: f64) -> (Instant, Cause) {
        let (cause, asked) = self.asked;
        let depth = &snapshot.depth;
        let limits = &self.shared.limits;
        let busy = depth.ready > 0 || depth.in_flight > 0 || !snapshot.workers.is_empty();
        let rest =
            if busy { limits.refresh } else { (limits.refresh * IDLE).min(limits.max_age / 3) };
        // Queues that are opened together are not looked at together from then on: that would keep
        // KEDA's calls waiting once a period.
        let spread = if cause == Cause::Open { AT_FIRST } else { LATER };
        let rest = rest.mul_f64(1.0 - spread * chance);
        let due = depth.next_due.map(|due| {
            let wait = Duration::try_from(due.duration_since(depth.as_of)).unwrap_or_default();
            // Brokers keep time in milliseconds.
            wait + Duration::from_millis(1)
        });
        match due {
            Some(due) if due < rest => (at + due, Cause::Due),
            _ => (asked + rest, Cause::Refresh),
        }
    }

    /// Shows the jobs that a look has counted before it has heard the workers, where nothing else
    /// counts: whoever only wants to know whether there is work need not wait for these.
    fn glimpse(&self, depth: &Depth, asked: Instant) {
        if depth.ready == 0 {
            return;
        }
        self.view.send_if_modified(|view| {
            if view.known(Instant::now(), self.shared.limits.max_age).is_ok() {
                return false;
            }
            let (depth, learned) = (depth.clone(), self.learner.learned());
            let at = asked + depth.waited;
            let snapshot = Arc::new(Snapshot { depth, workers: Vec::new(), learned });
            view.glimpse = Some(Look { snapshot, at, span: None });
            true
        });
    }

    fn show(&self, snapshot: Snapshot, at: Instant, url: &QueueUrl) {
        let span = self.trace(url, Ok(&snapshot));
        let depth = &snapshot.depth;
        tracing::debug!(profile = %self.place.profile, queue = %self.place.source, depth.ready, depth.in_flight, "looked at the queue");
        self.view.send_if_modified(|view| {
            // Who has heard nothing for so long that nothing was known is told also of the same.
            let was_known = view.known(Instant::now(), self.shared.limits.max_age).is_ok();
            let first = view.failed.take().is_some() || view.look.is_none();
            (view.missing, view.glimpse) = (None, None);
            if first {
                tracing::info!(profile = %self.place.profile, queue = %self.place.source, "broker answers");
            }
            let is_same = view.look.as_ref().is_some_and(|look| alike(look, &snapshot));
            let news = first || !was_known || !is_same;
            view.look = Some(Look { snapshot: Arc::new(snapshot), at, span });
            news
        });
    }

    fn failed(&self, error: &Error, url: &QueueUrl) {
        self.trace(url, Err(error));
        self.shared.metrics.look_failed(error.kind());
        self.view.send_modify(|view| {
            // Only of this the words are for whoever wrote the trigger: they name what it names.
            let is_missing = error.kind() == ErrorKind::Missing;
            if view.failed.is_none_or(|kind| is_missing != (kind == ErrorKind::Missing)) {
                let what = if is_missing { "not there" } else { "broker does not answer" };
                tracing::warn!(profile = %self.place.profile, queue = %self.place.source, %error, "{what}");
            }
            (view.failed, view.glimpse) = (Some(error.kind()), None);
            view.missing = is_missing.then(|| error.to_string().into());
        });
    }

    fn trace(
        &self,
        url: &QueueUrl,
        seen: std::result::Result<&Snapshot, &Error>,
    ) -> Option<LookSpan> {
        trace::looked(&self.shared.traces, &self.place, url, self.asked, seen)
    }
}

/// Whether a look brought nothing new, so that thousands of streams may sleep on.
fn alike(before: &Look, now: &Snapshot) -> bool {
    let before = &*before.snapshot;
    let Depth { as_of, waited, .. } = before.depth;
    let depth = Depth { as_of, waited, ..now.depth.clone() };
    let phases = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.workers.iter().map(|worker| (worker.phase, worker.in_flight)).collect()
    };
    before.depth == depth && phases(before) == phases(now)
}

/// Looks at a queue once, and learns from it.
pub(crate) async fn look(backlog: &dyn Backlog, learner: &mut Learner) -> Result<Snapshot> {
    Ok(learn(learner, see(backlog, |_| {}).await?))
}

/// Counts the jobs of a queue and hears its workers; tells at once what is counted.
async fn see(
    backlog: &dyn Backlog,
    counted: impl FnOnce(&Depth),
) -> Result<(Depth, Vec<WorkerStatus>)> {
    let count = async { backlog.depth().await.inspect(counted) };
    tokio::try_join!(count, backlog.workers())
}

fn learn(learner: &mut Learner, (depth, workers): (Depth, Vec<WorkerStatus>)) -> Snapshot {
    learner.observe(&depth, &workers, depth.as_of);
    Snapshot { depth, workers, learned: learner.learned() }
}

async fn answered<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| unavailable("the broker has not answered for 5 s");
    timeout(ANSWER, answer).await.map_err(late)?
}

fn unavailable(context: &str) -> Error {
    Error::new(ErrorKind::Unavailable, context)
}
