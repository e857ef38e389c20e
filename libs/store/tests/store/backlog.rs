use std::time::Duration;

use throughline_messages::{DeferralCause, Outcome};
use throughline_snowflake::NodeId;
use throughline_store::backlog::{self, Backlog, Waiting};
use throughline_store::{NewRequest, Store, dead_letters, nodes};

use crate::databases::Db;
use crate::fixtures::{at, deferred, id, insert, publish, rejected, report, request, retry};
use crate::outcomes::record;

async fn sample(store: &Store, now: i64) -> Backlog {
    backlog::sample(store.connection(), at(now)).await.unwrap()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) async fn nothing_waits_in_an_empty_database(db: Db) {
    assert_eq!(sample(&db.store, 0).await, Backlog::default());
}

pub(crate) async fn what_has_not_ended_is_counted_by_destination_and_state(db: Db) {
    let in_lane = |number| NewRequest { lane: Some("a".to_owned()), ..request(number) };
    publish(&db.store, &[1, 2, 3, 4, 5, 9].map(request)).await;
    publish(&db.store, &[in_lane(6), in_lane(7)]).await;
    insert(&db.store, &[NewRequest { destinations: vec!["four".to_owned()], ..request(8) }]).await;
    let reports = [
        report(1, 1, Outcome::Delivered),
        report(2, 1, rejected()),
        report(3, 1, retry(Some(30))),
        report(4, 1, deferred(DeferralCause::Limit, 40)),
        report(9, 1, deferred(DeferralCause::KeyBusy, 40)),
    ];
    record(&db.store, &reports, 5).await;
    let backlog = sample(&db.store, 25).await;
    let three = Waiting { pending: 5, retrying: 1, age: seconds(25), dead_letters: 1 };
    let four = Waiting { pending: 1, age: seconds(25), ..Waiting::default() };
    assert_eq!(backlog.destinations, [("four".to_owned(), four), ("three".to_owned(), three)].into());
}

pub(crate) async fn what_a_sweeper_is_to_publish_is_due(db: Db) {
    let due_at = |number, seconds| NewRequest { due_at: at(seconds), ..request(number) };
    publish(&db.store, &[due_at(1, 10), due_at(2, 90), due_at(3, 90), due_at(4, 90), due_at(6, 90)]).await;
    insert(&db.store, &[due_at(5, 5)]).await;
    let reports = [
        report(2, 1, retry(Some(20))),
        report(3, 1, deferred(DeferralCause::Limit, 5)),
        report(4, 1, Outcome::Delivered),
        report(6, 1, deferred(DeferralCause::KeyBusy, 30)),
    ];
    record(&db.store, &reports, 3).await;
    let due = async |now| {
        let backlog = sample(&db.store, now).await;
        (backlog.due, backlog.due_for)
    };
    assert_eq!(due(19).await, (0, seconds(0)), "one is silent, which may be for want of a dispatch");
    assert_eq!(due(20).await, (1, seconds(0)), "the one whose time has come");
    assert_eq!(due(30).await, (2, seconds(10)), "and the one whose key was busy");
    assert_eq!(due(99).await, (2, seconds(79)), "neither what is held nor what is in the outbox");
}

pub(crate) async fn the_age_counts_from_when_the_time_of_a_delivery_began(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    let transaction = db.store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(1), "three", at(100)).await.unwrap();
    transaction.commit().await.unwrap();
    let backlog = sample(&db.store, 130).await;
    assert_eq!(backlog.destinations["three"].age, seconds(30));
    assert_eq!(sample(&db.store, 90).await.destinations["three"].age, seconds(0), "clocks that do not agree");
}

pub(crate) async fn node_ids_are_counted_as_long_as_they_are_leased(db: Db) {
    for ttl in [Duration::from_mins(1), Duration::from_mins(1), Duration::ZERO] {
        nodes::acquire(&db.store, "a", ttl, &NodeId::ALL).await.unwrap().unwrap();
    }
    assert_eq!(sample(&db.store, 0).await.nodes_leased, 2);
}
