use chrono::TimeDelta;
use throughline_clock::Clock;
use throughline_messages::{AttemptReport, DeferralCause, Outcome, RequestRecord};
use throughline_store::outcomes;

use crate::recording::report;
use crate::world::World;

/// A slow start would take minutes to release them.
const EXPIRED: usize = 300;

/// The destination was down for longer than the window. No call is made for the expired deliveries, and the delivery
/// that has not expired continues immediately.
#[tokio::test(flavor = "multi_thread")]
async fn expired_deliveries_end_where_they_wait_and_the_others_continue() {
    let world = World::new("destinations: { three: { retry: { window: 20m } } }");
    let began = Clock::system().now() - TimeDelta::hours(1);
    let ingest = world.start_at(Clock::manual(began)).await;
    let mut old = Vec::with_capacity(EXPIRED);
    for _ in 0..EXPIRED {
        old.push(world.accepted(&ingest, "{}").await);
    }
    world.outbox_empty().await;
    ingest.stop().await;

    let store = world.store().await;
    let deferral = |id, at, due_at| {
        let outcome = Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen };
        AttemptReport { called: false, counted_attempts: 0, ..report(id, at, outcome) }
    };
    let reports: Vec<_> = old.iter().map(|id| deferral(*id, began, began + TimeDelta::hours(3))).collect();
    outcomes::record(store.connection(), &reports, began).await.unwrap();

    let clock = Clock::manual(began + TimeDelta::minutes(30));
    let ingest = world.start_at(clock.clone()).await;
    let live = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    outcomes::record(store.connection(), &[deferral(live, clock.now(), clock.now())], clock.now())
        .await
        .unwrap();
    clock.advance(TimeDelta::seconds(2));
    let last = *old.last().unwrap();
    let status = world.status_when(&ingest, last, |status| status["deliveries"][0]["state"] == "dead").await;
    let delivery = &status["deliveries"][0];
    assert_eq!((&delivery["reason"], &delivery["last_error_class"]), (&"expired".into(), &"timeout".into()));
    assert_eq!(delivery["last_error"], "not delivered within 1200s");
    // Each has one dead letter.
    let mut dead_lettered: Vec<_> = world
        .records(&world.topics().dead_letters, EXPIRED)
        .await
        .iter()
        .map(|record| RequestRecord::from_headers(&record.headers).unwrap().id)
        .collect();
    dead_lettered.sort_unstable();
    dead_lettered.dedup();
    assert_eq!(dead_lettered.len(), EXPIRED);
    // The live delivery is published.
    let retries = world.records(&world.topics().retries, 1).await;
    assert_eq!(RequestRecord::from_headers(&retries[0].headers).unwrap().id, live);
    ingest.stop().await;
}
