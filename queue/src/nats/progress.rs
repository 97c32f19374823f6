//! What is remembered of a consumer of others from one look to the next: how much it handed out, and
//! when the first job was stored that it did not. Pure: time comes in as an argument.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::Timestamp;

/// Who may not read the jobs is not asked for their age again for so long.
const BLIND_FOR: Duration = Duration::from_secs(60);

/// The first message is read whole for its time, so not more often than this while it changes; and it
/// may be deleted without a word, so it counts for no longer than that.
const READ_AGAIN: Duration = Duration::from_secs(1);
const FORGOTTEN: Duration = Duration::from_secs(5);

/// How many messages were handed out, each counted once: one that is given back and handed out again
/// did not arrive again.
#[derive(Debug, Default)]
pub(super) struct Handed {
    upto: Delivered,
    n: u64,
}

impl Handed {
    /// How many there are by now: of those handed out since no more are new than the consumer has come
    /// on in its stream.
    pub(super) fn count(&mut self, now: &Delivered) -> u64 {
        let handed = now.consumer_seq.saturating_sub(self.upto.consumer_seq);
        self.n += handed.min(now.stream_seq.saturating_sub(self.upto.stream_seq));
        self.upto = *now;
        self.n
    }
}

/// The first job that was not handed out, as far as it was looked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum First {
    /// Leads to `Stored` and `Hidden`.
    Unknown,
    /// When it was stored, as long as the consumer has come as far and has no less to go; leads to
    /// `Unknown` after a while, and when nothing waits.
    Stored { after: u64, n_pending: u64, at: Option<Timestamp>, since: Instant },
    /// We may not read it; leads to `Unknown` after a while.
    Hidden { since: Instant },
}

impl First {
    /// What is said without asking again, where the consumer has come as far and has so many to go.
    pub(super) fn still(
        self,
        after: u64,
        n_pending: u64,
        now: Instant,
    ) -> Option<Option<Timestamp>> {
        match self {
            Self::Stored { at, since, .. } if now < since + READ_AGAIN => Some(at),
            Self::Stored { after: known, n_pending: least, at: Some(at), since } => {
                let is_first = known == after && n_pending >= least && now < since + FORGOTTEN;
                is_first.then_some(Some(at))
            }
            Self::Hidden { since } if now < since + BLIND_FOR => Some(None),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Delivered {
    pub(super) consumer_seq: u64,
    pub(super) stream_seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_read_no_oftener_than_it_must_be_and_not_believed_for_ever() {
        let (since, at) = (Instant::now(), Some(Timestamp::UNIX_EPOCH));
        let stored = |at| First::Stored { after: 7, n_pending: 3, at, since };
        let hidden = First::Hidden { since };
        for (first, after, n_pending, millis, expected) in [
            (stored(at), 7, 3, 4_900, Some(at)),
            (stored(at), 7, 9, 4_900, Some(at)),
            // It may be gone: deleted, or too old.
            (stored(at), 7, 3, 5_000, None),
            (stored(at), 7, 2, 1_000, None),
            // Of a busy consumer it is another at each look.
            (stored(at), 99, 3, 999, Some(at)),
            (stored(at), 99, 3, 1_000, None),
            (stored(None), 7, 3, 999, Some(None)),
            (stored(None), 7, 3, 1_000, None),
            (hidden, 99, 3, 59_000, Some(None)),
            (hidden, 99, 3, 60_000, None),
            (First::Unknown, 7, 3, 0, None),
        ] {
            let told = first.still(after, n_pending, since + Duration::from_millis(millis));
            assert_eq!(told, expected, "{first:?} {after} {n_pending} {millis}");
        }
    }

    #[test]
    fn what_is_given_back_and_handed_out_again_did_not_arrive_again() {
        let mut handed = Handed::default();
        for (consumer_seq, stream_seq, expected) in [
            // It began at the end of a long stream.
            (2, 1_000, 2),
            (5, 1_003, 5),
            // A message that nobody can do.
            (5_000, 1_003, 5),
            (9_000, 1_004, 6),
            // Of a few in the stream.
            (9_001, 2_000, 7),
            // The consumer was set back.
            (0, 0, 7),
            (3, 3, 10),
        ] {
            let told = handed.count(&Delivered { consumer_seq, stream_seq });
            assert_eq!(told, expected, "{consumer_seq} {stream_seq}");
        }
    }
}
