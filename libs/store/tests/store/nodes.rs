use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use sea_orm::ConnectionTrait;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::nodes::{self, Lease};
use throughline_store::{NewRequest, Store};

use crate::databases::Db;
use crate::fixtures::{insert, node, request};

const LONG: Duration = Duration::from_mins(1);

fn only(node: NodeId) -> RangeInclusive<NodeId> {
    node..=node
}

async fn acquire(store: &Store, holder: &str, ttl: Duration) -> Lease {
    nodes::acquire(store, holder, ttl, &NodeId::ALL).await.unwrap().unwrap()
}

pub(crate) async fn the_lowest_unused_id_is_leased_first(db: Db) {
    let first = acquire(&db.store, "a", LONG).await;
    let second = acquire(&db.store, "b", LONG).await;
    assert_eq!((first.node, first.epoch, first.not_before), (node(0), 1, DateTime::UNIX_EPOCH));
    assert_eq!((second.node, second.epoch), (node(1), 1));
    assert!(second.expires_at > first.expires_at);
}

pub(crate) async fn an_expired_lease_is_taken_over_and_cannot_be_renewed(db: Db) {
    let old = nodes::acquire(&db.store, "a", Duration::ZERO, &only(node(3))).await.unwrap().unwrap();
    let new = nodes::acquire(&db.store, "b", LONG, &only(node(3))).await.unwrap().unwrap();
    assert_eq!((new.node, new.epoch, new.not_before), (node(3), 2, old.expires_at));
    let connection = db.store.connection();
    assert_eq!(nodes::renew(connection, &old, "a", LONG).await.unwrap(), None);
    nodes::release(connection, &old, "a").await.unwrap();
    let renewed = nodes::renew(connection, &new, "b", LONG).await.unwrap();
    assert!(renewed.expect("the old holder does not end the new lease") >= new.granted_at);
    let older = nodes::renew(connection, &old, "b", LONG).await.unwrap();
    assert_eq!(older, None, "a lease of the same name, but older");
}

pub(crate) async fn a_renewed_lease_lasts_longer(db: Db) {
    let lease = acquire(&db.store, "a", Duration::ZERO).await;
    assert!(nodes::renew(db.store.connection(), &lease, "a", LONG).await.unwrap().is_some());
    assert_eq!(nodes::acquire(&db.store, "b", LONG, &only(lease.node)).await.unwrap(), None);
}

pub(crate) async fn a_released_id_is_free_immediately(db: Db) {
    let lease = acquire(&db.store, "a", LONG).await;
    nodes::release(db.store.connection(), &lease, "a").await.unwrap();
    let next = nodes::acquire(&db.store, "b", LONG, &only(lease.node)).await.unwrap().unwrap();
    assert_eq!(next.epoch, 2);
    assert!(next.not_before < lease.expires_at, "it ended when it was released");
}

/// Else a clock that was ahead, and was put right, would have ids made again.
pub(crate) async fn new_ids_must_be_newer_than_all_stored_ones(db: Db) {
    let now = acquire(&db.store, "a", LONG).await.granted_at;
    let ahead = RequestId::first_at(now + TimeDelta::minutes(55));
    insert(&db.store, &[request(1), NewRequest { id: ahead, ..request(2) }]).await;
    assert_eq!(acquire(&db.store, "a", LONG).await.not_before, ahead.created_at());
    let old = nodes::acquire(&db.store, "b", Duration::ZERO, &only(node(3))).await.unwrap().unwrap();
    assert_eq!(old.not_before, ahead.created_at());
}

/// Else one that was made by a wrong clock would take all later ones along, out of reach of retention.
pub(crate) async fn ids_far_in_the_future_do_not_block_retention(db: Db) {
    let now = acquire(&db.store, "a", LONG).await.granted_at;
    let year = TimeDelta::days(365);
    let ahead = NewRequest { id: RequestId::first_at(now + year), ..request(2) };
    let new = NewRequest { id: RequestId::first_at(now), ..request(3) };
    insert(&db.store, &[request(1), ahead, new]).await;
    let lease = acquire(&db.store, "b", LONG).await;
    assert_eq!(lease.not_before, RequestId::first_at(now).created_at());
    assert!(lease.granted_at - now < nodes::AHEAD);
}

pub(crate) async fn one_of_a_range_is_leased_or_none(db: Db) {
    let acquire = async |holder, ids| nodes::acquire(&db.store, holder, LONG, &ids).await.unwrap();
    let range = node(1022)..=node(1023);
    for expected in [1022, 1023] {
        assert_eq!(acquire("a", range.clone()).await.unwrap().node, node(expected));
    }
    assert_eq!(acquire("b", range).await, None);
    assert_eq!(acquire("b", only(node(7))).await.unwrap().node, node(7));
    assert_eq!(acquire("c", only(node(7))).await, None);
}

async fn lease_all(db: &Db) {
    let sql = format!(
        "WITH RECURSIVE ids (id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids WHERE id + 1 < {}) \
         INSERT INTO nodes (node_id, holder, epoch, expires_at) \
         SELECT id, 'x', 1, '9999-01-01T00:00:00.000000+00:00' FROM ids",
        NodeId::COUNT
    );
    db.store.connection().execute_unprepared(&sql).await.unwrap();
}

pub(crate) async fn no_id_is_leased_when_all_are_taken(db: Db) {
    lease_all(&db).await;
    assert_eq!(nodes::acquire(&db.store, "a", LONG, &NodeId::ALL).await.unwrap(), None);
}

pub(crate) async fn the_id_that_expired_first_is_leased_again_first(db: Db) {
    lease_all(&db).await;
    for (node_id, day) in [(7, "03"), (9, "01"), (8, "02")] {
        let sql = format!(
            "UPDATE nodes SET expires_at = '2026-01-{day}T00:00:00.000000+00:00' WHERE node_id = {node_id}"
        );
        db.store.connection().execute_unprepared(&sql).await.unwrap();
    }
    for expected in [9, 8, 7] {
        assert_eq!(acquire(&db.store, "a", LONG).await.node, node(expected));
    }
}
