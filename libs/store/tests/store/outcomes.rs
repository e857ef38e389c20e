use throughline_api::{AttemptOutcome, DeliveryState};
use throughline_messages::{AttemptReport, DeadReason, DeferralCause, ErrorClass, Failure, Outcome};
use throughline_snowflake::RequestId;
use throughline_store::{Store, deliveries, outcomes, requests};

use crate::databases::Db;
use crate::fixtures::{at, deferred, delivery, id, publish, rejected, report, request, retry, status};

pub(crate) async fn record(store: &Store, reports: &[AttemptReport], now: i64) -> Vec<RequestId> {
    let transaction = store.begin().await.unwrap();
    let recorded = outcomes::record(&transaction, reports, at(now)).await.unwrap();
    transaction.commit().await.unwrap();
    recorded.unknown
}

pub(crate) async fn an_attempt_ends_its_delivery(db: Db) {
    publish(&db.store, &[request(1)]).await;
    assert_eq!(record(&db.store, &[report(1, 1, Outcome::Delivered)], 5).await, []);
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.state, delivery.attempt_count), (DeliveryState::Delivered, 1));
    assert_eq!((delivery.due_at, delivery.updated_at), (None, at(5)));
    assert_eq!((delivery.last_status, delivery.last_error, delivery.reason), (Some(200), None, None));
    assert_eq!(delivery.attempts[0].outcome, AttemptOutcome::Delivered);
}

pub(crate) async fn a_dead_delivery_says_why(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.state, delivery.due_at), (DeliveryState::Dead, None));
    assert_eq!(delivery.reason, Some(DeadReason::Rejected));
    assert_eq!(delivery.last_error_class, Some(ErrorClass::ClientError));
    assert_eq!(delivery.last_error.as_deref(), Some("400 Bad Request"));
    assert_eq!(delivery.last_status, Some(400));
}

pub(crate) async fn the_same_report_again_changes_nothing(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    let reports = [report(1, 1, Outcome::Delivered), report(2, 1, rejected())];
    record(&db.store, &reports, 5).await;
    let before = (status(&db.store, 1).await, status(&db.store, 2).await);
    record(&db.store, &reports, 6).await;
    assert_eq!((status(&db.store, 1).await, status(&db.store, 2).await), before);
}

pub(crate) async fn delivered_wins_over_dead_and_stays(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    record(&db.store, &[report(1, 2, Outcome::Delivered)], 6).await;
    let delivered = delivery(&db.store, 1).await;
    assert_eq!((delivered.state, delivered.attempt_count), (DeliveryState::Delivered, 2));
    assert_eq!((delivered.reason, delivered.last_error, delivered.updated_at), (None, None, at(6)));

    record(&db.store, &[report(1, 3, rejected())], 7).await;
    let delivered = delivery(&db.store, 1).await;
    assert_eq!((delivered.state, delivered.reason), (DeliveryState::Delivered, None));
    assert_eq!((delivered.attempt_count, delivered.attempts.len()), (3, 3), "the call was made all the same");
}

pub(crate) async fn a_cancelled_delivery_stays_cancelled_unless_the_third_party_has_it(db: Db) {
    publish(&db.store, &[request(1)]).await;
    deliveries::cancel(db.store.connection(), id(1), None, at(3)).await.unwrap();
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Cancelled);
    assert_eq!(delivery(&db.store, 1).await.attempts.len(), 1, "the call was made all the same");
    record(&db.store, &[report(1, 2, Outcome::Delivered)], 6).await;
    assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
}

pub(crate) async fn a_failed_attempt_waits_for_the_next_one(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, retry(None))], 5).await;
    let at_once = delivery(&db.store, 1).await;
    assert_eq!((at_once.state, at_once.due_at), (DeliveryState::Retrying, Some(at(900))), "it is in hand");
    record(&db.store, &[report(1, 2, retry(Some(30)))], 6).await;
    let later = delivery(&db.store, 1).await;
    assert_eq!((later.state, later.due_at, later.attempt_count), (DeliveryState::Retrying, Some(at(30)), 2));
    assert_eq!(later.last_error_class, Some(ErrorClass::ServerError));
    let outcomes: Vec<_> = later.attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(outcomes, ["retry", "retry"]);
}

pub(crate) async fn a_deferred_delivery_has_made_no_attempt(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, deferred(DeferralCause::TokenRefused, 300))], 5).await;
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.state, delivery.attempt_count), (DeliveryState::Pending, 0));
    assert_eq!((delivery.due_at, delivery.deferred_by), (Some(at(300)), Some(DeferralCause::TokenRefused)));
    assert_eq!(delivery.attempts, []);
}

pub(crate) async fn a_delivery_that_ends_without_a_call_has_no_attempt(db: Db) {
    publish(&db.store, &[request(1)]).await;
    let failure = Failure { class: ErrorClass::Transform, error: "the filter failed".to_owned() };
    let outcome = Outcome::Dead { reason: DeadReason::Untransformable, failure };
    let uncalled = AttemptReport { called: false, status: None, ..report(1, 2, outcome) };
    record(&db.store, &[report(1, 1, retry(Some(1)))], 1).await;
    record(&db.store, &[uncalled], 5).await;
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.state, delivery.reason), (DeliveryState::Dead, Some(DeadReason::Untransformable)));
    assert_eq!(delivery.last_error.as_deref(), Some("the filter failed"));
    assert_eq!(delivery.last_error_class, Some(ErrorClass::Transform));
    assert_eq!((delivery.attempt_count, delivery.attempts.len()), (1, 1));
}

/// After a crash a record is read again, and its call made again.
pub(crate) async fn a_repeated_attempt_is_kept_with_the_first(db: Db) {
    publish(&db.store, &[request(1)]).await;
    let again = AttemptReport { started_at: at(50), ..report(1, 1, retry(Some(60))) };
    record(&db.store, &[report(1, 1, retry(Some(30)))], 5).await;
    record(&db.store, std::slice::from_ref(&again), 51).await;
    record(&db.store, &[again, report(1, 1, retry(Some(30)))], 52).await;
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.attempt_count, delivery.attempts.len()), (1, 2));
    assert_eq!(delivery.due_at, Some(at(60)));
}

pub(crate) async fn reports_of_unknown_requests_are_returned_and_affect_no_others(db: Db) {
    publish(&db.store, &[request(1)]).await;
    let reports = [report(404, 1, rejected()), report(1, 1, Outcome::Delivered)];
    assert_eq!(record(&db.store, &reports, 5).await, [id(404)]);
    assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
    assert_eq!(requests::find(db.store.connection(), id(404)).await.unwrap(), None);
    assert_eq!(record(&db.store, &[], 5).await, []);
}

pub(crate) async fn a_delivery_to_a_new_destination_is_added(db: Db) {
    publish(&db.store, &[request(1)]).await;
    let elsewhere = AttemptReport { destination: "four".to_owned(), ..report(1, 1, rejected()) };
    assert_eq!(record(&db.store, &[elsewhere], 5).await, []);
    let status = status(&db.store, 1).await;
    let [four, three] = status.deliveries.as_slice() else { panic!("{status:?}") };
    assert_eq!((four.destination.as_str(), four.state), ("four", DeliveryState::Dead));
    assert_eq!(four.attempts.len(), 1);
    assert_eq!(three.state, DeliveryState::Pending);
}

pub(crate) async fn a_batch_may_hold_several_reports_of_one_delivery(db: Db) {
    publish(&db.store, &[request(1), request(2)]).await;
    let twice = report(1, 1, rejected());
    let reports = [twice.clone(), report(2, 1, Outcome::Delivered), twice, report(1, 2, Outcome::Delivered)];
    assert_eq!(record(&db.store, &reports, 5).await, []);
    let delivery = delivery(&db.store, 1).await;
    assert_eq!((delivery.state, delivery.attempt_count), (DeliveryState::Delivered, 2));
    let attempts: Vec<_> = delivery.attempts.iter().map(|a| (a.number, a.outcome.as_str())).collect();
    assert_eq!(attempts, [(1, "dead"), (2, "delivered")]);
}

pub(crate) async fn an_answer_with_nul_characters_is_kept(db: Db) {
    publish(&db.store, &[request(1)]).await;
    let failure = Failure { class: ErrorClass::ClientError, error: "a\0b".to_owned() };
    let outcome = Outcome::Dead { reason: DeadReason::Rejected, failure };
    let answer = AttemptReport { response_excerpt: Some("\0".to_owned()), ..report(1, 1, outcome) };
    record(&db.store, &[answer], 5).await;
    let delivery = delivery(&db.store, 1).await;
    assert_eq!(delivery.last_error.as_deref(), Some("a\u{fffd}b"));
    assert_eq!(delivery.attempts[0].response_excerpt.as_deref(), Some("\u{fffd}"));
}
