//! Steps for retention and purges.

use cucumber::{given, then, when};
use reqwest::Method;
use throughline_testkit::Service;

use crate::client::Question;
use crate::world::{Step, World};

#[given(regex = r"^delivered requests are kept for (\S+)$")]
fn kept_for(world: &mut World, duration: String) -> Step {
    let configuration = world.stage.configuration()?;
    Ok(world.stage.configure(&format!("{configuration}\nretention: {{delivered: {duration}}}\n"))?)
}

#[when("expired requests are purged")]
async fn purged(world: &mut World) -> Step {
    let ended = world.stage.command(&["purge"]).await?;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    Ok(())
}

/// The status code of `GET /v1/requests/{id}`.
async fn asked_for(world: &World, id: &str) -> anyhow::Result<u16> {
    let path = format!("/v1/requests/{id}");
    let question = Question { method: Method::GET, ..Question::post(&path, "") };
    let answer = world.client.send(world.stage.address(Service::Ingest)?, question).await?;
    Ok(answer.status.as_u16())
}

#[then("the request is unknown")]
async fn not_known(world: &mut World) -> Step {
    assert_eq!(asked_for(world, &world.request_id()?).await?, 404);
    Ok(())
}

#[then("all but one of the requests still exist")]
async fn all_but_one(world: &mut World) -> Step {
    let mut unknown = Vec::new();
    for id in world.some_accepted()? {
        if asked_for(world, &id).await? != 200 {
            unknown.push(id);
        }
    }
    assert_eq!(unknown.len(), 1, "{unknown:?}");
    Ok(())
}
