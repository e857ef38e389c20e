//! A load that covers every way in which a request may end or wait.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use throughline_messages::{Headers, Topics, name};
use throughline_testkit::{Answer, eventually, produce};
use tokio::time::sleep;

use crate::say;
use crate::scene::{SOON, Scene, id_of};

/// The number of rounds and the pause between them: several rounds in different exports of metrics, so that rates can be
/// calculated.
const ROUNDS: u32 = 3;
const BETWEEN_ROUNDS: Duration = Duration::from_secs(4);

/// Duration of a server's outage. Clients time out within 2 s.
const OUTAGE: Duration = Duration::from_secs(4);

/// More than the number of ingest's connections to the database.
const MANY: usize = 60;

/// The client's span, with which a trace begins.
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// The requests that are examined in detail.
pub(crate) struct Played {
    /// The very first request, for which a token was fetched.
    pub(crate) first: Traced,
    /// A later request.
    pub(crate) second: Traced,
    /// A request that failed at first.
    pub(crate) retried: Traced,
    /// A request that ended dead.
    pub(crate) dead: String,
}

/// A request with a trace of its client.
pub(crate) struct Traced {
    pub(crate) request: String,
    pub(crate) trace: String,
    /// The client's span.
    pub(crate) parent: &'static str,
}

/// Runs the complete script.
pub(crate) async fn play(scene: &mut Scene) -> anyhow::Result<Played> {
    let third_party = &scene.third_party;
    third_party.answer("/strict", Answer::new(400)).await?;
    third_party.answer("/down", Answer::new(500)).await?;
    third_party.answer("/busy", Answer::new(200).after(Duration::from_millis(300))).await?;
    let unknown = Answer::new(401).with_body(r#"{"error": "invalid_client"}"#, "application/json");
    third_party.answer("/token-for-others", unknown).await?;
    third_party.answer("/token-some-day", Answer::new(503)).await?;
    let first = delivered(scene, "one").await?;
    let second = delivered(scene, "one").await?;
    third_party.answer_in_turn("/flaky", vec![Answer::new(503)]).await?;
    let retried = delivered(scene, "flaky").await?;
    let mut dead = String::new();
    for number in 1..=ROUNDS {
        say(format_args!("round {number} of {ROUNDS}: every way in which a request may end or wait"));
        dead = round(scene).await?;
        sleep(BETWEEN_ROUNDS).await;
    }
    say("the broker is down, then the database");
    scene.broker.go_away().await?;
    let waits = scene.post("one").await?;
    sleep(OUTAGE).await;
    scene.broker.come_back().await?;
    scene.becomes(&waits, "delivered").await?;
    let database = scene.database.container();
    database.freeze().await?;
    let refused = scene.to_post("one").send().await;
    sleep(OUTAGE).await;
    database.thaw().await?;
    let status = refused?.status();
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "ingest answers {status} without a database");
    // Many concurrent requests, because a single one is accepted as soon as one database connection has recovered.
    let many = async || try_join_all((0..MANY).map(|_| scene.post("one"))).await;
    for id in eventually("ingest to accept as before", SOON, many).await? {
        scene.becomes(&id, "delivered").await?;
    }
    Ok(Played { first, second, retried, dead })
}

/// Posts as part of a trace, and waits for the delivery.
async fn delivered(scene: &Scene, route: &str) -> anyhow::Result<Traced> {
    // Tempo does not find the links to a trace whose id begins with a zero.
    let trace = format!("{:032x}", rand::random::<u128>() | 1 << 127);
    let traceparent = format!("00-{trace}-{CLIENT_SPAN}-01");
    let request = id_of(scene.to_post(route).header("traceparent", traceparent)).await?;
    scene.becomes(&request, "delivered").await?;
    Ok(Traced { request, trace, parent: CLIENT_SPAN })
}

/// Runs every case once; returns a request that ended dead and stays dead.
async fn round(scene: &Scene) -> anyhow::Result<String> {
    let third_party = &scene.third_party;
    third_party.answer_in_turn("/flaky", vec![Answer::new(503), Answer::new(429)]).await?;
    let one = scene.post("one").await?;
    let flaky = scene.post("flaky").await?;
    let dead = scene.post("strict").await?;
    let replayed = scene.post("strict").await?;
    let down = [scene.post("down").await?, scene.post("down").await?];
    let mut busy = Vec::new();
    for _ in 0..6 {
        busy.push(scene.post("busy").await?);
    }
    let refused = scene.post("refused").await?;
    let tokenless = scene.post("tokenless").await?;
    foreign(scene).await?;
    errors(scene).await?;
    scene.becomes(&one, "delivered").await?;
    scene.becomes(&flaky, "delivered").await?;
    scene.becomes(&dead, "dead").await?;
    scene.becomes(&replayed, "dead").await?;
    for id in &down {
        scene.is_deferred(id, "breaker_open").await?;
    }
    scene.is_deferred(&refused, "token_refused").await?;
    scene.is_deferred(&tokenless, "token_unavailable").await?;
    for id in &busy {
        scene.becomes(id, "delivered").await?;
    }
    cancel(scene, &refused).await?;
    replay(scene, &replayed).await?;
    Ok(dead)
}

async fn cancel(scene: &Scene, id: &str) -> anyhow::Result<()> {
    scene.ask(Method::POST, &format!("/v1/requests/{id}/cancel")).send().await?.error_for_status()?;
    scene.becomes(id, "cancelled").await
}

/// Replays a dead letter to a third party that now accepts it.
async fn replay(scene: &Scene, id: &str) -> anyhow::Result<()> {
    scene.third_party.answer_in_turn("/strict", vec![Answer::new(200)]).await?;
    let path = format!("/v1/dead-letters/{id}/strict/replay");
    scene.ask(Method::POST, &path).send().await?.error_for_status()?;
    scene.becomes(id, "delivered").await
}

/// Produces records of other producers: a request, a request of an unknown route, and an unreadable record.
async fn foreign(scene: &Scene) -> anyhow::Result<()> {
    let kafka = &scene.settings.kafka;
    let topic = &scene.settings.routes.get("one").context("no route one")?.topic;
    produce(kafka, topic, Headers::new(), r#"{"prompt": "adopt me"}"#).await?;
    let own = |id: &'static str| -> Headers {
        [(name::CE_ID, id), (name::CE_TYPE, "no-such-route"), (name::CE_TIME, "2026-01-01T00:00:00Z")]
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into()
    };
    produce(kafka, topic, own("00371483940732964864"), "{}").await?;
    let retries = Topics::new(&kafka.prefix).retries;
    produce(kafka, &retries, own("not-an-id"), "{}").await?;
    Ok(())
}

/// Causes error responses of each kind: client errors and errors of ingest.
async fn errors(scene: &Scene) -> anyhow::Result<()> {
    for (request, expected) in [
        (scene.to_post("one").body("{"), StatusCode::BAD_REQUEST),
        (scene.to_post("nowhere"), StatusCode::NOT_FOUND),
        (scene.ask(Method::GET, "/v1/requests/00000000000000000001"), StatusCode::NOT_FOUND),
        (scene.to_post("unstorable"), StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.json::<Value>().await?);
        ensure!(status == expected, "expected {expected}, got {status}: {body}");
    }
    Ok(())
}
