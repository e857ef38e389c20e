//! Steps for clients, their keys and the rates of routes.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow};
use cucumber::{gherkin, given, then, when};
use reqwest::Method;

use super::posting::send;
use super::{rows, text};
use crate::client::Question;
use crate::world::{Step, World};

#[given("only these clients are configured")]
fn clients(world: &mut World, step: &gherkin::Step) -> Step {
    let mut configuration = world.stage.configuration()?;
    configuration.push_str("\nclients:\n");
    for row in rows(step).iter().skip(1) {
        let [client, key, routes, manage] = &row[..] else {
            return Err(anyhow!("a client row must have a name, a key, routes and `manage`: {row:?}").into());
        };
        writeln!(configuration, "  {client}: {{key: {key}, routes: [{routes}], manage: {manage}}}")?;
    }
    Ok(world.stage.configure(&configuration)?)
}

#[given(regex = r#"^the route "(.+)" has the rate (\S+)$"#)]
fn route_has_rate(world: &mut World, route: String, rate: String) -> Step {
    let configuration = world.stage.configuration()?;
    let before = format!("\n  {route}:\n");
    if !configuration.contains(&before) {
        return Err(anyhow!("no route {route}:\n{configuration}").into());
    }
    let limited = configuration.replace(&before, &format!("{before}    rate: {rate}\n"));
    Ok(world.stage.configure(&limited)?)
}

#[when(regex = r#"^a client with the key "(.+)" sends (\S+) (/\S+)$"#)]
async fn send_with_key(world: &mut World, key: String, method: Method, path: String) -> Step {
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", authorization.as_str())];
    send(world, Question { method, headers: &headers, ..Question::post(&path, "{}") }).await
}

#[when(regex = r#"^a client with the key "(.+)" posts to (/\S+) with the Idempotency-Key "(.+)"$"#)]
async fn post_with_both_keys(
    world: &mut World,
    step: &gherkin::Step,
    key: String,
    path: String,
    idempotency_key: String,
) -> Step {
    let authorization = format!("Bearer {key}");
    let headers = [("authorization", authorization.as_str()), ("idempotency-key", idempotency_key.as_str())];
    send(world, Question { headers: &headers, ..Question::post(&path, text(step)) }).await
}

#[then(regex = r"^its Retry-After is (\d+) to (\d+) seconds$")]
fn retry_after(world: &mut World, least: u64, most: u64) -> Step {
    let after: u64 = world.answer()?.header("retry-after").context("no Retry-After")?.parse()?;
    assert!((least..=most).contains(&after), "{after} s");
    Ok(())
}

#[then("it requires a bearer token")]
fn asks_for_token(world: &mut World) -> Step {
    assert_eq!(world.answer()?.header("www-authenticate"), Some("Bearer"));
    Ok(())
}
