//! Steps for the state of requests: `GET /v1/requests/{id}`, and the outbox.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use cucumber::{gherkin, then};
use serde_json::Value;
use throughline_clock::Clock;
use throughline_snowflake::RequestId;
use throughline_store::outbox;
use throughline_testkit::{Service, eventually};

use super::{DEADLINE, rows};
use crate::world::{Step, World};

/// Exceeds the rows and bytes of the outbox in every scenario.
const ALL: u64 = 10_000_000;

pub(super) async fn status(world: &World, id: &str) -> anyhow::Result<Value> {
    world.client.status(world.stage.address(Service::Ingest)?, id).await
}

fn delivery<'a>(status: &'a Value, destination: &str) -> anyhow::Result<&'a Value> {
    let deliveries = status["deliveries"].as_array().with_context(|| format!("no deliveries: {status}"))?;
    let found = deliveries.iter().find(|delivery| delivery["destination"] == destination);
    found.with_context(|| format!("no delivery to {destination}: {status}"))
}

/// Waits until a delivery has a state, and returns it.
pub(super) async fn delivery_in(
    world: &World,
    id: &str,
    destination: &str,
    state: &str,
) -> anyhow::Result<Value> {
    let what = format!("request {id} to be {state} at {destination}");
    eventually(&what, DEADLINE, async || {
        let status = status(world, id).await?;
        let delivery = delivery(&status, destination)?;
        ensure!(delivery["state"] == state, "{delivery}");
        Ok(delivery.clone())
    })
    .await
}

#[then(regex = r#"^the request is known with the route "(.+)" and the media type "(.+)"$"#)]
async fn request_is_known(world: &mut World, route: String, media_type: String) -> Step {
    let id = world.request_id()?;
    let status = status(world, &id).await?;
    assert_eq!(status["request_id"], id);
    assert_eq!(status["route"], route);
    assert_eq!(status["content_type"], media_type);
    Ok(())
}

#[then("it was accepted within the last minute")]
async fn accepted_just_now(world: &mut World) -> Step {
    let status = status(world, &world.request_id()?).await?;
    let accepted_at: DateTime<Utc> = status["accepted_at"].as_str().context("no time")?.parse()?;
    let ago = Clock::system().now() - accepted_at;
    assert!(ago.abs() < TimeDelta::minutes(1), "{ago} ago");
    Ok(())
}

#[then(regex = r#"^its delivery to "(.+)" is (pending)$"#)]
async fn delivery_is(world: &mut World, destination: String, state: String) -> Step {
    delivery_in(world, &world.request_id()?, &destination, &state).await?;
    Ok(())
}

#[then(regex = r#"^the delivery to "(.+)" is delivered, in one attempt that was answered (\d+)$"#)]
async fn delivered_at_once(world: &mut World, destination: String, status: u16) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, &destination, "delivered").await?;
    let attempts = delivery["attempts"].as_array().context("no attempts")?;
    assert_eq!(attempts.len(), 1, "{delivery}");
    assert_eq!(attempts[0]["number"], 1);
    assert_eq!(attempts[0]["outcome"], "delivered");
    assert_eq!(attempts[0]["status"], status);
    Ok(())
}

#[then(regex = r#"^the delivery to "(.+)" is delivered, and says where its record is stored$"#)]
async fn stored_in_topic(world: &mut World, destination: String) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, &destination, "delivered").await?;
    let record = world.record()?;
    let attempt = &delivery["attempts"][0];
    assert_eq!(attempt["status"], Value::Null);
    let place = format!("{}/{}/{}", record.topic, record.partition, record.offset);
    assert_eq!(attempt["response_excerpt"], format!("stored at {place}"));
    Ok(())
}

#[then(regex = r#"^the attempt at "(.+)" belongs to the trace ([0-9a-f]{32})$"#)]
async fn attempt_is_traced(world: &mut World, destination: String, trace: String) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, &destination, "delivered").await?;
    assert_eq!(delivery["attempts"][0]["trace_id"], trace);
    Ok(())
}

#[then(regex = r#"^the delivery to "(.+)" is dead, with the reason "(.+)"$"#)]
async fn delivery_is_dead(world: &mut World, destination: String, reason: String) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, &destination, "dead").await?;
    assert_eq!(delivery["reason"], reason);
    assert!(delivery["last_error"].as_str().is_some_and(|error| !error.is_empty()), "{delivery}");
    world.delivery = Some(delivery);
    Ok(())
}

#[then("its last attempt was")]
fn last_attempt_was(world: &mut World, step: &gherkin::Step) -> Step {
    let delivery = world.delivery.as_ref().context("no earlier step found a delivery")?;
    let attempts = delivery["attempts"].as_array().context("no attempts")?;
    let attempt = attempts.last().context("no attempt")?;
    for row in rows(step) {
        let value = &attempt[&row[0]];
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(value, row[1], "{}", row[0]);
    }
    Ok(())
}

#[then("no attempt was made")]
fn no_attempt_was_made(world: &mut World) -> Step {
    let delivery = world.delivery.as_ref().context("no earlier step found a delivery")?;
    assert_eq!(delivery["attempts"], serde_json::json!([]));
    Ok(())
}

#[then("every accepted request is recorded as delivered")]
async fn all_are_delivered(world: &mut World) -> Step {
    for id in world.some_accepted()? {
        let what = format!("request {id} to be delivered");
        eventually(&what, DEADLINE, async || {
            let status = status(world, &id).await?;
            ensure!(is_delivered(&status), "{status}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[then(regex = r"^(at least )?(\d+) of the requests are recorded as delivered$")]
async fn some_are_delivered(world: &mut World, at_least: String, wanted: usize) -> Step {
    let delivered = eventually("requests to be delivered", DEADLINE, async || {
        let mut delivered = 0;
        for id in world.accepted() {
            delivered += usize::from(is_delivered(&status(world, &id).await?));
        }
        let enough = delivered == wanted || (!at_least.is_empty() && delivered > wanted);
        ensure!(enough, "{delivered} delivered");
        Ok(())
    });
    Ok(delivered.await?)
}

fn is_delivered(status: &Value) -> bool {
    let deliveries = status["deliveries"].as_array();
    deliveries.is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["state"] == "delivered"))
}

#[then("the request waits in the outbox, byte for byte as it was posted")]
async fn waits_in_outbox(world: &mut World) -> Step {
    let id: RequestId = world.request_id()?.parse()?;
    let store = world.stage.store().await?;
    let waiting = outbox::pending(store.connection(), id.node(), None, ALL, ALL).await?;
    let request =
        waiting.iter().find(|request| request.id == id).context("the request is not in the outbox")?;
    assert_eq!(String::from_utf8_lossy(&request.body), String::from_utf8_lossy(&world.body));
    Ok(())
}

/// Checks the nodes that have accepted requests: they have taken over the outboxes of others.
#[then("nothing waits in the outbox")]
async fn outbox_is_empty(world: &mut World) -> Step {
    let store = world.stage.store().await?;
    let accepted: Vec<RequestId> =
        world.some_accepted()?.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let nodes: BTreeSet<_> = accepted.iter().map(|id| id.node()).collect();
    let empty = eventually("the outbox to be empty", DEADLINE, async || {
        for node in &nodes {
            if let Some(oldest) = outbox::oldest(store.connection(), *node).await? {
                bail!("{oldest} waits for node {node}");
            }
        }
        Ok(())
    });
    Ok(empty.await?)
}
