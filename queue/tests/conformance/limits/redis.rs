//! The promises that Redis cannot keep, with the limit that says so.

use super::Limits;

pub const LIMITS: Limits = Limits {
    not_run: &[],
    not_testable: &["power loss", "failover", "plain clients", "clock", "slot moves"],
};
