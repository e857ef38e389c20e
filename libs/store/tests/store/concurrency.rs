//! What several do at once: replicas, which only PostgreSQL serves, and tasks of one process.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use throughline_messages::{AttemptReport, DeferralCause, Outcome};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::claims::{self, Claim};
use throughline_store::dead_letters::{self, Filter, Replayed};
use throughline_store::idempotency::{self, Verdict};
use throughline_store::{
    DeliveryState, Due, NewRequest, Store, StoreError, Transaction, holds, nodes, outbox, outcomes, replays,
    requests,
};
use throughline_testkit::{lease, leased};

use crate::databases::{Db, on_postgres};
use crate::dead_letters::begin;
use crate::deliveries::refusal;
use crate::fixtures::{
    at, count, deferred, delivery, id, insert, node, publish, rejected, report, request, retry,
};
use crate::idempotency::claim;
use crate::retention;

/// Claims keys and inserts what is new, as ingest does, and tries again with the keys that are in flight; returns the
/// request that each key stands for.
async fn write(store: &Store, keys: &[i64], offset: i64) -> BTreeMap<i64, RequestId> {
    let lease = leased(store, node(1)).await.unwrap();
    let mut owners = BTreeMap::new();
    let mut left = keys.to_vec();
    while !left.is_empty() {
        let claims: Vec<_> = left.iter().map(|key| claim(&key.to_string(), offset + key, 7)).collect();
        let transaction = store.begin().await.unwrap();
        let verdicts = idempotency::claim(&transaction, &claims, at(0)).await.unwrap();
        // The other one gets a chance to stand in the way.
        tokio::task::yield_now().await;
        let mut new: Vec<NewRequest> = Vec::new();
        for ((key, claim), verdict) in left.split_off(0).into_iter().zip(&claims).zip(verdicts) {
            match verdict {
                Verdict::New => {
                    owners.insert(key, claim.request_id);
                    new.push(request(claim.request_id.as_i64()));
                }
                Verdict::Repeats(id) => drop(owners.insert(key, id)),
                Verdict::InFlight => left.push(key),
                Verdict::Conflicts => panic!("all bodies are the same"),
            }
        }
        requests::insert(&transaction, &lease, &new).await.unwrap();
        transaction.commit().await.unwrap();
    }
    owners
}

#[test]
fn writers_with_the_same_keys_agree_and_do_not_wait_for_each_other() {
    on_postgres(async |db: Db| {
        for round in 0..50 {
            let keys: Vec<i64> = (round * 40..round * 40 + 40).collect();
            let backwards: Vec<i64> = keys[10..].iter().rev().copied().collect();
            let (one, other) =
                tokio::join!(write(&db.store, &keys[..30], 100_000), write(&db.store, &backwards, 200_000));
            for key in &keys[10..30] {
                assert_eq!(one[key], other[key], "key {key} stands for two requests");
                assert!(requests::find(db.store.connection(), one[key]).await.unwrap().is_some());
            }
        }
    });
}

/// The session may be one of an ingest that has vanished: PostgreSQL keeps its transaction open for a while.
#[test]
fn a_key_that_another_session_holds_delays_no_other_key() {
    on_postgres(async |db: Db| {
        let holding = db.store.begin().await.unwrap();
        let held = [claim("b", 1, 7)];
        assert_eq!(idempotency::claim(&holding, &held, at(0)).await.unwrap(), [Verdict::New]);
        let claims = |first| ["a", "b", "c"].map(|key| claim(key, first, 7));
        let decide = async |first| {
            let transaction = db.store.begin().await.unwrap();
            let verdicts = idempotency::claim(&transaction, &claims(first), at(1)).await.unwrap();
            transaction.commit().await.unwrap();
            verdicts
        };
        // Nothing ends the other transaction meanwhile: a claim that waited for it would wait for ever.
        assert_eq!(decide(10).await, [Verdict::New, Verdict::InFlight, Verdict::New]);
        let [ten, one] = [10, 1].map(|number| Verdict::Repeats(id(number)));
        assert_eq!(decide(20).await, [ten, Verdict::InFlight, ten]);
        holding.commit().await.unwrap();
        assert_eq!(decide(30).await, [ten, one, ten]);
    });
}

#[test]
fn a_key_that_is_being_taken_over_is_not_purged() {
    on_postgres(async |db: Db| {
        let first = [claim("k", 1, 7), claim("l", 2, 7)];
        idempotency::claim(db.store.connection(), &first, at(0)).await.unwrap();
        let taking_over = db.store.begin().await.unwrap();
        let second = [idempotency::Claim { expires_at: at(200), ..claim("k", 3, 7) }];
        idempotency::claim(&taking_over, &second, at(100)).await.unwrap();

        let (purged, ()) = tokio::join!(idempotency::purge(db.store.connection(), at(100), 10), async {
            a_key_is_gone_or_waited_for(&db.store).await;
            taking_over.commit().await.unwrap();
        });

        assert_eq!(purged.unwrap(), 1);
        let third = [claim("k", 4, 7)];
        let verdicts = idempotency::claim(db.store.connection(), &third, at(100)).await.unwrap();
        assert_eq!(verdicts, [Verdict::Repeats(second[0].request_id)]);
    });
}

async fn a_key_is_gone_or_waited_for(store: &Store) {
    let sql = "SELECT 1 WHERE (SELECT count(*) FROM idempotency_keys) < 2 OR EXISTS (SELECT 1 \
         FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    let seen = Statement::from_string(DbBackend::Postgres, sql);
    while store.connection().query_one_raw(seen.clone()).await.unwrap().is_none() {}
}

#[test]
fn two_who_claim_at_once_share_what_is_due() {
    on_postgres(async |db: Db| {
        let new: Vec<_> = (1..=100).map(|number| NewRequest { due_at: at(10), ..request(number) }).collect();
        publish(&db.store, &new).await;
        let claim = async || claims::claim_due(&db.store, Due::Silent, at(10), 60).await.unwrap();
        let (mut one, mut other) = tokio::join!(claim(), claim());
        let (one, other) = (one.take(), other.take());
        let claimed: BTreeSet<_> = one.iter().chain(&other).map(|delivery| delivery.request.id).collect();
        assert_eq!((claimed.len(), one.len() + other.len()), (100, 100));
        assert_eq!(one.len().max(other.len()), 60);
    });
}

#[test]
fn ten_who_acquire_at_once_get_ten_nodes() {
    on_postgres(async |db: Db| {
        let mut acquiring = tokio::task::JoinSet::new();
        for number in 0..10 {
            let store = db.store.clone();
            let holder = format!("replica {number}");
            acquiring.spawn(async move {
                nodes::acquire(&store, &holder, Duration::from_mins(1), &NodeId::ALL)
                    .await
                    .unwrap()
                    .unwrap()
                    .node
            });
        }
        let nodes: BTreeSet<_> = acquiring.join_all().await.into_iter().collect();
        assert_eq!(nodes, (0..10).map(node).collect());
    });
}

async fn record(store: &Store, reports: &[AttemptReport]) {
    let transaction = store.begin().await.unwrap();
    outcomes::record(&transaction, reports, at(5)).await.unwrap();
    transaction.commit().await.unwrap();
}

#[test]
fn recorders_with_the_same_reports_do_not_wait_for_each_other() {
    on_postgres(async |db: Db| {
        let new: Vec<_> = (1..=400).map(request).collect();
        publish(&db.store, &new).await;
        for attempt in 1..=15 {
            let reports: Vec<_> =
                (1..=400).map(|number| report(number, attempt, Outcome::Delivered)).collect();
            let backwards: Vec<_> = reports.iter().rev().cloned().collect();
            tokio::join!(record(&db.store, &reports), record(&db.store, &backwards));
        }
        let delivery = delivery(&db.store, 1).await;
        assert_eq!((delivery.attempt_count, delivery.attempts.len()), (15, 15));
    });
}

#[test]
fn a_recorder_decides_on_what_another_one_left() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[request(1)]).await;
        let first = db.store.begin().await.unwrap();
        outcomes::record(&first, &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
        let dead = [report(1, 2, rejected())];
        tokio::join!(record(&db.store, &dead), async {
            somebody_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
    });
}

pub(crate) async fn somebody_waits_for_a_lock(store: &Store) {
    so_many_wait_for_a_lock(store, 1).await;
}

async fn so_many_wait_for_a_lock(store: &Store, waiting: u32) {
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
         HAVING count(*) >= {waiting}"
    );
    let waiting = Statement::from_string(DbBackend::Postgres, sql);
    while store.connection().query_one_raw(waiting.clone()).await.unwrap().is_none() {}
}

/// Else it would wait behind nobody: who ends the one before it does not see it, and it does not see the end.
#[test]
fn who_joins_a_lane_while_the_one_before_it_ends_does_not_wait_for_ever() {
    on_postgres(async |db: Db| {
        let in_lane = |number: i64| NewRequest { lane: Some("a".to_owned()), ..request(number) };
        publish(&db.store, &[in_lane(1)]).await;
        let joining = db.store.begin().await.unwrap();
        requests::insert(&joining, &lease(node(1)), &[in_lane(2)]).await.unwrap();

        let ended = [report(1, 1, Outcome::Delivered)];
        tokio::join!(record(&db.store, &ended), async {
            let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM deliveries WHERE state = 'delivered') OR EXISTS \
                 (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
                  AND wait_event_type = 'Lock')";
            let seen = Statement::from_string(DbBackend::Postgres, sql);
            while db.store.connection().query_one_raw(seen.clone()).await.unwrap().is_none() {}
            joining.commit().await.unwrap();
        });

        assert_eq!(delivery(&db.store, 2).await.deferred_by, None);
    });
}

/// Two of a lane, of which the first is due at 10; and a transaction that keeps everybody from changing the lane.
async fn a_lane_that_nobody_may_enter(db: &Db) -> Transaction {
    let in_lane = |number: i64| NewRequest { lane: Some("a".to_owned()), ..request(number) };
    publish(&db.store, &[in_lane(1), in_lane(2)]).await;
    record(&db.store, &[report(1, 1, retry(Some(10)))]).await;
    let joining = db.store.begin().await.unwrap();
    requests::insert(&joining, &lease(node(1)), &[in_lane(3)]).await.unwrap();
    joining
}

async fn claim_planned(store: &Store, now: i64) -> Claim {
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 9).await.unwrap();
    let claimed: Vec<_> = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    assert_eq!(claimed, [1]);
    claim
}

/// One replica's broker refuses it; before that is noted, another replica claims it, and its broker takes it.
#[test]
fn what_another_replica_has_published_is_not_ended_by_a_refusal() {
    on_postgres(async |db: Db| {
        let joining = a_lane_that_nobody_may_enter(&db).await;
        let claim = claim_planned(&db.store, 10).await;
        let refused = [refusal(1, Some("three"))];
        let (ended, ()) = tokio::join!(claim.published(&[], &refused, at(11), at(50)), async {
            somebody_waits_for_a_lock(&db.store).await;
            // The first one takes longer than its claim lasts.
            let other = claim_planned(&db.store, 40).await;
            let published = [(id(1), "three".to_owned())];
            other.published(&published, &[], at(12), at(912)).await.unwrap();
            joining.commit().await.unwrap();
        });
        assert_eq!(ended.unwrap(), []);
        let delivery = delivery(&db.store, 1).await;
        assert_eq!((delivery.state, delivery.due_at), (DeliveryState::Retrying, Some(at(912))));
    });
}

#[test]
fn what_the_brokers_of_two_replicas_refuse_ends_once_and_its_lane_goes_on() {
    on_postgres(async |db: Db| {
        let joining = a_lane_that_nobody_may_enter(&db).await;
        let claim = claim_planned(&db.store, 10).await;
        let refused = [refusal(1, Some("three"))];
        let (one, other) = tokio::join!(claim.published(&[], &refused, at(11), at(50)), async {
            somebody_waits_for_a_lock(&db.store).await;
            // The first one takes longer than its claim lasts.
            let other = claim_planned(&db.store, 40).await;
            let other = other.published(&[], &refused, at(12), at(50));
            tokio::join!(other, async {
                so_many_wait_for_a_lock(&db.store, 2).await;
                joining.commit().await.unwrap();
            })
            .0
        });
        assert_eq!(one.unwrap().len() + other.unwrap().len(), 1, "it is counted once");
        assert_eq!(delivery(&db.store, 1).await.reason.as_deref(), Some("unpublishable"));
        assert_eq!(delivery(&db.store, 2).await.deferred_by, None, "its turn has come");
    });
}

/// In lanes of other keys others are written, and end.
#[test]
fn lanes_do_not_wait_for_each_other() {
    on_postgres(async |db: Db| {
        let in_lanes = |from: i64| {
            let of = |number: i64| NewRequest { lane: Some(format!("one/{number}")), ..request(number) };
            (from..from + 500).map(of).collect::<Vec<_>>()
        };
        publish(&db.store, &in_lanes(1)).await;
        let lease = leased(&db.store, node(1)).await.unwrap();
        let joining = db.store.begin().await.unwrap();
        requests::insert(&joining, &lease, &in_lanes(1000)).await.unwrap();
        insert(&db.store, &in_lanes(2000)).await;
        let reports: Vec<_> = (1..=500).map(|number| report(number, 1, Outcome::Delivered)).collect();
        record(&db.store, &reports).await;
        joining.commit().await.unwrap();
        assert_eq!(count(&db.store, "state = 'delivered'").await, 500);
    });
}

/// So many that wait for their destination from 10 on, and as many of which nothing was heard.
async fn half_of_them_wait(store: &Store, requests: i64) {
    publish(store, &(1..=2 * requests).map(request).collect::<Vec<_>>()).await;
    let put_off = |number| report(number, 1, deferred(DeferralCause::BreakerOpen, 10));
    record(store, &(1..=requests).map(put_off).collect::<Vec<_>>()).await;
}

/// Records in a transaction that is left open.
async fn recording(store: &Store, reports: &[AttemptReport]) -> Transaction {
    let recording = store.begin().await.unwrap();
    outcomes::record(&recording, reports, at(5)).await.unwrap();
    recording
}

#[test]
fn a_recorder_with_good_news_does_not_keep_a_hold_from_releasing() {
    on_postgres(async |db: Db| {
        half_of_them_wait(&db.store, 10).await;
        let delivered = |number| [report(number, 1, Outcome::Delivered)];
        record(&db.store, &delivered(11)).await;
        let recording = recording(&db.store, &delivered(12)).await;
        assert_eq!(holds::release(&db.store, at(10)).await.unwrap(), 2);
        recording.commit().await.unwrap();
    });
}

/// It waits a moment: another round is needed only where the recorder takes longer.
#[test]
fn a_release_waits_for_the_recorder_that_is_about_to_commit() {
    on_postgres(async |db: Db| {
        half_of_them_wait(&db.store, 100).await;
        let mut released = 0;
        for number in 101..=200 {
            let full = [report(number, 1, deferred(DeferralCause::Limit, 10))];
            let recording = recording(&db.store, &full).await;
            let release = holds::release(&db.store, at(10));
            tokio::pin!(release);
            released = tokio::select! {
                released = &mut release => released,
                () = somebody_waits_for_a_lock(&db.store) => {
                    recording.commit().await.unwrap();
                    release.await
                }
            }
            .unwrap();
            if released > 0 {
                break;
            }
        }
        assert_eq!(released, 1);
    });
}

/// The recorders write one outcome after the other; seldom has the sweeper to try a second time.
#[test]
fn a_hold_releases_while_outcomes_pour_in() {
    const STEPS: i64 = 10;
    on_postgres(async |db: Db| {
        half_of_them_wait(&db.store, 2000).await;
        let recorders = (0..4).map(async |recorder| {
            for number in (2001 + recorder * 500..).take(500) {
                record(&db.store, &[report(number, 1, Outcome::Delivered)]).await;
            }
        });
        let releases = async {
            let (mut tries, mut gone) = (0, 0);
            for step in 0..STEPS {
                loop {
                    tries += 1;
                    match holds::release(&db.store, at(10 + 2 * step)).await.unwrap() {
                        0 => {}
                        some => break gone += some,
                    }
                }
            }
            (tries, gone)
        };
        let (tries, gone) = tokio::select! {
            done = releases => done,
            _ = futures_util::future::join_all(recorders) => panic!("the recorders have not poured enough"),
        };
        assert!(tries <= 2 * STEPS, "{tries} tries for {STEPS} releases of {gone}");
    });
}

/// So many dead requests, from 1.
async fn dead(store: &Store, requests: i64) {
    let new: Vec<_> = (1..=requests).map(request).collect();
    publish(store, &new).await;
    let reports: Vec<_> = (1..=requests).map(|number| report(number, 1, rejected())).collect();
    record(store, &reports).await;
}

async fn replay_all(store: &Store) {
    let rate = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1));
    begin(store, &Filter::default(), rate, at(10)).await.unwrap();
}

pub(crate) async fn two_who_release_at_once_let_go_no_more_than_a_hold_allows(db: Db) {
    let requests = 20;
    let everywhere: Vec<_> = (0..10).map(|number| format!("destination {number}")).collect();
    let new = |number| NewRequest { destinations: everywhere.clone(), ..request(number) };
    publish(&db.store, &(1..=requests).map(new).collect::<Vec<_>>()).await;
    let put_off = |number| {
        everywhere.iter().map(move |destination| AttemptReport {
            destination: destination.clone(),
            ..report(number, 1, deferred(DeferralCause::BreakerOpen, 10))
        })
    };
    record(&db.store, &(1..=requests).flat_map(put_off).collect::<Vec<_>>()).await;
    let mut waiting = 200;
    for now in 10..15 {
        let release = || holds::release(&db.store, at(now));
        let (one, other) = tokio::join!(release(), release());
        assert_eq!(one.unwrap() + other.unwrap(), 10, "one for each destination");
        waiting -= 10;
        assert_eq!(count(&db.store, "deferred_by IS NOT NULL").await, waiting);
    }
}

pub(crate) async fn two_who_go_on_with_a_replay_take_each_dead_letter_once(db: Db) {
    dead(&db.store, 250).await;
    replay_all(&db.store).await;
    let mut taken = Vec::new();
    for now in 10..14 {
        let go_on = || replays::go_on(&db.store, at(now));
        let (one, other) = tokio::join!(go_on(), go_on());
        taken.push(one.unwrap().revived + other.unwrap().revived);
    }
    assert_eq!(taken, [100, 100, 50, 0]);
    assert_eq!(count(&db.store, "state = 'pending'").await, 250);
}

/// Neither waits for the other, and each dead letter goes one way.
pub(crate) async fn what_is_purged_while_all_are_replayed_is_either_gone_or_on_its_way(db: Db) {
    dead(&db.store, 400).await;
    replay_all(&db.store).await;
    let mut purged = 0;
    for now in 10.. {
        let purge = async {
            let transaction = db.store.begin().await.unwrap();
            let purged = dead_letters::purge(&transaction, &Filter::default(), 100, at(10)).await.unwrap();
            transaction.commit().await.unwrap();
            purged
        };
        let (now_purged, revived) = tokio::join!(purge, replays::go_on(&db.store, at(now)));
        purged += i64::try_from(now_purged).unwrap();
        if now_purged == 0 && revived.unwrap().revived == 0 {
            break;
        }
    }
    assert_eq!(count(&db.store, "state = 'dead'").await, 0);
    assert_eq!(count(&db.store, "state = 'pending'").await + purged, 400);
    let left = Statement::from_string(
        db.store.connection().get_database_backend(),
        "SELECT 1 FROM requests WHERE NOT EXISTS (SELECT 1 FROM deliveries WHERE request_id = id)",
    );
    assert!(
        db.store.connection().query_one_raw(left).await.unwrap().is_none(),
        "a request without a delivery"
    );
}

#[test]
fn what_is_replayed_while_it_is_purged_stays_and_what_is_purged_first_is_unknown() {
    on_postgres(async |db: Db| {
        dead(&db.store, 2).await;
        let replay = async |connection: &Transaction, number| {
            dead_letters::replay(connection, RequestId::from_i64(number).unwrap(), "three", at(9))
                .await
                .unwrap()
        };
        let purge = async |connection: &Transaction| {
            dead_letters::purge(connection, &Filter::default(), 9, at(10)).await.unwrap()
        };
        let (first, second) = (db.store.begin().await.unwrap(), db.store.begin().await.unwrap());
        assert_eq!(replay(&first, 1).await, Replayed::Yes);
        let (purged, ()) = tokio::join!(purge(&second), async {
            somebody_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(purged, 1, "the other one");
        let third = db.store.begin().await.unwrap();
        let (replayed, ()) = tokio::join!(replay(&third, 2), async {
            somebody_waits_for_a_lock(&db.store).await;
            second.commit().await.unwrap();
        });
        assert_eq!(replayed, Replayed::Unknown);
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Pending);
    });
}

#[test]
fn what_turns_out_to_be_delivered_while_it_is_to_be_replayed_is_left_alone() {
    on_postgres(async |db: Db| {
        let in_lane = |number| NewRequest { lane: Some("a".to_owned()), ..request(number) };
        publish(&db.store, &[in_lane(1)]).await;
        record(&db.store, &[report(1, 1, rejected())]).await;
        publish(&db.store, &[in_lane(2)]).await;
        replay_all(&db.store).await;
        let recording = db.store.begin().await.unwrap();
        outcomes::record(&recording, &[report(1, 2, Outcome::Delivered)], at(9)).await.unwrap();
        let (revived, ()) = tokio::join!(replays::go_on(&db.store, at(10)), async {
            somebody_waits_for_a_lock(&db.store).await;
            recording.commit().await.unwrap();
        });
        assert_eq!(revived.unwrap().revived, 0);
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
    });
}

pub(crate) async fn two_who_purge_at_once_delete_each_request_once(db: Db) {
    dead(&db.store, 1200).await;
    let (one, other) = tokio::join!(retention::purge(&db.store), retention::purge(&db.store));
    assert_eq!((one.requests + other.requests, one.attempts + other.attempts), (1200, 1200));
    assert_eq!(count(&db.store, "true").await, 0);
}

pub(crate) async fn the_dead_that_come_back_while_they_are_purged_are_either_gone_or_on_their_way(db: Db) {
    dead(&db.store, 400).await;
    let replay = async {
        let mut revived = 0;
        for number in (1..=400).rev() {
            let transaction = db.store.begin().await.unwrap();
            let id = RequestId::from_i64(number).unwrap();
            let replayed = dead_letters::replay(&transaction, id, "three", at(9)).await.unwrap();
            transaction.commit().await.unwrap();
            match replayed {
                Replayed::Yes => revived += 1,
                Replayed::Unknown => return revived,
                Replayed::NotDead => panic!("nobody else replays"),
            }
        }
        revived
    };
    // A batch deletes what is dead when it looks; so it looks before all have come back.
    let (revived, purged) = tokio::join!(replay, async {
        while count(&db.store, "state = 'pending'").await == 0 {}
        retention::purge(&db.store).await
    });
    assert!(purged.requests > 0, "all had come back");
    assert_eq!(count(&db.store, "state = 'pending'").await, revived);
    assert_eq!(u64::try_from(revived).unwrap() + purged.requests, 400);
}

#[test]
fn who_purges_waits_for_nobody() {
    on_postgres(async |db: Db| {
        dead(&db.store, 3).await;
        let replaying = db.store.begin().await.unwrap();
        let second = RequestId::from_i64(2).unwrap();
        dead_letters::replay(&replaying, second, "three", at(9)).await.unwrap();
        // To a destination that the request did not have: it keeps the request from going, not its deliveries.
        let recording = db.store.begin().await.unwrap();
        let elsewhere = AttemptReport { destination: "four".to_owned(), ..report(3, 1, Outcome::Delivered) };
        outcomes::record(&recording, &[elsewhere], at(5)).await.unwrap();

        assert_eq!(retention::purge(&db.store).await.requests, 1);
        replaying.commit().await.unwrap();
        recording.commit().await.unwrap();
        assert_eq!(delivery(&db.store, 2).await.state, DeliveryState::Pending);
        let purged = retention::purge(&db.store).await;
        assert_eq!((purged.requests, purged.deliveries), (1, 2), "the third one, now that it is free");
    });
}

#[test]
fn what_comes_back_between_a_look_and_the_lock_is_kept() {
    on_postgres(async |db: Db| {
        dead(&db.store, 2).await;
        let replaying = db.store.begin().await.unwrap();
        // Lets others look, and lock nothing.
        replaying.execute_unprepared("LOCK TABLE requests IN EXCLUSIVE MODE").await.unwrap();
        let (purged, ()) = tokio::join!(retention::purge(&db.store), async {
            somebody_waits_for_a_lock(&db.store).await;
            let first = RequestId::from_i64(1).unwrap();
            dead_letters::replay(&replaying, first, "three", at(9)).await.unwrap();
            replaying.commit().await.unwrap();
        });
        assert_eq!(purged.requests, 1);
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Pending);
    });
}

/// The recorder takes the reports of its batch one by one then.
#[test]
fn a_report_of_a_new_destination_that_meets_a_purge_is_refused_and_then_one_of_an_unknown_request() {
    on_postgres(async |db: Db| {
        dead(&db.store, 1).await;
        let elsewhere =
            [AttemptReport { destination: "four".to_owned(), ..report(1, 1, Outcome::Delivered) }];
        let record = async || {
            let transaction = db.store.begin().await.unwrap();
            outcomes::record(&transaction, &elsewhere, at(9)).await
        };
        let purging = db.store.begin().await.unwrap();
        purging.execute_unprepared("DELETE FROM requests").await.unwrap();
        let (refused, ()) = tokio::join!(record(), async {
            somebody_waits_for_a_lock(&db.store).await;
            purging.commit().await.unwrap();
        });
        assert!(refused.unwrap_err().is_about_data());
        assert_eq!(record().await.unwrap().unknown, [elsewhere[0].request_id]);
    });
}

/// A process that stands still between a look at its lease and its commit.
#[test]
fn a_lease_that_is_over_writes_nothing_more() {
    on_postgres(async |db: Db| {
        let only = node(5)..=node(5);
        let old = nodes::acquire(&db.store, "old", LONG, &only).await.unwrap().unwrap();
        let slow = db.store.begin().await.unwrap();
        let connection = db.store.connection();
        nodes::release(connection, &old, "old").await.unwrap();
        let over = |result: Result<_, StoreError>| {
            let error = result.expect_err("the lease is over");
            assert!(matches!(error, StoreError::LeaseOver { node: of } if of == node(5)), "{error:?}");
            assert!(error.is_unavailable() && error.was_answered());
        };
        over(requests::insert(connection, &old, &[request(1)]).await);
        let new = nodes::acquire(&db.store, "new", LONG, &only).await.unwrap().unwrap();
        over(requests::insert(&slow, &old, &[request(2)]).await);
        drop(slow);
        let transaction = db.store.begin().await.unwrap();
        requests::insert(&transaction, &new, &[request(3)]).await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(nodes::renew(connection, &old, "old", LONG).await.unwrap(), None);
        // Nor does it take over what others have left.
        connection.execute_unprepared("UPDATE outbox SET node_id = 77").await.unwrap();
        assert_eq!(outbox::take_over(connection, &old, node(77)).await.unwrap(), 0);
        assert_eq!(outbox::take_over(connection, &new, node(77)).await.unwrap(), 1);
    });
}

#[test]
fn of_two_survivors_one_takes_over_all_that_a_node_has_left() {
    on_postgres(async |db: Db| {
        let gone = nodes::acquire(&db.store, "gone", LONG, &NodeId::ALL).await.unwrap().unwrap();
        let all: Vec<_> = (1..=500).map(request).collect();
        requests::insert(db.store.connection(), &gone, &all).await.unwrap();
        nodes::release(db.store.connection(), &gone, "gone").await.unwrap();
        let [one, other] = [1, 2].map(|number| lease(node(number)));
        for survivor in [&one, &other] {
            leased(&db.store, survivor.node).await.unwrap();
        }
        let first = db.store.begin().await.unwrap();
        assert_eq!(outbox::take_over(&first, &one, gone.node).await.unwrap(), 500);
        let (second, ()) = tokio::join!(outbox::take_over(db.store.connection(), &other, gone.node), async {
            somebody_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(second.unwrap(), 0, "they are the first one's");
        assert_eq!(outbox::lag(db.store.connection(), one.node, at(0), 1000).await.unwrap().requests, 500);
    });
}

/// Else both would publish.
#[test]
fn a_node_id_is_not_leased_again_while_what_it_left_is_taken_over() {
    on_postgres(async |db: Db| {
        let only = node(5)..=node(5);
        let gone = nodes::acquire(&db.store, "gone", LONG, &only).await.unwrap().unwrap();
        requests::insert(db.store.connection(), &gone, &[request(1)]).await.unwrap();
        nodes::release(db.store.connection(), &gone, "gone").await.unwrap();
        let survivor = leased(&db.store, node(1)).await.unwrap();
        let taking = db.store.begin().await.unwrap();
        assert_eq!(outbox::take_over(&taking, &survivor, gone.node).await.unwrap(), 1);
        let (again, ()) = tokio::join!(nodes::acquire(&db.store, "again", LONG, &only), async {
            somebody_waits_for_a_lock(&db.store).await;
            taking.commit().await.unwrap();
        });
        assert_eq!(again.unwrap().unwrap().epoch, 2);
        assert_eq!(outbox::take_over(db.store.connection(), &survivor, gone.node).await.unwrap(), 0);
    });
}

const LONG: Duration = Duration::from_mins(1);
