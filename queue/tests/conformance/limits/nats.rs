//! The promises that NATS cannot keep, with the limit that says so.

use super::Limits;

pub const LIMITS: Limits = Limits { not_run: &[], not_testable: &[] };

/// Of the oldest server that is supported.
pub const LIMITS_OF_THE_OLDEST: Limits = Limits { not_run: &[], not_testable: &[] };
