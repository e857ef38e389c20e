//! Ingest's metrics.

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_messages::{DeadReason, Outcome};
use throughline_testkit::eventually;

use crate::recording::{failure, report, reported};
use crate::world::{DEADLINE, World};

const NOW: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
const DESTINATION: (&str, &str) = ("throughline.destination", "three");

impl World {
    /// Waits until the metric has this value.
    pub(crate) async fn measures(&self, name: &str, attributes: &[(&str, &str)], expected: i32) {
        eventually("a measurement", DEADLINE, async || {
            let value = self.measured.value(name, attributes)?;
            anyhow::ensure!(value == expected, "{name} is {value:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_request_is_measured_from_its_acceptance_to_its_end() {
    let world = World::new("");
    let clock = Clock::manual(NOW);
    let ingest = world.start_at(clock.clone()).await;
    let good = world.accepted(&ingest, "{}").await;
    let bad = world.accepted(&ingest, "{}").await;
    let off = world.accepted(&ingest, "{}").await;
    let repeated = [("idempotency-key", "k")];
    for _ in 0..2 {
        world.post_with(&ingest, "{}", &repeated).await;
    }
    let route = ("throughline.route", "one");
    world.measures("throughline.requests.accepted", &[route], 4).await;
    world.measures("throughline.publisher.published", &[route], 4).await;
    world.measures("throughline.writer.batch.size", &[], 4).await;

    reported(&world, &report(good, NOW, Outcome::Delivered)).await;
    let dead = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400") };
    for _ in 0..2 {
        reported(&world, &report(bad, NOW, dead.clone())).await;
    }
    let cancel = format!("{}/v1/requests/{off}/cancel", ingest.base);
    assert_eq!(world.http.post(&cancel).send().await.unwrap().status(), 200);
    for outcome in ["delivered", "dead", "cancelled"] {
        world.measures("throughline.deliveries", &[DESTINATION, ("throughline.outcome", outcome)], 1).await;
    }
    let rejected = [DESTINATION, ("throughline.reason", "rejected"), ("error.type", "server_error")];
    world.measures("throughline.dead_letters", &rejected, 1).await;
    world.produce(&world.topics().outcomes, Vec::new(), "{").await;
    world.measures("throughline.dead_letters", &[("throughline.reason", "malformed")], 1).await;
    // Dead, but the third party has it after all.
    reported(&world, &report(bad, NOW, Outcome::Delivered)).await;
    world.measures("throughline.deliveries", &[DESTINATION, ("throughline.outcome", "delivered")], 2).await;
    ingest.stop().await;
}

#[tokio::test]
async fn deliveries_that_are_published_again_are_counted_by_cause() {
    let world = World::new("");
    let clock = Clock::manual(NOW);
    let ingest = world.start_at(clock.clone()).await;
    let id = world.accepted(&ingest, "{}").await;
    let later = Outcome::Retry { due_at: Some(NOW + TimeDelta::seconds(9)), failure: failure("503") };
    reported(&world, &report(id, NOW, later)).await;
    world.status_when(&ingest, id, |status| status["deliveries"][0]["state"] == "retrying").await;
    clock.advance(TimeDelta::seconds(9));
    world.measures("throughline.sweeper.published", &[("throughline.cause", "planned")], 1).await;
    ingest.stop().await;
}

#[tokio::test]
async fn the_metrics_of_its_producer_are_distinct_from_those_of_dispatch() {
    let world = World::new("kafka: {properties: {statistics.interval.ms: '200'}}");
    let ingest = world.start().await;
    let producer = [("messaging.client.id", "throughline-ingest-producer")];
    world.measures("throughline.kafka.queue.messages", &producer, 0).await;
    ingest.stop().await;
}

#[tokio::test]
async fn the_backlog_in_the_database_is_measured_even_when_it_is_empty() {
    let world = World::new("");
    let clock = Clock::manual(NOW);
    let ingest = world.start_at(clock.clone()).await;
    world.measures("throughline.deliveries.open", &[DESTINATION], 0).await;
    let ids = [world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await];
    clock.advance(TimeDelta::seconds(60));
    let pending = [DESTINATION, ("throughline.state", "pending")];
    world.measures("throughline.deliveries.open", &pending, 2).await;
    world.measures("throughline.deliveries.open.age", &[DESTINATION], 60).await;
    world.measures("throughline.publisher.lag", &[], 0).await;
    world.measures("throughline.deliveries.due", &[], 0).await;
    world.measures("throughline.nodes.leased", &[], 1).await;
    world.measures("throughline.nodes.limit", &[], 1024).await;

    let dead = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400") };
    for id in ids {
        reported(&world, &report(id, NOW, dead.clone())).await;
    }
    world.measures("throughline.dead_letters.waiting", &[DESTINATION], 2).await;
    world.measures("throughline.deliveries.open", &pending, 0).await;
    world.measures("throughline.deliveries.open.age", &[DESTINATION], 0).await;
    ingest.stop().await;
}

#[tokio::test]
async fn http_requests_are_measured_by_route_never_by_text_that_clients_choose() {
    let world = World::new("");
    let ingest = world.start().await;
    let id = world.accepted(&ingest, "{}").await;
    let get = |path: String| world.http.get(format!("{}{path}", ingest.base)).send();
    get(format!("/v1/requests/{id}")).await.unwrap();
    get("/v1/requests/none".to_owned()).await.unwrap();
    get("/made/up".to_owned()).await.unwrap();
    let odd = reqwest::Method::from_bytes(b"BREW").unwrap();
    world.http.request(odd, format!("{}/one", ingest.base)).send().await.unwrap();
    let points = world.measured.points("http.server.request.duration").unwrap();
    let of = |point: &throughline_testkit::Point, name: &str| point.attributes.get(name).cloned();
    let mut seen: Vec<_> = points
        .iter()
        .map(|point| {
            let text = |name| of(point, name).unwrap_or_default();
            [text("http.request.method"), text("http.route"), text("http.response.status_code")].join(" ")
        })
        .collect();
    seen.sort_unstable();
    let expected = [
        "GET  404",
        "GET /v1/requests/{id} 200",
        "GET /v1/requests/{id} 400",
        "POST /one 201",
        "_OTHER /one 405",
    ];
    assert_eq!(seen, expected);
    world.measures("http.server.active_requests", &[("http.request.method", "GET")], 0).await;
    ingest.stop().await;
}
