//! Looks into the lanes in order, and hands out what is there under a lease.

use std::array;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::unconstrained;
use tokio::time::Instant;

use super::NatsQueue;
use super::admit::{Found, Known, Times};
use super::bell::Bell;
use super::ending::Ending;
use super::leases::{Held, Token};
use super::names::LANES;
use crate::owed;
use crate::{Delivery, Error, ErrorKind, Receipt, Result};

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
