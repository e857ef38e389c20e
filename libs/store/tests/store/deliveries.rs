use std::time::Duration;

use chrono::TimeDelta;
use throughline_api::DeliveryState;
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Outcome};
use throughline_snowflake::NodeId;
use throughline_store::claims::{self, Claim};
use throughline_store::deliveries::{self, Cancelled};
use throughline_store::{
    DeliveryKey, Due, DueDelivery, NewRequest, OutboxRequest, Refusal, Store, nodes, outbox, outcomes,
};

use crate::databases::Db;
use crate::fixtures::{
    at, count, deferred, delivery, end_claims, id, insert, publish, rejected, report, request, retry,
};

const NOTHING: [i64; 0] = [];

fn due_at(number: i64, seconds: i64) -> NewRequest {
    NewRequest { due_at: at(seconds), ..request(number) }
}

fn three(number: i64) -> DeliveryKey {
    DeliveryKey::new(id(number), "three")
}

async fn claim(store: &Store, now: i64, limit: u64) -> (Vec<i64>, Claim) {
    let mut claim = claims::claim_due(store, Due::Silent, at(now), limit).await.unwrap();
    let due = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    (due, claim)
}

/// Returns the deliveries that are due and that no claim covers.
async fn due(store: &Store, now: i64) -> Vec<i64> {
    let (due, claim) = claim(store, now, 100).await;
    claim.published(&[], &[], at(now), at(now)).await.unwrap();
    due
}

pub(crate) async fn the_longest_overdue_delivery_is_claimed_first(db: Db) {
    publish(&db.store, &[due_at(1, 30), due_at(2, 10), due_at(3, 20), due_at(4, 40)]).await;
    assert_eq!(due(&db.store, 9).await, NOTHING);
    assert_eq!(due(&db.store, 10).await, [2]);
    let (longest_overdue, claim) = claim(&db.store, 35, 2).await;
    assert_eq!(longest_overdue, [2, 3]);
    claim.published(&[], &[], at(35), at(35)).await.unwrap();
    let mut claim = claims::claim_due(&db.store, Due::Silent, at(10), 1).await.unwrap();
    let expected = DueDelivery {
        request: OutboxRequest { destinations: Vec::new(), ..OutboxRequest::from(due_at(2, 10)) },
        destination: "three".to_owned(),
        attempts: 0,
        counted_attempts: 0,
        window_started_at: at(0),
    };
    assert_eq!(claim.take(), [expected]);
}

/// As after a crash.
pub(crate) async fn an_unpublished_delivery_is_due_again_when_its_claim_expires(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    let (claimed, claim) = claim(&db.store, 10, 1).await;
    assert_eq!(claimed, [1]);
    drop(claim);
    assert_eq!(due(&db.store, 10).await, NOTHING);
    assert!(claims::is_any_due(db.store.connection(), Due::Silent, at(10)).await.unwrap());
    end_claims(&db.store).await;
    assert_eq!(due(&db.store, 10).await, [1]);
}

/// The clock of one ingest is a day ahead.
pub(crate) async fn a_claim_lasts_by_the_clock_of_the_database(db: Db) {
    const DAY: i64 = 86_400;
    publish(&db.store, &[due_at(1, 10), due_at(2, 20)]).await;
    let (behind, _claim_of_one) = claim(&db.store, 10, 9).await;
    let (ahead, _claim_of_the_other) = claim(&db.store, 10 + DAY, 9).await;
    assert_eq!((behind, ahead), (vec![1], vec![2]), "no two claim the same");
    assert_eq!(due(&db.store, 10 + DAY).await, NOTHING);
    let lease = nodes::acquire(&db.store, "a", Duration::from_secs(1), &NodeId::ALL).await.unwrap();
    let now = lease.unwrap().granted_at;
    let [soonest, latest] = [10, 30].map(|seconds| {
        (now + TimeDelta::seconds(seconds)).format("'%Y-%m-%dT%H:%M:%S%.6f+00:00'").to_string()
    });
    let in_time = format!("claimed_until > {soonest} AND claimed_until <= {latest}");
    assert_eq!(count(&db.store, &in_time).await, 2);
}

/// It was frozen for longer than its claim lasts.
pub(crate) async fn a_claim_that_has_expired_changes_nothing(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10), due_at(3, 10)]).await;
    let (_, late) = claim(&db.store, 10, 9).await;
    end_claims(&db.store).await;
    let (claimed, other) = claim(&db.store, 40, 9).await;
    assert_eq!(claimed, [1, 2, 3]);
    let refused = [refusal(2, None)];
    assert_eq!(late.published(&[three(1)], &refused, at(41), at(50)).await.unwrap(), []);
    assert_eq!(due(&db.store, 60).await, NOTHING, "the other one has them");
    other.published(&[three(1), three(2)], &[], at(61), at(90)).await.unwrap();
    assert_eq!(due(&db.store, 61).await, [3]);
    assert_eq!(due(&db.store, 90).await, [3, 1, 2]);
}

pub(crate) async fn a_published_delivery_is_due_later(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    let (_, claim) = claim(&db.store, 10, 1).await;
    claim.published(&[three(1)], &[], at(20), at(50)).await.unwrap();
    assert_eq!(due(&db.store, 49).await, NOTHING);
    assert_eq!(due(&db.store, 50).await, [1]);
}

pub(crate) async fn only_the_named_deliveries_are_published(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    let (claimed, claim) = claim(&db.store, 10, 2).await;
    assert_eq!(claimed, [1, 2]);
    claim.published(&[three(2)], &[], at(20), at(50)).await.unwrap();
    assert_eq!(due(&db.store, 10).await, [1]);
}

pub(crate) async fn a_delivery_that_ended_meanwhile_is_not_due_again(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    outcomes::record(db.store.connection(), &[report(1, 1, rejected())], at(5)).await.unwrap();
    let (_, claim) = claim(&db.store, 10, 2).await;
    claim.published(&[three(1)], &[], at(20), at(50)).await.unwrap();
    assert_eq!(due(&db.store, 50).await, NOTHING);
}

pub(crate) async fn requests_in_the_outbox_are_not_due(db: Db) {
    insert(&db.store, &[due_at(1, 10)]).await;
    assert_eq!(due(&db.store, 10).await, NOTHING);
    outbox::remove(db.store.connection(), &[id(1)]).await.unwrap();
    assert_eq!(due(&db.store, 10).await, [1]);
}

pub(crate) async fn a_late_publication_postpones_the_due_time_and_never_advances_it(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 90), due_at(3, 10)]).await;
    outcomes::record(db.store.connection(), &[report(3, 1, Outcome::Delivered)], at(5)).await.unwrap();
    deliveries::postpone_all(db.store.connection(), &[id(1), id(2), id(3)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 49).await, NOTHING);
    assert_eq!(due(&db.store, 50).await, [1]);
    assert_eq!(due(&db.store, 90).await, [1, 2]);
}

pub(crate) async fn a_due_time_set_by_an_outcome_survives_a_late_publication(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    let reports = [report(1, 1, retry(Some(20))), report(2, 1, deferred(DeferralCause::Limit, 30))];
    outcomes::record(db.store.connection(), &reports, at(5)).await.unwrap();
    deliveries::postpone_all(db.store.connection(), &[id(1), id(2)], at(900)).await.unwrap();
    assert_eq!(delivery(&db.store, 1).await.due_at, Some(at(20)));
    assert_eq!(delivery(&db.store, 2).await.due_at, Some(at(30)));
}

/// Kafka may take long to acknowledge claimed deliveries: no transaction is open meanwhile.
pub(crate) async fn a_claim_keeps_no_writer_waiting_and_no_recorder(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    let (claimed, claim) = claim(&db.store, 10, 10).await;
    assert_eq!(claimed, [1, 2]);
    insert(&db.store, &[request(3)]).await;
    let transaction = db.store.begin().await.unwrap();
    outcomes::record(&transaction, &[report(2, 1, Outcome::Delivered)], at(11)).await.unwrap();
    transaction.commit().await.unwrap();
    claim.published(&[three(1), three(2)], &[], at(20), at(50)).await.unwrap();
    assert_eq!(due(&db.store, 50).await, [1]);
}

/// The recorder may read an outcome before Kafka's acknowledgement of the delivery arrives.
pub(crate) async fn an_outcome_during_publication_prevents_silence(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10), due_at(3, 10)]).await;
    let (_, claim) = claim(&db.store, 10, 10).await;
    let reports = [report(1, 1, retry(Some(30))), report(2, 1, deferred(DeferralCause::Limit, 40))];
    outcomes::record(db.store.connection(), &reports, at(11)).await.unwrap();
    claim.published(&[three(1), three(2), three(3)], &[], at(12), at(912)).await.unwrap();
    assert_eq!(delivery(&db.store, 1).await.due_at, Some(at(30)));
    let put_off = delivery(&db.store, 2).await;
    assert_eq!((put_off.due_at, put_off.deferred_by), (Some(at(40)), Some(DeferralCause::Limit)));
    assert_eq!(delivery(&db.store, 3).await.due_at, Some(at(912)));
}

pub(crate) async fn a_rejected_delivery_ends_dead_and_the_rest_of_its_claim_does_not(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    let (_, claim) = claim(&db.store, 10, 10).await;
    claim.published(&[three(2)], &[refusal(1, Some("three"))], at(11), at(50)).await.unwrap();
    let dead = delivery(&db.store, 1).await;
    assert_eq!((dead.state, dead.last_error_class), (DeliveryState::Dead, Some(ErrorClass::Broker)));
    assert_eq!(due(&db.store, 50).await, [2]);
}

pub(crate) fn refusal(number: i64, destination: Option<&str>) -> Refusal {
    Refusal {
        request_id: id(number),
        destination: destination.map(str::to_owned),
        reason: DeadReason::Unpublishable,
        class: ErrorClass::Broker,
        error: "too large".to_owned(),
    }
}

pub(crate) async fn a_refused_request_ends_dead(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    publish(&db.store, &[NewRequest { destinations: everywhere, ..request(1) }, request(2)]).await;
    outcomes::record(db.store.connection(), &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
    let refusal = refusal(1, None);
    deliveries::refuse(db.store.connection(), &[refusal], at(7)).await.unwrap();
    deliveries::refuse(db.store.connection(), &[], at(7)).await.unwrap();

    let status = crate::fixtures::status(&db.store, 1).await;
    let [four, three] = status.deliveries.as_slice() else { panic!("{status:?}") };
    assert_eq!((four.state, four.due_at), (DeliveryState::Dead, None));
    assert_eq!(four.reason, Some(DeadReason::Unpublishable));
    assert_eq!(four.last_error.as_deref(), Some("too large"));
    assert_eq!(three.state, DeliveryState::Delivered);
    assert_eq!(delivery(&db.store, 2).await.state, DeliveryState::Pending);
}

pub(crate) async fn everything_published_can_be_made_due(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    insert(&db.store, &[request(3)]).await;
    outcomes::record(db.store.connection(), &[report(2, 1, rejected())], at(5)).await.unwrap();
    assert_eq!(deliveries::make_published_due(db.store.connection(), at(7)).await.unwrap(), 1);
    assert_eq!(due(&db.store, 6).await, NOTHING);
    assert_eq!(due(&db.store, 7).await, [1]);
    assert_eq!(deliveries::make_published_due(db.store.connection(), at(8)).await.unwrap(), 0);
}

async fn planned(store: &Store, now: i64) -> Vec<i64> {
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 100).await.unwrap();
    let due = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    claim.published(&[], &[], at(now), at(now)).await.unwrap();
    due
}

pub(crate) async fn planned_deliveries_are_distinguished_from_silent_ones(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    outcomes::record(db.store.connection(), &[report(1, 1, retry(Some(30)))], at(5)).await.unwrap();
    assert_eq!(deliveries::next_due(db.store.connection()).await.unwrap(), Some(at(30)));
    assert_eq!((planned(&db.store, 29).await, due(&db.store, 29).await), (vec![], vec![2]));
    assert_eq!((planned(&db.store, 30).await, due(&db.store, 30).await), (vec![1], vec![2]));

    let claim = claims::claim_due(&db.store, Due::Planned, at(30), 100).await.unwrap();
    claim.published(&[three(1)], &[], at(30), at(930)).await.unwrap();
    assert_eq!(planned(&db.store, 930).await, NOTHING);
    assert_eq!(due(&db.store, 930).await, [2, 1]);
}

pub(crate) async fn a_cancelled_delivery_ends(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    publish(&db.store, &[NewRequest { destinations: everywhere, ..due_at(1, 10) }]).await;
    let cancel = async |number, destination| {
        let transaction = db.store.begin().await.unwrap();
        let cancelled = deliveries::cancel(&transaction, id(number), destination, at(7)).await.unwrap();
        transaction.commit().await.unwrap();
        cancelled
    };
    assert_eq!(cancel(404, None).await, Cancelled::Unknown);
    assert_eq!(cancel(1, Some("five")).await, Cancelled::Unknown);
    assert_eq!(cancel(1, Some("four")).await, Cancelled::Some(vec!["four".to_owned()]));
    assert_eq!(cancel(1, Some("four")).await, Cancelled::AllEnded);
    let status = crate::fixtures::status(&db.store, 1).await;
    let [four, three] = status.deliveries.as_slice() else { panic!("{status:?}") };
    assert_eq!((four.state, four.due_at, four.updated_at), (DeliveryState::Cancelled, None, at(7)));
    assert_eq!(three.state, DeliveryState::Pending);
    assert_eq!(cancel(1, None).await, Cancelled::Some(vec!["three".to_owned()]));
    assert_eq!(cancel(1, None).await, Cancelled::AllEnded);
    assert_eq!(due(&db.store, 99).await, NOTHING);
}

pub(crate) async fn a_delivery_cancelled_before_publication_is_not_published(db: Db) {
    insert(&db.store, &[request(1), request(2)]).await;
    let transaction = db.store.begin().await.unwrap();
    deliveries::cancel(&transaction, id(1), None, at(7)).await.unwrap();
    transaction.commit().await.unwrap();
    let pending = outbox::pending(db.store.connection(), crate::fixtures::node(1), None, 10, u64::MAX);
    let pending: Vec<_> = pending.await.unwrap().iter().map(|request| request.id).collect();
    assert_eq!(pending, [id(2)]);
}
