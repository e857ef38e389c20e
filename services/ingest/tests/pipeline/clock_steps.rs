//! Clocks that are set forward and back; the sweeper's own tests cover its part.

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_messages::{AttemptReport, DeferralCause, Outcome};
use throughline_testkit::eventually;

use crate::recording::{failure, report, reported};
use crate::world::{DEADLINE, TOPIC, World, id_of, ids};

#[tokio::test]
async fn ids_keep_rising_when_the_clock_steps_back_even_across_a_restart() {
    let clock = Clock::manual(Clock::system().now());
    let world = World::new("");
    let mut accepted = Vec::new();
    for _ in 0..2 {
        let ingest = world.start_at(clock.clone()).await;
        for _ in 0..2 {
            accepted.push(world.accepted(&ingest, r#"{"user":"u"}"#).await);
            clock.advance(TimeDelta::hours(-1));
        }
        ingest.stop().await;
    }
    assert!(accepted.is_sorted_by(|a, b| a < b), "{accepted:?}");
    assert_eq!(ids(&world.records(TOPIC, 4).await), accepted);
}

#[tokio::test]
async fn a_scheduled_retry_is_published_when_the_clock_reaches_its_due_time() {
    let clock = Clock::manual(Clock::system().now() - TimeDelta::hours(2));
    let world = World::new("");
    let ingest = world.start_at(clock.clone()).await;
    let pause = TimeDelta::minutes(10);
    let mut due = Vec::new();
    for _ in 0..2 {
        let id = world.accepted(&ingest, "{}").await;
        let retry = Outcome::Retry { due_at: Some(clock.now() + pause), failure: failure("503") };
        reported(&world, &report(id, clock.now(), retry)).await;
        world.status_when(&ingest, id, |status| status["deliveries"][0]["state"] == "retrying").await;
        due.push(id);
        // So the first request waits an hour longer.
        clock.advance(TimeDelta::hours(-1));
    }
    clock.advance(TimeDelta::hours(1) + pause);
    let retries = world.topics().retries;
    assert_eq!(ids(&world.records(&retries, 1).await), due[1..]);
    clock.advance(TimeDelta::hours(1));
    assert_eq!(ids(&world.records(&retries, 2).await), [due[1], due[0]]);
    ingest.stop().await;
}

/// The id of the request is ahead of the clock, so it does not show that the publication is late.
#[tokio::test]
async fn the_redelivery_timeout_begins_at_a_late_publication_after_the_clock_stepped_back() {
    let clock = Clock::manual(Clock::system().now());
    let world = World::new("ingest: {redelivery_timeout: 10min}");
    let ingest = world.start_at(clock.clone()).await;
    world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    clock.advance(TimeDelta::hours(-1));
    world.broker.down().unwrap();
    let late = world.accepted(&ingest, "{}").await;
    clock.advance(TimeDelta::minutes(8));
    world.broker.up().unwrap();
    world.outbox_empty().await;
    let status = world.status_when(&ingest, late, |_| true).await;
    let due_at: DateTime<Utc> = status["deliveries"][0]["due_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(due_at - clock.now(), TimeDelta::minutes(10));
    ingest.stop().await;
}

/// The window of a delivery, a pause and a key have not ended now, but have ended by the clock that is ahead.
#[tokio::test]
async fn an_ingest_with_a_fast_clock_ends_nothing_early() {
    let world = World::new(
        "{ ingest: { idempotency_window: 10min }, destinations: { three: { retry: { window: 10min } } } }",
    );
    let ingest = world.start().await;
    let key = [("idempotency-key", "k")];
    let deferred = id_of(world.post_with(&ingest, "{}", &key).await).await;
    let retried = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    let now = Clock::system().now();
    let due_at = now + TimeDelta::minutes(5);
    let outcome = Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen };
    reported(&world, &AttemptReport { called: false, counted_attempts: 0, ..report(deferred, now, outcome) })
        .await;
    let retry = Outcome::Retry { due_at: Some(due_at), failure: failure("503") };
    reported(&world, &report(retried, now, retry)).await;
    let is_deferred = |status: &serde_json::Value| status["deliveries"][0]["deferred_by"] == "breaker_open";
    let deferred_before = world.status_when(&ingest, deferred, is_deferred).await;
    let is_retrying = |status: &serde_json::Value| status["deliveries"][0]["state"] == "retrying";
    let retried_before = world.status_when(&ingest, retried, is_retrying).await;
    ingest.stop().await;

    let done = |operation| {
        let name = [("db.operation.name", operation)];
        world.measured.count("db.client.operation.duration", &name).unwrap_or_default()
    };
    // A second check shows that the first one is complete.
    let checks = [("list_slow_starts", 2), ("claim_due", 2), ("purge_keys", 1)];
    let before = checks.map(|(operation, _)| done(operation));
    let ahead = world.start_at(Clock::manual(now + TimeDelta::minutes(15))).await;
    eventually("a check of everything that may have ended", DEADLINE, async || {
        for ((operation, count), before) in checks.iter().zip(before) {
            anyhow::ensure!(done(operation) >= before + count, "{operation}");
        }
        Ok(())
    })
    .await
    .unwrap();
    let deferred_after = world.status_when(&ahead, deferred, |_| true).await;
    let retried_after = world.status_when(&ahead, retried, |_| true).await;
    let again = id_of(world.post_with(&ahead, "{}", &key).await).await;
    assert_eq!((deferred_after, retried_after, again), (deferred_before, retried_before, deferred));
    ahead.stop().await;
}
