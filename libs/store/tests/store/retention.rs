use std::num::NonZeroU32;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Statement};
use throughline_api::{DeadLetterFilter, DeliveryState};
use throughline_messages::{AttemptReport, Outcome};
use throughline_snowflake::RequestId;
use throughline_store::idempotency::{self, Claim};
use throughline_store::retention::{self, Cutoff, Purged};
use throughline_store::{NewRequest, Store, deliveries, outbox, replays, requests};

use crate::databases::Db;
use crate::dead_letters::begin;
use crate::fixtures::{at, delivery, id, insert, publish, rejected, report, request};
use crate::idempotency::claim;
use crate::outcomes::record;

/// Deliveries are old if they succeeded before 1000 s or died before 500 s; keys have expired that expire at 2000 s.
pub(crate) fn cutoff() -> Cutoff {
    Cutoff { delivered_before: at(1000), dead_before: at(500), now: at(2000) }
}

/// Purges batch by batch, until nothing old is left.
pub(crate) async fn purge(store: &Store) -> Purged {
    let (mut purged, mut after) = (Purged::default(), None);
    loop {
        let batch = retention::purge(store, &cutoff(), after).await.unwrap();
        purged += batch.purged;
        after = batch.next;
        if after.is_none() {
            return purged;
        }
    }
}

/// The same, if it were done.
async fn count(store: &Store) -> Purged {
    let (mut counted, mut after) = (Purged::default(), None);
    loop {
        let batch = retention::count(store.connection(), &cutoff(), after).await.unwrap();
        counted += batch.purged;
        after = batch.next;
        if after.is_none() {
            return counted;
        }
    }
}

async fn numbers(store: &Store, sql: &str) -> Vec<i64> {
    let statement = Statement::from_string(store.connection().get_database_backend(), sql);
    let rows = store.connection().query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get("", "number").unwrap()).collect()
}

async fn kept(store: &Store) -> Vec<i64> {
    numbers(store, "SELECT id AS number FROM requests ORDER BY id").await
}

/// A kind of delivery in SQL, and whether it keeps its request.
fn kinds() -> Vec<(String, bool)> {
    let time = |seconds| format!("'{}'", at(seconds).format("%Y-%m-%dT%H:%M:%S%.6f+00:00"));
    let ended = |state: &str, seconds, reason| {
        let updated_at = time(seconds);
        format!(
            "state = '{state}', due_at = NULL, published_at = NULL, reason = {reason}, updated_at = {updated_at}"
        )
    };
    vec![
        ("counted_attempts = 0".to_owned(), true),
        ("published_at = NULL".to_owned(), true),
        ("state = 'retrying'".to_owned(), true),
        ("published_at = NULL, deferred_by = 'limit'".to_owned(), true),
        ("published_at = NULL, deferred_by = 'order', ordering_group = 'one/user'".to_owned(), true),
        (ended("delivered", 999, "NULL"), false),
        (ended("delivered", 1000, "NULL"), true),
        (ended("cancelled", 999, "NULL"), false),
        (ended("dead", 499, "'rejected'"), false),
        (ended("dead", 500, "'rejected'"), true),
    ]
}

/// A request with one delivery of each of two kinds.
struct Mixed {
    number: i64,
    kinds: [usize; 2],
    is_published: bool,
    key_expires_at: Option<i64>,
}

fn every_mix() -> Vec<Mixed> {
    let kinds = 0..kinds().len();
    let pairs = kinds.clone().flat_map(|one| kinds.clone().map(move |other| [one, other]));
    let circumstances =
        [true, false].into_iter().flat_map(|is| [None, Some(2000), Some(2001)].map(|key| (is, key)));
    let all = pairs.flat_map(|pair| circumstances.clone().map(move |circumstances| (pair, circumstances)));
    let mixed = |(number, (kinds, (is_published, key_expires_at)))| Mixed {
        number,
        kinds,
        is_published,
        key_expires_at,
    };
    (1..).zip(all).map(mixed).collect()
}

async fn keep(store: &Store, all: &[Mixed]) {
    let destinations = ["three", "four"];
    let everywhere = destinations.map(str::to_owned);
    let new = |mixed: &Mixed| NewRequest { destinations: everywhere.to_vec(), ..request(mixed.number) };
    insert(store, &all.iter().map(new).collect::<Vec<_>>()).await;
    for (index, destination) in destinations.iter().enumerate() {
        for (kind, (sql, _)) in kinds().iter().enumerate() {
            let of_it = all.iter().filter(|mixed| mixed.kinds[index] == kind);
            let ids = of_it.map(|mixed| mixed.number.to_string()).collect::<Vec<_>>().join(", ");
            let sql = format!(
                "UPDATE deliveries SET {sql} WHERE destination = '{destination}' AND request_id IN ({ids})"
            );
            store.connection().execute_unprepared(&sql).await.unwrap();
        }
    }
    let published = all.iter().filter(|mixed| mixed.is_published).map(|mixed| id(mixed.number));
    outbox::remove(store.connection(), &published.collect::<Vec<_>>()).await.unwrap();
    let claims = all.iter().filter_map(|mixed| {
        let expires_at = at(mixed.key_expires_at?);
        Some(Claim { expires_at, ..claim(&mixed.number.to_string(), mixed.number, 7) })
    });
    idempotency::claim(store.connection(), &claims.collect::<Vec<_>>(), at(0)).await.unwrap();
}

pub(crate) async fn only_requests_that_ended_long_ago_and_are_not_needed_are_purged(db: Db) {
    let (all, kinds) = (every_mix(), kinds());
    assert_eq!(all.len(), 600, "more than one batch");
    keep(&db.store, &all).await;
    let is_kept = |mixed: &&Mixed| {
        !mixed.is_published
            || mixed.key_expires_at == Some(2001)
            || mixed.kinds.iter().any(|kind| kinds[*kind].1)
    };
    let expected: Vec<i64> = all.iter().filter(is_kept).map(|mixed| mixed.number).collect();

    let counted = count(&db.store).await;
    assert_eq!(kept(&db.store).await.len(), all.len(), "a count deletes nothing");
    let purged = purge(&db.store).await;
    assert_eq!(kept(&db.store).await, expected);
    assert_eq!(purged, Purged { requests: 600 - expected.len() as u64, ..counted });
    assert_eq!((purged.requests, purged.deliveries, purged.attempts), (18, 36, 0));
    let of_deliveries = "SELECT count(*) AS number FROM deliveries";
    assert_eq!(numbers(&db.store, of_deliveries).await, [2 * i64::try_from(expected.len()).unwrap()]);
    assert_eq!(retention::oldest(db.store.connection()).await.unwrap(), Some(id(expected[0])));
    assert_eq!(purge(&db.store).await, Purged::default(), "once is enough");
}

pub(crate) async fn a_purged_request_takes_its_attempts_with_it(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    let reports = [report(1, 1, rejected()), report(1, 2, Outcome::Delivered), report(2, 1, rejected())];
    record(&db.store, &reports, 700).await;
    assert_eq!(purge(&db.store).await, Purged { requests: 1, deliveries: 1, attempts: 2 });
    assert_eq!(delivery(&db.store, 2).await.attempts.len(), 1, "it died too late");
}

/// Otherwise each purge would read all requests.
pub(crate) async fn a_purge_stops_at_the_first_request_that_is_too_recent(db: Db) {
    let too_late = (at(1000).timestamp_millis() + 1 - id(0).created_at().timestamp_millis()) << 22;
    publish(&db.store, &[request(1), request(too_late), request(too_late + 1)]).await;
    record(&db.store, &[1, too_late, too_late + 1].map(|number| report(number, 1, Outcome::Delivered)), 5)
        .await;
    let batch = retention::purge(&db.store, &cutoff(), None).await.unwrap();
    assert_eq!((batch.purged.requests, batch.next), (1, None));
    assert_eq!(kept(&db.store).await, [too_late, too_late + 1]);
}

/// A request that is too large for a batch is a batch of its own.
pub(crate) async fn large_bodies_fill_a_batch(db: Db) {
    let large = |number| NewRequest { body: vec![b' '; 9 << 20].into(), ..request(number) };
    publish(&db.store, &[large(1), large(2), large(3)]).await;
    record(&db.store, &[1, 2, 3].map(|number| report(number, 1, Outcome::Delivered)), 5).await;
    let mut sizes = Vec::new();
    let mut after: Option<RequestId> = None;
    loop {
        let batch = retention::purge(&db.store, &cutoff(), after).await.unwrap();
        sizes.push(batch.purged.requests);
        after = batch.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [2, 1]);
}

pub(crate) async fn a_report_of_a_purged_request_is_returned_and_restores_nothing(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    record(&db.store, &[report(1, 1, Outcome::Delivered)], 5).await;
    assert_eq!(purge(&db.store).await.requests, 1);
    let elsewhere = AttemptReport { destination: "four".to_owned(), ..report(1, 1, rejected()) };
    let late =
        [report(1, 1, Outcome::Delivered), report(1, 2, rejected()), elsewhere, report(2, 1, rejected())];
    assert_eq!(record(&db.store, &late, 6).await, [id(1), id(1), id(1)]);
    assert_eq!(requests::find(db.store.connection(), id(1)).await.unwrap(), None);
    let of_it = "SELECT count(*) AS number FROM attempts WHERE request_id = 1";
    assert_eq!(numbers(&db.store, of_it).await, [0]);
    assert_eq!(delivery(&db.store, 2).await.state, DeliveryState::Dead, "the others are recorded");
}

async fn replay(store: &Store, filter: &DeadLetterFilter) -> i64 {
    let rate = (NonZeroU32::MIN, Duration::from_secs(1));
    begin(store, filter, rate, at(2000)).await.unwrap()
}

pub(crate) async fn dead_letters_ahead_of_a_replay_are_kept(db: Db) {
    let four = |number| NewRequest { destinations: vec!["four".to_owned()], ..request(number) };
    publish(&db.store, &[request(1), request(2), request(3), four(4)]).await;
    let died = |number| report(number, 1, rejected());
    let at_four = AttemptReport { destination: "four".to_owned(), ..died(4) };
    record(&db.store, &[died(1), died(2), died(3), at_four], 5).await;
    let three = DeadLetterFilter { destination: Some("three".to_owned()), ..DeadLetterFilter::default() };
    let replaying = replay(&db.store, &three).await;
    assert_eq!(replays::go_on(&db.store, at(2000)).await.unwrap().revived, 1);
    // It is called again, and dies again; the replay will not come back to it.
    record(&db.store, &[AttemptReport { started_at: at(9), ..report(1, 2, rejected()) }], 10).await;
    assert_eq!(purge(&db.store).await.requests, 2, "the first, and the one that is not meant");
    assert_eq!(kept(&db.store).await, [2, 3]);
    replays::stop(db.store.connection(), replaying, at(2001)).await.unwrap();
    assert_eq!(purge(&db.store).await.requests, 2);
}

pub(crate) async fn replays_that_ended_long_ago_are_purged(db: Db) {
    let (stopped, running) = (
        replay(&db.store, &DeadLetterFilter::default()).await,
        replay(&db.store, &DeadLetterFilter::default()).await,
    );
    replays::stop(db.store.connection(), stopped, at(2001)).await.unwrap();
    let purge = async |over_before| replays::purge(db.store.connection(), at(over_before)).await.unwrap();
    assert_eq!((purge(2001).await, purge(2002).await, purge(9999).await), (0, 1, 0));
    assert!(replays::find(db.store.connection(), running).await.unwrap().is_some());
}

pub(crate) async fn cancelled_requests_are_kept_as_long_as_delivered_ones(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    for (number, now) in [(1, 999), (2, 1000)] {
        let transaction = db.store.begin().await.unwrap();
        deliveries::cancel(&transaction, id(number), None, at(now)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    assert_eq!((purge(&db.store).await.requests, kept(&db.store).await), (1, vec![2]));
}
