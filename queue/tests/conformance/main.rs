//! The contract of a broker, one file per promise, run for every broker that there is.
//!
//! A new broker brings a [`Fixture`](fixture::Fixture) and a line in the macro below.
#![allow(unreachable_pub, reason = "nobody is outside a test binary")]
#![allow(clippy::unwrap_used, reason = "these are tests, helpers included")]

mod brokers;
mod fixture;
mod limits;
mod mail;
mod on;
mod plain;
mod pool;

mod arrivals;
mod cancel;
mod chunks;
mod dead_letters;
mod deadline;
mod depth;
mod idempotency;
mod info;
mod kinds;
mod lease;
mod lockstep;
mod open;
mod priority;
mod publish;
mod purge;
mod receive;
mod redrive;
mod release;
mod replies;
mod results;
mod retention;
mod retry;
mod settle;
mod states;
mod status;
mod strangers;

use fixture::Promise;

// Macros, against our habit: each promise is a test of its own for each broker, and one that is
// written but not listed does not compile without a warning.
macro_rules! tests_on {
    ($broker:ident $($file:ident: $($promise:ident)+;)+) => {
        mod $broker {
            $(mod $file {
                $(#[test]
                fn $promise() {
                    let name = concat!(stringify!($file), "::", stringify!($promise));
                    crate::on::$broker(name, |fixture| Box::pin(crate::$file::$promise(fixture)));
                })+
            })+
        }
    };
}

macro_rules! promises {
    ($($file:ident: $($promise:ident)+;)+) => {
        /// All of them, by the names of their tests below the broker.
        const PROMISES: &[(&str, Promise)] = &[$($((
            concat!(stringify!($file), "::", stringify!($promise)),
            |fixture| Box::pin($file::$promise(fixture)),
        )),+),+];
        tests_on! { memory $($file: $($promise)+;)+ }
        tests_on! { sqlite $($file: $($promise)+;)+ }
        tests_on! { redis $($file: $($promise)+;)+ }
        tests_on! { nats $($file: $($promise)+;)+ }
        tests_on! { nats_oldest $($file: $($promise)+;)+ }
        tests_on! { amqp $($file: $($promise)+;)+ }
    };
}

promises! {
    publish:
        a_published_job_is_received_as_it_was
        a_job_without_an_envelope_stays_without
        a_large_body_is_kept
        a_body_over_the_limit_is_refused_and_nothing_is_stored
        a_batch_is_known_by_its_ids_and_received_in_order
        an_empty_batch_is_nothing_special
        a_full_queue_says_so_and_stores_nothing
        what_runs_or_is_known_takes_no_room_in_a_full_queue
        what_a_crash_left_takes_room_and_what_expired_takes_none
        queues_on_one_broker_share_nothing;
    receive:
        no_more_than_asked_for_is_received
        an_empty_queue_answers_when_the_wait_is_over
        a_waiting_worker_gets_what_another_process_publishes
        a_waiting_worker_gets_a_job_when_its_delay_ends
        a_waiting_worker_gets_a_job_when_its_lease_ends
        a_receive_that_is_dropped_while_it_waits_takes_nothing
        many_workers_at_once_receive_each_job_once;
    lease:
        a_leased_job_is_hidden_until_its_lease_ends
        a_crash_is_charged_and_recorded_with_the_name_of_the_worker
        an_extended_lease_starts_anew
        an_ended_lease_that_nobody_took_can_be_extended
        a_lease_that_somebody_else_has_is_lost
        a_settled_delivery_cannot_be_extended;
    settle:
        an_acked_job_never_comes_back
        a_late_ack_counts_while_nobody_took_the_job
        a_lost_lease_changes_nothing_however_it_is_settled
        a_settlement_sent_again_is_held_and_has_the_effect_of_one
        a_settlement_sent_again_is_lost_once_the_job_went_on
        a_settlement_sent_again_is_lost_once_the_job_is_forgotten
        each_of_a_batch_is_answered_in_order;
    retry:
        a_retried_job_comes_back_after_its_delay_and_not_before
        a_retry_without_delay_is_ready_at_once_in_its_old_place
        the_reasons_of_retries_stand_in_the_history
        a_delayed_job_is_ready_when_its_delay_ends;
    release:
        a_released_job_is_ready_at_once_and_uncharged
        released_jobs_keep_their_places
        a_release_leaves_no_trace_in_the_history
        a_late_release_counts_while_nobody_took_the_job;
    priority:
        high_goes_before_normal_before_low
        a_delayed_or_retried_job_comes_back_with_its_priority;
    deadline:
        an_expired_job_is_never_delivered
        a_job_is_delivered_before_its_deadline
        an_expired_job_counts_as_dead_even_before_a_worker_meets_it
        an_operator_sees_an_expired_job_among_the_dead_letters
        a_job_that_expires_before_its_delay_ends_is_dead_from_then_on
        a_job_that_runs_past_its_deadline_may_still_be_done
        a_job_that_is_retried_past_its_deadline_dies
        a_job_left_by_a_crash_past_its_deadline_dies_and_its_lease_is_lost
        an_answer_that_is_there_outlives_the_deadline
        an_answered_job_left_by_a_crash_past_its_deadline_is_done;
    idempotency:
        an_id_seen_before_stores_nothing
        a_key_seen_before_answers_with_the_first_id
        the_id_is_looked_up_before_the_key
        repetitions_within_a_batch_are_found
        a_job_is_known_while_it_waits_runs_or_is_dead
        a_job_that_was_done_is_known_for_a_while
        a_purged_job_is_unknown_at_once
        the_same_job_published_by_many_at_once_is_stored_once;
    dead_letters:
        a_rejected_job_is_kept_with_its_reason
        only_dead_letters_are_shown
        the_newest_come_first_and_no_more_than_asked_for
        purge_deletes_the_named_ones_for_good
        purge_of_all_spares_what_is_not_dead
        a_purged_job_that_comes_again_later_can_be_followed
        a_purged_job_that_was_mended_is_not_answered_with_its_old_failure
        a_purge_leaves_the_record_that_a_dead_job_has_gone_on;
    purge:
        what_waits_is_deleted_and_all_else_stays
        a_job_that_was_deleted_may_come_again_and_run
        an_answer_of_a_later_life_is_taken_and_followed
        who_follows_what_is_deleted_elsewhere_is_told
        it_is_told_whose_bodies_lie_elsewhere
        what_is_known_of_a_job_that_has_gone_on_stays
        more_than_a_step_is_deleted
        what_plain_clients_published_is_deleted_too
        an_expired_job_is_a_dead_letter_and_not_deleted
        a_job_says_where_it_is_as_far_as_its_broker_can_tell;
    retention:
        old_dead_letters_go_and_young_ones_stay
        dead_letters_are_kept_for_ever_unless_it_is_asked_for
        a_job_that_was_put_back_is_not_old
        an_old_dead_letter_leaves_nothing_behind
        who_follows_an_old_dead_letter_is_told
        bodies_that_lie_elsewhere_are_told_or_left_with_their_letters
        a_header_that_reads_like_a_reference_is_none
        the_record_that_a_job_has_gone_on_outlives_its_letter
        what_is_put_back_while_old_letters_go_keeps_its_body
        what_is_put_back_while_old_letters_go_is_still_known
        what_a_redrive_that_was_cut_off_put_back_keeps_its_body
        what_a_redrive_that_was_cut_off_put_back_is_still_known;
    redrive:
        a_job_put_back_starts_at_its_first_attempt_with_its_history
        jobs_are_put_back_behind_what_was_published_in_the_order_they_died
        named_jobs_are_put_back_in_the_order_of_their_names
        only_the_named_are_put_back
        a_deadline_that_passed_is_cleared_and_another_is_kept
        a_settlement_of_a_former_life_changes_nothing
        a_job_put_back_may_answer_from_its_first_attempt_on
        an_answer_that_was_complete_stays_when_its_job_is_put_back
        a_failure_that_speaks_of_another_queue_is_forgotten_like_any_other;
    results:
        a_result_is_read_as_it_was_stored
        a_completed_result_is_never_replaced
        a_failed_result_gives_way_to_a_completed_one_only
        a_result_is_forgotten_when_its_time_is_over
        an_attempt_that_was_overtaken_may_not_answer
        of_many_results_at_once_one_is_stored;
    chunks:
        the_pieces_come_in_order_then_the_result_then_the_end
        who_comes_late_sees_it_all
        a_job_given_back_midway_that_expires_has_a_failed_result
        who_saw_some_pieces_can_go_on_after_them
        a_result_without_pieces_ends_the_stream
        a_later_attempt_voids_what_earlier_ones_sent
        an_earlier_attempt_is_stale_once_a_later_one_has_sent
        a_piece_sent_again_is_a_duplicate_and_stays_as_it_was
        nothing_is_added_to_a_complete_result
        a_result_voids_the_pieces_of_earlier_attempts
        a_result_that_was_forgotten_ends_the_stream
        a_job_that_is_done_without_a_result_ends_the_stream
        a_purge_ends_the_stream_of_a_dead_letter;
    strangers:
        plain_jobs_go_by_their_priority
        plain_jobs_that_come_together_go_by_their_priority
        a_plain_job_that_repeats_an_id_or_a_key_is_the_first_job
        a_plain_job_waits_for_its_delay_and_dies_of_its_deadline
        the_headers_of_plain_jobs_are_counted_before_a_worker_is_there;
    replies:
        an_answer_is_sent_to_where_its_job_asked_for_it
        a_failure_is_sent_with_its_reason
        a_job_that_dies_waiting_is_told_of_once
        a_job_whose_worker_was_lost_is_told_of_as_it_is_stored
        a_message_that_is_no_job_is_told_to_where_it_asked
        a_plain_job_whose_worker_was_lost_before_it_replied_is_told_of_or_runs_again;
    kinds:
        the_kind_of_a_failure_is_stored_and_kept_with_its_dead_letter
        a_reply_tells_the_kind_of_a_failure
        a_dead_letter_that_dies_again_is_of_the_later_kind
        what_a_queue_buries_by_itself_is_expired_or_invalid;
    status:
        a_status_is_read_as_it_was_reported
        the_last_status_counts
        a_worker_that_fell_silent_is_taken_for_gone;
    arrivals:
        a_publish_is_told_to_every_listener
        what_was_published_before_it_is_heard_is_not_forgotten
        whatever_makes_a_job_ready_or_delayed_is_told
        a_new_phase_of_a_worker_is_told;
    depth:
        an_empty_queue_is_empty
        each_job_is_counted_once_whatever_its_state
        the_oldest_ready_job_gives_the_age
        the_next_due_moment_is_known
        the_cost_of_what_waits_and_runs_is_summed
        what_is_ready_is_told_by_priority
        the_soonest_deadline_of_what_is_ready_is_known;
    cancel:
        a_job_that_waits_never_runs
        what_waits_falls_at_once
        a_delayed_or_retried_job_never_runs
        a_released_job_never_runs
        who_runs_it_is_told_and_comes_too_late
        however_it_is_settled_it_stays_cancelled
        a_worker_that_is_lost_does_not_bring_it_back
        what_has_ended_stays_as_it_is
        a_failure_of_an_attempt_before_does_not_keep_it
        to_cancel_twice_is_to_cancel_once
        a_job_that_is_not_known_is_not_cancelled
        its_id_and_its_key_are_known_as_those_of_a_job_that_is_done
        who_follows_it_is_told
        who_asked_for_a_reply_gets_one
        who_comes_first_says_how_it_ended
        it_is_handed_out_before_it_is_cancelled_or_not_at_all;
    states:
        a_job_that_is_not_known_goes_where_the_table_says
        a_delayed_job_goes_where_the_table_says
        a_ready_job_goes_where_the_table_says
        a_leased_job_goes_where_the_table_says
        a_job_that_is_done_goes_where_the_table_says
        a_dead_job_goes_where_the_table_says;
    open:
        two_who_open_a_new_queue_at_once_share_it
        a_queue_that_is_not_there_is_refused_with_the_remedy;
    info:
        a_broker_says_what_it_is
        the_link_of_a_handle_is_up;
}

// Each new queue costs three servers a second: here are those promises that a replica which is
// behind could break.
tests_on! {
    nats_cluster
    receive:
        many_workers_at_once_receive_each_job_once;
    settle:
        each_of_a_batch_is_answered_in_order;
    idempotency:
        a_key_seen_before_answers_with_the_first_id
        a_purged_job_is_unknown_at_once
        the_same_job_published_by_many_at_once_is_stored_once;
    dead_letters:
        purge_deletes_the_named_ones_for_good;
    results:
        a_failed_result_gives_way_to_a_completed_one_only
        of_many_results_at_once_one_is_stored;
    chunks:
        the_pieces_come_in_order_then_the_result_then_the_end;
    strangers:
        a_plain_job_that_repeats_an_id_or_a_key_is_the_first_job;
}
