//! Steps that start, stop and configure the services, the broker and the third party.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cucumber::{gherkin, given, then, when};
use throughline_testkit::{Answer, Service, eventually};

use super::{DEADLINE, text};
use crate::load::Load;
use crate::world::{Step, World, setting};

/// Response time of a slow third party.
const SLOW: Duration = Duration::from_millis(50);

#[given(regex = "^(ingest|dispatch) is running$")]
#[when(regex = "^(ingest|dispatch) is started again$")]
async fn start(world: &mut World, service: Service) -> Step {
    Ok(world.stage.start(service).await?)
}

#[when(regex = "^(ingest|dispatch) is killed$")]
async fn kill(world: &mut World, service: Service) -> Step {
    Ok(world.stage.kill(service).await?)
}

#[when(regex = "^(ingest|dispatch) is stopped$")]
async fn stop(world: &mut World, service: Service) -> Step {
    world.ended = Some(world.stage.stop(service).await?);
    Ok(())
}

#[then("it exits successfully")]
fn ends_well(world: &mut World) -> Step {
    let ended = world.ended.as_ref().context("no program has exited")?;
    assert_eq!(ended.status.code(), Some(0), "{}", ended.output.text());
    Ok(())
}

#[given("a broker that can become unreachable")]
async fn own_broker(world: &mut World) -> Step {
    Ok(world.stage.take_own_broker(&setting().environment).await?)
}

#[when("the broker becomes unreachable")]
async fn broker_becomes_unreachable(world: &mut World) -> Step {
    Ok(world.stage.broker().go_away().await?)
}

#[when("the broker is reachable again")]
async fn broker_comes_back(world: &mut World) -> Step {
    Ok(world.stage.broker().come_back().await?)
}

#[given(regex = r"^the third party answers (\d+) at (/\S+)$")]
#[when(regex = r"^the third party answers (\d+) at (/\S+)$")]
async fn third_party_answers(world: &mut World, step: &gherkin::Step, status: u16, path: String) -> Step {
    let answer = Answer::new(status).with_body(text(step), "application/json");
    Ok(world.stage.third_party().answer(&path, answer).await?)
}

#[given(regex = r"^the third party never answers at (/\S+)$")]
async fn third_party_hangs(world: &mut World, path: String) -> Step {
    Ok(world.stage.third_party().hang(&path).await?)
}

#[given(regex = r"^the third party answers slowly at (/\S+)$")]
async fn third_party_is_slow(world: &mut World, path: String) -> Step {
    Ok(world.stage.third_party().answer(&path, Answer::new(200).after(SLOW)).await?)
}

#[when("clients post to /one continuously")]
fn load_begins(world: &mut World) -> Step {
    let ingest = world.stage.address(Service::Ingest)?;
    world.load = Some(Load::begin(&world.client, ingest, "/one"));
    Ok(())
}

#[when(regex = r"^(\d+) of their requests are accepted$")]
async fn load_is_accepted(world: &mut World, wanted: usize) -> Step {
    let load = world.load.as_ref().context("no clients post")?;
    let enough = eventually("requests to be accepted", DEADLINE, async || {
        let accepted = load.accepted();
        ensure!(accepted >= wanted, "{accepted} accepted requests");
        Ok(())
    });
    Ok(enough.await?)
}

#[when(regex = r"^the third party was called (\d+) times$")]
async fn load_arrives(world: &mut World, wanted: usize) -> Step {
    let enough = eventually("calls to the third party", DEADLINE, async || {
        let calls = world.stage.third_party().calls().await?.len();
        ensure!(calls >= wanted, "{calls} calls");
        Ok(())
    });
    Ok(enough.await?)
}

/// Clients that post continuously stop by themselves when ingest stops.
#[when("the clients stop")]
pub(super) async fn load_ends(world: &mut World) {
    if let Some(load) = world.load.take() {
        world.answers.extend(load.end().await);
    }
}
