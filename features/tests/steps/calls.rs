//! Steps for the calls that the third party receives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use cucumber::{gherkin, then};
use serde_json::{Value, json};
use throughline_testkit::{Call, eventually};

use super::{DEADLINE, text};
use crate::world::{Step, World};

/// Waits for the only call, and returns it.
async fn only_call(world: &World, path: &str) -> anyhow::Result<Arc<Call>> {
    eventually(&format!("a call to {path}"), DEADLINE, async || {
        let calls = world.stage.third_party().calls().await?;
        ensure!(calls.len() == 1 && calls[0].path == path, "{calls:?}");
        Ok(Arc::clone(&calls[0]))
    })
    .await
}

/// The number of calls that the third party received for each request, by request id.
pub(super) async fn calls_by_request(world: &World) -> anyhow::Result<HashMap<String, usize>> {
    let mut counts = HashMap::new();
    for call in world.stage.third_party().calls().await? {
        *counts.entry(call.header("idempotency-key").unwrap_or_default().to_owned()).or_default() += 1;
    }
    Ok(counts)
}

#[then(regex = r"^the third party is called at (/\S+) with a token that it issued$")]
async fn called_with_token(world: &mut World, path: String) -> Step {
    let call = only_call(world, &path).await?;
    let authorization = call.header("authorization").context("no authorization")?;
    let token = authorization.strip_prefix("Bearer ").with_context(|| authorization.to_owned())?;
    assert_eq!(world.stage.third_party().tokens().await?, [token]);
    world.call = Some(call);
    Ok(())
}

#[then(regex = r"^the third party is called at (/\S+), with the body byte for byte as it was posted$")]
async fn called_with_same_bytes(world: &mut World, path: String) -> Step {
    let call = only_call(world, &path).await?;
    assert_eq!(String::from_utf8_lossy(&call.body), String::from_utf8_lossy(&world.body));
    world.call = Some(call);
    Ok(())
}

#[then(
    regex = r#"^each call at (/\S+) has the body byte for byte as it was posted, and the media type "(.+)"$"#
)]
async fn calls_have_same_bytes(world: &mut World, path: String, media_type: String) -> Step {
    let calls = world.stage.third_party().calls().await?;
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!((call.path.as_str(), &call.body[..]), (path.as_str(), &world.body[..]));
        assert_eq!(call.header("content-type"), Some(media_type.as_str()));
    }
    Ok(())
}

#[then(regex = r#"^the call's body contains the request's id, its metadata, and as "(.+)"$"#)]
fn body_is_transformed(world: &mut World, step: &gherkin::Step, key: String) -> Step {
    let body: Value = serde_json::from_slice(&world.call()?.body)?;
    let accepted_at = body["metadata"]["accepted_at"].as_str().with_context(|| body.to_string())?;
    accepted_at.parse::<DateTime<Utc>>()?;
    let wanted = json!({
        "id": world.request_id()?,
        "metadata": {"route": "one", "accepted_at": accepted_at, "attempt": 1},
        key: serde_json::from_str::<Value>(&text(step))?,
    });
    assert_eq!(body, wanted);
    Ok(())
}

#[then(regex = r#"^the call's header "(.+)" is "(.+)"$"#)]
fn header_is(world: &mut World, name: String, value: String) -> Step {
    assert_eq!(world.call()?.header(&name), Some(value.as_str()), "{:?}", world.call()?.headers);
    Ok(())
}

#[then("the call's Idempotency-Key is the request's id")]
fn idempotency_key_is_id(world: &mut World) -> Step {
    let accepted = world.accepted();
    assert_eq!(world.call()?.header("idempotency-key"), accepted.last().map(String::as_str));
    Ok(())
}

#[then(regex = "^the call continues the trace ([0-9a-f]{32})$")]
fn call_is_traced(world: &mut World, trace: String) -> Step {
    let traceparent = world.call()?.header("traceparent").context("no traceparent")?;
    assert_eq!(traceparent.split('-').nth(1), Some(trace.as_str()), "{traceparent}");
    Ok(())
}

#[then(regex = r"^the third party was asked for (\d+) tokens?$")]
async fn tokens_were_given(world: &mut World, count: usize) -> Step {
    assert_eq!(world.stage.third_party().tokens().await?.len(), count);
    Ok(())
}

#[then(regex = "^every accepted request reaches the third party( exactly once)?$")]
async fn all_arrive(world: &mut World, once: String) -> Step {
    super::programs::load_ends(world).await;
    let accepted = world.some_accepted()?;
    eventually("all requests to arrive", DEADLINE, async || {
        let calls = calls_by_request(world).await?;
        let missing = accepted.iter().filter(|id| !calls.contains_key(*id)).count();
        ensure!(missing == 0, "{missing} of {} accepted requests have not arrived", accepted.len());
        Ok(())
    })
    .await?;
    if !once.is_empty() {
        let calls = calls_by_request(world).await?;
        let repeated: Vec<_> = calls.into_iter().filter(|(_, count)| *count > 1).collect();
        assert!(repeated.is_empty(), "called more than once for {repeated:?}");
    }
    Ok(())
}

#[then(regex = r"^the third party was called at (/\S+) more than once, with the same Idempotency-Key$")]
async fn same_idempotency_key(world: &mut World, path: String) -> Step {
    let calls = world.stage.third_party().calls().await?;
    let calls: Vec<_> = calls.iter().filter(|call| call.path == path).collect();
    assert!(calls.len() > 1, "{calls:?}");
    let keys: HashSet<_> = calls.iter().map(|call| call.header("idempotency-key")).collect();
    assert!(keys.len() == 1 && !keys.contains(&None), "{keys:?}");
    Ok(())
}

#[then("no output contains a secret")]
async fn no_secret_is_printed(world: &mut World) -> Step {
    let secrets = world.stage.third_party().secrets().await?;
    for (service, output) in world.stage.printed() {
        let text = output.text();
        assert!(!text.is_empty(), "{service} has no output");
        assert!(
            !secrets.iter().any(|secret| text.contains(secret)),
            "the output of {service} contains one:\n{text}"
        );
    }
    Ok(())
}
