//! A load that touches everything: each way that a request may end, or wait.

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

/// How often everything happens, and at what distance: more than once, and not within one export of the metrics, so
/// that there is something to tell a rate by.
const ROUNDS: u32 = 3;
const BETWEEN_ROUNDS: Duration = Duration::from_secs(4);

/// How long a server is away. Clients time out within 2 s.
const AWAY: Duration = Duration::from_secs(4);

/// More than ingest has connections to the database.
const MANY: usize = 60;

/// The client that a trace begins at.
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// What of all that happened is looked at more closely.
pub(crate) struct Played {
    /// The first request of all, for which a token was fetched.
    pub(crate) first: Traced,
    /// One after it.
    pub(crate) second: Traced,
    /// One that failed at first.
    pub(crate) retried: Traced,
    /// One that ended dead.
    pub(crate) dead: String,
}

/// A request that came with a trace.
pub(crate) struct Traced {
    pub(crate) request: String,
    pub(crate) trace: String,
    /// The client's span.
    pub(crate) parent: &'static str,
}

/// Plays everything.
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
        say(format_args!("round {number} of {ROUNDS}: each way that a request may end, or wait"));
        dead = round(scene).await?;
        sleep(BETWEEN_ROUNDS).await;
    }
    say("the broker is away, then the database");
    scene.broker.go_away().await?;
    let waits = scene.post("one").await?;
    sleep(AWAY).await;
    scene.broker.come_back().await?;
    scene.becomes(&waits, "delivered").await?;
    let database = scene.database.container();
    database.freeze().await?;
    let refused = scene.to_post("one").send().await;
    sleep(AWAY).await;
    database.thaw().await?;
    let status = refused?.status();
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "without a database ingest answers {status}");
    // Many at once: one is answered as soon as one connection to the database is well again.
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

/// Everything once; gives a request that ended dead and stays so.
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
    wrong_answers(scene).await?;
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

/// Sends a dead letter on its way again, to a third party that takes it now.
async fn replay(scene: &Scene, id: &str) -> anyhow::Result<()> {
    scene.third_party.answer_in_turn("/strict", vec![Answer::new(200)]).await?;
    let path = format!("/v1/dead-letters/{id}/strict/replay");
    scene.ask(Method::POST, &path).send().await?.error_for_status()?;
    scene.becomes(id, "delivered").await
}

/// What others produce: a request, one for a route that there is not, and one that nobody can read.
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

/// What clients do wrong.
async fn wrong_answers(scene: &Scene) -> anyhow::Result<()> {
    for (request, expected) in [
        (scene.to_post("one").body("{"), StatusCode::BAD_REQUEST),
        (scene.to_post("nowhere"), StatusCode::NOT_FOUND),
        (scene.ask(Method::GET, "/v1/requests/00000000000000000001"), StatusCode::NOT_FOUND),
    ] {
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.json::<Value>().await?);
        ensure!(status == expected, "expected {expected}, got {status}: {body}");
    }
    Ok(())
}
