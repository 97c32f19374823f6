//! Jobs that are stored anew, with what happened to them, in place of the message that they had.

use async_nats::HeaderMap;

use super::NatsQueue;
use super::entry::{Entry, fits};
use super::leases::{Claims, Token};
use super::names::Lane;
use crate::{ErrorKind, Result, Settlement, Timestamp, Verdict};

impl NatsQueue {
    /// Notes which jobs are about to be stored anew, before the first of them is. Whoever is handed the
    /// message of one, since its holder was lost before that was gone or is late, stores it anew as well,
    /// which has the effect of one. What another handle was given has no line in our note.
    pub(super) async fn note_leaving(&self, settlements: &[Settlement]) -> Result<()> {
        let shared = &*self.shared;
        let leaving = settlements.iter().filter(|one| is_leaving(one.verdict()));
        let tokens = leaving.filter_map(|one| Token::read(&one.receipt().token));
        if shared.leases.part_with(tokens) {
            shared.leases.write(&shared.api, shared.behavior.lease).await?;
        }
        Ok(())
    }

    /// Whether the job of a message that was handed out before is there anew, so that the message may be
    /// removed: an earlier holder was about to store it, and it is stored now if it was not.
    pub(super) async fn follow_back(&self, entry: &Entry, token: &Token) -> Result<bool> {
        match self.put_back(entry, token.seq, None).await {
            Ok(stored) => Ok(stored.is_some()),
            // What is there is known, whatever room there is.
            Err(error) if error.kind() == ErrorKind::Full => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a message of a plain client that comes again may have been stored anew by whoever met it
    /// first, which notes nothing: it came early, or lay above its priority.
    pub(super) fn may_have_moved(entry: &Entry, token: &Token, lane: Lane) -> bool {
        let headers = &entry.job.headers;
        let is_elsewhere = headers.not_before.is_some() || headers.priority < lane.priority;
        entry.is_plain && token.delivered > 1 && is_elsewhere
    }

    /// Under which number the job of this delivery was stored anew by an earlier holder who was late.
    /// Only where one has noted that is it asked for: of an id that it does not know a cluster believes
    /// for as long as it remembers ids that it is about to be stored, and stores nothing by it.
    pub(super) async fn left_as(&self, entry: &Entry, token: &Token) -> Result<Option<u64>> {
        let (api, names) = (&self.shared.api, &self.shared.names);
        if token.delivered == 1 {
            return Ok(None);
        }
        let claims = Claims::load(api, names).await?;
        if !claims.get(token.message()).is_some_and(|claim| claim.leaves) {
            return Ok(None);
        }
        let subject = names.lane(entry.lane(true), entry.job.headers.deadline);
        api.known(&subject, &message_id(entry, token.seq)).await
    }

    /// Stores a job anew, to be ready at once or later, ahead of what was published since; the old
    /// message may be removed then. Doing so twice has the effect of one. `None` where the message
    /// would be too large: a stranger may leave no room for what we write beside a job.
    pub(super) async fn put_back(
        &self,
        entry: &Entry,
        seq: u64,
        due: Option<Timestamp>,
    ) -> Result<Option<u64>> {
        let shared = &*self.shared;
        let deadline = entry.job.headers.deadline;
        let subject = match due {
            Some(due) => shared.names.later(due, deadline),
            None => shared.names.lane(entry.lane(true), deadline),
        };
        let Some(headers) = self.headers_beside(entry, seq)? else { return Ok(None) };
        let ack = shared.api.publish(&subject, headers, entry.job.body.clone()).await?;
        match due {
            Some(_) => shared.later.disturb(),
            None => shared.sight.fill(entry.lane(true), ack.seq),
        }
        Ok(Some(ack.seq))
    }

    /// Whether a job can be stored anew, with what we write beside it.
    pub(super) fn has_room_beside(&self, entry: &Entry, seq: u64) -> bool {
        self.headers_beside(entry, seq).is_ok_and(|headers| headers.is_some())
    }

    fn headers_beside(&self, entry: &Entry, seq: u64) -> Result<Option<HeaderMap>> {
        let headers = entry.headers(&message_id(entry, seq))?;
        let max = self.shared.api.client.max_payload();
        Ok(Some(headers).filter(|headers| fits(headers, &entry.job.body, max)))
    }
}

/// Whether a job is stored anew by this.
pub(super) fn is_leaving(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Retry { .. } | Verdict::Release => true,
        Verdict::Ack | Verdict::Reject(_) => false,
    }
}

/// The id of the message that a job is stored anew by, in place of the one of this number.
fn message_id(entry: &Entry, seq: u64) -> String {
    format!("{}/{seq}", entry.job.id)
}
