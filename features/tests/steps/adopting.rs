//! Steps for the records of other producers.

use bytes::Bytes;
use cucumber::{gherkin, when};
use throughline_messages::{Headers, name};
use throughline_testkit::produce;

use super::records::topic_of;
use super::text;
use crate::world::{Step, World};

async fn produce_foreign(world: &mut World, step: &gherkin::Step, route: &str, headers: Headers) -> Step {
    world.body = text(step).into_bytes();
    let topic = topic_of(world, route)?;
    produce(&world.stage.settings().kafka, &topic, headers, world.body.clone()).await?;
    Ok(())
}

#[when(regex = r#"^another producer writes to the topic of "([^"]+)"$"#)]
async fn foreign_record(world: &mut World, step: &gherkin::Step, route: String) -> Step {
    produce_foreign(world, step, &route, Headers::new()).await
}

#[when(regex = r#"^another producer writes to the topic of "([^"]+)", with the trace ([0-9a-f]{32})$"#)]
async fn traced_foreign_record(
    world: &mut World,
    step: &gherkin::Step,
    route: String,
    trace: String,
) -> Step {
    let traceparent = Bytes::from(format!("00-{trace}-b7ad6b7169203331-01"));
    produce_foreign(world, step, &route, vec![(name::TRACEPARENT.to_owned(), traceparent)]).await
}
