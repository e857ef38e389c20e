use std::error::Error as _;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use throughline_clock::Clock;
use throughline_snowflake::{Generator, RequestId};
use throughline_store::requests;
use throughline_testkit::{lease, new_request};

use crate::world::{TOPIC, World, ids};

fn assert_in_order_and_once(published: &[RequestId], accepted: &[RequestId]) {
    assert!(published.is_sorted_by(|a, b| a < b), "not in the order of ids, or twice: {published:?}");
    let mut accepted = accepted.to_vec();
    accepted.sort_unstable();
    assert_eq!(published, accepted);
}

#[tokio::test]
async fn accepted_requests_are_published_once_in_order_and_leave_the_outbox() {
    let world = World::new("");
    let ingest = world.start().await;
    let accepted =
        join_all((0..100).map(|n| world.accepted(&ingest, format!(r#"{{"user":"u","n":{n}}}"#)))).await;
    let records = world.records(TOPIC, 100).await;
    assert_in_order_and_once(&ids(&records), &accepted);
    assert!(records.iter().all(|record| record.key.as_deref() == Some(b"u")));
    ingest.stop().await;
    world.outbox_empty().await;
}

#[tokio::test]
async fn a_broker_outage_delays_requests_and_preserves_their_order() {
    // The in-flight limit is so low that the publisher must read the table too.
    let world = World::new("ingest: { unacknowledged: 3 }");
    let ingest = world.start().await;
    let mut accepted = vec![world.accepted(&ingest, r#"{"user":"u"}"#).await];
    world.records(TOPIC, 1).await;
    world.broker.down().unwrap();
    for _ in 0..20 {
        accepted.push(world.accepted(&ingest, r#"{"user":"u"}"#).await);
    }
    world.broker.up().unwrap();
    for _ in 0..20 {
        accepted.push(world.accepted(&ingest, r#"{"user":"u"}"#).await);
    }
    assert_in_order_and_once(&ids(&world.records(TOPIC, 41).await), &accepted);
    // And from memory again.
    accepted.push(world.accepted(&ingest, r#"{"user":"u"}"#).await);
    assert_in_order_and_once(&ids(&world.records(TOPIC, 42).await), &accepted);
    ingest.stop().await;
}

#[tokio::test]
async fn ingest_starts_without_a_broker() {
    let world = World::new("");
    world.broker.down().unwrap();
    let ingest = world.start().await;
    let accepted = vec![world.accepted(&ingest, "{}").await];
    world.broker.up().unwrap();
    assert_in_order_and_once(&ids(&world.records(TOPIC, 1).await), &accepted);
    ingest.stop().await;
    world.outbox_empty().await;
}

#[tokio::test]
async fn ingest_ends_if_a_broker_that_answers_late_lacks_topics() {
    let world = World::new("");
    let world = world.reconfigured("{kafka: {topics: {create: false}}, routes: {one: {topic: nowhere}}}");
    let refused = world.try_start().await.unwrap_err().to_string();
    assert!(refused.contains("missing topics: nowhere: create them"), "{refused}");
    world.broker.down().unwrap();
    let ingest = world.start().await;
    // No request is accepted: the embedded broker would create the topic that it goes to.
    world.broker.up().unwrap();
    let ended = ingest.ended().await.unwrap_err();
    let why = ended.source().unwrap().to_string();
    assert!(why.contains("missing topics: nowhere: create them"), "{ended}: {why}");
}

#[tokio::test]
async fn a_restarted_ingest_publishes_requests_left_in_the_outbox() {
    let world = World::new("shutdown_deadline: 1s");
    let ingest = world.start().await;
    world.broker.down().unwrap();
    let accepted = vec![world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await];
    // Without a broker it ends at the deadline, in order: the outbox keeps what is left.
    ingest.shutdown.begin();
    ingest.shutdown.force();
    ingest.stop().await;
    world.broker.up().unwrap();
    let next = world.start().await;
    assert_in_order_and_once(&ids(&world.records(TOPIC, 2).await), &accepted);
    next.stop().await;
}

#[tokio::test]
async fn at_the_in_flight_limit_no_later_request_overtakes() {
    let world = World::new("ingest: { unacknowledged: 2, batch: 5 }");
    let ingest = world.start().await;
    let accepted = join_all((0..200).map(|_| world.accepted(&ingest, r#"{"user":"u"}"#))).await;
    assert_in_order_and_once(&ids(&world.records(TOPIC, 200).await), &accepted);
    ingest.stop().await;
}

#[tokio::test]
async fn two_ingests_on_one_database_have_different_node_ids() {
    let world = World::new("");
    let (a, b) = (world.start().await, world.start().await);
    let first = world.accepted(&a, "{}").await;
    let second = world.accepted(&b, "{}").await;
    assert_ne!(first.node(), second.node());
    assert_eq!(world.records(TOPIC, 2).await.len(), 2);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_graceful_shutdown_publishes_requests_beyond_the_in_flight_limit() {
    let world = World::new("ingest: { unacknowledged: 2, batch: 5 }");
    let ingest = world.start().await;
    let accepted = join_all((0..50).map(|_| world.accepted(&ingest, r#"{"user":"u"}"#))).await;
    ingest.stop().await;
    world.outbox_empty().await;
    assert_in_order_and_once(&ids(&world.records(TOPIC, 50).await), &accepted);
}

#[tokio::test]
async fn the_redelivery_timeout_begins_at_a_late_publication() {
    let clock = Clock::manual(Clock::system().now() - TimeDelta::hours(1));
    let began = clock.now();
    let world = World::new("ingest: {redelivery_timeout: 10min}");
    let ingest = world.start_at(clock.clone()).await;
    let prompt = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    world.broker.down().unwrap();
    let late = world.accepted(&ingest, "{}").await;
    clock.advance(TimeDelta::minutes(8));
    world.broker.up().unwrap();
    world.outbox_empty().await;
    for (id, minutes) in [(prompt, 10), (late, 18)] {
        let status = world.status_when(&ingest, id, |_| true).await;
        let due_at: DateTime<Utc> = status["deliveries"][0]["due_at"].as_str().unwrap().parse().unwrap();
        assert_eq!(due_at - began, TimeDelta::minutes(minutes));
    }
    ingest.stop().await;
}

#[tokio::test]
async fn an_outbox_row_without_a_notification_is_found() {
    let world = World::new("ingest: { node_lease: 1s }");
    let ingest = world.start().await;
    let known = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    // As if the commit had become visible after its client had received that the database is unreachable.
    let clock = Clock::system();
    let id = Generator::new(known.node(), clock.clone(), clock.now() + Duration::from_mins(1)).generate();
    let unknown = new_request(id, clock.now());
    let transaction = world.store().await.begin().await.unwrap();
    requests::insert(&transaction, &lease(known.node()), &[unknown]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(ids(&world.records(TOPIC, 2).await), [known, id]);
    ingest.stop().await;
}
