//! Jobs that are stored anew, with what happened to them, in place of the message that they had.

use std::time::Duration;

use async_nats::HeaderMap;
use tokio::time::timeout;

use super::NatsQueue;
use super::entry::{Entry, fits};
use super::leases::Token;
use super::names::Lane;
use super::noted::Noted;
use crate::{Error, ErrorKind, JobId, Result, Settlement, Timestamp, Verdict};

/// So long what is put back waits for the note that it will be.
const PATIENCE: Duration = Duration::from_secs(1);

impl NatsQueue {
    /// Notes which jobs are about to be stored anew, before the first of them is. Whoever is handed the
    /// message of one, since its holder was lost before that was gone or is late, stores it anew as well,
    /// which has the effect of one. What another handle was given has no line in our note. Where that cannot
    /// be written, they are stored anew all the same. Those of which it was not noted before.
    pub(super) async fn note_leaving(&self, settlements: &[Settlement]) -> Vec<Token> {
        let shared = &*self.shared;
        let leaving = settlements.iter().filter(|one| is_leaving(one.verdict()));
        let tokens = leaving.filter_map(|one| Token::read(&one.receipt().token));
        let (is_any, parting) = shared.leases.part_with(tokens);
        if is_any {
            let written = shared.leases.write(&shared.api, shared.behavior.lease);
            let written = timeout(PATIENCE, written).await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Unavailable, "the notes do not answer in time"))
            });
            if let Err(error) = written {
                tracing::warn!(%error, "jobs are put back, and it is not noted that they are");
            }
        }
        parting
    }

    /// Whether the job of a message that was handed out before is there anew, so that the message may be
    /// removed: an earlier holder was about to store it, and it is stored now if it was not. One that
    /// cannot be stored is not there, as far as is known: a single server knows it whatever room there is,
    /// while a cluster looks for room first.
    pub(super) async fn follow_back(&self, entry: &Entry, seq: u64) -> Result<bool> {
        let (shared, lane) = (&*self.shared, entry.lane(true));
        let Some(headers) = self.headers_beside(entry, seq)? else { return Ok(false) };
        let subject = shared.names.lane(lane, entry.job.headers.deadline);
        let ack = shared.api.follow(&subject, headers, entry.job.body.clone()).await?;
        if let Some(ack) = ack {
            shared.sight.fill(lane, ack.seq);
        }
        Ok(ack.is_some())
    }

    /// Whether a message of a plain client that comes again may have been stored anew by whoever met it
    /// first, which notes nothing: it came early, or lay above its priority.
    pub(super) fn may_have_moved(entry: &Entry, token: &Token, lane: Lane) -> bool {
        let headers = &entry.job.headers;
        let is_elsewhere = headers.not_before.is_some() || headers.priority < lane.priority;
        entry.is_plain && token.delivered > 1 && is_elsewhere
    }

    /// Under which number the job of this delivery was stored anew by an earlier holder who was late.
    /// Only where one has noted that is it asked for: of an id that it does not know an older cluster
    /// believes for as long as it remembers ids that it is about to be stored, and stores nothing by it.
    pub(super) async fn left_as(
        &self,
        entry: &Entry,
        token: &Token,
        noted: &Noted,
    ) -> Result<Option<u64>> {
        let (api, names) = (&self.shared.api, &self.shared.names);
        if token.delivered == 1 {
            return Ok(None);
        }
        let claims = noted.claims(api, names).await?;
        if !claims.get(token.message()).is_some_and(|claim| claim.leaves) {
            return Ok(None);
        }
        api.known(&names.plain(), &message_id(&entry.job.id, token.seq)).await
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
        let ack = match shared.api.publish(&subject, headers, entry.job.body.clone()).await {
            Ok(ack) => ack,
            // The stream may take less than its server.
            Err(error) if error.kind() == ErrorKind::Invalid => return Ok(None),
            Err(error) => return Err(error),
        };
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
        let headers = entry.headers(&message_id(&entry.job.id, seq))?;
        let max = self.shared.api.client.max_payload();
        Ok(Some(headers).filter(|headers| fits(headers, &entry.job.body, max)))
    }
}

/// Whether a job is stored anew by this.
fn is_leaving(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Retry { .. } | Verdict::Release => true,
        Verdict::Ack | Verdict::Reject(_) => false,
    }
}

/// The id of the message that a job is stored anew by, in place of the one of this number. No job has an id
/// with a space in it.
pub(super) fn message_id(id: &JobId, seq: u64) -> String {
    format!("{id} {seq}")
}
