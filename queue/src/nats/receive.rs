//! Looks into the lanes in order, and hands out what is there under a lease.

use std::array;
use std::cmp::Reverse;
use std::time::Duration;

use async_nats::Message;
use futures::future::join_all;
use tokio::sync::OnceCell;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::NatsQueue;
use super::bell::Bell;
use super::ending::Ending;
use super::entry::{Entry, Origin};
use super::leases::{Claims, Held, Token, crashes};
use super::names::{LANES, Lane, tick};
use super::settle::STILL_COUNTS;
use crate::owed;
use crate::{Attempt, Delivery, Error, ErrorKind, Priority, Receipt, Result};

/// A wait looks again at least this often: nobody tells that a lease has ended.
const LONGEST_NAP: Duration = Duration::from_secs(1);
/// The bell is heard before the job can be seen; so long until the next look.
const ECHOES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(16)];
/// The same after those, unless somebody else has it: a server that waits for its disk, or for the others of
/// its cluster, tells of a job long before.
const LATE_ECHO: Duration = Duration::from_millis(100);

/// A lane that hides what was put there is looked at again after so long.
const BLINK: Duration = Duration::from_millis(1);

/// So long a look clears away what died waiting before it hands out what it has: of what it has the
/// leases run.
pub(super) const CLEARING: Duration = Duration::from_millis(100);
/// A look that took long leaves so much for the replies to those that died meanwhile.
const LAST_REPLIES: Duration = Duration::from_millis(500);
/// Jobs that a lane is asked for at a time, for the same reason.
const STEP: usize = 512;

/// Where jobs of low priority that lie in the lane of normal ones are taken as they come: that lane
/// after those of them that went on from there before.
const RESTING: [usize; LANES.len()] = [0, 1, 2, 4, 3, 5];

/// A delivery before it is handed out.
pub(super) struct Found {
    pub(super) held: Held,
    pub(super) entry: Entry,
}

impl Found {
    /// Who goes first.
    pub(super) fn rank(&self) -> (Reverse<Priority>, u64) {
        (Reverse(self.entry.job.headers.priority), self.entry.place)
    }
}

/// What a look has read, once it had to.
#[derive(Default)]
struct Known {
    claims: OnceCell<Claims>,
    marks: OnceCell<()>,
    /// Whether it was asked which stream the jobs are in.
    stream: OnceCell<()>,
}

/// Moments that count for the jobs of one pull.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// When their lease ends.
    until: Instant,
    /// Until when replies may be sent: what was found waits for them.
    told_by: Instant,
    /// Until when it is waited for what is known of cancelled jobs.
    known_by: Instant,
}

/// What a look brings.
pub(super) struct Look {
    begin: Instant,
    told_by: Instant,
    /// Counted from the first pull whose jobs are waiting to be handed out.
    known_by: Instant,
    pub(super) found: Vec<Found>,
    /// Lies above its priority, and waits for what else there is.
    pub(super) aside: Vec<Found>,
    /// Whether nothing is to wait like that.
    pub(super) rests: bool,
    /// A lane has more than it had time for.
    is_cut: bool,
    /// Why some of it is missing.
    pub(super) failed: Option<Error>,
}

impl Look {
    fn begin(rests: bool, lease: Duration) -> Self {
        let (begin, told_by) = (Instant::now(), owed::sending_ends(lease));
        let (known_by, found, aside) = (begin, Vec::new(), Vec::new());
        Self { begin, told_by, known_by, found, aside, rests, is_cut: false, failed: None }
    }

    /// Whether a job has been leased that is to be handed out.
    fn has_leased(&self) -> bool {
        !(self.found.is_empty() && self.aside.is_empty())
    }

    /// Whether what was found has waited long enough for what else there may be.
    fn is_enough(&self) -> bool {
        let is_late = self.has_leased() && Instant::now() >= self.known_by;
        is_late || self.is_cut && !self.found.is_empty()
    }

    /// Whether the server is gone, so that the next request would wait in vain.
    fn is_over(&self) -> bool {
        self.failed.as_ref().is_some_and(|error| error.kind() == ErrorKind::Unavailable)
    }
}

impl NatsQueue {
    pub(super) async fn wait_for_jobs(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let begin = Instant::now();
        let left = || wait.saturating_sub(begin.elapsed());
        let mut found = self.look_while(max, left).await?;
        let mut longest = LONGEST_NAP;
        while found.is_empty() {
            if left().is_zero() {
                break;
            }
            let mut bell = Bell::arm(&self.shared.api.client, &self.job_subjects()).await?;
            found = self.look_while(max, left).await?;
            if !found.is_empty() {
                break;
            }
            let due = self.shared.later.until_due(self.now()).unwrap_or(LONGEST_NAP);
            if !bell.rings_within(left().min(due).min(longest)).await {
                longest = LONGEST_NAP;
                continue;
            }
            longest = LATE_ECHO;
            self.shared.later.disturb();
            for echo in ECHOES {
                tokio::time::sleep(echo).await;
                found = self.look_while(max, left).await?;
                if !found.is_empty() {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Takes what is ready now, at most so many; goes on while there is nothing but what died
    /// waiting, as long as time is left.
    async fn look_while(&self, max: usize, left: impl Fn() -> Duration) -> Result<Vec<Delivery>> {
        loop {
            let look = self.look(max).await?;
            if !look.is_cut || !look.found.is_empty() || left().is_zero() {
                return self.hand_out(look.found, look.told_by).await;
            }
        }
    }

    async fn look(&self, max: usize) -> Result<Look> {
        // What is due may lie elsewhere than what is ready: it holds up none of that.
        let not_moved = self.move_due().await.err();
        let rests = self.shared.aside().rests(Instant::now());
        let mut look = Look::begin(rests, self.shared.behavior.lease);
        let order = if look.rests { RESTING } else { array::from_fn(|nth| nth) };
        let known = Known::default();
        let mut skipped = false;
        for nth in order {
            if self.shared.sight.was_empty(nth) {
                skipped = true;
                continue;
            }
            self.drain(nth, max, &mut look, &known).await;
        }
        if look.found.is_empty() && skipped {
            for nth in order {
                self.drain(nth, max, &mut look, &known).await;
            }
        }
        self.end_aside(&mut look, max).await;
        match look.failed.take().or(not_moved) {
            Some(error) if look.found.is_empty() => return Err(error),
            Some(error) => tracing::warn!(%error, "some of what waits cannot be handed out"),
            None => {}
        }
        Ok(look)
    }

    /// Takes from one lane until it is empty, there are enough or it has taken long. What fails costs
    /// only itself.
    async fn drain(&self, nth: usize, max: usize, look: &mut Look, known: &Known) {
        let (shared, lane) = (&*self.shared, LANES[nth]);
        while look.found.len() < max && !look.is_over() && !look.is_enough() {
            if self.is_far(lane, look) {
                return;
            }
            let n_before = look.found.len();
            let (begin, asked) = (Instant::now(), (max - n_before).min(STEP));
            if !look.has_leased() {
                look.known_by = begin + self.patience();
            }
            let messages = match shared.api.pull(&shared.names.jobs, lane.consumer(), asked).await {
                Ok(messages) => messages,
                Err(error) => {
                    look.failed = Some(error);
                    return;
                }
            };
            let is_short = messages.len() < asked;
            let seqs =
                messages.iter().filter_map(|one| Some(Token::read(one.reply.as_deref()?)?.seq));
            let is_empty = is_short && shared.sight.empty(nth, seqs);
            let (until, told_by) = (begin + shared.behavior.lease, look.told_by);
            let times = Times { until, told_by, known_by: look.known_by };
            let admitted = messages.into_iter().map(|one| self.admit(one, lane, times, known));
            // All at once: one that waits for an answer in vain holds up no other. And in order: of
            // two with the same key the first is to have it.
            for admitted in unconstrained(join_all(admitted)).await {
                match admitted {
                    Ok(Some(found)) if self.waits_aside(&found, lane, look) => {
                        look.aside.push(found);
                    }
                    Ok(Some(found)) => look.found.push(found),
                    Ok(None) => {}
                    Err(error) => look.failed = Some(error),
                }
            }
            if is_empty {
                return;
            }
            if is_short {
                tokio::time::sleep(BLINK).await;
            }
            let has_cleared = look.found.len() < n_before + asked;
            if has_cleared && look.begin.elapsed() >= self.clearing(look) {
                // The lanes behind this one get their turn all the same.
                look.is_cut = true;
                return;
            }
        }
    }

    /// How long a look may go on: longer past what lies aside, which is looked through once in a while.
    fn clearing(&self, look: &Look) -> Duration {
        if look.aside.is_empty() {
            return CLEARING;
        }
        (self.shared.behavior.lease / 8).clamp(CLEARING, 10 * CLEARING)
    }

    /// A message as a job to run, unless it is none, or its time is over or has not come.
    async fn admit(
        &self,
        message: Message,
        lane: Lane,
        Times { until, told_by, known_by }: Times,
        known: &Known,
    ) -> Result<Option<Found>> {
        let shared = &*self.shared;
        let Some(token) = message.reply.as_deref().and_then(Token::read) else {
            return Ok(None);
        };
        if token.delivered > 1 && shared.leases.finished(&token).is_some() {
            // What became of it is stored; only the acknowledgement was lost.
            shared.api.ack(&token.reply, "+ACK").await?;
            return Ok(None);
        }
        let headers = message.headers.unwrap_or_default();
        if !Entry::is_named(&headers) {
            known.stream.get_or_init(|| self.meet_again()).await;
        }
        let (created, priority) = (shared.created(), lane.priority);
        let origin = Origin { created, seq: token.seq, at: token.stored_at, priority };
        let (mut entry, wrong) = Entry::read(&headers, message.payload, origin);
        let crashes = if token.delivered > 1 {
            let load = || Claims::load(&shared.api, &shared.names);
            self.crashes(&token, &entry, known.claims.get_or_try_init(load).await?)
        } else {
            Vec::new()
        };
        entry.history.extend(crashes.iter().cloned());
        let mut attempted = entry.clone();
        attempted.charge(token.delivered - 1);
        let ending = Ending { seq: token.seq, delivered: token.delivered, told_by };
        let is_back = lane.is_back || token.delivered > 1;
        let is_marked = !is_back && {
            known.marks.get_or_init(|| self.read_marks(known_by)).await;
            self.is_marked(&entry.job.id)
        };
        let may_be_cancelled = is_back || is_marked;
        let ended = if may_be_cancelled && self.ends_cancelled(&attempted, ending, known_by).await {
            tracing::debug!(job.id = %entry.job.id, "dropped, since it was cancelled");
            Some(true)
        // What cannot be read may bear the id of a job that can.
        } else if !lane.is_back && self.is_repetition(&attempted, origin, ending).await? {
            tracing::debug!(job.id = %entry.job.id, "dropped, since its id or its key is known");
            Some(true)
        } else {
            self.ends_waiting(&attempted, wrong, ending).await?
        };
        let due = entry.job.headers.not_before.filter(|due| !lane.is_back && *due > self.now());
        if ended.is_none() && due.is_some() {
            if self.put_back(&attempted, token.seq, due).await?.is_none() {
                self.put_off(token, attempted, crashes).await?;
                return Ok(None);
            }
        } else if ended.is_none() {
            let deadline = entry.job.headers.deadline.map(tick);
            let held = Held { token, until, entry: Some(entry), deadline, crashes };
            return Ok(Some(Found { held, entry: attempted }));
        }
        if ended != Some(false) {
            shared.api.ack(&token.reply, "+ACK").await?;
        }
        Ok(None)
    }

    /// Leaves a job that came too early where it is.
    async fn put_off(&self, token: Token, entry: Entry, crashes: Vec<Attempt>) -> Result<()> {
        let now = self.now();
        let (headers, attempt) = (&entry.job.headers, entry.attempts.saturating_add(1));
        let (due, deadline) = (headers.not_before.unwrap_or(now), headers.deadline.map(tick));
        let held =
            Held { token: token.clone(), until: Instant::now(), entry: None, deadline, crashes };
        self.shared.leases.take(vec![held]);
        let what = format!("handed out before its time, and {STILL_COUNTS}");
        let after = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        self.leave(&token, Attempt { attempt, at: now, what }, after).await.map(drop)
    }

    /// A line for each earlier delivery of the message: none of them was settled.
    fn crashes(&self, token: &Token, entry: &Entry, claims: &Claims) -> Vec<Attempt> {
        let shared = &*self.shared;
        let own = shared.leases.get(token.seq).filter(|held| held.until <= Instant::now());
        let own = own.map(|held| (held.token.delivered, &*shared.worker));
        let known = claims.get(token.seq).filter(|claim| claim.delivered < token.delivered);
        crashes(entry.attempts, token.delivered, known, own, self.now())
    }

    /// In their order of publication, once the leases are noted.
    async fn hand_out(&self, found: Vec<Found>, told_by: Instant) -> Result<Vec<Delivery>> {
        let mut found = self.without_late(found, told_by).await;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &*self.shared;
        found.sort_by_key(Found::rank);
        let is_taken_over = found.iter().any(|one| one.held.token.delivered > 1);
        shared.leases.take(found.iter().map(|one| one.held.clone()).collect());
        if is_taken_over {
            // Whoever held them before must be able to see that they are lost.
            shared.leases.write(&shared.api, shared.behavior.lease).await?;
        } else {
            shared.leases.tell(&shared.api, shared.behavior.lease).await;
        }
        let deliveries = found.into_iter().map(|Found { held, entry }| {
            let receipt = Receipt { job: entry.job.id.clone(), token: held.token.reply };
            Delivery::new(entry.job, entry.attempts.saturating_add(1), receipt)
        });
        Ok(deliveries.collect())
    }

    /// Without those that died while they waited for what else there is.
    async fn without_late(&self, found: Vec<Found>, told_by: Instant) -> Vec<Found> {
        let (shared, now) = (&*self.shared, self.now());
        let told_by = told_by.max(Instant::now() + LAST_REPLIES);
        let (late, found): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|one| one.entry.job.expired(now));
        let ends = late.into_iter().map(async |Found { held: Held { token, .. }, entry }| {
            let ending = Ending { seq: token.seq, delivered: token.delivered, told_by };
            match self.expire(&entry, ending).await? {
                true => shared.api.ack(&token.reply, "+ACK").await,
                false => Ok(()),
            }
        });
        for ended in join_all(ends).await {
            if let Err(error) = ended {
                tracing::warn!(%error, "a job that died is met again when its lease ends");
            }
        }
        found
    }

    /// Where jobs come to wait.
    pub(super) fn job_subjects(&self) -> [String; 2] {
        [self.shared.names.subject("jobs"), self.shared.names.subject("jobs.>")]
    }
}
