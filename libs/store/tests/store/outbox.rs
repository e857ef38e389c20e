use sea_orm::ConnectionTrait;
use throughline_store::{OutboxRequest, Store, StoreError, outbox, requests};
use throughline_testkit::{lease, leased};

use crate::databases::Db;
use crate::fixtures::{at, id, node, request};

async fn insert_for(store: &Store, owner: u16, numbers: &[i64]) {
    let new: Vec<_> = numbers.iter().copied().map(request).collect();
    let lease = leased(store, node(owner)).await.unwrap();
    requests::insert(store.connection(), &lease, &new).await.unwrap();
}

async fn pending(store: &Store, owner: u16, limit: u64) -> Vec<i64> {
    let pending = outbox::pending(store.connection(), node(owner), None, limit, u64::MAX).await.unwrap();
    pending.iter().map(|request| request.id.as_i64()).collect()
}

pub(crate) async fn a_node_sees_its_own_rows_in_the_order_of_ids(db: Db) {
    insert_for(&db.store, 1, &[5, 3, 9]).await;
    insert_for(&db.store, 2, &[4]).await;
    assert_eq!(pending(&db.store, 1, 10).await, [3, 5, 9]);
    assert_eq!(pending(&db.store, 1, 2).await, [3, 5]);
    assert_eq!(pending(&db.store, 2, 10).await, [4]);
    let first = outbox::pending(db.store.connection(), node(1), None, 1, u64::MAX).await.unwrap();
    assert_eq!(first, [OutboxRequest::from(request(3))]);
    assert_eq!(outbox::oldest(db.store.connection(), node(1)).await.unwrap(), Some(id(3)));
    assert_eq!(outbox::oldest(db.store.connection(), node(7)).await.unwrap(), None);
}

pub(crate) async fn a_page_begins_after_an_id_and_ends_where_bodies_fill_it(db: Db) {
    let size = u64::try_from(request(1).body.len()).unwrap();
    insert_for(&db.store, 1, &[1, 2, 3, 4]).await;
    for (after, rows, bytes, expected) in [
        (None, 10, u64::MAX, &[1, 2, 3, 4][..]),
        (Some(2), 10, u64::MAX, &[3, 4]),
        (Some(4), 10, u64::MAX, &[]),
        (None, 3, u64::MAX, &[1, 2, 3]),
        (None, 10, 2 * size, &[1, 2]),
        (None, 10, 2 * size + 1, &[1, 2, 3]),
        (Some(1), 10, 1, &[2]),
    ] {
        let page = outbox::pending(db.store.connection(), node(1), after.map(id), rows, bytes).await.unwrap();
        let page: Vec<_> = page.iter().map(|request| request.id.as_i64()).collect();
        assert_eq!(page, expected, "after {after:?}, {rows} rows, {bytes} bytes");
    }
}

pub(crate) async fn removed_rows_are_not_pending(db: Db) {
    insert_for(&db.store, 1, &[1, 2, 3]).await;
    outbox::remove(db.store.connection(), &[]).await.unwrap();
    outbox::remove(db.store.connection(), &[id(1), id(3), id(99)]).await.unwrap();
    assert_eq!(pending(&db.store, 1, 10).await, [2]);
}

pub(crate) async fn unacknowledged_requests_belong_to_their_node(db: Db) {
    insert_for(&db.store, 1, &[1]).await;
    insert_for(&db.store, 2, &[2]).await;
    let node_of = async |number| outbox::node_of(db.store.connection(), id(number)).await.unwrap();
    assert_eq!((node_of(1).await, node_of(2).await), (Some(node(1)), Some(node(2))));
    outbox::remove(db.store.connection(), &[id(1)]).await.unwrap();
    assert_eq!((node_of(1).await, node_of(404).await), (None, None));
}

pub(crate) async fn rows_of_expired_nodes_are_taken_over(db: Db) {
    let [alive, survivor, gone, never_leased] = [1, 2, 3, 77];
    insert_for(&db.store, alive, &[1]).await;
    insert_for(&db.store, survivor, &[2]).await;
    insert_for(&db.store, gone, &[3, 4]).await;
    insert_for(&db.store, never_leased, &[5]).await;
    let connection = db.store.connection();
    let ended = "UPDATE nodes SET expires_at = '2026-01-01T00:00:00.000000+00:00' WHERE node_id = 3";
    for sql in [ended, "DELETE FROM nodes WHERE node_id = 77"] {
        connection.execute_unprepared(sql).await.unwrap();
    }

    let lease = lease(node(survivor));
    let all_gone = outbox::nodes_that_are_gone(connection, &lease).await.unwrap();
    assert_eq!(all_gone, [node(gone), node(never_leased)]);
    for (of, rows) in [(alive, 0), (gone, 2), (gone, 0), (never_leased, 1)] {
        assert_eq!(outbox::take_over(connection, &lease, node(of)).await.unwrap(), rows, "of {of}");
    }
    assert_eq!(pending(&db.store, survivor, 10).await, [2, 3, 4, 5]);
    assert_eq!(pending(&db.store, alive, 10).await, [1]);
    assert_eq!(outbox::nodes_that_are_gone(connection, &lease).await.unwrap(), []);
}

pub(crate) async fn nothing_is_added_under_an_expired_lease(db: Db) {
    let lease = leased(&db.store, node(1)).await.unwrap();
    for sql in [
        "UPDATE nodes SET epoch = 2",
        "UPDATE nodes SET epoch = 1, expires_at = '2026-01-01T00:00:00.000000+00:00'",
    ] {
        db.store.connection().execute_unprepared(sql).await.unwrap();
        let transaction = db.store.begin().await.unwrap();
        let error = requests::insert(&transaction, &lease, &[request(1)]).await.expect_err("it is over");
        assert!(matches!(error, StoreError::LeaseOver { .. }) && error.is_unavailable(), "{error:?}");
        drop(transaction);
        assert_eq!(requests::find(db.store.connection(), id(1)).await.unwrap(), None);
    }
}

pub(crate) async fn the_pending_rows_of_a_node_are_counted(db: Db) {
    let lag = async |now| outbox::lag(db.store.connection(), node(1), at(now), 3).await.unwrap();
    assert_eq!(lag(5).await, outbox::Lag::default());
    insert_for(&db.store, 1, &[1, 2]).await;
    let accepted = request(1).accepted_at;
    let age = (at(65) - accepted).to_std().unwrap();
    assert_eq!(lag(65).await, outbox::Lag { requests: 2, age });
    outbox::remove(db.store.connection(), &[id(1), id(2)]).await.unwrap();
    assert_eq!(lag(65).await, outbox::Lag::default());
}
