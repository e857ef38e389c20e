use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use throughline_clock::Clock;
use throughline_messages::{Adoption, DeferralCause, Origin, Outcome};
use throughline_snowflake::RequestId;
use throughline_testkit::eventually;

use crate::recording::{failure, report, reported};
use crate::world::{DEADLINE, Running, TOPIC, World};

const NOW: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
const OPERATOR: &str = "the-key-of-the-operator";

/// Gets the explanation of a request, with the key of the operator.
async fn explained(world: &World, ingest: &Running, id: RequestId, accept: &str) -> reqwest::Response {
    let url = format!("{}/v1/requests/{id}/explain", ingest.base);
    let response = world.http.get(url).header(ACCEPT, accept).bearer_auth(OPERATOR).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["vary"]), (200, &"accept".parse().unwrap()));
    response
}

/// Returns the explanation as JSON, as soon as the text of its only delivery contains `words`.
async fn explanation_with(world: &World, ingest: &Running, id: RequestId, words: &str) -> Value {
    eventually(words, DEADLINE, async || {
        let explanation: Value = explained(world, ingest, id, "*/*").await.json().await?;
        anyhow::ensure!(
            explanation["now"][0]["text"].as_str().is_some_and(|text| text.contains(words)),
            "{explanation}"
        );
        Ok(explanation)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn the_history_of_a_request_is_available_as_json_and_as_text_with_links() {
    let world = World::new(
        "
links: {trace: 'http://h/t/{trace_id}', request: 'http://h/r/{request_id}'}
clients: {operator: {key: the-key-of-the-operator, manage: true}}
",
    );
    let ingest = world.start_at(Clock::manual(NOW)).await;
    let authorization = format!("Bearer {OPERATOR}");
    let response = world.post_with(&ingest, r#"{"user":"u-1"}"#, &[("authorization", &authorization)]).await;
    let id = crate::world::id_of(response).await;
    let due_at = Some(NOW + TimeDelta::seconds(40));
    reported(&world, &report(id, NOW, Outcome::Retry { due_at, failure: failure("503") })).await;

    let explanation =
        explanation_with(&world, &ingest, id, "Attempt 2 is due at 2026-01-01 00:00:40 UTC (in 40s)").await;
    let status = world.http.get(format!("{}/v1/requests/{id}", ingest.base)).bearer_auth(OPERATOR);
    let status: Value = status.send().await.unwrap().json().await.unwrap();
    assert_eq!((&status["client"], &status["body_bytes"]), (&json!("operator"), &json!(14)));
    let trace_id = status["trace_id"].as_str().unwrap();
    let accepted = "accepted from client `operator` on route `one` by node 0: 14 bytes of application/json, \
         ordering key `u-1`";
    let failed = "attempt 1, from record one-requests/0/7, failed after 0 ms: 503 (server_error); a retry is scheduled";
    assert_eq!(
        (&explanation["request_id"], &explanation["request_url"]),
        (&json!(id), &json!(format!("http://h/r/{id}")))
    );
    assert_eq!(
        explanation["story"],
        json!([
            {
                "at": "2026-01-01T00:00:00Z", "text": accepted,
                "trace_id": trace_id, "trace_url": format!("http://h/t/{trace_id}"),
            },
            {
                "at": "2026-01-01T00:00:00Z", "destination": "three", "text": failed,
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
                "trace_url": "http://h/t/0af7651916cd43dd8448eb211c80319c",
            },
        ])
    );
    let now = &explanation["now"][0];
    assert_eq!((&now["destination"], &now["state"]), (&json!("three"), &json!("retrying")));

    let text = explained(&world, &ingest, id, "text/plain").await;
    assert_eq!(text.headers()["content-type"], "text/plain; charset=utf-8");
    let text = text.text().await.unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(lines[0], format!("2026-01-01 00:00:00.000 UTC  {accepted} [trace {trace_id}]"));
    assert!(lines[1].starts_with(&format!("2026-01-01 00:00:00.000 UTC  three: {failed} [trace ")), "{text}");
    assert!(
        lines[2].starts_with("now                          three: retrying. Attempt 2 is due at"),
        "{text}"
    );
    assert!(lines[3..].iter().all(|line| line.starts_with("see  ")), "{text}");
    ingest.stop().await;
}

#[tokio::test]
async fn the_condition_that_a_delivery_waits_for_is_read_from_the_database() {
    let world = World::new("routes: {one: {ordering: strict}}");
    let ingest = world.start_at(Clock::manual(NOW)).await;
    let first = world.accepted(&ingest, r#"{"user":"u-1"}"#).await;
    let second = world.accepted(&ingest, r#"{"user":"u-1"}"#).await;
    let waits = format!("it is the turn of request {first}");
    explanation_with(&world, &ingest, second, &waits).await;
    world.outbox_empty().await;
    explanation_with(&world, &ingest, first, "Kafka has acknowledged it. Attempt 1 has no outcome yet").await;

    let due_at = NOW + TimeDelta::seconds(20);
    let deferred = Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen };
    reported(&world, &report(first, NOW, deferred)).await;
    let until = "at 2026-01-01 00:00:20 UTC (in 20s)";
    let release =
        format!("It can continue {until}. The next delivery that waits for `three` can continue {until}");
    let explanation = explanation_with(&world, &ingest, first, &release).await;
    let text = explanation["now"][0]["text"].as_str().unwrap();
    assert!(text.ends_with("if it is not delivered by 2026-01-02 00:00:00 UTC."), "the window: {text}");

    // The release does not apply to a delivery with a busy key.
    let busy = world.accepted(&ingest, r#"{"user":"u-2"}"#).await;
    world.outbox_empty().await;
    let deferred = Outcome::Deferred { due_at, cause: DeferralCause::KeyBusy };
    reported(&world, &report(busy, NOW, deferred)).await;
    explanation_with(
        &world,
        &ingest,
        busy,
        &format!("It can continue {until}. It is then published and queued again."),
    )
    .await;
    let status = world.status_when(&ingest, busy, |_| true).await;
    assert_eq!(status["deliveries"][0]["deferred_by"], "key_busy");
    ingest.stop().await;
}

#[tokio::test]
async fn an_unacknowledged_request_names_the_node_that_publishes_it() {
    let world = World::new("");
    let ingest = world.start().await;
    world.accepted(&ingest, "{}").await;
    world.broker.down().unwrap();
    let id = world.accepted(&ingest, "{}").await;
    let waits = format!("Kafka has not acknowledged it: node {} publishes it", id.node());
    explanation_with(&world, &ingest, id, &waits).await;
    world.broker.up().unwrap();
    explanation_with(&world, &ingest, id, "Kafka has acknowledged it").await;
    ingest.stop().await;
}

#[tokio::test]
async fn an_adopted_request_names_its_record() {
    let world = World::new("");
    let ingest = world.start().await;
    let origin = Origin { topic: TOPIC.to_owned(), partition: 0, offset: 41 };
    let adoption =
        Adoption { route: "one".to_owned(), origin, origin_time: None, content_type: None, trace: None };
    let signed = (throughline_messages::Kind::Adoption, adoption.to_headers());
    world.produce_signed(&world.topics().adoptions, signed, "{}").await;
    let id = crate::world::ids(&world.records(TOPIC, 1).await)[0];
    let explanation: Value = explained(&world, &ingest, id, "application/json").await.json().await.unwrap();
    let text = explanation["story"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("adopted from record one-requests/0/41 on route `one`"), "{text}");
    let status = world.status_when(&ingest, id, |_| true).await;
    assert_eq!((&status["origin"], status.get("client")), (&json!("one-requests/0/41"), None));
    ingest.stop().await;
}
