//! The promises that RabbitMQ cannot keep, with the limit that says so.

use super::Limits;

pub const LIMITS: Limits = Limits {
    not_run: &[
        ("chunks::a_result_that_was_forgotten_ends_the_stream", "results"),
        ("chunks::a_job_that_is_done_without_a_result_ends_the_stream", "results"),
        ("chunks::a_purge_ends_the_stream_of_a_dead_letter", "results"),
        ("redrive::a_job_put_back_may_answer_from_its_first_attempt_on", "results"),
        ("idempotency::an_id_seen_before_stores_nothing", "duplicates"),
        ("idempotency::a_key_seen_before_answers_with_the_first_id", "duplicates"),
        ("idempotency::the_id_is_looked_up_before_the_key", "duplicates"),
        ("idempotency::a_job_is_known_while_it_waits_runs_or_is_dead", "duplicates"),
        ("idempotency::a_job_that_was_done_is_known_for_a_while", "duplicates"),
        ("idempotency::the_same_job_published_by_many_at_once_is_stored_once", "duplicates"),
        ("publish::what_runs_or_is_known_takes_no_room_in_a_full_queue", "duplicates"),
        ("deadline::an_answered_job_left_by_a_crash_past_its_deadline_is_done", "duplicates"),
        // These walk over a job that is published again, or die of a deadline on the way.
        ("states::a_leased_job_goes_where_the_table_says", "duplicates"),
        ("states::a_job_that_is_done_goes_where_the_table_says", "duplicates"),
        ("states::a_delayed_job_goes_where_the_table_says", "deadline"),
        ("states::a_ready_job_goes_where_the_table_says", "deadline"),
        ("states::a_dead_job_goes_where_the_table_says", "deadline"),
        ("deadline::an_expired_job_counts_as_dead_even_before_a_worker_meets_it", "deadline"),
        ("deadline::an_operator_sees_an_expired_job_among_the_dead_letters", "deadline"),
        ("deadline::a_job_that_expires_before_its_delay_ends_is_dead_from_then_on", "deadline"),
        ("publish::what_a_crash_left_takes_room_and_what_expired_takes_none", "deadline"),
        ("lease::an_extended_lease_starts_anew", "fencing"),
        ("lease::an_ended_lease_that_nobody_took_can_be_extended", "fencing"),
        ("lease::a_lease_that_somebody_else_has_is_lost", "fencing"),
        ("settle::an_acked_job_never_comes_back", "fencing"),
        ("settle::a_late_ack_counts_while_nobody_took_the_job", "fencing"),
        ("release::a_late_release_counts_while_nobody_took_the_job", "fencing"),
        ("strangers::a_plain_job_that_repeats_an_id_or_a_key_is_the_first_job", "duplicates"),
        (
            "strangers::the_headers_of_plain_jobs_are_counted_before_a_worker_is_there",
            "plain clients",
        ),
        ("depth::the_oldest_ready_job_gives_the_age", "oldest_ready"),
        ("depth::the_next_due_moment_is_known", "next_due"),
    ],
    not_testable: &[
        "batches",
        "max_ready",
        "ordering",
        "crashes",
        "hold",
        "in_flight",
        "delayed",
        "dead_letters",
    ],
};
