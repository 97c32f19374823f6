//! The promises that NATS cannot keep, with the limit that says so.

use super::Limits;

/// The same on the oldest server that is supported and on the newest.
const BOTH: Limits = Limits {
    not_run: &[
        ("idempotency::a_job_is_known_while_it_waits_runs_or_is_dead", "duplicates"),
        ("idempotency::the_id_is_looked_up_before_the_key", "duplicates"),
        ("publish::what_runs_or_is_known_takes_no_room_in_a_full_queue", "duplicates"),
        ("lease::an_ended_lease_that_nobody_took_can_be_extended", "fencing"),
        ("cancel::a_job_that_is_not_known_is_not_cancelled", "cancel"),
        ("chunks::a_result_that_was_forgotten_ends_the_stream", "forgotten"),
    ],
    not_testable: &["batches", "ordering", "large", "state", "cost", "plain clients"],
};

pub const LIMITS: Limits = BOTH;

/// Of the oldest server that is supported.
pub const LIMITS_OF_THE_OLDEST: Limits = BOTH;
