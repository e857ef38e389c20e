//! A program that is older than the schema.

use std::num::NonZeroU32;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use throughline_api::DeadLetterFilter;
use throughline_messages::{DeferralCause, Outcome};
use throughline_snowflake::NodeId;
use throughline_store::dead_letters;
use throughline_store::retention::{self, Cutoff};
use throughline_store::{
    Due, DueDelivery, Store, backlog, claims, deliveries, idempotency, nodes, outbox, outcomes, replays,
    requests, slow_starts,
};
use throughline_testkit::unmeasured;

use crate::databases::{Db, on_postgres};
use crate::dead_letters::begin;
use crate::fixtures::{at, deferred, id, insert, node, rejected, report, request, retry};
use crate::idempotency::claim;

/// The tables of the schema.
const TABLES: &str = "SELECT relname::text AS name FROM pg_class \
     WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE '\\_sqlx%'";

async fn record(store: &Store, number: i64, outcome: Outcome) {
    let transaction = store.begin().await.unwrap();
    outcomes::record(&transaction, &[report(number, 1, outcome)], at(5)).await.unwrap();
    transaction.commit().await.unwrap();
}

/// All that the services do, with requests from `first` on.
async fn works(store: &Store, first: i64) {
    let connection = store.connection();
    let lease = nodes::acquire(store, "a", Duration::from_mins(1), &NodeId::ALL).await.unwrap().unwrap();
    assert!(nodes::renew(connection, &lease, "a", Duration::from_mins(1)).await.unwrap().is_some());
    let claims = [claim(&first.to_string(), first, 7)];
    idempotency::claim(connection, &claims, at(0)).await.unwrap();
    let all: Vec<_> = (first..first + 6).map(request).collect();
    insert(store, &all).await;
    let pending = outbox::pending(connection, node(1), None, 100, u64::MAX).await.unwrap();
    assert_eq!(pending.len(), all.len());
    outbox::oldest(connection, node(1)).await.unwrap();
    outbox::lag(connection, node(1), at(1), 10).await.unwrap();
    outbox::node_of(connection, id(first)).await.unwrap();
    assert_eq!(outbox::nodes_that_are_gone(connection, &lease).await.unwrap(), []);
    outbox::take_over(connection, &lease, node(9)).await.unwrap();
    outbox::remove(connection, &pending.iter().map(|request| request.id).collect::<Vec<_>>()).await.unwrap();
    record(store, first, Outcome::Delivered).await;
    record(store, first + 1, retry(Some(10))).await;
    record(store, first + 2, rejected()).await;
    record(store, first + 3, deferred(DeferralCause::BreakerOpen, 10)).await;
    record(store, first + 4, rejected()).await;
    for due in [Due::Planned, Due::Silent] {
        let mut claim = claims::claim_due(store, due, at(1000), 10).await.unwrap();
        let published: Vec<_> = claim.take().iter().map(DueDelivery::key).collect();
        assert!(!published.is_empty());
        claim.published(&published, &[], at(1000), at(5000)).await.unwrap();
    }
    assert!(slow_starts::release(store, at(1000)).await.unwrap() > 0);
    deliveries::next_due(connection).await.unwrap();
    backlog::due(connection, at(1000), 10).await.unwrap();
    backlog::open(connection, at(1000), 10).await.unwrap();
    backlog::dead_letters(connection, 10).await.unwrap();
    backlog::leases(connection).await.unwrap();
    requests::find(connection, id(first)).await.unwrap().unwrap();
    requests::body(connection, id(first)).await.unwrap().unwrap();
    assert_eq!(
        dead_letters::list(connection, &DeadLetterFilter::default(), None, 10).await.unwrap().letters.len(),
        2
    );
    let transaction = store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(first + 2), "three", at(1001)).await.unwrap();
    transaction.commit().await.unwrap();
    let rate = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1));
    let replay = begin(store, &DeadLetterFilter::default(), rate, at(2000)).await.unwrap();
    assert_eq!(replays::go_on(store, at(2000)).await.unwrap().revived, 1);
    replays::next(connection).await.unwrap();
    claims::claim_expired(store, "three", at(-1), 10).await.unwrap();
    slow_starts::destinations(connection).await.unwrap();
    replays::find(connection, replay).await.unwrap().unwrap();
    replays::stop(connection, replay, at(2000)).await.unwrap();
    for number in 1..6 {
        record(store, first + number, Outcome::Delivered).await;
    }
    replays::purge(connection, at(3000)).await.unwrap();
    idempotency::purge(connection, at(900_000), 10).await.unwrap();
    let cutoff = Cutoff { delivered_before: at(4000), dead_before: at(4000), now: at(900_000) };
    assert_eq!(retention::purge(store, &cutoff, None).await.unwrap().purged.requests, 6);
    nodes::release(connection, &lease, "a").await.unwrap();
}

async fn ask(store: &Store, sql: &str) -> Vec<String> {
    let rows =
        store.connection().query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
    rows.iter().map(|row| row.try_get("", "name").unwrap()).collect()
}

#[test]
fn a_program_works_with_tables_that_have_unknown_columns() {
    on_postgres(async |db: Db| {
        // One connection, so that each statement was prepared before.
        let settings =
            throughline_store::Settings { max_connections: NonZeroU32::MIN, ..db.settings.clone() };
        let warm = Store::connect(&settings, &unmeasured()).await.unwrap();
        works(&warm, 1).await;
        let tables = ask(&db.store, TABLES).await;
        assert!(tables.len() >= 8, "{tables:?}");
        for table in tables {
            let sql =
                format!("ALTER TABLE {table} ADD COLUMN of_a_later_release text NOT NULL DEFAULT 'new'");
            db.store.connection().execute_unprepared(&sql).await.unwrap();
        }
        works(&warm, 101).await;

        // As when the new schema is there before a replica of the old release starts.
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9001, 'of a later release', true, '', 0)";
        db.store.connection().execute_unprepared(later).await.unwrap();
        let cold = Store::connect(&settings, &unmeasured()).await.unwrap();
        cold.check_schema().await.unwrap();
        works(&cold, 201).await;
    });
}

#[test]
fn statements_that_were_prepared_for_another_schema_are_prepared_again() {
    on_postgres(async |db: Db| {
        let connection = db.store.connection();
        let one = Statement::from_string(DbBackend::Postgres, "SELECT holder FROM nodes");
        let sql = "INSERT INTO nodes VALUES (7, 'a', 1, now())";
        connection.execute_unprepared(sql).await.unwrap();
        // All connections have it prepared.
        let mut warm = Vec::new();
        for _ in 0..12 {
            let transaction = db.store.begin().await.unwrap();
            transaction.query_one_raw(one.clone()).await.unwrap().unwrap();
            warm.push(transaction);
        }
        drop(warm);
        let sql = "ALTER TABLE nodes ALTER COLUMN holder TYPE varchar(100)";
        connection.execute_unprepared(sql).await.unwrap();

        let transaction = db.store.begin().await.unwrap();
        let error = transaction.query_one_raw(one.clone()).await.unwrap_err();
        let error = throughline_store::StoreError::from(error);
        assert!(error.is_unavailable() && !error.is_about_data(), "{error:?}");
        drop(transaction);
        for _ in 0..12 {
            let transaction = db.store.begin().await.unwrap();
            transaction.query_one_raw(one.clone()).await.unwrap().unwrap();
            transaction.commit().await.unwrap();
        }
    });
}

#[test]
fn a_single_statement_that_was_prepared_for_another_schema_is_repeated() {
    on_postgres(async |db: Db| {
        let settings =
            throughline_store::Settings { max_connections: NonZeroU32::MIN, ..db.settings.clone() };
        let store = Store::connect(&settings, &unmeasured()).await.unwrap();
        let one = Statement::from_string(DbBackend::Postgres, "SELECT holder FROM nodes");
        store.connection().query_all_raw(one.clone()).await.unwrap();
        let sql = "ALTER TABLE nodes ALTER COLUMN holder TYPE varchar(100)";
        db.store.connection().execute_unprepared(sql).await.unwrap();
        store.connection().query_all_raw(one).await.unwrap();
    });
}
