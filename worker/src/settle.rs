//! The last two stages: store what came out, then tell the broker. Always in this order: a crash
//! in between repeats a job, and the store's put-if-absent makes the repeat invisible.
//!
//! A reply goes out in between, and it is always the result that is stored: who finds that an
//! earlier attempt has stored one sends that one, for the earlier attempt may have been lost before
//! it could. So a reply is sent at least once, and a completed one is always the same. Of a job that
//! expired while nobody held it the worker knows nothing: that is the broker's business.

mod calls;
mod exit;
mod groups;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebb_queue::{
    Delivery, ErrorKind, Job, JobResult, Outcome, Settled, Settlement, Stored, Unsettled, Verdict,
    answer_at, short_reason,
};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;
use tracing::field::display;
use tracing::{debug, error, warn};

use crate::codec::Answer;
use crate::held::{End, Finished, Held, Output};
use crate::lease::Loan;
use crate::outcome::{COMPLETED, LOST, outcome};
use crate::served::Served;
use crate::shared::{PATIENCE, Pauses, lock, on_cpu, send_all, sleep_until};
use crate::trace::Way;
use calls::Unanswered;
pub(crate) use exit::Exit;
use groups::Groups;

/// Jobs that are stored, or settled, in one go: a broker commits them together.
const CHUNK: usize = 256;

/// A job whose end is stored, and what the broker is to be told.
#[derive(Debug)]
pub(crate) struct Concluded {
    settlement: Settlement,
    /// Where it ran, or would have.
    lane: Option<usize>,
    loan: Loan,
    way: Way,
}

/// What the broker did not take of a call.
struct Refused {
    error: ebb_queue::Error,
    jobs: Vec<Concluded>,
    /// Whether it took the others, or did not answer at all.
    took_others: bool,
}

/// Encodes and stores answers, many at once.
pub(crate) async fn store(
    served: Served,
    mut finished: Receiver<Finished>,
    out: Sender<Concluded>,
) {
    let mut storing = SelectAll::<BoxStream<'static, (u64, Vec<Option<Concluded>>)>>::new();
    let mut groups = Groups::default();
    let (mut jobs, mut is_open) = (Vec::new(), true);
    loop {
        let now = Instant::now();
        let has_room = is_open && groups.has_room(now);
        let later = groups.next_room(now);
        tokio::select! { biased;
            Some((group, concluded)) = storing.next() => {
                groups.concluded(group, concluded.len());
                send_all(&out, concluded.into_iter().flatten().collect()).await;
            }
            n_jobs = finished.recv_many(&mut jobs, CHUNK), if has_room => {
                is_open = n_jobs > 0;
                if is_open {
                    let group = groups.begin(n_jobs, Instant::now());
                    let concluded = served.conclude_all(std::mem::take(&mut jobs));
                    storing.push(concluded.map(move |jobs| (group, jobs)).boxed());
                }
            }
            () = sleep_until(later), if is_open && !has_room => {}
            else => return,
        }
    }
}

/// Settles, many at once. What the broker did not take is kept and sent again; the others go on
/// meanwhile, if it takes any.
pub(crate) async fn settle(served: Served, mut stored: Receiver<Concluded>) {
    let mut pauses = Pauses::default();
    let (mut left, mut again) = (Vec::new(), None);
    let (mut is_open, mut is_taking) = (true, true);
    while is_open || !left.is_empty() {
        let mut sent = Vec::new();
        tokio::select! { biased;
            () = sleep_until(again), if again.is_some() => {
                sent.append(&mut left);
                again = None;
            }
            n_jobs = stored.recv_many(&mut sent, CHUNK), if is_open && is_taking => {
                is_open = n_jobs > 0;
            }
        }
        while sent.len() < CHUNK
            && let Ok(more) = stored.try_recv()
        {
            sent.push(more);
        }
        if sent.is_empty() {
            continue;
        }
        let Err(refused) = served.settle_once(sent).await else {
            is_taking = true;
            if left.is_empty() {
                pauses.reset();
            }
            continue;
        };
        let Refused { error, jobs, took_others } = refused;
        match took_others {
            true => served.complain("settle", &error),
            false => served.trouble("settle", &error),
        }
        // Those that wait already say when to try again.
        if again.is_none() {
            let pause = pauses.next(served.shared.chance());
            if !error.kind().heals() && pauses.n_failures() >= PATIENCE {
                served.forgo(&jobs, &error);
                pauses.reset();
                is_taking = true;
                continue;
            }
            again = Some(Instant::now() + pause);
        }
        left.extend(jobs);
        // Where one kind of end has no room, another may.
        is_taking = left.len() < CHUNK && (took_others || error.kind() == ErrorKind::Full);
    }
}

impl Served {
    fn encode_one(&self, finished: Finished) -> Finished<Answer> {
        let Finished { delivery, lane, loan, way, room, end } = finished;
        let end = match end {
            End::Done(output) => match self.encode(output, &delivery.job) {
                Some(answer) => End::Done(answer),
                None => End::Reject("the answer made the encoder panic; a bug of ours".into()),
            },
            End::Retry(reason) => End::Retry(reason),
            End::Reject(reason) => End::Reject(reason),
        };
        Finished { delivery, lane, loan, way, room, end }
    }

    /// The answer, counted for whoever it is for; none if that made the encoder panic.
    fn encode(&self, output: Output, job: &Job) -> Option<Answer> {
        let Output { lane, output, asked, spent } = output;
        let lane = &self.shared.lanes[lane];
        let encode = || lane.codec.encode(output, asked, job, &spent);
        let (answer, metrics) = (catch_unwind(AssertUnwindSafe(encode)).ok(), &self.shared.metrics);
        let tenant = job.headers.tenant.as_deref();
        match &answer {
            Some(answer) => metrics.spend(&lane.name, tenant, answer, &spent),
            None => metrics.waste(&lane.name, spent.seconds),
        }
        answer
    }

    /// The jobs of a group as they are concluded, those together that are at the same time; in place
    /// of each that somebody else has by now comes none.
    fn conclude_all(
        &self,
        jobs: Vec<Finished>,
    ) -> impl Stream<Item = Vec<Option<Concluded>>> + use<> {
        let served = self.clone();
        let encoded = async move {
            let encoded = on_cpu(&served, jobs, Self::encode_one).await;
            let conclude = |job| {
                let served = served.clone();
                async move { served.conclude_one(job).await }
            };
            encoded.into_iter().map(conclude).collect::<FuturesUnordered<_>>()
        };
        encoded.flatten_stream().ready_chunks(CHUNK)
    }

    /// Stores how a job ended, and says what to tell the broker; nothing if the lease is lost.
    async fn conclude_one(&self, finished: Finished<Answer>) -> Option<Concluded> {
        // Its room is another's once it is stored.
        let Finished { delivery, lane, loan, mut way, room: _room, end } = finished;
        let settlement = match end {
            // Whoever holds the lease now is the one to say how the job ends,
            _ if loan.is_lost() && !matches!(end, End::Done(_)) => None,
            // but an answer is an answer.
            End::Done(answer) => self.complete(delivery, (&loan, &way), answer).await,
            End::Retry(reason) => self.retry(delivery, (&loan, &way), reason).await,
            End::Reject(reason) => self.fail(delivery, (&loan, &way), reason).await,
        };
        let Some(settlement) = settlement.filter(|_| !loan.is_lost()) else {
            self.lose(lane, &loan);
            return None;
        };
        way.stored();
        Some(Concluded { settlement, lane, loan, way })
    }

    /// Counts a job that somebody else has by now.
    fn lose(&self, lane: Option<usize>, loan: &Loan) {
        loan.lose(&self.shared.metrics);
        self.count(lane, LOST);
    }

    async fn complete(
        &self,
        delivery: Delivery,
        (loan, way): (&Loan, &Way),
        answer: Answer,
    ) -> Option<Settlement> {
        let Answer { content_type, body, alert, .. } = answer;
        let outcome = Outcome::Completed { content_type: content_type.to_owned(), body };
        let result = self.result(&delivery, outcome);
        match self.publish(&delivery, (loan, way), result, alert).await {
            Ok(()) => Some(delivery.ack()),
            Err(Unanswered::Lost) => None,
            Err(Unanswered::Denied(error)) => Some(self.leave_to_others(delivery, &error)),
            Err(Unanswered::Refused(error)) if error.kind() == ErrorKind::Invalid => {
                let reason = format!(
                    "the result cannot be stored: {error}; ask for less in one job, or give the \
                     workers a store for large answers with --payloads"
                );
                self.fail(delivery, (loan, way), reason).await
            }
            Err(Unanswered::Refused(error)) => {
                let reason = format!("the result or its alert could not be stored: {error}");
                self.retry(delivery, (loan, way), reason).await
            }
        }
    }

    /// Stores an answer, and sends what is to be known before the ack.
    async fn publish(
        &self,
        delivery: &Delivery,
        (loan, way): (&Loan, &Way),
        result: JobResult,
        alert: Option<bytes::Bytes>,
    ) -> Result<(), Unanswered> {
        // Before the result: an attempt that finds one may take the job for done, alert included.
        // Under an id of its own: told again or not, it alerts once.
        if let Some(body) = alert {
            self.alert(&delivery.job, loan, body).await?;
        }
        let stored = self.put(loan, &result).await?;
        let to = delivery.job.headers.reply_to.as_ref();
        let there = match (stored, to) {
            (Stored::Stale, _) => return Err(Unanswered::Lost),
            (_, None) => return Ok(()),
            (Stored::Duplicate, Some(_)) => self.stored(loan, &result.id).await?,
            (Stored::Stored, Some(_)) => None,
        };
        let Some(to) = to else { return Ok(()) };
        let trace = way.traceparent(&delivery.job);
        self.reply(loan, to, &there.unwrap_or(result), trace.as_deref()).await
    }

    async fn retry(
        &self,
        delivery: Delivery,
        held: (&Loan, &Way),
        reason: String,
    ) -> Option<Settlement> {
        let policy = &self.shared.settings.retry;
        let attempt = delivery.attempt;
        match policy.after(attempt, self.shared.chance()) {
            Some(after) => Some(delivery.retry(after, short_reason(&reason))),
            None => {
                let max = policy.max_attempts;
                let reason = format!("attempt {attempt} of {max} failed: {reason}");
                self.fail(delivery, held, reason).await
            }
        }
    }

    /// Rejects a job, unless an earlier attempt has stored its answer and then crashed.
    async fn fail(
        &self,
        delivery: Delivery,
        (loan, way): (&Loan, &Way),
        reason: String,
    ) -> Option<Settlement> {
        // It may repeat what the job says.
        let reason = short_reason(&reason).into_owned();
        let (id, trace_id) = (&delivery.job.id, way.trace_id(&delivery.job).map(display));
        let attempt = delivery.attempt;
        match lock(&self.shared.failures_said).pass(Instant::now()) {
            Some(n_unsaid) => {
                warn!(job.id = %id, trace_id, attempt, %reason, n_unsaid, "job failed");
            }
            None => debug!(job.id = %id, trace_id, attempt, %reason, "job failed"),
        }
        // The failure is stored too, so that whoever follows the job is told.
        let mut result = self.result(&delivery, Outcome::Failed { reason: reason.clone() });
        let there = match self.put(loan, &result).await {
            Ok(Stored::Stale) => return None,
            Ok(Stored::Duplicate) => self.stored(loan, &result.id).await,
            Ok(Stored::Stored) => Ok(None),
            Err(unanswered) => Err(unanswered),
        };
        match there {
            Ok(there) => result = there.unwrap_or(result),
            Err(Unanswered::Lost) => return None,
            Err(Unanswered::Denied(error)) => return Some(self.leave_to_others(delivery, &error)),
            // If the store refuses, the dead letter tells.
            Err(Unanswered::Refused(_)) => {}
        }
        if let Some(to) = &delivery.job.headers.reply_to {
            let trace = way.traceparent(&delivery.job);
            if self.reply(loan, to, &result, trace.as_deref()).await.is_err() {
                return None;
            }
        }
        Some(if result.outcome.is_completed() { delivery.ack() } else { delivery.reject(reason) })
    }

    /// Gives a job back uncharged: a worker with other rights may end it, and this one ends.
    fn leave_to_others(&self, delivery: Delivery, error: &ebb_queue::Error) -> Settlement {
        self.shared.give_up(error);
        delivery.release()
    }

    fn result(&self, delivery: &Delivery, outcome: Outcome) -> JobResult {
        let (id, attempt) = (delivery.job.id.clone(), delivery.attempt);
        let (finished_at, queue) = (self.shared.clock.now(), Some(self.name.clone()));
        JobResult { id, attempt, outcome, finished_at, queue }
    }

    /// Leaves to their leases what this worker cannot settle.
    fn forgo(&self, jobs: &[Concluded], error: &ebb_queue::Error) {
        error!(n_jobs = jobs.len(), %error, "not settled: they come back by their lease");
        if error.kind() == ErrorKind::Denied {
            self.shared.give_up(error);
        }
    }

    /// Sends settlements once; those that were not carried out come back, unless their time is over.
    async fn settle_once(&self, concluded: Vec<Concluded>) -> Result<(), Refused> {
        let now = Instant::now();
        let (timely, late): (Vec<_>, Vec<_>) =
            concluded.into_iter().partition(|one| one.is_timely(now));
        late.into_iter().for_each(|one| self.lose(one.lane, &one.loan));
        let split = timely.into_iter().map(|one| (one.settlement, (one.lane, one.loan, one.way)));
        let (settlements, loans): (Vec<_>, Vec<_>) = split.unzip();
        loans.iter().for_each(|(_, loan, _)| loan.begin_settling());
        let answers = self.broker.settle(&settlements).await;
        loans.iter().for_each(|(_, loan, _)| loan.end_settling());
        let (n_sent, mut jobs) = (settlements.len(), Vec::new());
        for (nth, (settlement, (lane, loan, way))) in settlements.into_iter().zip(loans).enumerate()
        {
            match answer_at(&answers, nth) {
                Some(answer) => self.settled(&settlement, answer, (lane, &loan), way),
                None => jobs.push(Concluded { settlement, lane, loan, way }),
            }
        }
        match answers {
            Ok(_) => {
                self.broker_answers();
                Ok(())
            }
            Err(Unsettled { error, .. }) => {
                Err(Refused { error, took_others: jobs.len() < n_sent, jobs })
            }
        }
    }

    fn settled(
        &self,
        settlement: &Settlement,
        answer: Settled,
        (lane, loan): (Option<usize>, &Loan),
        way: Way,
    ) {
        let outcome = outcome(settlement, answer);
        match answer {
            Settled::Held => self.count(lane, outcome),
            Settled::Lost => self.lose(lane, loan),
        }
        self.shared.metrics.job.observe(way.since.elapsed().as_secs_f64());
        if outcome == COMPLETED {
            self.shared.metrics.turnaround.observe(way.since_publication().as_secs_f64());
        }
        way.settled(outcome);
    }

    fn count(&self, lane: Option<usize>, outcome: &'static str) {
        self.shared.metrics.jobs.with_label_values(&[outcome, self.shared.model_name(lane)]).inc();
        // Of the worker, and of the queue.
        self.shared.counts.count(outcome);
        self.counts.count(outcome);
    }
}

impl Concluded {
    /// A job that was not begun: nothing has to be stored.
    fn released(held: Held) -> Self {
        let Held { delivery, lane, loan, mut way, room } = held;
        drop(room);
        way.stored();
        Self { settlement: delivery.release(), lane, loan, way }
    }

    /// An ack is right at any time, since the result is stored: the broker may say what it is worth.
    /// All else would meddle with somebody else's attempt where the broker does not fence.
    fn is_timely(&self, now: Instant) -> bool {
        !self.loan.is_lost()
            && (*self.settlement.verdict() == Verdict::Ack || self.loan.may_live(now))
    }
}
