//! Concurrent work: of replicas, which only PostgreSQL serves, and tasks of one process.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use throughline_api::{DeadLetterFilter, DeliveryState};
use throughline_messages::{AttemptReport, DeadReason, DeferralCause, Outcome};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::claims::{self, Claim};
use throughline_store::dead_letters::{self, Replayed};
use throughline_store::idempotency::{self, ClaimResult};
use throughline_store::{
    DeliveryKey, Due, NewRequest, Store, StoreError, Transaction, nodes, outbox, outcomes, replays, requests,
    slow_starts,
};
use throughline_testkit::{lease, leased};

use crate::databases::{Db, on_postgres};
use crate::dead_letters::begin;
use crate::deliveries::refusal;
use crate::fixtures::{
    at, count, deferred, delivery, end_claims, id, insert, node, publish, rejected, report, request, retry,
};
use crate::idempotency::claim;
use crate::retention;

/// Claims keys and inserts the new requests, as ingest does, and retries the keys that are in flight; returns the
/// request of each key.
async fn write(store: &Store, keys: &[i64], offset: i64) -> BTreeMap<i64, RequestId> {
    let lease = leased(store, node(1)).await.unwrap();
    let mut owners = BTreeMap::new();
    let mut left = keys.to_vec();
    while !left.is_empty() {
        let claims: Vec<_> = left.iter().map(|key| claim(&key.to_string(), offset + key, 7)).collect();
        let transaction = store.begin().await.unwrap();
        let verdicts = idempotency::claim(&transaction, &claims, at(0)).await.unwrap();
        // Gives the other task a chance to interfere.
        tokio::task::yield_now().await;
        let mut new: Vec<NewRequest> = Vec::new();
        for ((key, claim), verdict) in left.split_off(0).into_iter().zip(&claims).zip(verdicts) {
            match verdict {
                ClaimResult::New => {
                    owners.insert(key, claim.request_id);
                    new.push(request(claim.request_id.as_i64()));
                }
                ClaimResult::Repeats(id) => drop(owners.insert(key, id)),
                ClaimResult::InFlight => left.push(key),
                ClaimResult::Conflicts => panic!("all bodies are the same"),
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
        let claims = [claim("b", 1, 7)];
        assert_eq!(idempotency::claim(&holding, &claims, at(0)).await.unwrap(), [ClaimResult::New]);
        let claims = |first| ["a", "b", "c"].map(|key| claim(key, first, 7));
        let decide = async |first| {
            let transaction = db.store.begin().await.unwrap();
            let verdicts = idempotency::claim(&transaction, &claims(first), at(1)).await.unwrap();
            transaction.commit().await.unwrap();
            verdicts
        };
        // Nothing ends the other transaction meanwhile: a claim that waited for it would wait for ever.
        assert_eq!(decide(10).await, [ClaimResult::New, ClaimResult::InFlight, ClaimResult::New]);
        let [ten, one] = [10, 1].map(|number| ClaimResult::Repeats(id(number)));
        assert_eq!(decide(20).await, [ten, ClaimResult::InFlight, ten]);
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
        assert_eq!(verdicts, [ClaimResult::Repeats(second[0].request_id)]);
    });
}

async fn a_key_is_gone_or_waited_for(store: &Store) {
    let sql = "SELECT 1 WHERE (SELECT count(*) FROM idempotency_keys) < 2 OR EXISTS (SELECT 1 \
         FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
    let seen = Statement::from_string(DbBackend::Postgres, sql);
    while store.connection().query_one_raw(seen.clone()).await.unwrap().is_none() {}
}

#[test]
fn two_concurrent_claims_share_the_due_deliveries() {
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
fn ten_concurrent_leases_get_ten_node_ids() {
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
fn a_recorder_decides_on_the_state_that_another_recorder_left() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[request(1)]).await;
        let first = db.store.begin().await.unwrap();
        outcomes::record(&first, &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
        let dead = [report(1, 2, rejected())];
        tokio::join!(record(&db.store, &dead), async {
            a_session_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
    });
}

pub(crate) async fn a_session_waits_for_a_lock(store: &Store) {
    sessions_wait_for_a_lock(store, 1).await;
}

async fn sessions_wait_for_a_lock(store: &Store, waiting: u32) {
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
         HAVING count(*) >= {waiting}"
    );
    let waiting = Statement::from_string(DbBackend::Postgres, sql);
    while store.connection().query_one_raw(waiting.clone()).await.unwrap().is_none() {}
}

/// Otherwise it would wait for ever: the transaction that ends the delivery before it does not see it, and it does not
/// see that end.
#[test]
fn a_delivery_that_joins_a_group_while_the_one_before_it_ends_is_not_stuck() {
    on_postgres(async |db: Db| {
        let in_group = |number: i64| NewRequest { ordering_group: Some("a".to_owned()), ..request(number) };
        publish(&db.store, &[in_group(1)]).await;
        let joining = db.store.begin().await.unwrap();
        requests::insert(&joining, &lease(node(1)), &[in_group(2)]).await.unwrap();

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

/// Two deliveries of an ordering group and a transaction that has locked the group. The first delivery is due at 10.
async fn a_locked_group(db: &Db) -> Transaction {
    let in_group = |number: i64| NewRequest { ordering_group: Some("a".to_owned()), ..request(number) };
    publish(&db.store, &[in_group(1), in_group(2)]).await;
    record(&db.store, &[report(1, 1, retry(Some(10)))]).await;
    let joining = db.store.begin().await.unwrap();
    requests::insert(&joining, &lease(node(1)), &[in_group(3)]).await.unwrap();
    joining
}

async fn claim_planned(store: &Store, now: i64) -> Claim {
    let mut claim = claims::claim_due(store, Due::Planned, at(now), 9).await.unwrap();
    let claimed: Vec<_> = claim.take().iter().map(|delivery| delivery.request.id.as_i64()).collect();
    assert_eq!(claimed, [1]);
    claim
}

/// The broker refuses the record of one replica. Before that replica notes the refusal, another one claims the
/// delivery, and the broker accepts its record.
#[test]
fn a_rejection_does_not_end_a_delivery_that_another_replica_has_published() {
    on_postgres(async |db: Db| {
        let joining = a_locked_group(&db).await;
        let claim = claim_planned(&db.store, 10).await;
        let refused = [refusal(1, Some("three"))];
        let (ended, ()) = tokio::join!(claim.published(&[], &refused, at(11), at(50)), async {
            a_session_waits_for_a_lock(&db.store).await;
            // The first replica takes longer than its claim lasts.
            end_claims(&db.store).await;
            let other = claim_planned(&db.store, 10).await;
            let published = [DeliveryKey::new(id(1), "three")];
            other.published(&published, &[], at(12), at(912)).await.unwrap();
            joining.commit().await.unwrap();
        });
        assert_eq!(ended.unwrap(), []);
        let delivery = delivery(&db.store, 1).await;
        assert_eq!((delivery.state, delivery.due_at), (DeliveryState::Retrying, Some(at(912))));
    });
}

#[test]
fn a_delivery_rejected_at_two_replicas_ends_once_and_its_group_continues() {
    on_postgres(async |db: Db| {
        let joining = a_locked_group(&db).await;
        let claim = claim_planned(&db.store, 10).await;
        let refused = [refusal(1, Some("three"))];
        let (one, other) = tokio::join!(claim.published(&[], &refused, at(11), at(50)), async {
            a_session_waits_for_a_lock(&db.store).await;
            // The first replica takes longer than its claim lasts.
            end_claims(&db.store).await;
            let other = claim_planned(&db.store, 10).await;
            let other = other.published(&[], &refused, at(12), at(50));
            tokio::join!(other, async {
                sessions_wait_for_a_lock(&db.store, 2).await;
                joining.commit().await.unwrap();
            })
            .0
        });
        assert_eq!(one.unwrap().len() + other.unwrap().len(), 1, "it is counted once");
        assert_eq!(delivery(&db.store, 1).await.reason, Some(DeadReason::Unpublishable));
        assert_eq!(delivery(&db.store, 2).await.deferred_by, None, "its turn has come");
    });
}

/// Deliveries of other ordering groups are inserted and end.
#[test]
fn ordering_groups_do_not_wait_for_each_other() {
    on_postgres(async |db: Db| {
        let in_lanes = |from: i64| {
            let of =
                |number: i64| NewRequest { ordering_group: Some(format!("one/{number}")), ..request(number) };
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

/// Publishes twice as many requests: half of them wait for their destination from 10 on, the others for an outcome.
async fn half_of_them_wait(store: &Store, requests: i64) {
    publish(store, &(1..=2 * requests).map(request).collect::<Vec<_>>()).await;
    let deferral = |number| report(number, 1, deferred(DeferralCause::BreakerOpen, 10));
    record(store, &(1..=requests).map(deferral).collect::<Vec<_>>()).await;
}

/// Records in a transaction that is left open.
async fn recording(store: &Store, reports: &[AttemptReport]) -> Transaction {
    let recording = store.begin().await.unwrap();
    outcomes::record(&recording, reports, at(5)).await.unwrap();
    recording
}

#[test]
fn a_recorder_of_successes_does_not_block_the_release_of_a_slow_start() {
    on_postgres(async |db: Db| {
        half_of_them_wait(&db.store, 10).await;
        let delivered = |number| [report(number, 1, Outcome::Delivered)];
        record(&db.store, &delivered(11)).await;
        let recording = recording(&db.store, &delivered(12)).await;
        assert_eq!(slow_starts::release(&db.store, at(10)).await.unwrap(), 2);
        recording.commit().await.unwrap();
    });
}

/// A release waits a moment: another one is needed only if the recorder takes longer.
#[test]
fn a_release_waits_for_the_recorder_that_is_about_to_commit() {
    on_postgres(async |db: Db| {
        half_of_them_wait(&db.store, 100).await;
        let mut released = 0;
        for number in 101..=200 {
            let full = [report(number, 1, deferred(DeferralCause::Limit, 10))];
            let recording = recording(&db.store, &full).await;
            let release = slow_starts::release(&db.store, at(10));
            tokio::pin!(release);
            released = tokio::select! {
                released = &mut release => released,
                () = a_session_waits_for_a_lock(&db.store) => {
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

/// The recorders write one outcome after the other; the sweeper seldom needs a second try.
#[test]
fn a_slow_start_releases_under_a_flood_of_outcomes() {
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
                    match slow_starts::release(&db.store, at(10 + 2 * step)).await.unwrap() {
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

/// Inserts dead requests, from 1 on.
async fn dead(store: &Store, requests: i64) {
    let new: Vec<_> = (1..=requests).map(request).collect();
    publish(store, &new).await;
    let reports: Vec<_> = (1..=requests).map(|number| report(number, 1, rejected())).collect();
    record(store, &reports).await;
}

async fn replay_all(store: &Store) {
    let rate = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1));
    begin(store, &DeadLetterFilter::default(), rate, at(10)).await.unwrap();
}

pub(crate) async fn two_concurrent_releases_do_not_exceed_the_batch(db: Db) {
    let requests = 20;
    let everywhere: Vec<_> = (0..10).map(|number| format!("destination {number}")).collect();
    let new = |number| NewRequest { destinations: everywhere.clone(), ..request(number) };
    publish(&db.store, &(1..=requests).map(new).collect::<Vec<_>>()).await;
    let deferral = |number| {
        everywhere.iter().map(move |destination| AttemptReport {
            destination: destination.clone(),
            ..report(number, 1, deferred(DeferralCause::BreakerOpen, 10))
        })
    };
    record(&db.store, &(1..=requests).flat_map(deferral).collect::<Vec<_>>()).await;
    let mut waiting = 200;
    for now in 10..15 {
        let release = || slow_starts::release(&db.store, at(now));
        let (one, other) = tokio::join!(release(), release());
        assert_eq!(one.unwrap() + other.unwrap(), 10, "one for each destination");
        waiting -= 10;
        assert_eq!(count(&db.store, "deferred_by IS NOT NULL").await, waiting);
    }
}

pub(crate) async fn two_replicas_of_a_replay_take_each_dead_letter_once(db: Db) {
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

/// Purge and replay do not wait for each other, and each dead letter is taken by one of them.
pub(crate) async fn a_dead_letter_is_either_purged_or_replayed(db: Db) {
    dead(&db.store, 400).await;
    replay_all(&db.store).await;
    let mut purged = 0;
    for now in 10.. {
        let purge = async {
            let transaction = db.store.begin().await.unwrap();
            let purged = dead_letters::purge(&transaction, &DeadLetterFilter::default(), None, 100, at(10))
                .await
                .unwrap()
                .purged;
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
fn a_delivery_replayed_during_a_purge_stays_and_one_purged_first_is_unknown() {
    on_postgres(async |db: Db| {
        dead(&db.store, 2).await;
        let replay = async |connection: &Transaction, number| {
            dead_letters::replay(connection, RequestId::from_i64(number).unwrap(), "three", at(9))
                .await
                .unwrap()
        };
        let purge = async |connection: &Transaction| {
            dead_letters::purge(connection, &DeadLetterFilter::default(), None, 9, at(10))
                .await
                .unwrap()
                .purged
        };
        let (first, second) = (db.store.begin().await.unwrap(), db.store.begin().await.unwrap());
        assert_eq!(replay(&first, 1).await, Replayed::Yes);
        let (purged, ()) = tokio::join!(purge(&second), async {
            a_session_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(purged, 1, "the other one");
        let third = db.store.begin().await.unwrap();
        let (replayed, ()) = tokio::join!(replay(&third, 2), async {
            a_session_waits_for_a_lock(&db.store).await;
            second.commit().await.unwrap();
        });
        assert_eq!(replayed, Replayed::Unknown);
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Pending);
    });
}

#[test]
fn a_replay_skips_a_delivery_that_is_reported_delivered_meanwhile() {
    on_postgres(async |db: Db| {
        let in_group = |number| NewRequest { ordering_group: Some("a".to_owned()), ..request(number) };
        publish(&db.store, &[in_group(1)]).await;
        record(&db.store, &[report(1, 1, rejected())]).await;
        publish(&db.store, &[in_group(2)]).await;
        replay_all(&db.store).await;
        let recording = db.store.begin().await.unwrap();
        outcomes::record(&recording, &[report(1, 2, Outcome::Delivered)], at(9)).await.unwrap();
        let (revived, ()) = tokio::join!(replays::go_on(&db.store, at(10)), async {
            a_session_waits_for_a_lock(&db.store).await;
            recording.commit().await.unwrap();
        });
        assert_eq!(revived.unwrap().revived, 0);
        assert_eq!(delivery(&db.store, 1).await.state, DeliveryState::Delivered);
    });
}

pub(crate) async fn two_concurrent_purges_delete_each_request_once(db: Db) {
    dead(&db.store, 1200).await;
    let (one, other) = tokio::join!(retention::purge(&db.store), retention::purge(&db.store));
    assert_eq!((one.requests + other.requests, one.attempts + other.attempts), (1200, 1200));
    assert_eq!(count(&db.store, "true").await, 0);
}

pub(crate) async fn dead_letters_replayed_during_a_purge_are_either_purged_or_replayed(db: Db) {
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
                Replayed::NotDead => panic!("no other task replays"),
            }
        }
        revived
    };
    // A batch deletes the dead letters that it reads, so it reads before all are replayed.
    let (revived, purged) = tokio::join!(replay, async {
        while count(&db.store, "state = 'pending'").await == 0 {}
        retention::purge(&db.store).await
    });
    assert!(purged.requests > 0, "all had come back");
    assert_eq!(count(&db.store, "state = 'pending'").await, revived);
    assert_eq!(u64::try_from(revived).unwrap() + purged.requests, 400);
}

#[test]
fn a_purge_skips_locked_rows() {
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
fn a_dead_letter_replayed_between_selection_and_lock_is_kept() {
    on_postgres(async |db: Db| {
        dead(&db.store, 2).await;
        let replaying = db.store.begin().await.unwrap();
        // Lets others look, and lock nothing.
        replaying.execute_unprepared("LOCK TABLE requests IN EXCLUSIVE MODE").await.unwrap();
        let (purged, ()) = tokio::join!(retention::purge(&db.store), async {
            a_session_waits_for_a_lock(&db.store).await;
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
            a_session_waits_for_a_lock(&db.store).await;
            purging.commit().await.unwrap();
        });
        assert!(refused.unwrap_err().is_about_data());
        assert_eq!(record().await.unwrap().unknown, [elsewhere[0].request_id]);
    });
}

/// A process that is frozen between a check of its lease and its commit.
#[test]
fn nothing_is_written_under_an_expired_lease() {
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
        // Nor does it take over the outbox rows of expired nodes.
        connection.execute_unprepared("UPDATE outbox SET node_id = 77").await.unwrap();
        assert_eq!(outbox::take_over(connection, &old, node(77)).await.unwrap(), 0);
        assert_eq!(outbox::take_over(connection, &new, node(77)).await.unwrap(), 1);
    });
}

#[test]
fn one_of_two_survivors_takes_over_the_whole_outbox_of_a_node() {
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
            a_session_waits_for_a_lock(&db.store).await;
            first.commit().await.unwrap();
        });
        assert_eq!(second.unwrap(), 0, "they are the first one's");
        assert_eq!(outbox::lag(db.store.connection(), one.node, at(0), 1000).await.unwrap().requests, 500);
    });
}

/// Otherwise both would publish.
#[test]
fn a_node_id_is_not_leased_again_while_its_outbox_is_taken_over() {
    on_postgres(async |db: Db| {
        let only = node(5)..=node(5);
        let gone = nodes::acquire(&db.store, "gone", LONG, &only).await.unwrap().unwrap();
        requests::insert(db.store.connection(), &gone, &[request(1)]).await.unwrap();
        nodes::release(db.store.connection(), &gone, "gone").await.unwrap();
        let survivor = leased(&db.store, node(1)).await.unwrap();
        let taking = db.store.begin().await.unwrap();
        assert_eq!(outbox::take_over(&taking, &survivor, gone.node).await.unwrap(), 1);
        let (again, ()) = tokio::join!(nodes::acquire(&db.store, "again", LONG, &only), async {
            a_session_waits_for_a_lock(&db.store).await;
            taking.commit().await.unwrap();
        });
        assert_eq!(again.unwrap().unwrap().epoch, 2);
        assert_eq!(outbox::take_over(db.store.connection(), &survivor, gone.node).await.unwrap(), 0);
    });
}

const LONG: Duration = Duration::from_mins(1);
