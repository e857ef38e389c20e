use chrono::TimeDelta;
use throughline_clock::Clock;
use throughline_messages::{AttemptReport, DeferralCause, Outcome, RequestRecord};
use throughline_store::outcomes;

use crate::recording::report;
use crate::world::World;

/// A hold would let them go for minutes.
const EXPIRED: usize = 300;

/// Their destination was down for longer than its window: none is called for, and what can still be delivered goes on
/// at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_expired_ends_where_it_waits_and_lets_the_rest_go_on() {
    let world = World::new("destinations: { three: { retry: { window: 20m } } }");
    let ingest = world.start().await;
    let mut old = Vec::with_capacity(EXPIRED);
    for _ in 0..EXPIRED {
        old.push(world.accepted(&ingest, "{}").await);
    }
    world.outbox_empty().await;
    ingest.stop().await;

    let store = world.store().await;
    let now = Clock::system().now();
    let put_off = |id, at, due_at| {
        let outcome = Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen };
        AttemptReport { called: false, spent: 0, ..report(id, at, outcome) }
    };
    let reports: Vec<_> = old.iter().map(|id| put_off(*id, now, now + TimeDelta::hours(3))).collect();
    outcomes::record(store.connection(), &reports, now).await.unwrap();

    let clock = Clock::manual(now + TimeDelta::minutes(30));
    let ingest = world.start_at(clock.clone()).await;
    let live = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    outcomes::record(store.connection(), &[put_off(live, clock.now(), clock.now())], clock.now())
        .await
        .unwrap();
    clock.advance(TimeDelta::seconds(2));
    let last = *old.last().unwrap();
    let status = world.status_when(&ingest, last, |status| status["deliveries"][0]["state"] == "dead").await;
    let delivery = &status["deliveries"][0];
    assert_eq!((&delivery["reason"], &delivery["last_error_class"]), (&"expired".into(), &"timeout".into()));
    assert_eq!(delivery["last_error"], "not delivered within 1200s");
    // Each is told of, and none twice.
    let mut told: Vec<_> = world
        .records(&world.topics().dead_letters, EXPIRED)
        .await
        .iter()
        .map(|record| RequestRecord::from_headers(&record.headers).unwrap().id)
        .collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), EXPIRED);
    // The live one is on its way.
    let retries = world.records(&world.topics().retries, 1).await;
    assert_eq!(RequestRecord::from_headers(&retries[0].headers).unwrap().id, live);
    ingest.stop().await;
}
