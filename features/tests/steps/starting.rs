//! Steps for services that cannot start.

use anyhow::Context as _;
use cucumber::{gherkin, given, then, when};
use throughline_testkit::{Ended, Service};

use super::{rows, text};
use crate::world::{Step, World};

/// The address in the configuration of a stage: any free port.
const ANY_PORT: &str = "127.0.0.1:0";

fn ended(world: &World) -> anyhow::Result<&Ended> {
    world.ended.as_ref().context("no program has exited")
}

#[given("this throughline.yaml")]
fn configuration(world: &mut World, step: &gherkin::Step) -> Step {
    Ok(world.stage.configure(&text(step))?)
}

#[when(regex = "^(ingest|dispatch) tries to start$")]
async fn start_in_vain(world: &mut World, service: Service) -> Step {
    world.ended = Some(world.stage.start_in_vain(service).await?);
    Ok(())
}

#[when(regex = "^(ingest|dispatch) tries to start on the port of ingest$")]
async fn start_on_taken_port(world: &mut World, service: Service) -> Step {
    let taken = world.stage.address(Service::Ingest)?.to_string();
    let configuration = world.stage.configuration()?;
    world.stage.configure(&configuration.replace(ANY_PORT, &taken))?;
    world.ended = Some(world.stage.start_in_vain(service).await?);
    Ok(())
}

#[then("it exits with an error")]
fn ends_with_failure(world: &mut World) -> Step {
    let ended = ended(world)?;
    assert!(ended.status.code().is_some_and(|code| code != 0), "{ended:?}");
    Ok(())
}

#[then("its output contains all of")]
fn has_said(world: &mut World, step: &gherkin::Step) -> Step {
    let said = ended(world)?.output.text();
    let missing: Vec<_> =
        rows(step).iter().map(|row| &row[0]).filter(|words| !said.contains(*words)).collect();
    assert!(missing.is_empty(), "the output lacks {missing:?}:\n{said}");
    Ok(())
}

#[then("one line of its output says that the address of ingest is in use")]
fn says_address_in_use(world: &mut World) -> Step {
    let taken = world.stage.address(Service::Ingest)?.to_string();
    let output = &ended(world)?.output;
    let lines = output.lines();
    let about_it: Vec<_> = lines.iter().filter(|line| line.contains(&taken)).collect();
    assert!(about_it.len() == 1 && about_it[0].contains("in use"), "{}", output.text());
    Ok(())
}
