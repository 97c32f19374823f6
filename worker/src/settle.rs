//! The last two stages: store what came out, then tell the broker. Always in this order: a crash
//! in between repeats a job, and the store's put-if-absent makes the repeat invisible.
//!
//! A reply goes out in between, and it is always the result that is stored: who finds that an
//! earlier attempt has stored one sends that one, for the earlier attempt may have been lost before
//! it could. So a reply is sent at least once, and a completed one is always the same. Of a job that
//! expired while nobody held it the worker knows nothing: that is the broker's business.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ebb_queue::{
    Delivery, ErrorKind, Job, JobId, JobResult, Outcome, Settled, Settlement, Stored, Verdict,
};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::alert::alert_job;
use crate::codec::{Answer, Codec};
use crate::held::{End, Finished};
use crate::lease::Loan;
use crate::shared::{PATIENCE, Pauses, Shared, heals, on_cpu, send_all};
use crate::trace::Way;

/// Jobs that are stored, or settled, in one go: a broker commits them together.
const CHUNK: usize = 256;

/// Groups that are stored at the same time: the next one is on its way while a broker waits for its
/// disk, and more would only make each smaller.
const AT_ONCE: usize = 2;

/// A job whose end is stored, and what the broker is to be told.
#[derive(Debug)]
pub(crate) struct Concluded {
    settlement: Settlement,
    loan: Loan,
    way: Way,
}

/// Why a call to the broker got no answer.
enum Unanswered {
    /// The job belongs to somebody else by now.
    Lost,
    /// The broker refuses, and will refuse again.
    Refused(ebb_queue::Error),
}

/// Encodes and stores answers, many at once.
pub(crate) async fn store<C: Codec>(
    shared: Arc<Shared<C>>,
    mut finished: Receiver<Finished<C::Output>>,
    out: Sender<Concluded>,
) {
    let mut storing = FuturesUnordered::new();
    let (mut jobs, mut is_open) = (Vec::new(), true);
    loop {
        let has_room = is_open && storing.len() < AT_ONCE;
        tokio::select! { biased;
            Some(concluded) = storing.next() => send_all(&out, concluded).await,
            n_jobs = finished.recv_many(&mut jobs, CHUNK), if has_room => {
                is_open = n_jobs > 0;
                if is_open {
                    storing.push(shared.conclude_all(std::mem::take(&mut jobs)));
                }
            }
            else => return,
        }
    }
}

/// Settles, many at once. What the broker did not take is kept and sent again.
pub(crate) async fn settle<C: Codec>(shared: Arc<Shared<C>>, mut stored: Receiver<Concluded>) {
    let mut pauses = Pauses::default();
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() && stored.recv_many(&mut waiting, CHUNK).await == 0 {
            return;
        }
        while waiting.len() < CHUNK
            && let Ok(more) = stored.try_recv()
        {
            waiting.push(more);
        }
        let sent = std::mem::take(&mut waiting);
        let Err((error, unsettled)) = shared.settle_once(sent).await else {
            pauses.reset();
            continue;
        };
        shared.trouble("settle", &error);
        let pause = pauses.next(shared.chance());
        if !heals(&error) && pauses.n_failures() >= PATIENCE {
            error!(n_jobs = unsettled.len(), %error, "not settled: they come back by their lease");
            continue;
        }
        waiting = unsettled;
        tokio::time::sleep(pause).await;
    }
}

impl<C: Codec> Shared<C> {
    fn encode_one(&self, finished: Finished<C::Output>) -> Finished<Answer> {
        let Finished { delivery, loan, way, end } = finished;
        let end = match end {
            End::Done(output) => {
                let encode = || self.parts.codec.encode(output, &delivery.job);
                match catch_unwind(AssertUnwindSafe(encode)) {
                    Ok(answer) => End::Done(answer),
                    Err(_) => {
                        End::Reject("the answer made the encoder panic; a bug of ours".into())
                    }
                }
            }
            End::Retry(reason) => End::Retry(reason),
            End::Release => End::Release,
            End::Reject(reason) => End::Reject(reason),
        };
        Finished { delivery, loan, way, end }
    }

    async fn conclude_all(self: &Arc<Self>, jobs: Vec<Finished<C::Output>>) -> Vec<Concluded> {
        let encoded = on_cpu(self, jobs, Self::encode_one).await;
        let concluded = join_all(encoded.into_iter().map(|job| self.conclude_one(job))).await;
        concluded.iter().filter(|one| one.is_none()).for_each(|_| self.count(LOST));
        concluded.into_iter().flatten().collect()
    }

    /// Stores how a job ended, and says what to tell the broker; nothing if the lease is lost.
    async fn conclude_one(&self, finished: Finished<Answer>) -> Option<Concluded> {
        let Finished { delivery, loan, mut way, end } = finished;
        let settlement = match end {
            // Whoever holds the lease now is the one to say how the job ends,
            _ if loan.is_lost() && !matches!(end, End::Done(_)) => return None,
            // but an answer is an answer.
            End::Done(answer) => self.complete(delivery, &loan, answer).await?,
            End::Release => delivery.release(),
            End::Retry(reason) => self.retry(delivery, &loan, reason).await?,
            End::Reject(reason) => self.fail(delivery, &loan, reason).await?,
        };
        way.stored();
        (!loan.is_lost()).then_some(Concluded { settlement, loan, way })
    }

    async fn complete(
        &self,
        delivery: Delivery,
        loan: &Loan,
        answer: Answer,
    ) -> Option<Settlement> {
        let Answer { content_type, body, alert } = answer;
        let outcome = Outcome::Completed { content_type: content_type.to_owned(), body };
        let result = self.result(&delivery, outcome);
        let told = match self.put(loan, &result).await {
            Ok(Stored::Stale) => return None,
            Ok(stored) => self.tell(&delivery, loan, (result, stored), alert).await,
            Err(refused) => Err(refused),
        };
        match told {
            Ok(()) => Some(delivery.ack()),
            Err(Unanswered::Lost) => None,
            Err(Unanswered::Refused(error)) => {
                let reason = format!("the result could not be stored or told: {error}");
                self.retry(delivery, loan, reason).await
            }
        }
    }

    /// Sends what is to be known before the ack.
    async fn tell(
        &self,
        delivery: &Delivery,
        loan: &Loan,
        (result, stored): (JobResult, Stored),
        alert: Option<bytes::Bytes>,
    ) -> Result<(), Unanswered> {
        if let Some(body) = alert {
            // Under an id of its own: told again or not, it alerts once.
            self.alert(&delivery.job, loan, body).await?;
        }
        let Some(to) = &delivery.job.headers.reply_to else { return Ok(()) };
        let there = match stored {
            Stored::Duplicate => self.stored(loan, &result.id).await?,
            Stored::Stored | Stored::Stale => None,
        };
        self.reply(loan, to, &there.unwrap_or(result)).await
    }

    async fn retry(&self, delivery: Delivery, loan: &Loan, reason: String) -> Option<Settlement> {
        let policy = &self.parts.settings.retry;
        let attempt = delivery.attempt;
        match policy.after(attempt, self.chance()) {
            Some(after) => Some(delivery.retry(after, reason)),
            None => {
                let max = policy.max_attempts;
                let reason = format!("attempt {attempt} of {max} failed: {reason}");
                self.fail(delivery, loan, reason).await
            }
        }
    }

    /// Rejects a job, unless an earlier attempt has stored its answer and then crashed.
    async fn fail(&self, delivery: Delivery, loan: &Loan, reason: String) -> Option<Settlement> {
        debug!(job.id = %delivery.job.id, attempt = delivery.attempt, %reason, "job failed");
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
            // If the store refuses, the dead letter tells.
            Err(Unanswered::Refused(_)) => {}
        }
        if let Some(to) = &delivery.job.headers.reply_to {
            match self.reply(loan, to, &result).await {
                Ok(()) => {}
                Err(Unanswered::Lost) => return None,
                Err(Unanswered::Refused(error)) => self.reply_refused(&result.id, &error),
            }
        }
        Some(if result.outcome.is_completed() { delivery.ack() } else { delivery.reject(reason) })
    }

    fn result(&self, delivery: &Delivery, outcome: Outcome) -> JobResult {
        let (id, attempt) = (delivery.job.id.clone(), delivery.attempt);
        JobResult { id, attempt, outcome, finished_at: self.parts.clock.now() }
    }

    async fn put(&self, loan: &Loan, result: &JobResult) -> Result<Stored, Unanswered> {
        let results = &self.parts.results;
        self.insist("put", loan, || results.put(result)).await
    }

    /// The result that stays; none when its time is over.
    async fn stored(&self, loan: &Loan, id: &JobId) -> Result<Option<JobResult>, Unanswered> {
        let results = &self.parts.results;
        self.insist("get", loan, || results.get(id)).await
    }

    /// Sends a result to where its job asked for it; an address that cannot be keeps nobody.
    async fn reply(&self, loan: &Loan, to: &str, result: &JobResult) -> Result<(), Unanswered> {
        let broker = &self.parts.broker;
        let send = || async {
            match broker.reply(to, result).await {
                Err(error) if error.kind() == ErrorKind::Invalid => Ok(Err(error)),
                answer => answer.map(Ok),
            }
        };
        match self.insist("reply", loan, send).await? {
            Ok(()) => self.parts.metrics.replies.with_label_values(&["sent"]).inc(),
            Err(error) => self.reply_refused(&result.id, &error),
        }
        Ok(())
    }

    fn reply_refused(&self, id: &JobId, error: &ebb_queue::Error) {
        self.parts.metrics.replies.with_label_values(&["refused"]).inc();
        warn!(job.id = %id, %error, "the reply was not sent; the result is in the store");
    }

    async fn alert(&self, job: &Job, loan: &Loan, body: bytes::Bytes) -> Result<(), Unanswered> {
        let alert = alert_job(job, body, self.parts.clock.now()).map_err(Unanswered::Refused)?;
        let alerts = &self.parts.alerts;
        self.insist("publish", loan, || alerts.publish(vec![alert.clone()])).await?;
        Ok(())
    }

    /// Calls until there is an answer, as long as the job is ours.
    async fn insist<T, F: Future<Output = ebb_queue::Result<T>>>(
        &self,
        name: &'static str,
        loan: &Loan,
        call: impl Fn() -> F,
    ) -> Result<T, Unanswered> {
        let mut pauses = Pauses::default();
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.trouble(name, &error);
            let pause = pauses.next(self.chance());
            if loan.is_lost() {
                return Err(Unanswered::Lost);
            }
            if !heals(&error) && pauses.n_failures() >= PATIENCE {
                return Err(Unanswered::Refused(error));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends settlements once; those that got no answer come back, unless their time is over.
    async fn settle_once(
        &self,
        concluded: Vec<Concluded>,
    ) -> Result<(), (ebb_queue::Error, Vec<Concluded>)> {
        let now = Instant::now();
        let (timely, late): (Vec<_>, Vec<_>) =
            concluded.into_iter().partition(|one| one.is_timely(now));
        late.iter().for_each(|_| self.count(LOST));
        drop(late);
        let split = timely.into_iter().map(|one| (one.settlement, (one.loan, one.way)));
        let (settlements, loans): (Vec<_>, Vec<_>) = split.unzip();
        loans.iter().for_each(|(loan, _)| loan.begin_settling());
        let answers = self.parts.broker.settle(&settlements).await;
        loans.iter().for_each(|(loan, _)| loan.end_settling());
        let jobs = settlements.into_iter().zip(loans);
        match answers {
            Ok(answers) => {
                self.broker_answers();
                for ((settlement, (_, way)), answer) in jobs.zip(answers) {
                    let outcome = outcome(&settlement, answer);
                    self.count(outcome);
                    self.parts.metrics.job.observe(way.since.elapsed().as_secs_f64());
                    if outcome == COMPLETED {
                        let turnaround = way.since_publication().as_secs_f64();
                        self.parts.metrics.turnaround.observe(turnaround);
                    }
                    way.settled(outcome);
                }
                Ok(())
            }
            Err(error) => {
                let join = |(settlement, (loan, way))| Concluded { settlement, loan, way };
                Err((error, jobs.map(join).collect()))
            }
        }
    }

    fn count(&self, outcome: &'static str) {
        self.parts.metrics.jobs.with_label_values(&[outcome]).inc();
        let counter = match outcome {
            COMPLETED => &self.counts.completed,
            REJECTED => &self.counts.failed,
            RETRIED => &self.counts.retried,
            RELEASED => &self.counts.released,
            _ => {
                self.parts.metrics.leases_lost.inc();
                &self.counts.lost
            }
        };
        counter.fetch_add(1, Relaxed);
    }
}

const COMPLETED: &str = "completed";
const REJECTED: &str = "rejected";
const RETRIED: &str = "retried";
const RELEASED: &str = "released";
const LOST: &str = "lost";

fn outcome(settlement: &Settlement, answer: Settled) -> &'static str {
    match (answer, settlement.verdict()) {
        (Settled::Lost, _) => LOST,
        (Settled::Held, Verdict::Ack) => COMPLETED,
        (Settled::Held, Verdict::Reject { .. }) => REJECTED,
        (Settled::Held, Verdict::Retry { .. }) => RETRIED,
        (Settled::Held, Verdict::Release) => RELEASED,
    }
}

impl Concluded {
    /// An ack is right at any time, since the result is stored: the broker may say what it is worth.
    /// All else would meddle with somebody else's attempt where the broker does not fence.
    fn is_timely(&self, now: Instant) -> bool {
        !self.loan.is_lost()
            && (*self.settlement.verdict() == Verdict::Ack || self.loan.may_live(now))
    }
}
