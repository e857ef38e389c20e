use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_api::{DeadLetterFilter, DeliveryState, ReplayState};
use throughline_messages::{DeadReason, ErrorClass, Outcome};
use throughline_store::dead_letters::{self, Replayed};
use throughline_store::idempotency::{self, Claim};
use throughline_store::retention::{self, Cutoff};
use throughline_store::{
    ConnectionTrait as _, DeliveryKey, Due, NewRequest, Store, StoreError, claims, replays, requests,
};

use crate::databases::Db;
use crate::fixtures::{
    at, count, delivery, empty, id, insert, publish, rejected, report, request, retry, time,
};
use crate::idempotency::claim;
use crate::outcomes::record;

/// Begins a replay, and returns its number.
pub(crate) async fn begin(
    store: &Store,
    filter: &DeadLetterFilter,
    rate: (NonZeroU32, Duration),
    now: DateTime<Utc>,
) -> Result<i64, StoreError> {
    Ok(try_begin(store, filter, rate, now).await?.expect("a replay more may run"))
}

async fn try_begin(
    store: &Store,
    filter: &DeadLetterFilter,
    rate: (NonZeroU32, Duration),
    now: DateTime<Utc>,
) -> Result<Option<i64>, StoreError> {
    let transaction = store.begin().await?;
    let id = replays::begin(&transaction, filter, rate, now).await?;
    transaction.commit().await?;
    Ok(id)
}

/// Dead requests with these numbers, each died at its number.
async fn dead(store: &Store, numbers: std::ops::RangeInclusive<i64>) {
    let new: Vec<_> = numbers.clone().map(request).collect();
    publish(store, &new).await;
    for number in numbers {
        record(store, &[report(number, 1, rejected())], number).await;
    }
}

async fn list(store: &Store, filter: &DeadLetterFilter, after: Option<i64>, limit: u64) -> Vec<i64> {
    let after = after.map(|number| DeliveryKey::new(id(number), "three"));
    let letters = dead_letters::list(store.connection(), filter, after.as_ref(), limit).await.unwrap();
    letters.letters.iter().map(|letter| letter.request_id.as_i64()).collect()
}

fn only(what: impl FnOnce(&mut DeadLetterFilter)) -> DeadLetterFilter {
    let mut filter = DeadLetterFilter::default();
    what(&mut filter);
    filter
}

pub(crate) async fn dead_letters_are_listed_by_page_newest_first(db: Db) {
    dead(&db.store, 1..=5).await;
    publish(&db.store, &[request(6)]).await;
    let any = DeadLetterFilter::default();
    assert_eq!(list(&db.store, &any, None, 2).await, [5, 4]);
    assert_eq!(list(&db.store, &any, Some(4), 2).await, [3, 2]);
    assert_eq!(list(&db.store, &any, Some(2), 2).await, [1]);
    let letters = dead_letters::list(db.store.connection(), &any, None, 1).await.unwrap();
    assert_eq!(letters.next, Some(DeliveryKey::new(id(5), "three")));
    let letter = &letters.letters[0];
    assert_eq!((letter.route.as_str(), letter.destination.as_str(), letter.attempts), ("one", "three", 1));
    assert_eq!((letter.reason, letter.error_class), (DeadReason::Rejected, Some(ErrorClass::ClientError)));
    assert_eq!((letter.status, letter.error.as_deref()), (Some(400), Some("400 Bad Request")));
    assert_eq!(letter.response_excerpt.as_deref(), Some("{\"said\": \"no\"}"));
    assert_eq!((letter.accepted_at, letter.died_at), (at(0), at(5)));
}

pub(crate) async fn a_filter_matches_what_it_names(db: Db) {
    dead(&db.store, 1..=3).await;
    let store = &db.store;
    for (filter, expected) in [
        (only(|f| f.route = Some("one".to_owned())), vec![3, 2, 1]),
        (only(|f| f.route = Some("two".to_owned())), vec![]),
        (only(|f| f.destination = Some("three".to_owned())), vec![3, 2, 1]),
        (only(|f| f.destination = Some("four".to_owned())), vec![]),
        (only(|f| f.reason = Some("rejected".parse().unwrap())), vec![3, 2, 1]),
        (only(|f| f.reason = Some("expired".parse().unwrap())), vec![]),
        (only(|f| f.error_class = Some("client_error".parse().unwrap())), vec![3, 2, 1]),
        (only(|f| f.error_class = Some("timeout".parse().unwrap())), vec![]),
        (only(|f| f.since = Some(at(2))), vec![3, 2]),
        (only(|f| f.before = Some(at(2))), vec![1]),
    ] {
        assert_eq!(list(store, &filter, None, 10).await, expected, "{filter:?}");
    }
}

pub(crate) async fn a_replayed_delivery_restarts_and_keeps_its_attempts(db: Db) {
    dead(&db.store, 1..=1).await;
    let replay = async |number, destination| {
        dead_letters::replay(db.store.connection(), id(number), destination, at(100)).await.unwrap()
    };
    assert_eq!(replay(1, "four").await, Replayed::Unknown);
    assert_eq!(replay(1, "three").await, Replayed::Yes);
    assert_eq!(replay(1, "three").await, Replayed::NotDead);
    let mut claim = claims::claim_due(&db.store, Due::Planned, at(100), 9).await.unwrap();
    let due = claim.take().remove(0);
    assert_eq!((due.attempts, due.counted_attempts, due.window_started_at), (1, 0, at(100)));
    claim.published(&[DeliveryKey::new(id(1), "three")], &[], at(100), at(1000)).await.unwrap();
    // Reports from before the replay do not count any more.
    record(&db.store, &[report(1, 1, retry(Some(5)))], 101).await;
    assert_eq!(delivery(&db.store, 1).await.due_at, Some(at(1000)));
    record(&db.store, &[report(1, 2, Outcome::Delivered)], 102).await;
    let delivered = delivery(&db.store, 1).await;
    assert_eq!((delivered.state, delivered.attempts.len()), (DeliveryState::Delivered, 2));
}

/// Continues a replay at `now`, and returns how many dead letters it took.
async fn go_on(store: &Store, now: i64) -> u64 {
    replays::go_on(store, at(now)).await.unwrap().revived
}

pub(crate) async fn a_replay_keeps_its_rate_and_takes_each_dead_letter_once(db: Db) {
    dead(&db.store, 1..=5).await;
    let rate = (NonZeroU32::new(20).unwrap(), Duration::from_secs(10));
    let replay = begin(&db.store, &DeadLetterFilter::default(), rate, at(100)).await.unwrap();
    assert_eq!(replays::next(db.store.connection()).await.unwrap(), Some(at(100)));
    assert_eq!((go_on(&db.store, 100).await, go_on(&db.store, 100).await), (2, 0));
    // A delivery that has died again is not taken a second time.
    record(&db.store, &[report(1, 2, rejected())], 100).await;
    assert_eq!((go_on(&db.store, 101).await, go_on(&db.store, 102).await), (2, 1));
    assert_eq!(go_on(&db.store, 103).await, 0);
    let replay = replays::find(db.store.connection(), replay).await.unwrap().unwrap();
    assert_eq!((replay.state, replay.replayed), (ReplayState::Done, 5));
    assert_eq!(list(&db.store, &DeadLetterFilter::default(), None, 9).await, [1]);
}

pub(crate) async fn a_stopped_replay_takes_no_more_dead_letters(db: Db) {
    dead(&db.store, 1..=5).await;
    let rate = (NonZeroU32::new(20).unwrap(), Duration::from_secs(10));
    let younger = only(|filter| filter.since = Some(at(2)));
    let replay = begin(&db.store, &younger, rate, at(100)).await.unwrap();
    assert_eq!(go_on(&db.store, 100).await, 2);
    replays::stop(db.store.connection(), replay, at(101)).await.unwrap();
    assert_eq!(go_on(&db.store, 110).await, 0);
    let found = replays::find(db.store.connection(), replay).await.unwrap().unwrap();
    assert_eq!((found.state, found.replayed, found.rate), (ReplayState::Stopped, 2, rate));
    assert_eq!(list(&db.store, &DeadLetterFilter::default(), None, 9).await, [5, 4, 1]);
    assert_eq!(replays::find(db.store.connection(), replay + 1).await.unwrap(), None);
}

pub(crate) async fn a_purge_also_deletes_requests_without_deliveries(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    publish(&db.store, &[NewRequest { destinations: everywhere, ..request(1) }, request(2), request(3)])
        .await;
    for number in 1..=2 {
        record(&db.store, &[report(number, 1, rejected())], number).await;
    }
    let purge = async |limit| {
        let transaction = db.store.begin().await.unwrap();
        let purged = dead_letters::purge(&transaction, &DeadLetterFilter::default(), None, limit, at(9))
            .await
            .unwrap()
            .purged;
        transaction.commit().await.unwrap();
        purged
    };
    assert_eq!((purge(1).await, purge(9).await, purge(9).await), (1, 1, 0));
    let find = async |number| requests::find(db.store.connection(), id(number)).await.unwrap();
    assert_eq!(find(1).await.unwrap().deliveries[0].destination, "four");
    assert_eq!(find(2).await, None);
    assert_eq!(find(3).await.unwrap().deliveries.len(), 1);
}

/// Dead requests `1` to `dead`, which died at 0; every ten-thousandth came by the route `two`, the others by `one`.
async fn very_many_dead(store: &Store, dead: i64) {
    let (then, empty) = (time(0), empty(store));
    let ids =
        format!("WITH RECURSIVE ids (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < {dead})");
    let requests = format!(
        "{ids} INSERT INTO requests (id, route, body, content_type, headers, accepted_at) SELECT id, \
         CASE WHEN id % 10000 = 0 THEN 'two' ELSE 'one' END, {empty}, 'application/json', '[]', {then} FROM ids"
    );
    let deliveries = format!(
        "{ids} INSERT INTO deliveries (request_id, destination, state, attempts, window_started_at, reason, updated_at) \
         SELECT id, CASE WHEN id % 50000 = 0 THEN 'four' ELSE 'three' END, 'dead', 1, {then}, 'rejected', {then} \
         FROM ids"
    );
    for sql in [requests, deliveries] {
        store.connection().execute_unprepared(&sql).await.unwrap();
    }
}

/// The maximum number of dead letters that a step reads.
const STEP: u64 = 5000;
const DEAD: i64 = 200_000;
/// One of ten thousand.
const MEANT: u64 = 20;

/// However few match the filter, no step reads more than the maximum, and none is read twice.
pub(crate) async fn a_replay_with_few_matches_walks_many_rows_in_bounded_steps(db: Db) {
    very_many_dead(&db.store, DEAD).await;
    let rate = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1));
    let two = only(|filter| filter.route = Some("two".to_owned()));
    let replay = begin(&db.store, &two, rate, at(100)).await.unwrap();
    let (mut looked_at, mut revived) = (0, 0);
    for now in 100.. {
        let step = replays::go_on(&db.store, at(now)).await.unwrap();
        assert!(step.looked_at <= STEP, "{step:?}");
        (looked_at, revived) = (looked_at + step.looked_at, revived + step.revived);
        if step.looked_at == 0 {
            break;
        }
    }
    assert_eq!((looked_at, revived), (DEAD.cast_unsigned(), MEANT));
    assert_eq!(replays::find(db.store.connection(), replay).await.unwrap().unwrap().state, ReplayState::Done);
    assert_eq!(count(&db.store, "state = 'pending'").await.cast_unsigned(), MEANT);
    // With a destination in the filter, no dead letters of others are read.
    let four = only(|filter| filter.destination = Some("four".to_owned()));
    begin(&db.store, &four, rate, at(900)).await.unwrap();
    let step = replays::go_on(&db.store, at(900)).await.unwrap();
    assert_eq!((step.looked_at, step.revived), (0, 0), "these were of the route `two` too");
}

pub(crate) async fn a_list_and_a_purge_with_few_matches_walk_many_rows_in_bounded_steps(db: Db) {
    very_many_dead(&db.store, DEAD).await;
    let two = only(|filter| filter.route = Some("two".to_owned()));
    let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = dead_letters::list(db.store.connection(), &two, after.as_ref(), 50).await.unwrap();
        found.extend(page.letters.iter().map(|letter| letter.request_id.as_i64()));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, (1..=20).rev().map(|number| number * 10_000).collect::<Vec<_>>());
    assert!(pages >= DEAD.cast_unsigned() / STEP, "{pages}");
    let four = only(|filter| filter.destination = Some("four".to_owned()));
    assert_eq!(list(&db.store, &four, None, 50).await, [200_000, 150_000, 100_000, 50_000]);
    let (mut purged, mut steps, mut after) = (0, 0_u64, None::<DeliveryKey>);
    loop {
        let step = dead_letters::purge(db.store.connection(), &two, after.as_ref(), 50, at(9)).await.unwrap();
        (purged, steps, after) = (purged + step.purged, steps + 1, step.next);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(purged, MEANT);
    assert!(steps >= DEAD.cast_unsigned() / STEP, "{steps}");
    assert!(list(&db.store, &two, None, 50).await.is_empty());
}

pub(crate) async fn the_number_of_running_replays_is_limited(db: Db) {
    let rate = (NonZeroU32::MIN, Duration::from_secs(1));
    let begin = || try_begin(&db.store, &ANY, rate, at(100));
    let running = futures_util::future::try_join_all((0..20).map(|_| begin())).await.unwrap();
    let running: Vec<_> = running.into_iter().flatten().collect();
    assert_eq!(running.len(), replays::MOST_RUNNING as usize);
    replays::stop(db.store.connection(), running[0], at(101)).await.unwrap();
    assert!(begin().await.unwrap().is_some());
    assert_eq!(begin().await.unwrap(), None);
}

const ANY: DeadLetterFilter = DeadLetterFilter {
    route: None,
    destination: None,
    reason: None,
    error_class: None,
    since: None,
    before: None,
};

/// A client that repeats the request is answered with its id, which must lead somewhere.
pub(crate) async fn a_request_that_a_key_stands_for_outlives_its_dead_letters(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    record(&db.store, &[report(1, 1, rejected()), report(2, 1, rejected())], 1).await;
    let claims = [claim("lives", 1, 7), Claim { expires_at: at(9), ..claim("expired", 2, 7) }];
    idempotency::claim(db.store.connection(), &claims, at(0)).await.unwrap();

    let transaction = db.store.begin().await.unwrap();
    assert_eq!(
        dead_letters::purge(&transaction, &DeadLetterFilter::default(), None, 9, at(9)).await.unwrap().purged,
        2
    );
    transaction.commit().await.unwrap();

    let find = async |number| requests::find(db.store.connection(), id(number)).await.unwrap();
    assert_eq!(find(1).await.unwrap().deliveries, []);
    assert_eq!(find(2).await, None);
    // It goes with the next purge after its key.
    let cutoff = |now| Cutoff { delivered_before: at(0), dead_before: at(0), now: at(now) };
    for (now, requests) in [(99, 0), (100, 1)] {
        let batch = retention::purge(&db.store, &cutoff(now), None).await.unwrap();
        assert_eq!(batch.purged.requests, requests, "at {now}");
    }
}

/// Its row in the outbox is yet to be removed.
pub(crate) async fn a_request_that_kafka_has_not_acknowledged_outlives_its_dead_letters(db: Db) {
    insert(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, rejected())], 1).await;
    let transaction = db.store.begin().await.unwrap();
    let step = dead_letters::purge(&transaction, &DeadLetterFilter::default(), None, 9, at(9)).await.unwrap();
    assert_eq!(step.purged, 1);
    transaction.commit().await.unwrap();
    let found = requests::find(db.store.connection(), id(1)).await.unwrap();
    assert_eq!(found.unwrap().deliveries, []);
}
