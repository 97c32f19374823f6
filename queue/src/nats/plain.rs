//! What plain clients published: which of it lies above its priority.

use futures::future::join_all;
use tokio::time::Instant;

use super::NatsQueue;
use super::names::Lane;
use super::receive::{Found, Look};
use crate::Priority;
use crate::aside::FAR;

/// The lane of plain messages.
const PLAIN: Lane = Lane { priority: Priority::Normal, is_back: false };

impl NatsQueue {
    /// Whether a job lies above its priority and waits for what may lie behind it.
    pub(super) fn waits_aside(&self, found: &Found, lane: Lane, look: &Look) -> bool {
        if lane != PLAIN {
            return false;
        }
        let now = Instant::now();
        let mut aside = self.shared.aside();
        if found.entry.job.headers.priority >= lane.priority {
            aside.meet_better();
            return false;
        }
        aside.meet_lower(now);
        !look.rests && self.has_room_beside(&found.entry, found.held.token.seq)
    }

    /// Whether enough of this lane lies aside for one look.
    pub(super) fn is_far(&self, lane: Lane, look: &Look) -> bool {
        let is_much = || look.aside.len() >= FAR || self.shared.aside().rests(Instant::now());
        lane == PLAIN && !look.aside.is_empty() && is_much()
    }

    /// Hands out what lies aside as far as there is room for it, and puts the rest where it belongs;
    /// no attempt is charged for that.
    pub(super) async fn end_aside(&self, look: &mut Look, max: usize) {
        look.aside.sort_by_key(Found::rank);
        let room = max.saturating_sub(look.found.len()).min(look.aside.len());
        look.found.extend(look.aside.drain(..room));
        let moves = look.aside.drain(..).map(async |one| {
            if self.put_back(&one.entry, one.held.token.seq, None).await?.is_none() {
                return Ok(());
            }
            self.shared.api.ack(&one.held.token.reply, "+ACK").await
        });
        for moved in join_all(moves).await {
            look.failed = moved.err().or(look.failed.take());
        }
    }
}
