use throughline_messages::{DeadReason, Outcome};
use throughline_store::deliveries::{self, Claim};
use throughline_store::{DeliveryState, DueDelivery, NewRequest, OutboxRequest, Store, outbox, outcomes};

use crate::databases::Db;
use crate::fixtures::{at, delivery, id, insert, publish, rejected, report, request};

const NOTHING: [i64; 0] = [];

fn due_at(number: i64, seconds: i64) -> NewRequest {
    NewRequest { due_at: at(seconds), ..request(number) }
}

fn three(number: i64) -> (throughline_snowflake::RequestId, String) {
    (id(number), "three".to_owned())
}

async fn claim(store: &Store, now: i64, limit: u64) -> (Vec<i64>, Claim) {
    let mut claim = deliveries::claim_due(store, at(now), limit).await.unwrap();
    let due = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    (due, claim)
}

/// What is due, with nothing left locked: a claim that is only dropped ends a moment later.
async fn due(store: &Store, now: i64) -> Vec<i64> {
    let (due, claim) = claim(store, now, 100).await;
    claim.postpone(&[], at(now)).await.unwrap();
    due
}

/// Deadline: that of the test.
async fn is_due_again(store: &Store, now: i64, expected: &[i64]) {
    while due(store, now).await != expected {}
}

pub(crate) async fn what_is_due_is_claimed_the_longest_overdue_first(db: Db) {
    publish(&db.store, &[due_at(1, 30), due_at(2, 10), due_at(3, 20), due_at(4, 40)]).await;
    assert_eq!(due(&db.store, 9).await, NOTHING);
    assert_eq!(due(&db.store, 10).await, [2]);
    let (longest_overdue, held) = claim(&db.store, 35, 2).await;
    assert_eq!(longest_overdue, [2, 3]);
    held.postpone(&[], at(35)).await.unwrap();
    let mut claim = deliveries::claim_due(&db.store, at(10), 1).await.unwrap();
    let expected = DueDelivery {
        request: OutboxRequest::from(due_at(2, 10)),
        destination: "three".to_owned(),
        attempts: 0,
    };
    assert_eq!(claim.take(), [expected]);
}

pub(crate) async fn a_dropped_claim_stays_due(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    let (claimed, claim) = claim(&db.store, 10, 1).await;
    assert_eq!(claimed, [1]);
    drop(claim);
    is_due_again(&db.store, 10, &[1]).await;
}

pub(crate) async fn a_postponed_delivery_is_due_later(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    let (_, claim) = claim(&db.store, 10, 1).await;
    claim.postpone(&[three(1)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 49).await, NOTHING);
    assert_eq!(due(&db.store, 50).await, [1]);
}

pub(crate) async fn only_the_named_are_postponed(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 10)]).await;
    let (claimed, claim) = claim(&db.store, 10, 2).await;
    assert_eq!(claimed, [1, 2]);
    claim.postpone(&[three(2)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 10).await, [1]);
}

pub(crate) async fn a_delivery_that_ended_meanwhile_is_not_due_again(db: Db) {
    publish(&db.store, &[due_at(1, 10)]).await;
    outcomes::record(db.store.connection(), &[report(1, 1, rejected())], at(5)).await.unwrap();
    let (_, claim) = claim(&db.store, 10, 2).await;
    claim.postpone(&[three(1)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 50).await, NOTHING);
}

pub(crate) async fn what_is_in_the_outbox_is_not_due(db: Db) {
    insert(&db.store, &[due_at(1, 10)]).await;
    assert_eq!(due(&db.store, 10).await, NOTHING);
    outbox::remove(db.store.connection(), &[id(1)]).await.unwrap();
    assert_eq!(due(&db.store, 10).await, [1]);
}

pub(crate) async fn what_was_published_late_is_due_later_and_never_earlier(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 90), due_at(3, 10)]).await;
    outcomes::record(db.store.connection(), &[report(3, 1, Outcome::Delivered)], at(5)).await.unwrap();
    deliveries::postpone_all(db.store.connection(), &[id(1), id(2), id(3)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 49).await, NOTHING);
    assert_eq!(due(&db.store, 50).await, [1]);
    assert_eq!(due(&db.store, 90).await, [1, 2]);
}

pub(crate) async fn a_claim_keeps_no_writer_waiting(db: Db) {
    publish(&db.store, &[due_at(1, 10), due_at(2, 20)]).await;
    let (claimed, claim) = claim(&db.store, 10, 10).await;
    assert_eq!(claimed, [1]);
    insert(&db.store, &[request(3)]).await;
    outcomes::record(db.store.connection(), &[report(2, 1, Outcome::Delivered)], at(11)).await.unwrap();
    claim.postpone(&[three(1)], at(50)).await.unwrap();
    assert_eq!(due(&db.store, 50).await, [1]);
}

pub(crate) async fn a_refused_request_ends_dead(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    publish(&db.store, &[NewRequest { destinations: everywhere, ..request(1) }, request(2)]).await;
    outcomes::record(db.store.connection(), &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
    let refusal = (id(1), DeadReason::Unpublishable, "too large".to_owned());
    deliveries::refuse(db.store.connection(), &[refusal]).await.unwrap();
    deliveries::refuse(db.store.connection(), &[]).await.unwrap();

    let status = crate::fixtures::status(&db.store, 1).await;
    let [four, three] = status.deliveries.as_slice() else { panic!("{status:?}") };
    assert_eq!((four.state, four.due_at), (DeliveryState::Dead, None));
    assert_eq!(four.reason.as_deref(), Some("unpublishable"));
    assert_eq!(four.last_error.as_deref(), Some("too large"));
    assert_eq!(three.state, DeliveryState::Delivered);
    assert_eq!(delivery(&db.store, 2).await.state, DeliveryState::Pending);
}

pub(crate) async fn everything_unfinished_can_be_made_due(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    insert(&db.store, &[request(3)]).await;
    outcomes::record(db.store.connection(), &[report(2, 1, rejected())], at(5)).await.unwrap();
    assert_eq!(deliveries::make_unfinished_due(db.store.connection(), at(7)).await.unwrap(), 1);
    assert_eq!(due(&db.store, 6).await, NOTHING);
    assert_eq!(due(&db.store, 7).await, [1]);
    assert_eq!(deliveries::make_unfinished_due(db.store.connection(), at(8)).await.unwrap(), 0);
}
