//! What becomes of deliveries: the one place where they end.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::warn;

use super::core::Core;
use super::errors;
use super::ledger::{Held, MEND};
use super::names::{self, Lane};
use super::publish;
use super::session::{Message, Posted, Session};
use crate::delivery::{all_settled, note};
use crate::owed::{self, Owed};
use crate::{
    Error, ErrorKind, JobId, Receipt, Result, Results, Settled, Settlement, Timestamp, Unsettled,
    Verdict,
};

/// How long to wait when leases cannot be ended.
const PAUSE: Duration = Duration::from_millis(500);
/// Results that are looked at at the same time.
const AT_ONCE: usize = 64;
/// How long who settles waits for them.
const LOOKING: Duration = Duration::from_secs(1);
/// How often to look whether what goes back is back.
const STEP: Duration = Duration::from_millis(5);

/// A delivery that is being settled; unless it comes to that, it is held as before.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    core: &'a Core,
    lease: u64,
    held: Option<Held>,
}

impl<'a> Taken<'a> {
    pub(super) fn new(core: &'a Core, lease: u64) -> Option<Self> {
        let held = core.ledger().take(lease)?;
        Some(Self { core, lease, held: Some(held) })
    }

    pub(super) fn held(&self) -> &Held {
        self.held.as_ref().expect("it is gone only when this is")
    }

    /// It is settled; what is over does not come back to a lane.
    fn done(mut self, is_over: bool, is_remembered: bool) {
        let Some(held) = self.held.take() else { return };
        let mut ledger = self.core.ledger();
        ledger.drop_taken();
        if is_over {
            ledger.end(&held.parcel.job.id);
        }
        if is_remembered {
            let until = Instant::now() + self.core.behavior.key_ttl;
            ledger.remember(self.lease, held.parcel.job.id, until);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.core.ledger().put_back(self.lease, held);
            self.core.leases_changed.notify_one();
        }
    }
}

/// What is to become of a delivery.
#[derive(Debug)]
pub(super) struct Fate<'a> {
    pub(super) taken: Taken<'a>,
    /// Where its job goes on, if it does.
    pub(super) next: Option<Message>,
    /// What is to be told once its job has gone on.
    pub(super) owed: Option<Owed>,
    /// Whether the same may be asked for again.
    pub(super) is_remembered: bool,
}

/// Which fates came to pass, in their order, and why others did not.
#[must_use]
pub(super) struct Carried {
    is_done: Vec<bool>,
    failed: Option<Error>,
}

impl Carried {
    /// For whom all must have come to pass.
    pub(super) fn all(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// Publishes what goes on, and then acknowledges: a crash in between doubles a job and loses none.
/// What cannot go on is held as before, and holds up none of the others.
pub(super) async fn carry_out(core: &Core, session: &Session, mut fates: Vec<Fate<'_>>) -> Carried {
    // A tag of one session is another job in the next, if it is any.
    if fates.iter().any(|fate| fate.taken.held().epoch != session.epoch) {
        return Carried { is_done: vec![false; fates.len()], failed: Some(errors::down()) };
    }
    let next: Vec<_> = fates.iter_mut().map(|fate| fate.next.take()).collect();
    let dead = core.names.dead();
    let is_over = |next: &Option<Message>| next.as_ref().is_none_or(|next| next.key == dead);
    let is_over: Vec<_> = next.iter().map(is_over).collect();
    let mut is_done: Vec<_> = next.iter().map(Option::is_none).collect();
    let Posted { is_stored, mut failed } = session.post(next.into_iter().flatten().collect()).await;
    let going = is_done.iter_mut().filter(|is_done| !**is_done);
    going.zip(is_stored).for_each(|(is_done, is_stored)| *is_done = is_stored);
    let done = fates.into_iter().zip(is_over).zip(&is_done);
    let done: Vec<_> = done.filter_map(|(fate, is_done)| is_done.then_some(fate)).collect();
    // A crash before this tells it, too: the job comes back.
    let by = owed::sending_ends(core.behavior.lease);
    let owed = done.iter().filter_map(|(fate, _)| Some((fate, fate.owed.as_ref()?)));
    join_all(owed.map(|(fate, owed)| tell(core, fate, (owed, by)))).await;
    let tags: Vec<u64> = done.iter().map(|(fate, _)| fate.taken.held().tag).collect();
    match session.ack(&tags).await {
        Ok(()) => {
            for (Fate { taken, is_remembered, .. }, is_over) in done {
                taken.done(is_over, is_remembered);
            }
            core.ledger_changed();
        }
        Err(error) => {
            is_done.fill(false);
            failed = Some(error);
        }
    }
    Carried { is_done, failed }
}

/// By then or not at all: the jobs that came along are leased already.
async fn tell(core: &Core, fate: &Fate<'_>, (owed, by): (&Owed, Instant)) {
    let Owed { to, result, traceparent } = owed;
    let correlation = fate.taken.held().parcel.correlation.clone();
    let told = publish::reply(core, to, result, (traceparent.as_deref(), correlation));
    owed::note(&result.id, owed::in_time(by, told).await);
}

/// A lease of this handle.
#[derive(Debug, Clone, Copy)]
struct Lease {
    number: u64,
    began_at: Timestamp,
}

impl Lease {
    /// The one that this proves, if it is one of this handle.
    fn of(core: &Core, receipt: &Receipt) -> Option<Self> {
        let (rest, began_at) = receipt.token.rsplit_once(':')?;
        let (handle, number) = rest.rsplit_once(':')?;
        let began_at = Timestamp::from_millisecond(began_at.parse().ok()?).ok()?;
        let lease = Self { number: number.parse().ok()?, began_at };
        (handle == core.handle).then_some(lease)
    }
}

/// What proves a lease that begins now.
pub(super) fn token(core: &Core, lease: u64) -> Arc<str> {
    format!("{}:{lease}:{}", core.handle, core.clock.now().as_millisecond()).into()
}

pub(super) async fn settle(
    core: &Core,
    settlements: &[Settlement],
) -> Result<Vec<Settled>, Unsettled> {
    let session = core.session().await?;
    core.ledger().keep_from(session.epoch);
    let mut answers = Vec::with_capacity(settlements.len());
    let (mut asked, mut fates) = (Vec::new(), Vec::new());
    let (mut failed, mut vain) = (None, Duration::MAX);
    let mut late = Vec::new();
    for settlement in settlements {
        let receipt = settlement.receipt();
        let lease = Lease::of(core, receipt);
        let taken = lease.and_then(|lease| Taken::new(core, lease.number));
        let taken = taken.filter(|taken| taken.held().parcel.job.id == receipt.job);
        let Some(taken) = taken else {
            let settled = settled_before(core, lease, settlement);
            let is_late = settled == Settled::Lost && matches!(settlement.verdict(), Verdict::Ack);
            let lease = lease.filter(|_| is_late);
            late.extend(lease.map(|lease| (receipt.job.clone(), lease.began_at)));
            answers.push(Some(settled));
            continue;
        };
        let after = settlement.verdict().delay();
        if after >= vain {
            answers.push(None);
            continue;
        }
        match fate(core, &session, taken, settlement.verdict()).await {
            Ok(fate) => {
                asked.push(answers.len());
                fates.push(fate);
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error.into()),
            // Whatever its kind, what delays jobs is wrong and not this one. It is held on, and
            // holds up no job that has to wait less, or not at all.
            Err(error) => {
                vain = after;
                note(&mut failed, error);
            }
        }
        answers.push(None);
    }
    let (carried, ()) = tokio::join!(carry_out(core, &session, fates), finish(core, late));
    let Carried { is_done, failed: refusal } = carried;
    for (nth, _) in asked.into_iter().zip(is_done).filter(|(_, is_done)| *is_done) {
        answers[nth] = Some(Settled::Held);
    }
    refusal.into_iter().for_each(|error| note(&mut failed, error));
    all_settled(answers, failed)
}

fn settled_before(core: &Core, lease: Option<Lease>, settlement: &Settlement) -> Settled {
    let (id, now) = (&settlement.receipt().job, Instant::now());
    let was_settled = lease.is_some_and(|lease| core.ledger().was_settled(lease.number, id, now));
    if was_settled { Settled::Held } else { Settled::Lost }
}

/// Notes that these jobs are done, though they were acknowledged too late: should one come back to us, it is
/// not run again while its result is there to tell of it, after which another job may have its name. Each of
/// them comes with the moment at which its lease began.
async fn finish(core: &Core, late: Vec<(JobId, Timestamp)>) {
    let notes = late.into_iter().map(|(id, began_at)| async move {
        if let Some(left) = mends_for(core, &id, began_at).await {
            core.ledger().finish(id, Instant::now() + left);
        }
    });
    let noted = stream::iter(notes).buffer_unordered(AT_ONCE).collect::<()>();
    // Of the others nothing is known.
    timeout(LOOKING, noted).await.ok();
}

/// How long a job that is done is not run again. Where its result cannot be had nothing is known, and to run it
/// again loses nothing.
async fn mends_for(core: &Core, id: &JobId, began_at: Timestamp) -> Option<Duration> {
    let Some(Results(results)) = &core.results else { return Some(MEND) };
    let (ttl, result) = (results.result_ttl(), results.get(id).await.ok()?);
    // Who passes jobs on stores nothing; and what was stored under this lease may be gone since.
    let done_at = result.map_or(began_at, |result| result.finished_at);
    let age = core.clock.now().duration_since(done_at);
    let left = ttl.saturating_sub(Duration::try_from(age).unwrap_or_default());
    Some(left.min(MEND))
}

async fn fate<'a>(
    core: &Core,
    session: &Session,
    taken: Taken<'a>,
    verdict: &Verdict,
) -> Result<Fate<'a>> {
    let (now, parcel) = (core.clock.now(), &taken.held().parcel);
    let charged = |reason: &str| {
        let mut parcel = parcel.clone();
        parcel.charge(now, reason);
        parcel
    };
    let next = match verdict {
        Verdict::Ack => None,
        Verdict::Retry { after, reason } => {
            let after = (*after).min(names::longest());
            let parcel = charged(reason);
            Some(core.to_lane_after(session, &parcel, (Lane::Back, after)).await?)
        }
        Verdict::Release => Some(core.to_lane(parcel, Lane::Back)),
        Verdict::Reject(failure) => {
            let mut parcel = charged(&failure.reason);
            parcel.die(now, failure.clone());
            Some(core.to_dead(&parcel))
        }
    };
    Ok(Fate { taken, next, owed: None, is_remembered: true })
}

pub(super) async fn extend(core: &Core, receipts: &[Receipt]) -> Result<Vec<Settled>> {
    let session = core.session().await?;
    let until = Instant::now() + core.behavior.lease;
    let mut ledger = core.ledger();
    ledger.keep_from(session.epoch);
    let settled = receipts.iter().map(|receipt| {
        let is_held =
            Lease::of(core, receipt).is_some_and(|lease| ledger.extend(lease.number, until));
        if is_held { Settled::Held } else { Settled::Lost }
    });
    Ok(settled.collect())
}

/// Ends leases that nobody extends: nobody else would do it for a handle that lives.
pub(super) async fn watch_leases(core: Arc<Core>) {
    loop {
        let next = core.ledger().next_end();
        let is_changed = core.leases_changed.notified();
        match next {
            Some(end) => {
                tokio::select! {
                    () = is_changed => {}
                    () = sleep_until(end) => {}
                }
            }
            None => is_changed.await,
        }
        if let Err(error) = end_leases(&core).await {
            warn!(%error, "cannot give jobs back whose lease has ended");
            sleep(PAUSE).await;
        }
    }
}

/// Waits until no delivery is about to end: what somebody asked for and did not wait for goes back by
/// another task.
pub(super) async fn still(core: &Core) {
    while core.ledger().is_moving(Instant::now()) {
        sleep(STEP).await;
    }
}

async fn end_leases(core: &Core) -> Result<()> {
    let overdue = core.ledger().overdue(Instant::now());
    if overdue.is_empty() {
        return Ok(());
    }
    let session = core.session().await?;
    core.ledger().keep_from(session.epoch);
    let now = core.clock.now();
    let mut fates = Vec::new();
    for lease in overdue {
        let Some(taken) = Taken::new(core, lease) else { continue };
        if taken.held().epoch != session.epoch {
            continue;
        }
        let mut parcel = taken.held().parcel.clone();
        if !taken.held().is_unwanted {
            parcel.charge(now, &format!("lease expired, held by {}", core.worker));
        }
        let next = Some(core.to_lane(&parcel, Lane::Back));
        fates.push(Fate { taken, next, owed: None, is_remembered: false });
    }
    let leases: Vec<u64> = fates.iter().map(|fate| fate.taken.lease).collect();
    let Err(error) = carry_out(core, &session, fates).await.all() else { return Ok(()) };
    // A broker that takes no messages still takes its own back.
    let left: Vec<_> = leases.into_iter().filter_map(|lease| Taken::new(core, lease)).collect();
    let back = left.iter().map(Taken::held).map(|held| (held.tag, !held.is_unwanted));
    session.requeue(&back.collect::<Vec<_>>()).await?;
    for taken in left {
        taken.done(false, false);
    }
    core.ledger_changed();
    Err(error)
}
