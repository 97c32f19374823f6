//! How a queue behaves, whichever its broker.

use std::time::Duration;

/// How a queue behaves, the same on every broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behavior {
    /// How long a delivery is held without being extended.
    pub lease: Duration,
    /// How long a result is kept; no less than a lease.
    pub result_ttl: Duration,
    /// How long an id or an idempotency key is remembered after its job ended; no less than
    /// `result_ttl`, since the answer of a job that runs again is dropped while another is kept.
    pub key_ttl: Duration,
    /// How long a dead letter is kept; none is for ever. That is the default, since a dead letter is
    /// the only copy of a job that nobody has answered, and how many there are can be seen.
    pub dead_ttl: Option<Duration>,
    /// Jobs that may wait, ready or delayed, before `publish` answers that the queue is full.
    pub max_ready: Option<u64>,
}

impl Default for Behavior {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(86_400);
        let lease = Duration::from_secs(30);
        Self { lease, result_ttl: DAY, key_ttl: DAY, dead_ttl: None, max_ready: None }
    }
}

impl Behavior {
    /// Why these spans lose answers, with the remedy, if they do.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { lease, result_ttl, key_ttl, .. } = *self;
        let day = if result_ttl == Self::default().result_ttl { ", its default" } else { "" };
        if result_ttl < lease {
            return Err(format!(
                "option result_ttl ({result_ttl:?}{day}) is shorter than lease ({lease:?}): an answer \
                 may be forgotten while its job runs again; set result_ttl to {lease:?} or more, or a \
                 shorter lease"
            ));
        }
        if key_ttl < result_ttl {
            return Err(format!(
                "option key_ttl ({key_ttl:?}) is shorter than result_ttl ({result_ttl:?}{day}): a job \
                 that is sent again would run, and its answer be thrown away for the one that is kept; \
                 leave key_ttl out, or set result_ttl to {key_ttl:?} or less"
            ));
        }
        Ok(())
    }
}
