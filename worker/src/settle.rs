//! The last two stages: store what came out, then tell the broker. Always in this order: a crash
//! in between repeats a job, and the store's put-if-absent makes the repeat invisible.
//!
//! A reply goes out in between, and it is always the result that is stored: who finds that an
//! earlier attempt has stored one sends that one, for the earlier attempt may have been lost before
//! it could. So a reply is sent at least once, and a completed one is always the same. Of a job that
//! expired while nobody held it the worker knows nothing: that is the broker's business.

mod calls;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebb_queue::{Delivery, ErrorKind, Job, JobResult, Outcome, Settlement, Stored, Verdict};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;
use tracing::{debug, error};

use crate::codec::Answer;
use crate::held::{End, Finished, Output};
use crate::lease::Loan;
use crate::outcome::{COMPLETED, LOST, NO_MODEL, outcome};
use crate::served::Served;
use crate::shared::{PATIENCE, Pauses, heals, on_cpu, send_all};
use crate::trace::Way;
use calls::Unanswered;

/// Jobs that are stored, or settled, in one go: a broker commits them together.
const CHUNK: usize = 256;

/// Groups that are stored at the same time: the next one is on its way while a broker waits for its
/// disk, and more would only make each smaller.
const AT_ONCE: usize = 2;

/// A job whose end is stored, and what the broker is to be told.
#[derive(Debug)]
pub(crate) struct Concluded {
    settlement: Settlement,
    /// Where it ran, or would have.
    lane: Option<usize>,
    loan: Loan,
    way: Way,
}

/// Encodes and stores answers, many at once.
pub(crate) async fn store(
    served: Served,
    mut finished: Receiver<Finished>,
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
                    storing.push(served.conclude_all(std::mem::take(&mut jobs)));
                }
            }
            else => return,
        }
    }
}

/// Settles, many at once. What the broker did not take is kept and sent again.
pub(crate) async fn settle(served: Served, mut stored: Receiver<Concluded>) {
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
        let Err((error, unsettled)) = served.settle_once(sent).await else {
            pauses.reset();
            continue;
        };
        served.trouble("settle", &error);
        let pause = pauses.next(served.shared.chance());
        if !heals(&error) && pauses.n_failures() >= PATIENCE {
            error!(n_jobs = unsettled.len(), %error, "not settled: they come back by their lease");
            if error.kind() == ErrorKind::Denied {
                served.shared.give_up(&error);
            }
            continue;
        }
        waiting = unsettled;
        tokio::time::sleep(pause).await;
    }
}

impl Served {
    fn encode_one(&self, finished: Finished) -> Finished<Answer> {
        let Finished { delivery, lane, loan, way, end } = finished;
        let end = match end {
            End::Done(output) => match self.encode(output, &delivery.job) {
                Some(answer) => End::Done(answer),
                None => End::Reject("the answer made the encoder panic; a bug of ours".into()),
            },
            End::Retry(reason) => End::Retry(reason),
            End::Release => End::Release,
            End::Reject(reason) => End::Reject(reason),
        };
        Finished { delivery, lane, loan, way, end }
    }

    /// The answer, counted for whoever it is for; none if that made the encoder panic.
    fn encode(&self, output: Output, job: &Job) -> Option<Answer> {
        let Output { lane, output, asked, spent } = output;
        let lane = &self.shared.lanes[lane];
        let encode = || lane.codec.encode(output, asked, job, &spent);
        let answer = catch_unwind(AssertUnwindSafe(encode)).ok()?;
        let tenant = job.headers.tenant.as_deref();
        self.shared.metrics.spend(&lane.name, tenant, answer.tokens, &spent);
        Some(answer)
    }

    async fn conclude_all(&self, jobs: Vec<Finished>) -> Vec<Concluded> {
        let encoded = on_cpu(self, jobs, Self::encode_one).await;
        let concluded = encoded.into_iter().map(async |job| {
            let lane = job.lane;
            self.conclude_one(job).await.ok_or(lane)
        });
        let concluded = join_all(concluded).await.into_iter();
        concluded.filter_map(|one| one.map_err(|lane| self.count(lane, LOST)).ok()).collect()
    }

    /// Stores how a job ended, and says what to tell the broker; nothing if the lease is lost.
    async fn conclude_one(&self, finished: Finished<Answer>) -> Option<Concluded> {
        let Finished { delivery, lane, loan, mut way, end } = finished;
        let settlement = match end {
            // Whoever holds the lease now is the one to say how the job ends,
            _ if loan.is_lost() && !matches!(end, End::Done(_)) => return None,
            // but an answer is an answer.
            End::Done(answer) => self.complete(delivery, (&loan, &way), answer).await?,
            End::Release => delivery.release(),
            End::Retry(reason) => self.retry(delivery, (&loan, &way), reason).await?,
            End::Reject(reason) => self.fail(delivery, (&loan, &way), reason).await?,
        };
        way.stored();
        (!loan.is_lost()).then_some(Concluded { settlement, lane, loan, way })
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
        let told = match self.put(loan, &result).await {
            Ok(Stored::Stale) => return None,
            Ok(stored) => self.tell(&delivery, (loan, way), (result, stored), alert).await,
            Err(refused) => Err(refused),
        };
        match told {
            Ok(()) => Some(delivery.ack()),
            Err(Unanswered::Lost) => None,
            Err(Unanswered::Denied(error)) => Some(self.leave_to_others(delivery, &error)),
            Err(Unanswered::Refused(error)) => {
                let reason = format!("the result could not be stored or told: {error}");
                self.retry(delivery, (loan, way), reason).await
            }
        }
    }

    /// Sends what is to be known before the ack.
    async fn tell(
        &self,
        delivery: &Delivery,
        (loan, way): (&Loan, &Way),
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
            Some(after) => Some(delivery.retry(after, reason)),
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
            Err(Unanswered::Denied(error)) => return Some(self.leave_to_others(delivery, &error)),
            // If the store refuses, the dead letter tells.
            Err(Unanswered::Refused(_)) => {}
        }
        if let Some(to) = &delivery.job.headers.reply_to {
            let trace = way.traceparent(&delivery.job);
            match self.reply(loan, to, &result, trace.as_deref()).await {
                Ok(()) => {}
                Err(Unanswered::Lost) => return None,
                Err(Unanswered::Refused(error) | Unanswered::Denied(error)) => {
                    self.reply_refused(&result.id, &error);
                }
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

    /// Sends settlements once; those that got no answer come back, unless their time is over.
    async fn settle_once(
        &self,
        concluded: Vec<Concluded>,
    ) -> Result<(), (ebb_queue::Error, Vec<Concluded>)> {
        let now = Instant::now();
        let (timely, late): (Vec<_>, Vec<_>) =
            concluded.into_iter().partition(|one| one.is_timely(now));
        late.iter().for_each(|one| self.count(one.lane, LOST));
        drop(late);
        let split = timely.into_iter().map(|one| (one.settlement, (one.lane, one.loan, one.way)));
        let (settlements, loans): (Vec<_>, Vec<_>) = split.unzip();
        loans.iter().for_each(|(_, loan, _)| loan.begin_settling());
        let answers = self.broker.settle(&settlements).await;
        loans.iter().for_each(|(_, loan, _)| loan.end_settling());
        let jobs = settlements.into_iter().zip(loans);
        match answers {
            Ok(answers) => {
                self.broker_answers();
                for ((settlement, (lane, _, way)), answer) in jobs.zip(answers) {
                    let outcome = outcome(&settlement, answer);
                    self.count(lane, outcome);
                    self.shared.metrics.job.observe(way.since.elapsed().as_secs_f64());
                    if outcome == COMPLETED {
                        let turnaround = way.since_publication().as_secs_f64();
                        self.shared.metrics.turnaround.observe(turnaround);
                    }
                    way.settled(outcome);
                }
                Ok(())
            }
            Err(error) => {
                let join =
                    |(settlement, (lane, loan, way))| Concluded { settlement, lane, loan, way };
                Err((error, jobs.map(join).collect()))
            }
        }
    }

    fn count(&self, lane: Option<usize>, outcome: &'static str) {
        let model = lane.map_or(NO_MODEL, |lane| self.shared.lanes[lane].name.as_str());
        self.shared.metrics.jobs.with_label_values(&[outcome, model]).inc();
        if outcome == LOST {
            self.shared.metrics.leases_lost.inc();
        }
        // Of the worker, and of the queue.
        self.shared.counts.count(outcome);
        self.counts.count(outcome);
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
