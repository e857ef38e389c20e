//! What the store promises, on both databases: the bodies of the tests are the same.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod backlog;
mod concurrency;
mod connecting;
mod databases;
mod dead_letters;
mod deliveries;
mod expiry;
mod fixtures;
mod holds;
mod idempotency;
mod lanes;
mod metrics;
mod newer;
mod nodes;
mod outbox;
mod outcomes;
mod requests;
mod retention;
mod schema;
mod stalled;
mod tls;

use crate::databases::{on_postgres, on_sqlite};

/// Makes of each body a test on SQLite and one on PostgreSQL.
macro_rules! on_both_databases {
    ($($module:ident: $($body:ident),+ $(,)?;)+) => {
        mod postgres {
            $(mod $module {
                $(#[test] fn $body() { crate::on_postgres(crate::$module::$body); })+
            })+
        }
        mod sqlite {
            $(mod $module {
                $(#[test] fn $body() { crate::on_sqlite(crate::$module::$body); })+
            })+
        }
    };
}

on_both_databases! {
    requests:
        bodies_come_back_byte_for_byte,
        texts_and_times_come_back_as_they_were,
        a_status_shows_the_request_its_deliveries_and_their_attempts,
        an_unknown_request_has_no_status,
        a_batch_may_be_large,
        an_id_that_is_taken_fails_the_batch_for_good,
        what_is_rolled_back_was_never_there;
    idempotency:
        a_key_repeats_for_the_same_body_and_conflicts_for_another,
        verdicts_come_in_the_order_of_the_claims,
        an_expired_key_is_taken_over,
        only_expired_keys_are_purged_and_no_more_than_asked,
        a_key_belongs_to_its_route_and_its_client,
        a_claim_that_is_rolled_back_leaves_the_key_free;
    outbox:
        a_node_sees_its_own_rows_in_the_order_of_ids,
        a_page_begins_after_an_id_and_ends_where_bodies_fill_it,
        what_is_removed_is_not_pending,
        what_is_not_acknowledged_is_its_nodes_to_publish,
        nothing_is_kept_under_a_lease_that_is_over,
        rows_of_nodes_that_are_gone_are_taken_over,
        what_a_node_has_to_publish_is_counted;
    nodes:
        the_lowest_id_that_nobody_had_is_leased_first,
        a_lease_that_ran_out_is_taken_over_and_cannot_be_renewed,
        a_renewed_lease_lasts_longer,
        a_released_id_is_free_at_once,
        ids_are_to_be_younger_than_all_that_are_there,
        ids_from_far_ahead_do_not_hold_up_retention,
        one_of_a_range_is_leased_or_none,
        none_is_leased_when_all_are_taken,
        of_those_that_ran_out_the_longest_free_is_leased;
    outcomes:
        an_attempt_ends_its_delivery,
        a_dead_delivery_says_why,
        the_same_report_again_changes_nothing,
        delivered_wins_over_dead_and_stays,
        a_cancelled_delivery_stays_cancelled_unless_the_third_party_has_it,
        a_failed_attempt_waits_for_the_next_one,
        a_deferred_delivery_has_made_no_attempt,
        what_ends_without_a_call_has_made_no_attempt,
        an_attempt_that_is_made_again_is_kept_beside_the_first,
        reports_of_unknown_requests_are_handed_back_and_harm_no_others,
        a_delivery_to_a_new_destination_is_added,
        a_batch_may_hold_several_reports_of_one_delivery,
        an_answer_with_nul_characters_is_kept;
    deliveries:
        what_is_due_is_claimed_the_longest_overdue_first,
        what_was_claimed_and_not_published_is_due_again_when_the_claim_ends,
        a_claim_that_has_ended_changes_nothing,
        a_published_delivery_is_due_later,
        only_the_named_are_published,
        a_delivery_that_ended_meanwhile_is_not_due_again,
        what_is_in_the_outbox_is_not_due,
        what_was_published_late_is_due_later_and_never_earlier,
        a_claim_keeps_no_writer_waiting_and_no_recorder,
        a_refused_request_ends_dead,
        what_was_heard_of_while_it_was_published_is_not_taken_for_silent,
        what_the_broker_refuses_ends_dead_and_the_rest_of_its_claim_does_not,
        what_has_a_time_of_its_own_keeps_it_when_its_request_was_published_late,
        everything_published_can_be_made_due,
        what_waits_for_its_time_is_told_from_what_is_silent,
        what_is_cancelled_ends,
        what_is_cancelled_before_it_is_published_is_not_published;
    dead_letters:
        the_dead_are_listed_page_by_page_the_youngest_first,
        a_filter_takes_what_it_names,
        a_replayed_delivery_begins_anew_and_keeps_what_was_tried,
        a_replay_goes_at_its_rate_and_takes_each_once,
        a_replay_that_is_stopped_takes_no_more,
        a_replay_that_means_few_of_very_many_walks_them_in_bounded_steps,
        a_list_that_means_few_of_very_many_is_walked_in_bounded_pages,
        only_so_many_replays_run_at_a_time,
        the_purged_are_gone_with_requests_of_which_nothing_is_left,
        a_request_that_a_key_stands_for_outlives_its_dead_letters;
    holds:
        a_destination_that_fails_is_probed_by_one_and_then_gets_twice_as_many,
        a_destination_at_its_limit_gets_half_as_many,
        a_hold_ends_when_nothing_waits_behind_it,
        a_hold_holds_no_other_destination,
        a_busy_key_waits_for_its_time_and_says_nothing_of_its_destination,
        a_busy_key_goes_on_by_itself_and_takes_no_place_among_those_that_are_held,
        a_hold_says_when_it_lets_how_many_go,
        what_ends_without_a_call_makes_room_for_another_one_at_once;
    expiry:
        a_hundred_thousand_that_have_expired_keep_nothing_from_those_behind_them,
        only_what_waits_for_its_destination_expires_there,
        what_one_ends_another_leaves_alone,
        a_lane_goes_on_behind_one_that_has_expired;
    retention:
        whatever_has_not_ended_long_ago_or_is_needed_survives_and_all_else_goes,
        what_goes_takes_its_attempts_with_it,
        nobody_looks_beyond_the_first_that_was_accepted_too_late,
        large_bodies_fill_a_batch,
        what_is_reported_of_a_purged_request_is_handed_back_and_brings_nothing_back,
        the_dead_that_a_replay_has_yet_to_come_to_are_kept,
        replays_are_purged_once_they_are_long_over,
        what_was_called_off_is_kept_as_long_as_what_was_delivered;
    lanes:
        one_of_a_lane_is_published_and_the_others_wait,
        the_next_of_a_lane_is_due_when_the_one_before_it_has_ended,
        a_lane_goes_on_behind_what_cannot_be_published,
        each_destination_of_a_lane_goes_its_own_pace,
        what_was_cancelled_before_it_was_published_is_held,
        who_comes_back_from_the_dead_waits_for_its_turn,
        the_time_of_who_waits_begins_with_its_turn,
        who_waits_is_told_who_is_before_it;
    concurrency:
        two_who_release_at_once_let_go_no_more_than_a_hold_allows,
        two_who_go_on_with_a_replay_take_each_dead_letter_once,
        what_is_purged_while_all_are_replayed_is_either_gone_or_on_its_way,
        two_who_purge_at_once_delete_each_request_once,
        the_dead_that_come_back_while_they_are_purged_are_either_gone_or_on_their_way;
    schema:
        an_empty_database_is_behind,
        migrating_brings_the_schema_up_to_date_once,
        a_schema_of_a_later_release_is_worked_with,
        a_schema_of_another_program_is_refused,
        a_migration_with_another_text_is_refused,
        two_who_migrate_at_once_apply_each_migration_once,
        what_goes_up_comes_down;
    metrics:
        operations_are_timed_by_name,
        an_operation_that_fails_says_why,
        connections_are_counted,
        a_store_that_is_gone_counts_no_connections;
    backlog:
        nothing_waits_in_an_empty_database,
        what_has_not_ended_is_counted_by_destination_and_state,
        what_a_sweeper_is_to_publish_is_due,
        the_age_counts_from_when_the_time_of_a_delivery_began,
        a_sample_reads_no_more_rows_than_it_may,
        node_ids_are_counted_as_long_as_they_are_leased;
    connecting:
        a_connected_database_answers,
        a_closed_database_is_unavailable;
}
