//! The last two stages: store what came out, then tell the broker. Always in this order: a crash
//! in between repeats a job, and the store's put-if-absent makes the repeat invisible.
//!
//! A reply goes out in between, and it is always the result that is stored: who finds that an
//! earlier attempt has stored one sends that one, for the earlier attempt may have been lost before
//! it could. So a reply is sent at least once, and a completed one is always the same. Of a job that
//! expired while nobody held it the worker knows nothing: that is the broker's business.

mod calls;
mod encode;
mod exit;
mod groups;
mod rounds;

use std::time::Duration;

use ebb_queue::{
    Delivery, ErrorKind, Failure, FailureKind, Frame, JobId, JobResult, Outcome, Settlement,
    Stored, short_reason,
};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, timeout};
use tracing::field::display;
use tracing::{debug, warn};

use crate::codec::Answer;
use crate::held::{End, Finished, Held};
use crate::lease::Loan;
use crate::outcome::LOST;
use crate::served::Served;
use crate::shared::{lock, on_cpu, send_all, sleep_until};
use crate::stream::{self, There};
use crate::trace::Way;
use calls::Unanswered;
use encode::{Written, panicked};
pub(crate) use exit::Exit;
use groups::Groups;
pub(crate) use rounds::settle;

/// Jobs that are stored, or settled, in one go: a broker commits them together.
const CHUNK: usize = 256;

/// How long pieces of others are looked for, where there may be none.
const LOOK: Duration = Duration::from_millis(500);

/// A job whose end is stored, and what the broker is to be told.
#[derive(Debug)]
pub(crate) struct Concluded {
    settlement: Settlement,
    /// Where it ran, or would have.
    lane: Option<usize>,
    loan: Loan,
    way: Way,
}

/// By what a job is ours: its lease and its way here, and the attempt that its result is to name.
#[derive(Debug, Clone, Copy)]
struct Ours<'a> {
    loan: &'a Loan,
    way: &'a Way,
    attempt: u32,
}

/// What is concluded of a group of jobs that are stored together; none in place of each that somebody
/// else has by now.
type Part = (u64, Vec<Option<Concluded>>);

/// Encodes and stores answers, many at once.
pub(crate) async fn store(
    served: Served,
    mut finished: Receiver<Finished>,
    out: Sender<Concluded>,
) {
    let mut storing = SelectAll::<BoxStream<'static, Part>>::new();
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

impl Served {
    /// The jobs of a group as they are concluded, those together that are at the same time; in place
    /// of each that somebody else has by now comes none.
    fn conclude_all(
        &self,
        jobs: Vec<Finished>,
    ) -> impl Stream<Item = Vec<Option<Concluded>>> + use<> {
        let served = self.clone();
        let encoded = async move {
            let own = served.clone();
            let encode = move |job: &mut Finished| own.encode_one(job);
            let encoded = on_cpu(served.shared.settings.decode_threads, jobs, encode).await;
            let conclude = |(job, end): (Finished, Option<End<Written>>)| {
                let (served, job) = (served.clone(), job.ending(end.unwrap_or_else(panicked)));
                async move { served.conclude_one(job).await }
            };
            encoded.into_iter().map(conclude).collect::<FuturesUnordered<_>>()
        };
        encoded.flatten_stream().ready_chunks(CHUNK)
    }

    /// Stores how a job ended, and says what to tell the broker; nothing if the lease is lost.
    async fn conclude_one(&self, finished: Finished<Written>) -> Option<Concluded> {
        // Its room is another's once it is stored.
        let Finished { delivery, lane, loan, mut way, room: _room, stream, end } = finished;
        let attempt = match stream {
            Some(stream) if matches!(end, End::Done(_)) => {
                self.attempt_of(stream, &loan, &delivery).await
            }
            Some(stream) => stream.abandon().await,
            None => None,
        };
        let attempt = attempt.unwrap_or(delivery.attempt);
        let ours = Ours { loan: &loan, way: &way, attempt };
        let settlement = match end {
            // Whoever holds the lease now is the one to say how the job ends,
            _ if loan.is_lost() && !matches!(end, End::Done(_)) => None,
            // but an answer is an answer.
            End::Done(written) => self.complete(delivery, ours, written).await,
            End::Cancelled => self.leave_cancelled(delivery, ours).await,
            End::Retry(_) | End::Reject(_) | End::Overtaken if loan.is_cancelled() => {
                self.leave_cancelled(delivery, ours).await
            }
            End::Retry(reason) => self.retry(delivery, ours, reason).await,
            End::Reject(failure) => self.fail(delivery, ours, failure).await,
            End::Overtaken => self.leave_to_answer(delivery, ours).await,
        };
        let Some(settlement) = settlement.filter(|_| !loan.is_lost()) else {
            self.lose(lane, &loan);
            return None;
        };
        way.stored();
        Some(Concluded { settlement, lane, loan, way })
    }

    /// Under which number the answer of a job goes out that has said pieces. Where not all of them are
    /// known to be there it is the one after, which voids what is; unless the job is another's by now,
    /// whose number that may be.
    async fn attempt_of(
        &self,
        stream: stream::Stream,
        loan: &Loan,
        delivery: &Delivery,
    ) -> Option<u32> {
        let (attempt, there) = stream.finish().await?;
        let is_whole = there == There::All;
        if is_whole || !self.is_held(loan, delivery.receipt()).await.is_ok_and(|is_held| is_held) {
            return Some(attempt);
        }
        let others = match there {
            There::Nothing => self.spoken_for(&delivery.job.id).await,
            There::Part | There::All => 0,
        };
        Some(attempt.max(others).saturating_add(1))
    }

    /// As which attempt the pieces were sent that are there, 0 for none that are soon known of.
    async fn spoken_for(&self, id: &JobId) -> u32 {
        let first = async { self.results.follow(id, 0).await.ok()?.next().await?.ok() };
        match timeout(LOOK, first).await {
            Ok(Some(Frame::Chunk { attempt, .. })) => attempt,
            Ok(Some(Frame::Final(_)) | None) | Err(_) => 0,
        }
    }

    /// Counts a job that somebody else has by now.
    fn lose(&self, lane: Option<usize>, loan: &Loan) {
        loan.lose(&self.shared.metrics);
        self.count(lane, LOST);
    }

    async fn complete(
        &self,
        delivery: Delivery,
        ours: Ours<'_>,
        written: Written,
    ) -> Option<Settlement> {
        let mut is_told = false;
        let published = if ours.loan.is_cancelled() {
            // Also what it would alert of.
            Err(Unanswered::Cancelled)
        } else {
            let Answer { content_type, body, alert, .. } = &written.answer;
            let (content_type, body) = ((*content_type).to_owned(), body.clone());
            let outcome = Outcome::Completed { content_type, body };
            let result = self.result(&delivery, ours, outcome);
            self.publish(&delivery, ours, (result, alert.clone()), &mut is_told).await
        };
        self.count_answer(&written, &delivery.job, is_told);
        match published {
            Ok(()) => Some(delivery.ack()),
            Err(Unanswered::Lost) => None,
            Err(Unanswered::Cancelled) => self.leave_cancelled(delivery, ours).await,
            Err(Unanswered::Denied(error)) => Some(self.leave_to_others(delivery, &error)),
            Err(Unanswered::Refused(error)) if error.kind() == ErrorKind::Invalid => {
                let reason = format!(
                    "the result cannot be stored: {error}; ask for less in one job, or give the \
                     workers a store for large answers with --payloads"
                );
                // Nothing is wrong with what was asked for: the answer is more than this pool can keep.
                self.fail(delivery, ours, Failure::new(FailureKind::Model, reason)).await
            }
            Err(Unanswered::Refused(error)) => {
                let reason = format!("the result or its alert could not be stored: {error}");
                self.retry(delivery, ours, reason).await
            }
        }
    }

    /// Stores an answer, and sends what is to be known before the ack. `is_told` is set once it is there for
    /// whoever asks, whatever becomes of the rest.
    async fn publish(
        &self,
        delivery: &Delivery,
        Ours { loan, way, .. }: Ours<'_>,
        (mut result, alert): (JobResult, Option<bytes::Bytes>),
        is_told: &mut bool,
    ) -> Result<(), Unanswered> {
        // Before the result: an attempt that finds one may take the job for done, alert included.
        // Under an id of its own: told again or not, it alerts once.
        if let Some(body) = alert {
            self.alert(&delivery.job, loan, body).await?;
        }
        let stored = self.put_ours((loan, delivery.receipt()), &mut result).await?;
        let there = match stored {
            Stored::Stale => return Err(Unanswered::Lost),
            Stored::Duplicate => self.stored(loan, &result.id).await?,
            Stored::Stored => None,
        };
        // A call that failed may have stored it all the same; that of another attempt is counted there.
        *is_told = there
            .as_ref()
            .is_none_or(|there| there.attempt == result.attempt && there.outcome == result.outcome);
        if is_cancelled(there.as_ref()) {
            return Err(Unanswered::Cancelled);
        }
        let Some(to) = &delivery.job.headers.reply_to else { return Ok(()) };
        let trace = way.traceparent(&delivery.job);
        self.reply(loan, to, &there.unwrap_or(result), trace.as_deref()).await
    }

    async fn retry(
        &self,
        delivery: Delivery,
        ours: Ours<'_>,
        reason: String,
    ) -> Option<Settlement> {
        let policy = &self.shared.settings.retry;
        let attempt = delivery.attempt;
        match policy.after(attempt, self.shared.chance()) {
            Some(after) => Some(delivery.retry(after, short_reason(&reason))),
            None => {
                let max = policy.max_attempts;
                let reason = format!("attempt {attempt} of {max} failed: {reason}");
                self.fail(delivery, ours, Failure::new(FailureKind::Attempts, reason)).await
            }
        }
    }

    /// Rejects a job, unless an earlier attempt has stored its answer and then crashed.
    async fn fail(&self, delivery: Delivery, ours: Ours<'_>, why: Failure) -> Option<Settlement> {
        let Ours { loan, way, .. } = ours;
        let failure = why.shortened();
        let reason = &failure.reason;
        let (id, trace_id) = (&delivery.job.id, way.trace_id(&delivery.job).map(display));
        let attempt = delivery.attempt;
        match lock(&self.shared.failures_said).pass(Instant::now()) {
            Some(n_unsaid) => {
                warn!(job.id = %id, trace_id, attempt, %reason, n_unsaid, "job failed");
            }
            None => debug!(job.id = %id, trace_id, attempt, %reason, "job failed"),
        }
        // The failure is stored too, so that whoever follows the job is told.
        let mut result = self.result(&delivery, ours, Outcome::Failed(failure.clone()));
        let put = self.put_ours((loan, delivery.receipt()), &mut result).await;
        // One that spoke before is a number ahead of its delivery.
        let (is_others, number) = (matches!(put, Ok(Stored::Duplicate)), result.attempt);
        let there = match put {
            Ok(Stored::Stale) => return None,
            Ok(Stored::Duplicate) => self.stored(loan, &result.id).await,
            Ok(Stored::Stored) => Ok(None),
            Err(unanswered) => Err(unanswered),
        };
        match there {
            Ok(there) if is_cancelled(there.as_ref()) => {
                return self.leave_cancelled(delivery, ours).await;
            }
            Ok(there) => result = there.unwrap_or(result),
            Err(Unanswered::Lost | Unanswered::Cancelled) => return None,
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
        // A failure of an attempt before gives way to who cancels.
        if is_others && is_cancelled(self.stored(loan, &result.id).await.ok().flatten().as_ref()) {
            loan.cancel();
            return Some(delivery.ack());
        }
        let why = result.why_dead(number, failure);
        Some(if result.outcome.is_completed() { delivery.ack() } else { delivery.reject(why) })
    }

    /// Ends a job that another attempt has answered; one that is another's now is left to it.
    async fn leave_to_answer(&self, delivery: Delivery, ours: Ours<'_>) -> Option<Settlement> {
        let there = self.stored(ours.loan, &delivery.job.id).await.ok()??;
        if is_cancelled(Some(&there)) {
            return self.leave_cancelled(delivery, ours).await;
        }
        if !there.outcome.is_completed() {
            return None;
        }
        if let Some(to) = &delivery.job.headers.reply_to {
            let trace = ours.way.traceparent(&delivery.job);
            self.reply(ours.loan, to, &there, trace.as_deref()).await.ok()?;
        }
        Some(delivery.ack())
    }

    /// Ends a job that somebody cancelled. Where the broker takes it for ours still, nobody has told of
    /// it; where it does not, it has.
    async fn leave_cancelled(&self, delivery: Delivery, ours: Ours<'_>) -> Option<Settlement> {
        ours.loan.cancel();
        if let Some(to) = &delivery.job.headers.reply_to
            && self.is_held(ours.loan, delivery.receipt()).await.ok()?
        {
            let there = self.stored(ours.loan, &delivery.job.id).await.ok()??;
            let trace = ours.way.traceparent(&delivery.job);
            self.reply(ours.loan, to, &there, trace.as_deref()).await.ok()?;
        }
        Some(delivery.ack())
    }

    /// Gives a job back uncharged: a worker with other rights may end it, and this one ends.
    fn leave_to_others(&self, delivery: Delivery, error: &ebb_queue::Error) -> Settlement {
        self.shared.give_up(error);
        delivery.release()
    }

    fn result(&self, delivery: &Delivery, ours: Ours<'_>, outcome: Outcome) -> JobResult {
        let (id, attempt) = (delivery.job.id.clone(), ours.attempt);
        let (finished_at, queue) = (self.shared.clock.now(), Some(self.name.clone()));
        JobResult { id, attempt, outcome, finished_at, queue }
    }
}

fn is_cancelled(there: Option<&JobResult>) -> bool {
    there.is_some_and(|there| there.outcome == Outcome::Cancelled)
}

impl Concluded {
    /// A job that did not come to an end: nothing has to be stored, and what it said is void.
    fn released(held: Held) -> Self {
        let Held { delivery, lane, loan, mut way, room, turns: _ } = held;
        drop(room);
        loan.leave_device();
        way.stored();
        Self { settlement: delivery.release(), lane, loan, way }
    }
}
