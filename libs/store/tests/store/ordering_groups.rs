use throughline_api::DeliveryState;
use throughline_messages::{DeferralCause, Outcome};
use throughline_store::order::{self, Ahead};
use throughline_store::{
    DeliveryKey, Due, NewRequest, Store, claims, dead_letters, deliveries, outbox, slow_starts,
};

use crate::databases::Db;
use crate::fixtures::{at, delivery, id, insert, node, rejected, report, request, retry};
use crate::outcomes::record;

pub(crate) fn in_group(number: i64, ordering_group: &str) -> NewRequest {
    NewRequest { ordering_group: Some(ordering_group.to_owned()), ..request(number) }
}

/// Publishes the outbox, and returns its requests with the destinations to call.
async fn published(store: &Store) -> Vec<(i64, Vec<String>)> {
    let pending = outbox::pending(store.connection(), node(1), None, 100, u64::MAX).await.unwrap();
    let ids: Vec<_> = pending.iter().map(|request| request.id).collect();
    outbox::remove(store.connection(), &ids).await.unwrap();
    pending.into_iter().map(|request| (request.id.as_i64(), request.destinations)).collect()
}

/// Returns the requests that the sweeper publishes.
async fn swept(store: &Store, now: i64) -> Vec<i64> {
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 100).await.unwrap();
    let due: Vec<_> = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    let keys: Vec<_> = due.iter().map(|number| DeliveryKey::new(id(*number), "three")).collect();
    claim.published(&keys, &[], at(now), at(now + 900)).await.unwrap();
    due
}

fn three() -> Vec<String> {
    vec!["three".to_owned()]
}

const NOTHING: [i64; 0] = [];

pub(crate) async fn one_delivery_of_a_group_is_published_and_the_others_wait(db: Db) {
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a"), in_group(3, "b"), request(4)]).await;
    insert(&db.store, &[in_group(5, "a")]).await;
    let expected = [(1, three()), (2, vec![]), (3, three()), (4, three()), (5, vec![])];
    assert_eq!(published(&db.store).await, expected);
    let waiting = delivery(&db.store, 2).await;
    assert_eq!((waiting.state, waiting.deferred_by), (DeliveryState::Pending, Some(DeferralCause::Order)));
    assert_eq!(swept(&db.store, 5000).await, NOTHING);
    assert_eq!(slow_starts::release(&db.store, at(5000)).await.unwrap(), 0);
}

pub(crate) async fn the_next_delivery_of_a_group_is_due_when_the_one_before_it_has_ended(db: Db) {
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a"), in_group(3, "a"), in_group(4, "a")]).await;
    published(&db.store).await;
    record(&db.store, &[report(1, 1, retry(Some(9)))], 5).await;
    assert_eq!(swept(&db.store, 9).await, [1], "it is tried again, and the others wait");
    record(&db.store, &[report(1, 2, Outcome::Delivered)], 10).await;
    assert_eq!((swept(&db.store, 10).await, swept(&db.store, 11).await), (vec![2], vec![]));
    record(&db.store, &[report(2, 1, rejected())], 12).await;
    assert_eq!(swept(&db.store, 12).await, [3], "a dead one is out of the way too");
    let transaction = db.store.begin().await.unwrap();
    deliveries::cancel(&transaction, id(3), None, at(13)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(swept(&db.store, 13).await, [4], "and so is one that was called off");
    record(&db.store, &[report(4, 1, Outcome::Delivered)], 14).await;
    insert(&db.store, &[in_group(5, "a")]).await;
    assert_eq!(published(&db.store).await, [(5, three())], "no delivery is before it");
}

pub(crate) async fn a_group_continues_behind_an_unpublishable_delivery(db: Db) {
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a")]).await;
    published(&db.store).await;
    let refusal = crate::deliveries::refusal(1, None);
    deliveries::refuse(db.store.connection(), &[refusal], at(5)).await.unwrap();
    assert_eq!(swept(&db.store, 5).await, [2]);
}

pub(crate) async fn each_destination_of_a_group_has_its_own_pace(db: Db) {
    let everywhere = || vec!["three".to_owned(), "four".to_owned()];
    let both = [1, 2].map(|number| NewRequest { destinations: everywhere(), ..in_group(number, "a") });
    insert(&db.store, &both).await;
    let first = vec!["four".to_owned(), "three".to_owned()];
    assert_eq!(published(&db.store).await, [(1, first), (2, vec![])]);
    record(&db.store, &[report(1, 1, Outcome::Delivered)], 5).await;
    let status = crate::fixtures::status(&db.store, 2).await;
    let waits: Vec<_> = status.deliveries.iter().map(|delivery| delivery.deferred_by).collect();
    assert_eq!(waits, [Some(DeferralCause::Order), None], "at four the first one has not ended");
}

pub(crate) async fn a_delivery_cancelled_before_publication_is_skipped_in_its_group(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    insert(&db.store, &[NewRequest { destinations: everywhere, ..request(1) }]).await;
    let transaction = db.store.begin().await.unwrap();
    deliveries::cancel(&transaction, id(1), Some("four"), at(3)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(published(&db.store).await, [(1, three())]);
}

pub(crate) async fn a_replayed_dead_letter_waits_for_its_ordering_group(db: Db) {
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a"), in_group(3, "a")]).await;
    published(&db.store).await;
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    assert_eq!(swept(&db.store, 5).await, [2]);
    let transaction = db.store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(1), "three", at(6)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(swept(&db.store, 6).await, NOTHING, "another one is on its way");
    record(&db.store, &[report(2, 1, Outcome::Delivered)], 7).await;
    assert_eq!((swept(&db.store, 7).await, swept(&db.store, 8).await), (vec![1], vec![]));
}

/// A delivery that waited for the attempts of another one has its whole window left.
pub(crate) async fn the_window_of_a_waiting_delivery_begins_when_it_is_the_first(db: Db) {
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a")]).await;
    published(&db.store).await;
    record(&db.store, &[report(1, 1, Outcome::Delivered)], 5000).await;
    let mut claim = claims::claim_due(&db.store, Due::Planned, at(5000), 9).await.unwrap();
    assert_eq!(claim.take()[0].window_started_at, at(5000));
}

pub(crate) async fn a_waiting_delivery_shows_the_deliveries_before_it(db: Db) {
    let ahead = async |number| order::ahead(db.store.connection(), id(number), "three").await.unwrap();
    insert(&db.store, &[in_group(1, "a"), in_group(2, "a"), in_group(3, "a"), in_group(4, "b"), request(5)])
        .await;
    published(&db.store).await;
    assert_eq!(ahead(3).await, Some(Ahead { first: id(1), count: 2 }));
    for first in [1, 4, 5] {
        assert_eq!(ahead(first).await, None, "{first}");
    }
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    assert_eq!(ahead(3).await, Some(Ahead { first: id(2), count: 1 }));
    // The replayed delivery is before the third one, but it waits too.
    let transaction = db.store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(1), "three", at(6)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(ahead(1).await, Some(Ahead { first: id(2), count: 1 }));
    assert_eq!(ahead(3).await, Some(Ahead { first: id(2), count: 2 }));
}
