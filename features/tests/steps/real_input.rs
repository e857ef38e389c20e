//! Steps for the payloads of a package of real webhooks.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, ensure};
use cucumber::{then, when};
use throughline_testkit::{Service, eventually};

use super::DEADLINE;
use crate::load::post_all;
use crate::world::{Step, World, setting};

#[when("every payload is posted to /github: unchanged, compact, and with altered white space")]
async fn post_payloads(world: &mut World) -> Step {
    let setting = setting();
    let bodies = setting.payloads.as_ref().context("no payloads were fetched")?.in_all_layouts()?;
    let ingest = world.stage.address(Service::Ingest)?;
    let answers = post_all(&world.client, ingest, "/github", bodies.clone()).await?;
    for (answer, body) in answers.into_iter().zip(bodies) {
        let id = answer.request_id().with_context(|| format!("not accepted: {answer:?}"))?;
        world.posted.push((id, body));
    }
    Ok(())
}

#[then("every posted payload reaches the third party, byte for byte as it was posted")]
async fn payloads_arrive(world: &mut World) -> Step {
    let wanted: HashSet<_> = world.posted.iter().map(|(id, _)| id.as_str()).collect();
    // The calls that contain all payloads are returned, because they are 28 MB, which WireMock takes seconds to list.
    let calls = eventually("all payloads to arrive", DEADLINE, async || {
        let calls = world.stage.third_party().calls().await?;
        let arrived: HashSet<_> = calls.iter().filter_map(|call| call.header("idempotency-key")).collect();
        let missing = wanted.difference(&arrived).count();
        ensure!(missing == 0, "{missing} of {} have not arrived", wanted.len());
        Ok(calls)
    })
    .await?;
    let bodies: HashMap<_, _> =
        calls.iter().filter_map(|call| Some((call.header("idempotency-key")?, &call.body))).collect();
    for (id, posted) in &world.posted {
        let arrived = bodies.get(id.as_str()).with_context(|| format!("{id} has not arrived"))?;
        assert!(*arrived == posted, "{} arrived as {}", show(posted), show(arrived));
    }
    Ok(())
}

fn show(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
