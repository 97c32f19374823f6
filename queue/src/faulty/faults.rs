//! What may go wrong, and what did.

use std::time::Duration;

use crate::ErrorKind;

/// What goes wrong, and how often; chances are from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// The chance that a call fails and had no effect.
    pub fail_before: f64,
    /// The chance that a call fails to answer, though it had its effect.
    pub fail_after: f64,
    /// The chance that a call for jobs fails and had no effect, beside those that any call has.
    pub fail_receive: f64,
    /// The chance that a delivery gets lost, as with a worker that dies just then.
    pub drop_delivery: f64,
    /// The chance that a lease ends at a moment before its time.
    pub end_lease: f64,
    /// The chance that a rejection finds no room among the dead letters, which is told for it alone.
    pub refuse_rejection: f64,
    /// The chance that of the jobs of a publication the first half is stored and told, and the others are
    /// refused as by a broker that is full and does not know what it has stored.
    pub refuse_half: f64,
    /// The longest that a call is held up; each draws from nothing to this.
    pub delay: Duration,
    /// How long each call takes to answer once it has had its effect.
    pub lag: Duration,
    /// The error of calls that fail.
    pub kind: ErrorKind,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        fail_before: 0.0,
        fail_after: 0.0,
        fail_receive: 0.0,
        drop_delivery: 0.0,
        end_lease: 0.0,
        refuse_rejection: 0.0,
        refuse_half: 0.0,
        delay: Duration::ZERO,
        lag: Duration::ZERO,
        kind: ErrorKind::Unavailable,
    };
}

/// Bad, but not so that nothing gets done.
impl Default for Faults {
    fn default() -> Self {
        Self {
            fail_before: 0.05,
            fail_after: 0.05,
            fail_receive: 0.0,
            drop_delivery: 0.05,
            end_lease: 0.05,
            refuse_rejection: 0.05,
            refuse_half: 0.0,
            delay: Duration::from_millis(20),
            lag: Duration::ZERO,
            kind: ErrorKind::Unavailable,
        }
    }
}

/// How often what went wrong, so that a test can tell that it saw faults at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injected {
    /// Calls that failed and had no effect.
    pub failed_before: u64,
    /// Calls that failed though they had their effect.
    pub failed_after: u64,
    /// Deliveries that got lost.
    pub dropped: u64,
    /// Leases that ended before their time.
    pub ended: u64,
    /// Rejections that found no room.
    pub refused: u64,
    /// Jobs that were published although they were there: as many copies on a broker that knows no ids.
    pub repeated: u64,
}
