//! No statement of the services reads all deliveries or requests, however many there are.
//!
//! A program of its own, because the test checks all statements that the program makes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../store/databases.rs"]
mod databases;
#[expect(dead_code, reason = "other tests need more of it")]
#[path = "../store/fixtures.rs"]
mod fixtures;
mod statements;

use std::num::NonZeroU32;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend};
use throughline_api::DeadLetterFilter;
use throughline_messages::{AttemptReport, DeadReason, DeferralCause, ErrorClass, Outcome};
use throughline_snowflake::NodeId;
use throughline_store::dead_letters;
use throughline_store::retention::Cutoff;
use throughline_store::{
    DeliveryKey, Due, DueDelivery, NewRequest, Refusal, Store, backlog, claims, deliveries, idempotency,
    nodes, outbox, outcomes, replays, requests, retention, slow_starts,
};
use throughline_testkit::leased;

use crate::databases::{Db, on_postgres, on_sqlite};
use crate::fixtures::{at, deferred, id, node, rejected, report, request, retry};
use crate::statements::Plan;

/// Waiting for the destination `three`; a thousand each are due at the same time.
const DEFERRED: i64 = 100_000;
/// Of each other kind.
const OTHERS: i64 = 20_000;
const AT_ONCE: i64 = 1000;
/// The number of requests with rows in the outbox.
const NODES: u16 = 50;

/// The minimum number of different statements; fewer mean that the log was not read.
const STATEMENTS: usize = 40;

/// The first request of each kind.
const PLANNED: i64 = DEFERRED;
const KEY_BUSY: i64 = PLANNED + OTHERS;
const SILENT: i64 = KEY_BUSY + OTHERS;
const DEAD: i64 = SILENT + OTHERS;
const DELIVERED: i64 = DEAD + OTHERS;
const IN_GROUP: i64 = DELIVERED + OTHERS;
const UNPUBLISHED: i64 = IN_GROUP + OTHERS;
const END: i64 = UNPUBLISHED + OTHERS;

/// What a group of deliveries has in common.
struct Kind {
    from: i64,
    to: i64,
    /// SQL of what differs.
    state: &'static str,
    is_due: bool,
    is_published: bool,
    deferred_by: &'static str,
    ordering_group: &'static str,
    reason: &'static str,
}

const fn kind(from: i64, to: i64) -> Kind {
    let (deferred_by, ordering_group, reason) = ("NULL", "NULL", "NULL");
    Kind {
        from,
        to,
        state: "pending",
        is_due: true,
        is_published: false,
        deferred_by,
        ordering_group,
        reason,
    }
}

const KINDS: [Kind; 8] = [
    Kind { deferred_by: "'breaker_open'", ..kind(0, PLANNED) },
    kind(PLANNED, KEY_BUSY),
    Kind { deferred_by: "'key_busy'", ..kind(KEY_BUSY, SILENT) },
    Kind { is_published: true, ..kind(SILENT, DEAD) },
    Kind { state: "dead", is_due: false, reason: "'rejected'", ..kind(DEAD, DELIVERED) },
    Kind { state: "delivered", is_due: false, ..kind(DELIVERED, IN_GROUP) },
    Kind { deferred_by: "'order'", ordering_group: "'one/user'", ..kind(IN_GROUP, UNPUBLISHED) },
    Kind { is_published: true, ..kind(UNPUBLISHED, END) },
];

async fn fill(store: &Store) {
    let connection = store.connection();
    let time = |seconds| format!("'{}'", at(seconds).format("%Y-%m-%dT%H:%M:%S%.6f+00:00"));
    let begin = time(0);
    let empty = if connection.get_database_backend() == DbBackend::Sqlite { "x''" } else { "''" };
    for kind in KINDS {
        for first in (kind.from..kind.to).step_by(1000) {
            let ids = format!(
                "WITH RECURSIVE ids (id) AS (SELECT {first} UNION ALL SELECT id + 1 FROM ids WHERE id + 1 < {})",
                first + AT_ONCE
            );
            let route = if first / AT_ONCE % 10 == 0 { "two" } else { "one" };
            let requests = format!(
                "{ids} INSERT INTO requests (id, route, body, content_type, headers, accepted_at) \
                 SELECT id, '{route}', {empty}, 'application/json', '[]', {begin} FROM ids"
            );
            let Kind { state, is_due, is_published, deferred_by, ordering_group, reason, .. } = kind;
            let published_at = if is_published { &begin } else { "NULL" };
            let due_at = if is_due { time((first - kind.from) / AT_ONCE) } else { "NULL".to_owned() };
            let deliveries = format!(
                "{ids} INSERT INTO deliveries (request_id, destination, state, attempts, window_started_at, due_at, \
                 published_at, deferred_by, ordering_group, reason, updated_at) SELECT id, 'three', '{state}', 0, {begin}, \
                 {due_at}, {published_at}, {deferred_by}, {ordering_group}, {reason}, {begin} FROM ids"
            );
            connection.execute_unprepared(&requests).await.unwrap();
            connection.execute_unprepared(&deliveries).await.unwrap();
        }
    }
    let attempts = format!(
        "INSERT INTO attempts (request_id, destination, number, started_at, duration_ms, outcome) \
         SELECT request_id, destination, 1, {begin}, 1, 'dead' FROM deliveries WHERE due_at IS NULL"
    );
    connection.execute_unprepared(&attempts).await.unwrap();
    // A long outage of the broker: many nodes have much to publish, and all but one are gone.
    let ids = format!("SELECT id, 1 + id % {NODES} FROM requests WHERE id >= {UNPUBLISHED}");
    connection.execute_unprepared(&format!("INSERT INTO outbox (request_id, node_id) {ids}")).await.unwrap();
    // Each delivered request has an idempotency key.
    let hash =
        if connection.get_database_backend() == DbBackend::Sqlite { "zeroblob(32)" } else { "sha256('')" };
    let keys = format!(
        "INSERT INTO idempotency_keys (route, scope, key, request_id, fingerprint, expires_at) \
         SELECT route, 'open', CAST(id AS text), id, {hash}, {begin} FROM requests \
         WHERE id >= {DELIVERED} AND id < {IN_GROUP}"
    );
    connection.execute_unprepared(&keys).await.unwrap();
    let slow_start =
        format!("INSERT INTO slow_starts (destination, batch, next_at) VALUES ('three', 1, {begin})");
    connection.execute_unprepared(&slow_start).await.unwrap();
    connection.execute_unprepared("ANALYZE").await.unwrap();
}

/// A report on an attempt that began at `began`.
fn reported(number: i64, began: i64, outcome: Outcome) -> AttemptReport {
    AttemptReport { started_at: at(began), ..report(number, 1, outcome) }
}

async fn record(store: &Store, reports: &[AttemptReport], now: i64) {
    let transaction = store.begin().await.unwrap();
    outcomes::record(&transaction, reports, at(now)).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn sweep(store: &Store) {
    for due in [Due::Planned, Due::Silent] {
        let mut claim = claims::claim_due(store, due, at(500), 64).await.unwrap();
        let claimed = claim.take();
        assert_eq!(claimed.len(), 64);
        let published: Vec<_> = claimed[1..].iter().map(DueDelivery::key).collect();
        let refused = [refusal(claimed[0].request.id.as_i64())];
        claim.published(&published, &refused, at(500), at(1400)).await.unwrap();
        assert!(claims::is_any_due(store.connection(), due, at(500)).await.unwrap());
    }
    deliveries::next_due(store.connection()).await.unwrap();
}

fn refusal(number: i64) -> Refusal {
    Refusal {
        request_id: id(number),
        destination: None,
        reason: DeadReason::Unpublishable,
        class: ErrorClass::Broker,
        error: "too large".to_owned(),
    }
}

/// A destination is probed, and then gets larger and larger batches; no step releases more than its batch.
async fn release(store: &Store) {
    for step in 0..15 {
        let released = slow_starts::release(store, at(1000 + step)).await.unwrap();
        assert_eq!(released, 1 << step.min(12));
        record(store, &[reported(step, 1000 + step, Outcome::Delivered)], 1000 + step).await;
    }
}

/// Expires deliveries that wait for their destination; their windows all began at 0.
async fn expire(store: &Store) {
    slow_starts::destinations(store.connection()).await.unwrap();
    let none = claims::claim_expired(store, "three", at(-1), 1000).await.unwrap().take();
    assert_eq!(none, []);
    let mut claim = claims::claim_expired(store, "three", at(0), 1000).await.unwrap();
    let refused: Vec<_> = claim.take().iter().map(|due| refusal(due.request.id.as_i64())).collect();
    claim.renew().await.unwrap();
    assert_eq!(claim.end(&refused, at(2000)).await.unwrap().len(), 1000);
    claim.release().await.unwrap();
}

async fn record_outcomes(store: &Store) {
    let published = SILENT + 1000;
    let reports = |outcome: fn(i64) -> Outcome| {
        (0..512).map(|number| reported(published + number, 1, outcome(number))).collect::<Vec<_>>()
    };
    record(store, &reports(|_| deferred(DeferralCause::Limit, 10)), 2).await;
    record(store, &reports(|number| if number % 2 == 0 { retry(Some(10)) } else { rejected() }), 3).await;
    // At the head of an ordering group in which very many deliveries wait.
    record(store, &[reported(IN_GROUP, 1, Outcome::Delivered)], 5).await;
    record(store, &[reported(IN_GROUP + 1, 1, rejected())], 5).await;
}

async fn accept(store: &Store) {
    let in_group = |number| NewRequest { ordering_group: Some("one/user".to_owned()), ..request(number) };
    let lease = leased(store, node(1)).await.unwrap();
    let transaction = store.begin().await.unwrap();
    let new: Vec<_> = (END..END + 100).map(request).chain((END + 100..END + 200).map(in_group)).collect();
    requests::insert(&transaction, &lease, &new).await.unwrap();
    transaction.commit().await.unwrap();
    let connection = store.connection();
    let pending = outbox::pending(connection, node(1), None, 512, 1 << 20).await.unwrap();
    let ids: Vec<_> = pending.iter().map(|request| request.id).collect();
    outbox::pending(connection, node(1), ids.last().copied(), 512, 1 << 20).await.unwrap();
    outbox::oldest(connection, node(1)).await.unwrap();
    outbox::lag(connection, node(1), at(1), 1000).await.unwrap();
    outbox::node_of(connection, id(UNPUBLISHED)).await.unwrap();
    // The whole outbox waits, that of a node that is gone too.
    let gone = outbox::nodes_that_are_gone(connection, &lease).await.unwrap();
    assert_eq!(gone, (2..=NODES).map(node).collect::<Vec<_>>());
    assert!(outbox::take_over(connection, &lease, node(2)).await.unwrap() > 0);
    deliveries::postpone_all(connection, &ids, at(2000)).await.unwrap();
    outbox::remove(connection, &ids).await.unwrap();
    idempotency::purge(connection, at(0), 10).await.unwrap();
    nodes::acquire(store, "somebody", Duration::from_secs(1), &NodeId::ALL).await.unwrap();
}

async fn manage(store: &Store) {
    let connection = store.connection();
    requests::find(connection, id(7)).await.unwrap();
    requests::adopted(connection, &[[7; 32]]).await.unwrap();
    let middle = DeliveryKey::new(id(DEAD + OTHERS / 2), "three");
    let route = DeadLetterFilter { route: Some("one".to_owned()), ..DeadLetterFilter::default() };
    let everything = DeadLetterFilter {
        destination: Some("three".to_owned()),
        reason: Some("rejected".parse().unwrap()),
        before: Some(at(1)),
        ..route.clone()
    };
    for filter in [&DeadLetterFilter::default(), &route, &everything] {
        for after in [None, Some(&middle)] {
            assert_eq!(dead_letters::list(connection, filter, after, 100).await.unwrap().letters.len(), 100);
        }
        let transaction = store.begin().await.unwrap();
        assert_eq!(dead_letters::purge(&transaction, filter, None, 100, at(0)).await.unwrap().purged, 100);
        transaction.commit().await.unwrap();
        let rate = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1));
        replays::begin(connection, filter, rate, at(3000)).await.unwrap().unwrap();
        assert_eq!(replays::go_on(store, at(3000)).await.unwrap().revived, 100);
        assert_eq!(replays::go_on(store, at(3001)).await.unwrap().revived, 100);
        replays::next(connection).await.unwrap();
        connection.execute_unprepared("DELETE FROM replays").await.unwrap();
    }
    let transaction = store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(DEAD + OTHERS - 1), "three", at(9)).await.unwrap();
    deliveries::cancel(&transaction, id(7), None, at(9)).await.unwrap();
    deliveries::cancel(&transaction, id(8), Some("three"), at(9)).await.unwrap();
    deliveries::cancel(&transaction, id(IN_GROUP + 2), None, at(9)).await.unwrap();
    transaction.commit().await.unwrap();
}

/// The deleted requests are among very many that are kept.
async fn purge(store: &Store) {
    let connection = store.connection();
    let cutoff = Cutoff { delivered_before: at(1), dead_before: at(1), now: at(1) };
    let rate = (NonZeroU32::MIN, Duration::from_secs(1));
    let other = DeadLetterFilter { destination: Some("four".to_owned()), ..DeadLetterFilter::default() };
    replays::begin(connection, &other, rate, at(3000)).await.unwrap();
    for (after, old) in [(0, 0), (DEAD + OTHERS / 4, 500), (DELIVERED + OTHERS / 2, 500)] {
        let counted = retention::count(connection, &cutoff, Some(id(after))).await.unwrap();
        let purged = retention::purge(store, &cutoff, Some(id(after))).await.unwrap();
        assert_eq!((counted, purged.purged.requests), (purged, old));
    }
    retention::oldest(connection).await.unwrap();
    replays::purge(connection, at(1)).await.unwrap();
}

/// For metrics; a sample reads `most` rows at most of each way to wait.
async fn sample(store: &Store) {
    let (connection, most) = (store.connection(), 100);
    let due = backlog::due(connection, at(9999), most).await.unwrap();
    assert_eq!(due.deliveries, most);
    let open = backlog::open(connection, at(9999), most).await.unwrap();
    let counted = open["three"].pending + open["three"].retrying;
    assert_eq!(counted, 4 * most, "for an outcome, their time, their group, their destination");
    assert_eq!(backlog::dead_letters(connection, most).await.unwrap()["three"], most);
    backlog::leases(connection).await.unwrap();
    outbox::lag(connection, node(1), at(9999), most).await.unwrap();
}

async fn nothing_is_read_whole(db: Db) {
    fill(&db.store).await;
    statements::listen();
    sample(&db.store).await;
    accept(&db.store).await;
    sweep(&db.store).await;
    release(&db.store).await;
    expire(&db.store).await;
    record_outcomes(&db.store).await;
    manage(&db.store).await;
    purge(&db.store).await;
    let plans = statements::explain(&db, statements::end()).await;
    assert!(plans.len() >= STATEMENTS, "{} statements", plans.len());
    let unnamed: Vec<_> =
        plans.iter().filter(|plan| plan.asks_for_all_columns()).map(|plan| &plan.sql).collect();
    assert!(unnamed.is_empty(), "another column would break {unnamed:#?}");
    let wrong = plans.iter().filter(|plan| plan.reads_all() || plan.reads_all_outboxes());
    let wrong: Vec<_> =
        wrong.map(|Plan { sql, lines, took }| format!("{sql}\n{}\nin {took:?}", lines.join("\n"))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// The databases are tested one after the other, so that each explains only its own statements.
#[test]
fn no_table_is_scanned_completely_however_many_rows_wait() {
    on_sqlite(nothing_is_read_whole);
    on_postgres(nothing_is_read_whole);
}
