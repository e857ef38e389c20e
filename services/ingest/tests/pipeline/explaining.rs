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

/// Everybody who asks here is the operator, where clients are known.
async fn explained(world: &World, ingest: &Running, id: RequestId, accept: &str) -> reqwest::Response {
    let url = format!("{}/v1/requests/{id}/explain", ingest.base);
    let response = world.http.get(url).header(ACCEPT, accept).bearer_auth(OPERATOR).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["vary"]), (200, &"accept".parse().unwrap()));
    response
}

/// The story as JSON, as soon as this is told of its only delivery.
async fn told(world: &World, ingest: &Running, id: RequestId, words: &str) -> Value {
    eventually(words, DEADLINE, async || {
        let story: Value = explained(world, ingest, id, "*/*").await.json().await?;
        anyhow::ensure!(story["now"][0]["text"].as_str().is_some_and(|text| text.contains(words)), "{story}");
        Ok(story)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_request_tells_its_story_as_json_and_as_text_with_links() {
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

    let story = told(&world, &ingest, id, "Attempt 2 is due at 2026-01-01 00:00:40 UTC (in 40s)").await;
    let status = world.http.get(format!("{}/v1/requests/{id}", ingest.base)).bearer_auth(OPERATOR);
    let status: Value = status.send().await.unwrap().json().await.unwrap();
    assert_eq!((&status["client"], &status["body_bytes"]), (&json!("operator"), &json!(14)));
    let trace_id = status["trace_id"].as_str().unwrap();
    let accepted = "accepted from the client `operator` by the route `one`, on node 0: 14 bytes of \
         application/json, with the ordering key `u-1`";
    let failed = "attempt 1, by the record one-requests/0/7, failed after 0 ms: 503 (server_error); it is to be made again";
    assert_eq!(
        (&story["request_id"], &story["request_url"]),
        (&json!(id), &json!(format!("http://h/r/{id}")))
    );
    assert_eq!(
        story["story"],
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
    let now = &story["now"][0];
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
async fn what_it_waits_for_is_looked_up() {
    let world = World::new("routes: {one: {after_failure: hold}}");
    let ingest = world.start_at(Clock::manual(NOW)).await;
    let first = world.accepted(&ingest, r#"{"user":"u-1"}"#).await;
    let second = world.accepted(&ingest, r#"{"user":"u-1"}"#).await;
    let waits = format!("request {first} is the one whose turn it is");
    told(&world, &ingest, second, &waits).await;
    world.outbox_empty().await;
    told(&world, &ingest, first, "Kafka has acknowledged it, and nothing was heard of attempt 1 yet").await;

    let due_at = NOW + TimeDelta::seconds(20);
    let deferred = Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen };
    reported(&world, &report(first, NOW, deferred)).await;
    let until = "at 2026-01-01 00:00:20 UTC (in 20s)";
    let release = format!("It may go on {until}. The next one that waits for `three` may go {until}");
    let story = told(&world, &ingest, first, &release).await;
    let text = story["now"][0]["text"].as_str().unwrap();
    assert!(text.ends_with("if it is not delivered by 2026-01-02 00:00:00 UTC."), "the window: {text}");

    // Of what that lets go, a busy key is none.
    let busy = world.accepted(&ingest, r#"{"user":"u-2"}"#).await;
    world.outbox_empty().await;
    let deferred = Outcome::Deferred { due_at, cause: DeferralCause::KeyBusy };
    reported(&world, &report(busy, NOW, deferred)).await;
    told(&world, &ingest, busy, &format!("It may go on {until}. It is published then, and lines up again."))
        .await;
    let status = world.status_when(&ingest, busy, |_| true).await;
    assert_eq!(status["deliveries"][0]["deferred_by"], "key_busy");
    ingest.stop().await;
}

#[tokio::test]
async fn what_kafka_has_not_taken_is_told_with_the_node_that_publishes_it() {
    let world = World::new("");
    let ingest = world.start().await;
    world.accepted(&ingest, "{}").await;
    world.broker.down().unwrap();
    let id = world.accepted(&ingest, "{}").await;
    let waits = format!("Kafka has not acknowledged it: node {} publishes it", id.node());
    told(&world, &ingest, id, &waits).await;
    world.broker.up().unwrap();
    told(&world, &ingest, id, "Kafka has acknowledged it").await;
    ingest.stop().await;
}

#[tokio::test]
async fn an_adopted_request_says_from_which_record() {
    let world = World::new("");
    let ingest = world.start().await;
    let origin = Origin { topic: TOPIC.to_owned(), partition: 0, offset: 41 };
    let adoption =
        Adoption { route: "one".to_owned(), origin, origin_time: None, content_type: None, trace: None };
    let signed = (throughline_messages::Kind::Adoption, adoption.to_headers());
    world.produce_signed(&world.topics().adoptions, signed, "{}").await;
    let id = crate::world::ids(&world.records(TOPIC, 1).await)[0];
    let story: Value = explained(&world, &ingest, id, "application/json").await.json().await.unwrap();
    let text = story["story"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("adopted from the record one-requests/0/41 by the route `one`"), "{text}");
    let status = world.status_when(&ingest, id, |_| true).await;
    assert_eq!((&status["origin"], status.get("client")), (&json!("one-requests/0/41"), None));
    ingest.stop().await;
}
