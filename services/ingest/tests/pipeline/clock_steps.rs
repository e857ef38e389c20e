//! Clocks that are put forward and back; the sweeper's part is among its own tests.

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_messages::Outcome;

use crate::recording::{failure, report, reported};
use crate::world::{TOPIC, World, ids};

#[tokio::test]
async fn ids_rise_and_their_order_is_kept_when_the_clock_steps_back_even_over_a_restart() {
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
async fn what_waits_for_a_time_goes_on_when_the_clock_has_come_there() {
    let clock = Clock::manual(Clock::system().now());
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
        // What came first waits so much longer.
        clock.advance(TimeDelta::hours(-1));
    }
    clock.advance(TimeDelta::hours(1) + pause);
    let retries = world.topics().retries;
    assert_eq!(ids(&world.records(&retries, 1).await), due[1..]);
    clock.advance(TimeDelta::hours(1));
    assert_eq!(ids(&world.records(&retries, 2).await), [due[1], due[0]]);
    ingest.stop().await;
}

/// Its id is ahead of the clock, and does not tell that it is late.
#[tokio::test]
async fn what_is_published_late_has_its_patience_from_then_on_though_the_clock_stepped_back() {
    let clock = Clock::manual(Clock::system().now());
    let world = World::new("ingest: { patience: 10min }");
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
