//! Steps for retries, deferrals, cancellation and dead letters.

use anyhow::{Context as _, ensure};
use cucumber::{given, then, when};
use reqwest::Method;
use serde_json::Value;
use throughline_testkit::{Answer, Service, eventually};

use super::DEADLINE;
use super::asking::{delivery_in, status};
use crate::client::{self, Question};
use crate::world::{Step, World};

#[given(
    regex = r"^the third party answers ([\d, ]+) in turn at (/\S+?)(?:, with a Retry-After of (\d+) s)?$"
)]
async fn answers_in_turn(world: &mut World, statuses: String, path: String, pause: String) -> Step {
    let mut answers = Vec::new();
    for status in statuses.split(", ") {
        let answer = Answer::new(status.parse()?);
        answers.push(if pause.is_empty() { answer } else { answer.with_retry_after(pause.as_str()) });
    }
    Ok(world.stage.third_party().answer_in_turn(&path, answers).await?)
}

#[when(regex = r"^the third party answers normally at (/\S+)$")]
async fn as_usual(world: &mut World, path: String) -> Step {
    Ok(world.stage.third_party().answer_as_usual(&path).await?)
}

#[then(regex = r#"^the delivery to "(.+)" is delivered, after attempts that were answered ([\d, ]+)$"#)]
async fn delivered_after(world: &mut World, destination: String, statuses: String) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, &destination, "delivered").await?;
    let attempts = delivery["attempts"].as_array().context("no attempts")?;
    let answered: Vec<_> = attempts.iter().map(|attempt| attempt["status"].to_string()).collect();
    assert_eq!(answered.join(", "), statuses, "{delivery}");
    Ok(())
}

#[then(regex = r#"^some of the requests are deferred by "(.+)"$"#)]
async fn some_wait(world: &mut World, cause: String) -> Step {
    let waiting = eventually("a request that waits", DEADLINE, async || {
        let mut last = Value::Null;
        for id in world.accepted() {
            last = status(world, &id).await?;
            let delivery = &last["deliveries"][0];
            if delivery["deferred_by"] == cause.as_str() && delivery["state"] != "dead" {
                return Ok(());
            }
        }
        anyhow::bail!("the last one: {last}")
    });
    Ok(waiting.await?)
}

#[then(regex = r"^the third party was called (less than )?(\d+) times(?: in total)?$")]
async fn called_times(world: &mut World, less: String, times: usize) -> Step {
    let calls = world.stage.third_party().calls().await?.len();
    assert!(if less.is_empty() { calls == times } else { calls < times }, "{calls} calls");
    Ok(())
}

/// Compares the order of calls, where each request is named by its position among the accepted ones.
#[then(regex = r"^the third party received them in the order ([\d, ]+)$")]
async fn called_in_order(world: &mut World, order: String) -> Step {
    let accepted = world.accepted();
    let position =
        |id: &str| accepted.iter().position(|accepted| accepted == id).map_or(0, |index| index + 1);
    let calls = world.stage.third_party().calls().await?;
    let keys = calls.iter().map(|call| call.header("idempotency-key").unwrap_or_default());
    let called: Vec<_> = keys.map(|key| position(key).to_string()).collect();
    assert_eq!(called.join(", "), order);
    Ok(())
}

async fn manage(world: &mut World, method: Method, path: &str) -> anyhow::Result<client::Answer> {
    let question = Question { method, ..Question::post(path, "") };
    Ok(world.client.send(world.stage.address(Service::Ingest)?, question).await?)
}

#[when("the request is cancelled")]
async fn called_off(world: &mut World) -> Step {
    let path = format!("/v1/requests/{}/cancel", world.request_id()?);
    let answer = manage(world, Method::POST, &path).await?;
    world.answers.push(answer);
    Ok(())
}

#[then(regex = r#"^(\d+) dead letters are listed for the destination "(.+)"$"#)]
async fn listed(world: &mut World, wanted: usize, destination: String) -> Step {
    let ingest = world.stage.address(Service::Ingest)?;
    let path = format!("/v1/dead-letters?destination={destination}");
    let listed = eventually("dead letters", DEADLINE, async || {
        let question = Question { method: Method::GET, ..Question::post(&path, "") };
        let page = world.client.send(ingest, question).await?.json()?;
        let letters = page["dead_letters"].as_array().with_context(|| page.to_string())?;
        ensure!(letters.len() == wanted, "{page}");
        Ok(())
    });
    Ok(listed.await?)
}

#[when(regex = r#"^the dead letters of the destination "(.+)" are replayed(, one every two seconds)?$"#)]
async fn replayed(world: &mut World, destination: String, slowly: String) -> Step {
    let rate = if slowly.is_empty() { "" } else { "&rate=1/2s" };
    let path = format!("/v1/replays?destination={destination}{rate}");
    let answer = manage(world, Method::POST, &path).await?;
    assert_eq!(answer.status, 202, "{answer:?}");
    Ok(())
}

#[when(regex = r#"^the dead letters of the destination "(.+)" are purged$"#)]
async fn purged(world: &mut World, destination: String) -> Step {
    let path = format!("/v1/dead-letters?destination={destination}&before=2200-01-01T00:00:00Z");
    let answer = manage(world, Method::DELETE, &path).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(())
}
