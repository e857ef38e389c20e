use std::collections::BTreeMap;
use std::time::Duration;

use throughline_messages::{AttemptReport, DeferralCause, Outcome};
use throughline_store::backlog::{self, Due, Leases, Open};
use throughline_store::{NewRequest, Store, dead_letters, nodes};

use crate::databases::Db;
use crate::fixtures::{at, deferred, id, insert, publish, rejected, report, request, retry};
use crate::outcomes::record;

/// More than any test has.
const MANY: u64 = 1000;

async fn open(store: &Store, now: i64) -> BTreeMap<String, Open> {
    backlog::open(store.connection(), at(now), MANY).await.unwrap()
}

async fn dead(store: &Store) -> BTreeMap<String, u64> {
    backlog::dead_letters(store.connection(), MANY).await.unwrap()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) async fn nothing_waits_in_an_empty_database(db: Db) {
    let connection = db.store.connection();
    assert_eq!(open(&db.store, 0).await, BTreeMap::new());
    assert_eq!(dead(&db.store).await, BTreeMap::new());
    assert_eq!(backlog::due(connection, at(0), MANY).await.unwrap(), Due::default());
    assert_eq!(backlog::leases(connection).await.unwrap(), Leases::default());
}

pub(crate) async fn unended_deliveries_are_counted_by_destination_and_state(db: Db) {
    let in_group = |number| NewRequest { ordering_group: Some("a".to_owned()), ..request(number) };
    publish(&db.store, &[1, 2, 3, 4, 5, 9].map(request)).await;
    publish(&db.store, &[in_group(6), in_group(7)]).await;
    insert(&db.store, &[NewRequest { destinations: vec!["four".to_owned()], ..request(8) }]).await;
    let reports = [
        report(1, 1, Outcome::Delivered),
        report(2, 1, rejected()),
        report(3, 1, retry(Some(30))),
        report(4, 1, deferred(DeferralCause::Limit, 40)),
        report(9, 1, deferred(DeferralCause::KeyBusy, 40)),
    ];
    record(&db.store, &reports, 5).await;
    let three = Open { pending: 5, retrying: 1, age: seconds(25) };
    let four = Open { pending: 1, age: seconds(25), ..Open::default() };
    let expected = [("four".to_owned(), four), ("three".to_owned(), three)].into();
    assert_eq!(open(&db.store, 25).await, expected);
    assert_eq!(dead(&db.store).await, [("three".to_owned(), 1)].into());
}

pub(crate) async fn deliveries_for_the_sweeper_are_due(db: Db) {
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
        let due = backlog::due(db.store.connection(), at(now), MANY).await.unwrap();
        (due.deliveries, due.age)
    };
    assert_eq!(due(19).await, (0, seconds(0)), "one is silent, which may be for want of a dispatch");
    assert_eq!(due(20).await, (1, seconds(0)), "the one whose time has come");
    assert_eq!(due(30).await, (2, seconds(10)), "and the one whose key was busy");
    assert_eq!(due(99).await, (2, seconds(79)), "neither deferred deliveries nor requests in the outbox");
}

pub(crate) async fn the_age_counts_from_the_start_of_the_window(db: Db) {
    publish(&db.store, &[request(1)]).await;
    record(&db.store, &[report(1, 1, rejected())], 5).await;
    let transaction = db.store.begin().await.unwrap();
    dead_letters::replay(&transaction, id(1), "three", at(100)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(open(&db.store, 130).await["three"].age, seconds(30));
    assert_eq!(open(&db.store, 90).await["three"].age, seconds(0), "clocks that do not agree");
}

pub(crate) async fn a_sample_reads_a_limited_number_of_rows(db: Db) {
    let to = |number, destination: &str| NewRequest {
        destinations: vec![destination.to_owned()],
        ..request(number)
    };
    let destinations = ["five", "four", "three"];
    // Of each destination five are down, five are dead and five wait for an outcome.
    let index = |number: i64| usize::try_from(number % 3).unwrap();
    let all: Vec<_> = (0..45).map(|number| to(number + 1, destinations[index(number)])).collect();
    publish(&db.store, &all).await;
    let report_on = |number: i64, outcome| AttemptReport {
        destination: destinations[index(number - 1)].to_owned(),
        ..report(number, 1, outcome)
    };
    let down = (1..16).map(|number| report_on(number, deferred(DeferralCause::BreakerOpen, 40)));
    let dead_ones = (16..31).map(|number| report_on(number, rejected()));
    record(&db.store, &down.chain(dead_ones).collect::<Vec<_>>(), 5).await;
    let connection = db.store.connection();
    for (most, expected) in [(2, 2 * 3 + 2), (5, 5 * 3 + 5), (MANY, 5 * 3 + 15)] {
        let open = backlog::open(connection, at(25), most).await.unwrap();
        let counted: u64 = open.values().map(|of| of.pending + of.retrying).sum();
        assert_eq!(counted, expected, "those that are down of each, and of the others altogether");
        assert_eq!(open.len(), 3, "a destination with many does not hide another that is down");
        let dead = backlog::dead_letters(connection, most).await.unwrap();
        assert_eq!(dead.into_values().collect::<Vec<_>>(), [most.min(5); 3]);
    }
}

pub(crate) async fn node_ids_are_counted_as_long_as_they_are_leased(db: Db) {
    let leases = async || backlog::leases(db.store.connection()).await.unwrap();
    let mut nodes_had = Vec::new();
    for ttl in [Duration::ZERO, Duration::from_mins(1), Duration::from_mins(1)] {
        let range = 7 + u16::try_from(nodes_had.len()).unwrap()..=9;
        let range = (*range.start()).try_into().unwrap()..=(*range.end()).try_into().unwrap();
        nodes_had.push(nodes::acquire(&db.store, "a", ttl, &range).await.unwrap().unwrap().node);
    }
    assert_eq!(leases().await, Leases { nodes: 2, first: Some(nodes_had[1]) });
}
