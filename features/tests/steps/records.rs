//! Steps for the records on topics.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use cucumber::{gherkin, then};
use throughline_kafka::Record;
use throughline_messages::{Origin, name};
use throughline_testkit::{Reader, Service};

use super::{DEADLINE, rows};
use crate::world::{Step, World};

/// The value of a header; the last one if it is repeated.
pub(super) fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().rev().find(|(header, _)| header == name)?;
    std::str::from_utf8(value).ok()
}

/// The name of a route's topic.
pub(super) fn topic_of(world: &World, route: &str) -> anyhow::Result<String> {
    let route = world.stage.settings().routes.get(route).with_context(|| format!("no route {route}"))?;
    Ok(route.topic.clone())
}

/// Finds the request's record on a topic.
pub(super) async fn find(world: &mut World, topic: &str) -> Step {
    let id = world.request_id()?;
    let mut reader = Reader::open(&world.stage.settings().kafka, topic)?;
    let record = reader.find(DEADLINE, |record| header(record, name::CE_ID) == Some(id.as_str())).await?;
    reader.close().await?;
    world.record = Some(record);
    Ok(())
}

/// Finds it, and checks that its body is the posted one.
async fn find_whole(world: &mut World, topic: &str) -> Step {
    find(world, topic).await?;
    let payload = &world.record()?.payload;
    assert_eq!(String::from_utf8_lossy(payload), String::from_utf8_lossy(&world.body));
    Ok(())
}

#[then(regex = r#"^the topic of "(.+)" receives a record of the request, byte for byte as it was posted$"#)]
async fn topic_gets_record(world: &mut World, route: String) -> Step {
    let topic = topic_of(world, &route)?;
    find_whole(world, &topic).await
}

#[then("there is a dead letter of the request, byte for byte as it was posted")]
async fn dead_letter_is_there(world: &mut World) -> Step {
    let topic = world.stage.topics().dead_letters;
    find_whole(world, &topic).await
}

#[then("the record has the headers")]
fn record_has_headers(world: &mut World, step: &gherkin::Step) -> Step {
    let record = world.record()?;
    for row in rows(step) {
        assert_eq!(header(record, &row[0]), Some(row[1].as_str()), "{}", row[0]);
    }
    Ok(())
}

#[then("the record's key is the request's id")]
fn record_key_is_id(world: &mut World) -> Step {
    let key = world.record()?.key.as_deref().context("no key")?;
    assert_eq!(String::from_utf8_lossy(key), world.request_id()?);
    Ok(())
}

#[then("the record's time is the acceptance time of the request")]
async fn record_time_is_acceptance(world: &mut World) -> Step {
    let status = world.client.status(world.stage.address(Service::Ingest)?, &world.request_id()?).await?;
    let accepted_at: DateTime<Utc> = status["accepted_at"].as_str().context("no time")?.parse()?;
    let time: DateTime<Utc> = header(world.record()?, name::CE_TIME).context("no time")?.parse()?;
    assert_eq!(time.timestamp_millis(), accepted_at.timestamp_millis());
    Ok(())
}

#[then(regex = "^the record continues the trace ([0-9a-f]{32})$")]
fn record_is_traced(world: &mut World, trace: String) -> Step {
    let traceparent = header(world.record()?, name::TRACEPARENT).context("no traceparent")?;
    assert_eq!(traceparent.split('-').nth(1), Some(trace.as_str()), "{traceparent}");
    Ok(())
}

#[then(regex = r#"^the record names the topic of "(.+)" as its origin$"#)]
fn record_has_origin(world: &mut World, route: String) -> Step {
    let text = header(world.record()?, name::ORIGIN).context("no origin")?;
    let origin: Origin = text.parse().map_err(anyhow::Error::msg)?;
    assert_eq!(origin.topic, topic_of(world, &route)?);
    Ok(())
}
