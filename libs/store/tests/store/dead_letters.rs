use std::num::NonZeroU32;
use std::time::Duration;

use throughline_messages::Outcome;
use throughline_store::dead_letters::{self, Filter, Replayed};
use throughline_store::{DeliveryState, Due, NewRequest, Store, deliveries, replays, requests};

use crate::databases::Db;
use crate::fixtures::{at, delivery, id, publish, rejected, report, request, retry};
use crate::outcomes::record;

/// Dead requests with these numbers, each died at its number.
async fn dead(store: &Store, numbers: std::ops::RangeInclusive<i64>) {
    let new: Vec<_> = numbers.clone().map(request).collect();
    publish(store, &new).await;
    for number in numbers {
        record(store, &[report(number, 1, rejected())], number).await;
    }
}

async fn list(store: &Store, filter: &Filter, after: Option<i64>, limit: u64) -> Vec<i64> {
    let after = after.map(|number| (id(number), "three".to_owned()));
    let letters = dead_letters::list(store.connection(), filter, after.as_ref(), limit).await.unwrap();
    letters.iter().map(|letter| letter.request_id.as_i64()).collect()
}

fn only(what: impl FnOnce(&mut Filter)) -> Filter {
    let mut filter = Filter::default();
    what(&mut filter);
    filter
}

pub(crate) async fn the_dead_are_listed_page_by_page_the_youngest_first(db: Db) {
    dead(&db.store, 1..=5).await;
    publish(&db.store, &[request(6)]).await;
    let any = Filter::default();
    assert_eq!(list(&db.store, &any, None, 2).await, [5, 4]);
    assert_eq!(list(&db.store, &any, Some(4), 2).await, [3, 2]);
    assert_eq!(list(&db.store, &any, Some(2), 2).await, [1]);
    let letters = dead_letters::list(db.store.connection(), &any, None, 1).await.unwrap();
    let letter = &letters[0];
    assert_eq!((letter.route.as_str(), letter.destination.as_str(), letter.attempts), ("one", "three", 1));
    assert_eq!((letter.reason.as_str(), letter.error_class.as_deref()), ("rejected", Some("client_error")));
    assert_eq!((letter.status, letter.error.as_deref()), (Some(400), Some("400 Bad Request")));
    assert_eq!(letter.response_excerpt.as_deref(), Some("{\"said\": \"no\"}"));
    assert_eq!((letter.accepted_at, letter.died_at), (at(0), at(5)));
}

pub(crate) async fn a_filter_takes_what_it_names(db: Db) {
    dead(&db.store, 1..=3).await;
    let store = &db.store;
    for (filter, expected) in [
        (only(|f| f.route = Some("one".to_owned())), vec![3, 2, 1]),
        (only(|f| f.route = Some("two".to_owned())), vec![]),
        (only(|f| f.destination = Some("three".to_owned())), vec![3, 2, 1]),
        (only(|f| f.destination = Some("four".to_owned())), vec![]),
        (only(|f| f.reason = Some("rejected".to_owned())), vec![3, 2, 1]),
        (only(|f| f.reason = Some("expired".to_owned())), vec![]),
        (only(|f| f.error_class = Some("client_error".to_owned())), vec![3, 2, 1]),
        (only(|f| f.error_class = Some("timeout".to_owned())), vec![]),
        (only(|f| f.died_since = Some(at(2))), vec![3, 2]),
        (only(|f| f.died_before = Some(at(2))), vec![1]),
    ] {
        assert_eq!(list(store, &filter, None, 10).await, expected, "{filter:?}");
    }
}

pub(crate) async fn a_replayed_delivery_begins_anew_and_keeps_what_was_tried(db: Db) {
    dead(&db.store, 1..=1).await;
    let replay = async |number, destination| {
        dead_letters::replay(db.store.connection(), id(number), destination, at(100)).await.unwrap()
    };
    assert_eq!(replay(1, "four").await, Replayed::Unknown);
    assert_eq!(replay(1, "three").await, Replayed::Yes);
    assert_eq!(replay(1, "three").await, Replayed::NotDead);
    let mut claim = deliveries::claim_due(&db.store, Due::Planned, at(100), 9).await.unwrap();
    let due = claim.take().remove(0);
    assert_eq!((due.attempts, due.spent, due.since), (1, 0, at(100)));
    claim.published(&[(id(1), "three".to_owned())], &[], at(100), at(1000)).await.unwrap();
    // What is said of its first life does not count any more.
    record(&db.store, &[report(1, 1, retry(Some(5)))], 101).await;
    assert_eq!(delivery(&db.store, 1).await.due_at, Some(at(1000)));
    record(&db.store, &[report(1, 2, Outcome::Delivered)], 102).await;
    let delivered = delivery(&db.store, 1).await;
    assert_eq!((delivered.state, delivered.attempts.len()), (DeliveryState::Delivered, 2));
}

/// Lets a replay go on at `now`, and says how many it took.
async fn go_on(store: &Store, now: i64) -> u64 {
    replays::go_on(store, at(now)).await.unwrap()
}

pub(crate) async fn a_replay_goes_at_its_rate_and_takes_each_once(db: Db) {
    dead(&db.store, 1..=5).await;
    let rate = (NonZeroU32::new(20).unwrap(), Duration::from_secs(10));
    let replay = replays::begin(db.store.connection(), &Filter::default(), rate, at(100)).await.unwrap();
    assert_eq!(deliveries::next_due(db.store.connection()).await.unwrap(), Some(at(100)));
    assert_eq!((go_on(&db.store, 100).await, go_on(&db.store, 100).await), (2, 0));
    // One that has died again is not taken a second time.
    record(&db.store, &[report(1, 2, rejected())], 100).await;
    assert_eq!((go_on(&db.store, 101).await, go_on(&db.store, 102).await), (2, 1));
    assert_eq!(go_on(&db.store, 103).await, 0);
    let replay = replays::find(db.store.connection(), replay).await.unwrap().unwrap();
    assert_eq!((replay.state.as_str(), replay.replayed), ("done", 5));
    assert_eq!(list(&db.store, &Filter::default(), None, 9).await, [1]);
}

pub(crate) async fn a_replay_that_is_stopped_takes_no_more(db: Db) {
    dead(&db.store, 1..=5).await;
    let rate = (NonZeroU32::new(20).unwrap(), Duration::from_secs(10));
    let younger = only(|filter| filter.died_since = Some(at(2)));
    let replay = replays::begin(db.store.connection(), &younger, rate, at(100)).await.unwrap();
    assert_eq!(go_on(&db.store, 100).await, 2);
    replays::stop(db.store.connection(), replay, at(101)).await.unwrap();
    assert_eq!(go_on(&db.store, 110).await, 0);
    let found = replays::find(db.store.connection(), replay).await.unwrap().unwrap();
    assert_eq!((found.state.as_str(), found.replayed, found.rate), ("stopped", 2, rate));
    assert_eq!(list(&db.store, &Filter::default(), None, 9).await, [5, 4, 1]);
    assert_eq!(replays::find(db.store.connection(), replay + 1).await.unwrap(), None);
}

pub(crate) async fn the_purged_are_gone_with_requests_of_which_nothing_is_left(db: Db) {
    let everywhere = vec!["three".to_owned(), "four".to_owned()];
    publish(&db.store, &[NewRequest { destinations: everywhere, ..request(1) }, request(2), request(3)])
        .await;
    for number in 1..=2 {
        record(&db.store, &[report(number, 1, rejected())], number).await;
    }
    let purge = async |limit| {
        let transaction = db.store.begin().await.unwrap();
        let purged = dead_letters::purge(&transaction, &Filter::default(), limit).await.unwrap();
        transaction.commit().await.unwrap();
        purged
    };
    assert_eq!((purge(1).await, purge(9).await, purge(9).await), (1, 1, 0));
    let find = async |number| requests::find(db.store.connection(), id(number)).await.unwrap();
    assert_eq!(find(1).await.unwrap().deliveries[0].destination, "four");
    assert_eq!(find(2).await, None);
    assert_eq!(find(3).await.unwrap().deliveries.len(), 1);
}
