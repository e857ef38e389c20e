use throughline_messages::{AttemptReport, DeadReason, DeferralCause, ErrorClass, Failure, Outcome};
use throughline_store::slow_starts::Release;
use throughline_store::{DeliveryKey, Due, Store, claims, deliveries, slow_starts};

use crate::databases::Db;
use crate::fixtures::{at, deferred, delivery, id, publish, report, request, retry};
use crate::outcomes::record;

const NOTHING: [i64; 0] = [];

/// Publishes the due deliveries, and returns their requests.
async fn sweep(store: &Store, now: i64) -> Vec<i64> {
    slow_starts::release(store, at(now)).await.unwrap();
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 10_000).await.unwrap();
    let due: Vec<_> = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    let keys: Vec<_> = due.iter().map(|number| DeliveryKey::new(id(*number), "three")).collect();
    claim.published(&keys, &[], at(now), at(now + 900)).await.unwrap();
    due
}

/// Reports that a delivery that was tried at `began` is deferred until `due`.
fn put_off(number: i64, began: i64, cause: DeferralCause, due: i64) -> AttemptReport {
    AttemptReport { started_at: at(began), ..report(number, 1, deferred(cause, due)) }
}

/// Inserts requests that are all deferred until 10.
async fn waiting(store: &Store, requests: i64, cause: DeferralCause) {
    let new: Vec<_> = (1..=requests).map(request).collect();
    publish(store, &new).await;
    let reports: Vec<_> = (1..=requests).map(|number| put_off(number, 1, cause, 10)).collect();
    record(store, &reports, 5).await;
}

pub(crate) async fn a_failing_destination_is_probed_by_one_delivery_and_then_gets_twice_as_many(db: Db) {
    waiting(&db.store, 20, DeferralCause::BreakerOpen).await;
    assert_eq!(deliveries::next_due(db.store.connection()).await.unwrap(), Some(at(10)));
    assert_eq!(sweep(&db.store, 9).await, NOTHING);
    assert_eq!(sweep(&db.store, 10).await, [1]);
    assert_eq!(sweep(&db.store, 10).await, NOTHING, "nothing is known yet");
    // The probe fails: the next one is made when its time has come.
    record(&db.store, &[put_off(1, 11, DeferralCause::BreakerOpen, 30)], 12).await;
    assert_eq!(sweep(&db.store, 29).await, NOTHING);
    assert_eq!(sweep(&db.store, 30).await, [2]);
    record(&db.store, &[report(2, 1, Outcome::Delivered)], 30).await;
    assert_eq!(sweep(&db.store, 31).await, [3, 4]);
    record(&db.store, &[report(3, 1, Outcome::Delivered), report(4, 1, Outcome::Delivered)], 31).await;
    assert_eq!(sweep(&db.store, 32).await, [5, 6, 7, 8]);
    assert_eq!(sweep(&db.store, 33).await, [9, 10, 11, 12], "as many as before, without any outcome");
    record(&db.store, &[put_off(9, 33, DeferralCause::TokenUnavailable, 40)], 33).await;
    assert_eq!(sweep(&db.store, 39).await, NOTHING);
    assert_eq!(sweep(&db.store, 40).await, [13]);
}

pub(crate) async fn a_destination_at_its_limit_gets_half_as_many_deliveries(db: Db) {
    waiting(&db.store, 100, DeferralCause::Limit).await;
    assert_eq!(sweep(&db.store, 10).await.len(), 64);
    let full: Vec<_> = (60..64).map(|number| put_off(number, 10, DeferralCause::Limit, 10)).collect();
    record(&db.store, &[report(1, 1, Outcome::Delivered)], 10).await;
    record(&db.store, &full, 10).await;
    assert_eq!(sweep(&db.store, 11).await.len(), 32);
}

pub(crate) async fn a_slow_start_ends_when_no_delivery_waits_for_it(db: Db) {
    waiting(&db.store, 1, DeferralCause::BreakerOpen).await;
    assert_eq!(sweep(&db.store, 10).await, [1]);
    assert_eq!(slow_starts::release(&db.store, at(99)).await.unwrap(), 0);
    assert_eq!(deliveries::next_due(db.store.connection()).await.unwrap(), None);
}

pub(crate) async fn a_slow_start_affects_no_other_destination(db: Db) {
    waiting(&db.store, 3, DeferralCause::BreakerOpen).await;
    let elsewhere = throughline_store::NewRequest { destinations: vec!["four".to_owned()], ..request(9) };
    publish(&db.store, &[elsewhere]).await;
    let retried = AttemptReport { destination: "four".to_owned(), ..report(9, 1, retry(Some(6))) };
    record(&db.store, &[retried], 5).await;
    assert_eq!(sweep(&db.store, 6).await, [9]);
}

pub(crate) async fn a_busy_key_waits_for_its_due_time_and_does_not_affect_its_destination(db: Db) {
    waiting(&db.store, 3, DeferralCause::BreakerOpen).await;
    assert_eq!(sweep(&db.store, 10).await, [1]);
    publish(&db.store, &[request(4)]).await;
    record(&db.store, &[put_off(4, 9, DeferralCause::KeyBusy, 12)], 10).await;
    let waits = delivery(&db.store, 4).await;
    assert_eq!((waits.deferred_by, waits.due_at), (Some(DeferralCause::KeyBusy), Some(at(12))));
    assert_eq!(sweep(&db.store, 11).await, [2], "the first probe has no outcome");
    assert_eq!(sweep(&db.store, 12).await, [3, 4]);
    let published = delivery(&db.store, 4).await;
    assert_eq!((published.deferred_by, published.published_at), (None, Some(at(12))));
}

pub(crate) async fn a_busy_key_continues_by_itself_and_takes_nothing_of_a_batch(db: Db) {
    publish(&db.store, &[request(9)]).await;
    record(&db.store, &[put_off(9, 1, DeferralCause::KeyBusy, 8)], 5).await;
    assert_eq!(next(&db.store).await, None, "no slow start has begun");
    assert_eq!(deliveries::next_due(db.store.connection()).await.unwrap(), Some(at(8)));
    waiting(&db.store, 2, DeferralCause::BreakerOpen).await;
    assert_eq!(sweep(&db.store, 8).await, [9]);
    // It is deferred again, and overdue for longer than the others.
    record(&db.store, &[put_off(9, 8, DeferralCause::KeyBusy, 9)], 8).await;
    assert_eq!(slow_starts::release(&db.store, at(10)).await.unwrap(), 1);
    assert_eq!(delivery(&db.store, 1).await.deferred_by, None, "it is the probe");
    assert_eq!(sweep(&db.store, 10).await, [9, 1]);
    // The slow start ends with its last delivery, although a busy key waits.
    record(&db.store, &[put_off(9, 10, DeferralCause::KeyBusy, 99)], 10).await;
    assert_eq!(sweep(&db.store, 11).await, [2]);
    assert_eq!(next(&db.store).await, None);
}

async fn next(store: &Store) -> Option<Release> {
    slow_starts::next(store.connection(), "three").await.unwrap()
}

pub(crate) async fn a_slow_start_shows_its_next_release(db: Db) {
    assert_eq!(next(&db.store).await, None);
    waiting(&db.store, 3, DeferralCause::BreakerOpen).await;
    assert_eq!(next(&db.store).await, Some(Release { at: at(10), count: 1 }));
    assert_eq!(sweep(&db.store, 10).await, [1]);
    record(&db.store, &[report(1, 1, Outcome::Delivered)], 10).await;
    assert_eq!(next(&db.store).await, Some(Release { at: at(11), count: 2 }));
}

fn untransformable() -> Outcome {
    let failure = Failure { class: ErrorClass::Transform, error: "no such field".to_owned() };
    Outcome::Dead { reason: DeadReason::Untransformable, failure }
}

/// A delivery that dies before a call says nothing about the destination, and is no probe.
pub(crate) async fn a_delivery_that_ends_without_a_call_lets_another_one_follow_immediately(db: Db) {
    waiting(&db.store, 20, DeferralCause::BreakerOpen).await;
    for number in 1..=19 {
        assert_eq!(sweep(&db.store, 10).await, [number], "one at a time, and none is waited for");
        let ended = AttemptReport {
            called: false,
            counted_attempts: 0,
            started_at: at(10),
            ..report(number, 1, untransformable())
        };
        record(&db.store, &[ended], 10).await;
    }
    assert_eq!(sweep(&db.store, 10).await, [20]);
    assert_eq!(slow_starts::release(&db.store, at(10)).await.unwrap(), 0);
    record(&db.store, &[put_off(20, 10, DeferralCause::BreakerOpen, 70)], 10).await;
    assert_eq!(next(&db.store).await, Some(Release { at: at(70), count: 1 }));
}
