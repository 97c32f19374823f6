//! From what was fetched to what is handed out.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use super::bell::Listener;
use super::core::Core;
use super::fate::{self, Fate, Taken};
use super::fetched::{Caught, Fetched};
use super::intake::Intake;
use super::names::Lane;
use super::parcel::Parcel;
use super::session::{Message, Session};
use crate::owed::Owed;
use crate::{
    Delivery, Error, Failure, FailureKind, JobId, JobResult, Outcome, Queue, Receipt, Result,
    Results, Stored, Timestamp,
};

/// Who waits looks this often, though nothing was heard: not all that is published is.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait for what comes by itself, before asking the broker to tell of it.
const SOON: Duration = Duration::from_millis(50);
/// How often a failure is offered under a higher number than that of the pieces that are there.
const RAISED: u32 = 16;
/// Results that are looked at at the same time.
const AT_ONCE: usize = 64;
/// Delays are kept to a tick; a clock that is ahead by less than this is none too early.
const TOLERANCE: Duration = Duration::from_millis(20);

pub(super) async fn receive(
    core: &Arc<Core>,
    intake: &Intake,
    max: NonZeroUsize,
    wait: Duration,
) -> Result<Vec<Delivery>> {
    let start = Instant::now();
    let (mut listener, mut rings) = (None, core.bell.rings());
    loop {
        rings.mark_unchanged();
        let caught = intake.fetch(max.get()).await?;
        let was_empty = caught.is_empty();
        let deliveries = hand_out(core, caught).await?;
        let left = wait.saturating_sub(start.elapsed());
        if !deliveries.is_empty() || left.is_zero() {
            return Ok(deliveries);
        }
        if was_empty {
            // What is fetched ahead may all be held, and more comes as soon as some is settled.
            let stands = core.stands.load(Ordering::SeqCst);
            if stands && timeout(left.min(SOON), rings.changed()).await.is_ok() {
                continue;
            }
            let listener = listener.get_or_insert_with(|| Listener::new(core));
            // A ring and the end of the nap both mean to look again.
            timeout(left.min(LOOK), listener.hear()).await.ok();
        }
    }
}

/// Deliveries that are nobody's yet; dropped, they go back uncharged.
struct Unhanded<'a> {
    core: &'a Core,
    leases: Vec<u64>,
}

impl Drop for Unhanded<'_> {
    fn drop(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let mut ledger = self.core.ledger();
        for lease in &self.leases {
            ledger.disown(*lease);
        }
        drop(ledger);
        self.core.ledger_changed();
    }
}

/// What is known of a lease before it is handed out.
struct Leased {
    lease: u64,
    is_finished: bool,
    wrong: Option<Error>,
    goes_on: bool,
}

async fn hand_out(core: &Core, mut caught: Caught) -> Result<Vec<Delivery>> {
    if caught.is_empty() {
        return Ok(Vec::new());
    }
    let until = Instant::now() + core.behavior.lease;
    let fetched = caught.take();
    let mut unhanded = Unhanded { core, leases: Vec::with_capacity(fetched.len()) };
    let mut leased = Vec::new();
    {
        let mut ledger = core.ledger();
        for Fetched { parcel, wrong, epoch, tag, goes_on, .. } in fetched {
            // Until it is acknowledged: that may be lost again.
            let is_finished = ledger.is_finished(&parcel.job.id, Instant::now());
            let lease = ledger.lease(parcel, (epoch, tag), until);
            unhanded.leases.push(lease);
            leased.push(Leased { lease, is_finished, wrong, goes_on });
        }
    }
    drop(caught);
    let session = core.session().await?;
    // It may be another than the one that they came by.
    core.ledger().keep_from(session.epoch);
    let failed = sort_out(core, &session, leased).await.err();
    let deliveries = deliver(core, &mut unhanded);
    core.ledger_changed();
    match failed {
        Some(error) if deliveries.is_empty() => Err(error),
        Some(error) => {
            warn!(%error, "cannot do away with jobs that must not run; they come back");
            Ok(deliveries)
        }
        None => Ok(deliveries),
    }
}

/// What is still here is handed out. What must not run and could not be done away with stays, and
/// goes back when `unhanded` is dropped.
fn deliver(core: &Core, unhanded: &mut Unhanded<'_>) -> Vec<Delivery> {
    let now = core.clock.now();
    let (mut deliveries, mut rest) = (Vec::with_capacity(unhanded.leases.len()), Vec::new());
    let ledger = core.ledger();
    for lease in unhanded.leases.drain(..) {
        let Some(held) = ledger.held(lease) else { continue };
        let parcel = &held.parcel;
        if held.must_not_run || parcel.job.expired(now) {
            rest.push(lease);
            continue;
        }
        let receipt = Receipt { job: parcel.job.id.clone(), token: fate::token(core, lease) };
        let attempt = parcel.attempts.saturating_add(1);
        deliveries.push(Delivery::new(parcel.job.clone(), attempt, receipt));
    }
    drop(ledger);
    unhanded.leases = rest;
    deliveries
}

/// Ends or puts off what must not run now.
async fn sort_out(core: &Core, session: &Session, leased: Vec<Leased>) -> Result<()> {
    let now = core.clock.now();
    let mut fates = Vec::new();
    let mut failed = None;
    let mut cancelled = cancelled(core, &leased).await;
    for Leased { lease, is_finished, wrong, goes_on } in leased {
        let is_early = |due: Timestamp| due > now + TOLERANCE;
        let parcel = {
            let mut ledger = core.ledger();
            let Some(held) = ledger.held_mut(lease) else { continue };
            let job = &held.parcel.job;
            let may_run = !is_finished
                && !cancelled.contains_key(&lease)
                && !goes_on
                && wrong.is_none()
                && !job.expired(now)
                && !job.headers.not_before.is_some_and(is_early);
            if may_run {
                continue;
            }
            held.must_not_run = true;
            held.parcel.clone()
        };
        let next = async {
            if is_finished {
                return Ok((None, None));
            }
            if let Some(result) = cancelled.remove(&lease) {
                return Ok((None, Owed::new(&parcel.job.headers, result)));
            }
            if let Some(wrong) = wrong {
                return bury(core, parcel, Failure::invalid(wrong.to_string()), now).await;
            }
            if parcel.job.expired(now) {
                return bury(core, parcel, Failure::expired(), now).await;
            }
            Ok((Some(put_off(core, session, &parcel, now).await?), None))
        };
        let (next, taken): (Result<_>, _) = (next.await, Taken::new(core, lease));
        match (next, taken) {
            (Ok((next, owed)), Some(taken)) => {
                fates.push(Fate { taken, next, owed, is_remembered: is_finished });
            }
            (Err(error), _) => failed = Some(error),
            (Ok(_), None) => {}
        }
    }
    if !fates.is_empty() {
        fate::carry_out(core, session, fates).await.all()?;
    }
    failed.map_or(Ok(()), Err)
}

/// Where a job goes that was published straight to a lane with a delay, or above its priority, which an old
/// hand keeps.
async fn put_off(
    core: &Core,
    session: &Session,
    parcel: &Parcel,
    now: Timestamp,
) -> Result<Message> {
    let due = parcel.job.headers.not_before.unwrap_or(now);
    let delay = Duration::try_from(due.duration_since(now)).unwrap_or_default();
    let priority = parcel.job.headers.priority;
    let lane = if parcel.attempts > 0 { Lane::Back } else { Lane::New(priority) };
    core.to_lane_after(session, parcel, (lane, delay.min(super::names::longest()))).await
}

/// Those of these jobs that were cancelled, by their leases, with what is stored of that. While the store
/// does not answer none is known: whoever runs one finds out when it stores what came of it.
async fn cancelled(core: &Core, leased: &[Leased]) -> HashMap<u64, JobResult> {
    let Some(Results(results)) = &core.results else { return HashMap::new() };
    let found = match core.cancels.may_be(core.clock.now(), results).await {
        Ok(true) => {
            let looks = ids_of(core, leased);
            let looks = looks.into_iter().map(|(lease, id)| look(results.clone(), lease, id));
            stream::iter(looks).buffered(AT_ONCE).try_collect::<Vec<_>>().await
        }
        Ok(false) => return HashMap::new(),
        Err(error) => Err(error),
    };
    found.map(|found| found.into_iter().flatten().collect()).unwrap_or_else(|error| {
        warn!(%error, "it is not known whether jobs were cancelled");
        HashMap::new()
    })
}

fn ids_of(core: &Core, leased: &[Leased]) -> Vec<(u64, JobId)> {
    let ledger = core.ledger();
    let id = |one: &Leased| Some((one.lease, ledger.held(one.lease)?.parcel.job.id.clone()));
    leased.iter().filter_map(id).collect()
}

async fn look(results: Queue, lease: u64, id: JobId) -> Result<Option<(u64, JobResult)>> {
    let found = results.get(&id).await?;
    let found = found.filter(|there| there.outcome == Outcome::Cancelled);
    Ok(found.map(|there| (lease, there)))
}

/// The dead letter of a job for which no worker has a word to say, none where it expired and has been
/// answered; and the reply that it is owed.
async fn bury(
    core: &Core,
    mut parcel: Parcel,
    why: Failure,
    now: Timestamp,
) -> Result<(Option<Message>, Option<Owed>)> {
    let failure = JobResult::buried(parcel.job.id.clone(), parcel.attempts, why.clone(), now);
    let stored = store(core, failure).await?;
    let is_answered = stored.as_ref().is_some_and(|stored| stored.outcome.is_final());
    let owed = stored.and_then(|stored| Owed::new(&parcel.job.headers, stored));
    if is_answered && why.kind == FailureKind::Expired {
        return Ok((None, owed));
    }
    parcel.die(now, why);
    // An answer is that of another job of its name.
    Ok((Some(core.to_dead(&parcel)), owed.filter(|_| !is_answered)))
}

/// Stores a failure, and returns what is stored then, as far as that is known.
async fn store(core: &Core, mut failure: JobResult) -> Result<Option<JobResult>> {
    let Some(Results(results)) = &core.results else { return Ok(Some(failure)) };
    let mut stored = results.put(&failure).await;
    for tries in 0..RAISED {
        if !matches!(stored, Ok(Stored::Stale)) {
            break;
        }
        // Nobody has the job, so pieces of an attempt that gave it back are void.
        failure.attempt = failure.attempt.saturating_add(1 << tries);
        stored = results.put(&failure).await;
    }
    match stored {
        Ok(Stored::Stored) => Ok(Some(failure)),
        // A worker has answered, or whoever had the job before was lost on the way.
        Ok(Stored::Duplicate) => match results.get(&failure.id).await {
            Err(error) if !error.kind().heals() => {
                debug!(%error, job.id = %failure.id, "the result that is stored is not known");
                Ok(None)
            }
            stored => stored,
        },
        Ok(Stored::Stale) => Ok(None),
        Err(error) if error.kind().heals() => Err(error),
        Err(error) => {
            warn!(%error, job.id = %failure.id, "the failed result is not stored");
            Ok(Some(failure))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::super::AmqpQueue;
    use super::super::fetched::Coming;
    use super::super::kit::{block_on, opened};
    use super::*;
    use crate::{Backlog, Broker, Job};

    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    const LONG: Duration = Duration::from_secs(30);

    fn job(name: &str) -> Job {
        Job { id: name.parse().unwrap(), ..Job::new(name.to_owned(), Timestamp::now()) }
    }

    /// Which jobs come, up to so many, and as which attempt.
    async fn come(queue: &AmqpQueue, n: usize) -> Vec<(String, u32)> {
        let (mut came, end) = (Vec::new(), Instant::now() + LONG);
        while came.len() < n && Instant::now() < end {
            let left = NonZeroUsize::new(n - came.len()).unwrap();
            let more = queue.receive(left, Duration::from_secs(1)).await.unwrap();
            came.extend(more.iter().map(|one| (one.job.id.to_string(), one.attempt)));
        }
        came.sort();
        came
    }

    #[test]
    fn a_tag_of_a_session_that_is_gone_settles_nothing_in_the_next() {
        block_on(async {
            let queue = opened("old-tags").await;
            let core = queue.core().clone();
            let old = core.session().await.unwrap();
            old.give_up();
            let end = Instant::now() + LONG;
            while !core.session().await.is_ok_and(|session| session.epoch > old.epoch) {
                assert!(Instant::now() < end, "there is no next session");
                sleep(Duration::from_millis(20)).await;
            }
            queue.publish(vec![job("running")]).await.unwrap();
            assert_eq!(queue.receive(ONE, LONG).await.unwrap().len(), 1);

            // One that is done came by the session before, as its first; it only had to be acked.
            let done = Parcel::new(job("done"), 1);
            core.ledger().finish(done.job.id.clone(), Instant::now() + LONG);
            let done = Fetched {
                parcel: done,
                wrong: None,
                epoch: old.epoch,
                tag: 1,
                lane: Lane::Back,
                goes_on: false,
            };
            let caught = Caught::new(vec![done], Coming::new(core.clone()));
            assert!(hand_out(&core, caught).await.unwrap().is_empty());
            drop((core, old, queue));
            assert_eq!(come(&opened("old-tags").await, 1).await, [("running".to_owned(), 2)]);
        });
    }

    #[test]
    fn a_job_that_is_done_is_not_run_again_because_who_had_it_again_gives_it_back() {
        block_on(async {
            let queue = opened("done-twice").await;
            let core = queue.core().clone();
            queue.publish(vec![job("a"), job("b")]).await.unwrap();
            for verdict in [Delivery::release as fn(Delivery) -> _, |one| one.reject("no")] {
                // Its first lease was lost, and it was acknowledged while it is held again.
                let again = queue.receive(ONE, LONG).await.unwrap().pop().unwrap();
                let id = again.job.id.clone();
                core.ledger().finish(id.clone(), Instant::now() + LONG);
                queue.settle(&[verdict(again)]).await.unwrap();
                let is_back = id.as_str() == "a";
                assert_eq!(core.ledger().is_finished(&id, Instant::now()), is_back, "{id}");
                if is_back {
                    let next = queue.receive(ONE, LONG).await.unwrap().pop().unwrap();
                    assert_eq!(next.job.id.as_str(), "b", "what is done is not handed out");
                    assert!(!core.ledger().is_finished(&id, Instant::now()), "it is gone");
                    queue.settle(&[next.release()]).await.unwrap();
                }
            }
        });
    }

    /// Asks for a job, which comes, and does not look at the answer; what happens then, and once nobody
    /// waits for it.
    async fn with_an_answer_that_nobody_reads(
        name: &str,
        meanwhile: impl AsyncFnOnce(&AmqpQueue),
        then: impl AsyncFnOnce(&AmqpQueue),
    ) {
        let (queue, other) = (opened(name).await, opened(name).await);
        let session = queue.core().session().await.unwrap();
        queue.publish(vec![job("a")]).await.unwrap();
        let mut receiving = Box::pin(queue.receive(ONE, LONG));
        assert!(futures::poll!(&mut receiving).is_pending());
        while session.counts_of_lanes(&[name.to_owned()]).await.unwrap() != [0] {
            sleep(Duration::from_millis(20)).await;
        }
        // It is taken from its lane, and the answer comes a moment later.
        sleep(Duration::from_secs(1)).await;
        meanwhile(&other).await;
        drop(receiving);
        then(&other).await;
    }

    #[test]
    fn what_has_come_and_nobody_holds_yet_is_counted() {
        let meanwhile = async |other: &AmqpQueue| {
            let depth = other.depth().await.unwrap();
            assert_eq!(depth.ready + depth.in_flight, 1, "{depth:?}");
        };
        block_on(with_an_answer_that_nobody_reads("unread", meanwhile, async |_: &AmqpQueue| {}));
    }

    #[test]
    fn what_comes_for_who_waits_no_more_goes_back_uncharged() {
        let then = async |other: &AmqpQueue| {
            assert_eq!(come(other, 1).await, [("a".to_owned(), 1)]);
        };
        block_on(with_an_answer_that_nobody_reads("unwanted", async |_: &AmqpQueue| {}, then));
    }

    #[test]
    fn who_closes_while_what_it_does_not_want_goes_back_is_not_charged_for_it() {
        block_on(async {
            let (queue, other) = (opened("leaving").await, opened("leaving").await);
            let session = other.core().session().await.unwrap();
            queue.publish(vec![job("a")]).await.unwrap();
            let mut receiving = Box::pin(queue.receive(ONE, LONG));
            assert!(futures::poll!(&mut receiving).is_pending());
            while session.counts_of_lanes(&["leaving".to_owned()]).await.unwrap() != [0] {
                sleep(Duration::from_millis(20)).await;
            }
            // It is taken from its lane, and the answer comes a moment later.
            sleep(Duration::from_secs(1)).await;
            drop(receiving);
            queue.close().await.unwrap();
            drop(queue);
            assert_eq!(come(&other, 1).await, [("a".to_owned(), 1)]);
            let depth = other.depth().await.unwrap();
            assert_eq!((depth.ready, depth.in_flight), (0, 1), "it is not doubled: {depth:?}");
        });
    }

    #[test]
    fn who_does_not_wait_for_its_settlements_has_sent_all_of_them() {
        block_on(async {
            let queue = opened("hasty").await;
            let names = ["a", "b", "c", "d", "e", "f"];
            queue.publish(names.map(job).to_vec()).await.unwrap();
            let mut acks = Vec::new();
            while acks.len() < names.len() {
                let six = NonZeroUsize::new(names.len()).unwrap();
                let more = queue.receive(six, LONG).await.unwrap();
                acks.extend(more.into_iter().map(Delivery::ack));
            }
            // Each by itself: between them are others that are held on.
            let these = [acks.remove(5), acks.remove(3), acks.remove(1)];
            let mut settling = Box::pin(queue.settle(&these));
            drop(futures::poll!(&mut settling));
            drop(settling);
            assert_eq!(queue.settle(&these).await.unwrap(), [crate::Settled::Held; 3]);
            queue.close().await.unwrap();
            drop(queue);
            let back = come(&opened("hasty").await, 3).await;
            assert_eq!(back, ["a", "c", "e"].map(|name| (name.to_owned(), 2)));
        });
    }
}
