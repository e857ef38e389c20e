//! Very many expired deliveries before few others.

use throughline_api::DeliveryState;
use throughline_messages::{AttemptReport, DeadReason, DeferralCause, ErrorClass, Outcome};
use throughline_store::{
    ConnectionTrait as _, DeliveryKey, Due, DueDelivery, NewRequest, Refusal, Store, claims, outbox,
    slow_starts,
};

use crate::databases::Db;
use crate::fixtures::{at, count, deferred, delivery, id, publish, report, request, time};
use crate::ordering_groups;
use crate::outcomes::record;

/// One day.
const WINDOW: i64 = 86_400;

/// Ends a batch of the deliveries that have expired at `now`, as ingest does; returns how many.
async fn expire(store: &Store, now: i64, limit: u64) -> usize {
    let mut claim = claims::claim_expired(store, "three", at(now - WINDOW), limit).await.unwrap();
    let refusal = |due: claims::DueDelivery| Refusal {
        request_id: due.request.id,
        destination: Some(due.destination),
        reason: DeadReason::Expired,
        class: ErrorClass::Timeout,
        error: "not delivered within 24h".to_owned(),
    };
    let expired: Vec<_> = claim.take().into_iter().map(refusal).collect();
    let ended = claim.end(&expired, at(now)).await.unwrap().len();
    claim.release().await.unwrap();
    ended
}

/// Inserts the requests `from` to `to`, which wait for `three` in a window from `window_started_at` on.
async fn waiting(store: &Store, from: i64, to: i64, window_started_at: i64) {
    let (window_started_at, accepted) = (time(window_started_at), time(0));
    let ids = format!(
        "WITH RECURSIVE ids (id) AS (SELECT {from} UNION ALL SELECT id + 1 FROM ids WHERE id < {to})"
    );
    let requests = format!(
        "{ids} INSERT INTO requests (id, route, body, content_type, headers, accepted_at) \
         SELECT id, 'one', {}, 'application/json', '[]', {accepted} FROM ids",
        crate::fixtures::empty(store)
    );
    let deliveries = format!(
        "{ids} INSERT INTO deliveries (request_id, destination, state, attempts, window_started_at, due_at, deferred_by, \
         updated_at) SELECT id, 'three', 'pending', 0, {window_started_at}, {window_started_at}, 'breaker_open', {accepted} FROM ids"
    );
    for sql in [requests.as_str(), &deliveries, "ANALYZE"] {
        store.connection().execute_unprepared(sql).await.unwrap();
    }
}

/// Releases and delivers the batch of the slow start at `now`; returns its size.
async fn deliver(store: &Store, now: i64) -> usize {
    slow_starts::release(store, at(now)).await.unwrap();
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 10_000).await.unwrap();
    let claimed: Vec<_> = claim.take().iter().map(DueDelivery::key).collect();
    claim.published(&claimed, &[], at(now), at(now + 900)).await.unwrap();
    let delivered = |key: &DeliveryKey| AttemptReport {
        started_at: at(now),
        ..report(key.request_id.as_i64(), 1, Outcome::Delivered)
    };
    record(store, &claimed.iter().map(delivered).collect::<Vec<_>>(), now).await;
    claimed.len()
}

pub(crate) async fn a_hundred_thousand_expired_deliveries_do_not_delay_those_behind_them(db: Db) {
    const EXPIRED: i64 = 100_000;
    const LIVE: i64 = 1000;
    let now = 2 * WINDOW;
    waiting(&db.store, 1, EXPIRED, 0).await;
    waiting(&db.store, EXPIRED + 1, EXPIRED + LIVE, now - 10).await;
    let slow_start =
        format!("INSERT INTO slow_starts (destination, batch, next_at) VALUES ('three', 1, {})", time(now));
    db.store.connection().execute_unprepared(&slow_start).await.unwrap();
    assert_eq!(slow_starts::destinations(db.store.connection()).await.unwrap(), ["three"]);
    let mut ended = 0;
    loop {
        match expire(&db.store, now, 1000).await {
            0 => break,
            batch => ended += i64::try_from(batch).unwrap(),
        }
    }
    assert_eq!(ended, EXPIRED);
    assert_eq!(count(&db.store, "state = 'dead' AND reason = 'expired'").await, EXPIRED);
    // As if no others were before them: each second twice as many.
    let mut delivered = Vec::new();
    for second in 0..10 {
        delivered.push(deliver(&db.store, now + second).await);
    }
    assert_eq!(delivered, [1, 2, 4, 8, 16, 32, 64, 128, 256, 489]);
}

pub(crate) async fn only_deliveries_that_wait_for_their_destination_expire_there(db: Db) {
    publish(&db.store, &(1..=4).map(request).collect::<Vec<_>>()).await;
    let deferral = |number, cause| report(number, 1, deferred(cause, 10));
    record(&db.store, &[deferral(1, DeferralCause::BreakerOpen), deferral(2, DeferralCause::KeyBusy)], 5)
        .await;
    assert_eq!(expire(&db.store, WINDOW - 1, 9).await, 0, "its time is not over");
    assert_eq!(expire(&db.store, WINDOW, 9).await, 1);
    let expired = delivery(&db.store, 1).await;
    assert_eq!((expired.state, expired.reason), (DeliveryState::Dead, Some(DeadReason::Expired)));
    assert_eq!(expired.last_error.as_deref(), Some("not delivered within 24h"));
    // No delivery waits any more.
    slow_starts::release(&db.store, at(WINDOW)).await.unwrap();
    assert_eq!(slow_starts::next(db.store.connection(), "three").await.unwrap(), None);
}

/// Two ingests search concurrently; the slow start of one releases no delivery that the other ends.
pub(crate) async fn a_delivery_ended_by_one_replica_is_skipped_by_another(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    let deferral = |number| report(number, 1, deferred(DeferralCause::BreakerOpen, 10));
    record(&db.store, &[deferral(1), deferral(2)], 5).await;
    let mut claim = claims::claim_expired(&db.store, "three", at(0), 1).await.unwrap();
    assert_eq!(claim.take().len(), 1);
    assert_eq!(slow_starts::release(&db.store, at(WINDOW)).await.unwrap(), 1);
    // Nor does the slow start of an ingest whose clock is a day ahead release it.
    assert_eq!(slow_starts::release(&db.store, at(2 * WINDOW)).await.unwrap(), 0);
    assert_eq!(expire(&db.store, WINDOW, 9).await, 0, "one is claimed, the other one is released");
    // A delivery that the third party has accepted is delivered.
    record(&db.store, &[report(1, 1, Outcome::Delivered)], WINDOW).await;
    let late = Refusal {
        request_id: id(1),
        destination: Some("three".to_owned()),
        reason: DeadReason::Expired,
        class: ErrorClass::Timeout,
        error: String::new(),
    };
    assert_eq!(claim.end(&[late], at(WINDOW)).await.unwrap(), []);
    claim.release().await.unwrap();
    assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
}

pub(crate) async fn a_group_continues_behind_an_expired_delivery(db: Db) {
    let new: Vec<NewRequest> = vec![ordering_groups::in_group(1, "a"), ordering_groups::in_group(2, "a")];
    publish(&db.store, &new).await;
    outbox::remove(db.store.connection(), &[id(2)]).await.unwrap();
    record(&db.store, &[report(1, 1, deferred(DeferralCause::BreakerOpen, 10))], 5).await;
    assert_eq!(expire(&db.store, WINDOW, 9).await, 1);
    let next = delivery(&db.store, 2).await;
    assert_eq!((next.deferred_by, next.due_at, next.window_started_at), (None, Some(at(WINDOW)), at(WINDOW)));
}
