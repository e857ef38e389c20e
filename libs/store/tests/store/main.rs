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
mod idempotency;
mod metrics;
mod newer;
mod nodes;
mod ordering_groups;
mod outbox;
mod outcomes;
mod requests;
mod retention;
mod schema;
mod slow_starts;
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
        bodies_are_read_back_byte_for_byte,
        texts_and_times_are_read_back_unchanged,
        a_status_shows_the_request_its_deliveries_and_their_attempts,
        an_unknown_request_has_no_status,
        a_batch_may_be_large,
        a_duplicate_id_fails_the_batch_permanently,
        a_rollback_leaves_nothing;
    idempotency:
        a_key_repeats_for_the_same_body_and_conflicts_for_another,
        verdicts_come_in_the_order_of_the_claims,
        an_expired_key_is_taken_over,
        only_expired_keys_are_purged_up_to_the_limit,
        a_key_belongs_to_its_route_and_its_client,
        a_claim_that_is_rolled_back_leaves_the_key_free;
    outbox:
        a_node_sees_its_own_rows_in_the_order_of_ids,
        a_page_begins_after_an_id_and_ends_where_bodies_fill_it,
        removed_rows_are_not_pending,
        unacknowledged_requests_belong_to_their_node,
        nothing_is_added_under_an_expired_lease,
        rows_of_expired_nodes_are_taken_over,
        the_pending_rows_of_a_node_are_counted;
    nodes:
        the_lowest_unused_id_is_leased_first,
        an_expired_lease_is_taken_over_and_cannot_be_renewed,
        a_renewed_lease_lasts_longer,
        a_released_id_is_free_immediately,
        new_ids_must_be_newer_than_all_stored_ones,
        ids_far_in_the_future_do_not_block_retention,
        one_of_a_range_is_leased_or_none,
        no_id_is_leased_when_all_are_taken,
        the_id_that_expired_first_is_leased_again_first;
    outcomes:
        an_attempt_ends_its_delivery,
        a_dead_delivery_says_why,
        the_same_report_again_changes_nothing,
        delivered_wins_over_dead_and_stays,
        a_cancelled_delivery_stays_cancelled_unless_the_third_party_has_it,
        a_failed_attempt_waits_for_the_next_one,
        a_deferred_delivery_has_made_no_attempt,
        a_delivery_that_ends_without_a_call_has_no_attempt,
        a_repeated_attempt_is_kept_with_the_first,
        reports_of_unknown_requests_are_returned_and_affect_no_others,
        a_delivery_to_a_new_destination_is_added,
        a_batch_may_hold_several_reports_of_one_delivery,
        an_answer_with_nul_characters_is_kept;
    deliveries:
        the_longest_overdue_delivery_is_claimed_first,
        an_unpublished_delivery_is_due_again_when_its_claim_expires,
        a_claim_lasts_by_the_clock_of_the_database,
        a_claim_that_has_expired_changes_nothing,
        a_published_delivery_is_due_later,
        only_the_named_deliveries_are_published,
        a_delivery_that_ended_meanwhile_is_not_due_again,
        requests_in_the_outbox_are_not_due,
        a_late_publication_postpones_the_due_time_and_never_advances_it,
        a_claim_keeps_no_writer_waiting_and_no_recorder,
        a_refused_request_ends_dead,
        an_outcome_during_publication_prevents_silence,
        a_rejected_delivery_ends_dead_and_the_rest_of_its_claim_does_not,
        a_due_time_set_by_an_outcome_survives_a_late_publication,
        everything_published_can_be_made_due,
        planned_deliveries_are_distinguished_from_silent_ones,
        a_cancelled_delivery_ends,
        a_delivery_cancelled_before_publication_is_not_published;
    dead_letters:
        dead_letters_are_listed_by_page_newest_first,
        a_filter_matches_what_it_names,
        a_replayed_delivery_restarts_and_keeps_its_attempts,
        a_replay_keeps_its_rate_and_takes_each_dead_letter_once,
        a_stopped_replay_takes_no_more_dead_letters,
        a_replay_with_few_matches_walks_many_rows_in_bounded_steps,
        a_list_and_a_purge_with_few_matches_walk_many_rows_in_bounded_steps,
        the_number_of_running_replays_is_limited,
        a_purge_also_deletes_requests_without_deliveries,
        a_request_that_a_key_stands_for_outlives_its_dead_letters,
        a_request_that_kafka_has_not_acknowledged_outlives_its_dead_letters;
    slow_starts:
        a_failing_destination_is_probed_by_one_delivery_and_then_gets_twice_as_many,
        a_destination_at_its_limit_gets_half_as_many_deliveries,
        a_slow_start_ends_when_no_delivery_waits_for_it,
        a_slow_start_affects_no_other_destination,
        a_busy_key_waits_for_its_due_time_and_does_not_affect_its_destination,
        a_busy_key_continues_by_itself_and_takes_nothing_of_a_batch,
        a_slow_start_shows_its_next_release,
        a_delivery_that_ends_without_a_call_lets_another_one_follow_immediately;
    expiry:
        a_hundred_thousand_expired_deliveries_do_not_delay_those_behind_them,
        only_deliveries_that_wait_for_their_destination_expire_there,
        a_delivery_ended_by_one_replica_is_skipped_by_another,
        a_group_continues_behind_an_expired_delivery;
    retention:
        only_requests_that_ended_long_ago_and_are_not_needed_are_purged,
        a_purged_request_takes_its_attempts_with_it,
        a_purge_stops_at_the_first_request_that_is_too_recent,
        large_bodies_fill_a_batch,
        a_report_of_a_purged_request_is_returned_and_restores_nothing,
        dead_letters_ahead_of_a_replay_are_kept,
        replays_that_ended_long_ago_are_purged,
        cancelled_requests_are_kept_as_long_as_delivered_ones;
    ordering_groups:
        one_delivery_of_a_group_is_published_and_the_others_wait,
        the_next_delivery_of_a_group_is_due_when_the_one_before_it_has_ended,
        a_group_continues_behind_an_unpublishable_delivery,
        each_destination_of_a_group_has_its_own_pace,
        a_delivery_cancelled_before_publication_is_skipped_in_its_group,
        a_replayed_dead_letter_waits_for_its_ordering_group,
        the_window_of_a_waiting_delivery_begins_when_it_is_the_first,
        a_waiting_delivery_shows_the_deliveries_before_it;
    concurrency:
        two_concurrent_releases_do_not_exceed_the_batch,
        two_replicas_of_a_replay_take_each_dead_letter_once,
        a_dead_letter_is_either_purged_or_replayed,
        two_concurrent_purges_delete_each_request_once,
        dead_letters_replayed_during_a_purge_are_either_purged_or_replayed;
    schema:
        an_empty_database_is_behind,
        migrating_brings_the_schema_up_to_date_once,
        a_schema_of_a_later_release_is_supported,
        a_schema_of_another_program_is_rejected,
        a_migration_with_another_text_is_rejected,
        two_concurrent_migrations_apply_each_migration_once,
        migrations_can_be_reverted;
    metrics:
        operations_are_timed_by_name,
        a_failed_operation_is_counted_with_its_cause,
        connections_are_counted,
        a_dropped_store_counts_no_connections;
    backlog:
        nothing_waits_in_an_empty_database,
        unended_deliveries_are_counted_by_destination_and_state,
        deliveries_for_the_sweeper_are_due,
        the_age_counts_from_the_start_of_the_window,
        a_sample_reads_a_limited_number_of_rows,
        node_ids_are_counted_as_long_as_they_are_leased;
    connecting:
        a_connected_database_answers,
        a_closed_database_is_unavailable;
}
