use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use throughline_clock::Clock;
use throughline_messages::Outcome;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::{NewRequest, StoreError, requests};
use throughline_testkit::{Database, Environment, eventually, lease, new_request};

use crate::recording::{report, reported};
use crate::world::{DEADLINE, Running, TOPIC, World, id_of, ids};

/// A new PostgreSQL takes a third of it.
const DISK: i64 = 128 << 20;
/// When the embedded broker comes back, its groups wait for a session's length.
const OVERRIDES: &str = "
http: {timeout: 1s}
kafka: {properties: {session.timeout.ms: '3000', heartbeat.interval.ms: '500'}}";
/// For any answer: ingest's own timeout is a second, and the machine may be busy.
const ANSWER: Duration = Duration::from_secs(10);

/// Returns a body that fits into no existing page, however well it is compressed.
fn large_body() -> String {
    let noise = |number: u32| Sha256::digest(number.to_le_bytes()).to_vec();
    json!({"noise": (0..4000).map(noise).collect::<Vec<_>>()}).to_string()
}

/// Posts; the answer is 201, or 503 with `Retry-After`.
async fn post(world: &World, ingest: &Running, body: String) -> Option<RequestId> {
    let answer = tokio::time::timeout(ANSWER, world.post(ingest, body)).await.expect("an answer in time");
    if answer.status() == StatusCode::CREATED {
        return Some(id_of(answer).await);
    }
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
    None
}

/// Returns the error with which the database refuses a large body.
async fn refusal(world: &World) -> StoreError {
    let request = new_request(RequestId::from_i64(1).unwrap(), Clock::system().now());
    let large = NewRequest { body: large_body().into(), ..request };
    let transaction = world.store().await.begin().await.unwrap();
    requests::insert(&transaction, &lease(NodeId::try_from(9).unwrap()), &[large]).await.unwrap_err()
}

async fn is_ready(world: &World, ingest: &Running) -> bool {
    world.http.get(format!("{}/readyz", ingest.base)).send().await.unwrap().status().is_success()
}

/// First PostgreSQL has no space for tables and reports that. Then it has none for its log either: it panics, and
/// each restart fails.
#[tokio::test]
async fn a_full_disk_refuses_requests_and_loses_none_until_space_is_free_again() {
    if !Environment::engine_or_skip("a full disk under PostgreSQL").await.unwrap() {
        return;
    }
    let database = Database::start_on_disk(DISK).await.unwrap();
    let url = database.create("throughline").await.unwrap();
    let world = World::new(&format!("{OVERRIDES}\ndatabase: {{url: '{url}'}}"));
    let ingest = world.start().await;
    let mut accepted = BTreeSet::from([world.accepted(&ingest, "{}").await]);
    world.outbox_empty().await;
    world.broker.down().unwrap();
    // Accepted, and not published yet.
    let waiting = world.accepted(&ingest, "{}").await;
    accepted.insert(waiting);

    database.fill_disk().await.unwrap();
    let error = refusal(&world).await;
    assert!(error.is_unavailable() && error.to_string().contains("No space left"), "{error}");
    for _ in 0..5 {
        assert_eq!(post(&world, &ingest, large_body()).await, None);
        accepted.extend(post(&world, &ingest, "{}".to_owned()).await);
    }
    world.broker.up().unwrap();
    reported(&world, &report(waiting, waiting.created_at(), Outcome::Delivered)).await;

    database.fill_log().await.unwrap();
    for _ in 0..5 {
        assert_eq!(post(&world, &ingest, "{}".to_owned()).await, None);
    }
    assert!(!is_ready(&world, &ingest).await);

    database.clear_disk().await.unwrap();
    eventually("a request to be accepted", DEADLINE, async || {
        let id = post(&world, &ingest, large_body()).await;
        accepted.insert(id.ok_or_else(|| anyhow::anyhow!("503"))?);
        Ok(())
    })
    .await
    .unwrap();
    assert!(is_ready(&world, &ingest).await);
    world.status_when(&ingest, waiting, |status| status["deliveries"][0]["state"] == "delivered").await;
    world.outbox_empty().await;
    let published = ids(&world.records(TOPIC, accepted.len()).await);
    assert_eq!(BTreeSet::from_iter(published), accepted);
    ingest.stop().await;
}
