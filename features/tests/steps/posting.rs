//! Steps for the requests of clients and their responses.

use anyhow::Context as _;
use cucumber::{gherkin, then, when};
use reqwest::Method;
use throughline_testkit::Service;

use super::{rows, text};
use crate::client::Question;
use crate::load;
use crate::world::{Step, World};

const PROBLEMS: &str = "https://throughline.dev/problems/";

pub(super) async fn send(world: &mut World, question: Question<'_>) -> Step {
    world.body.clone_from(&question.body);
    let answer = world.client.send(world.stage.address(Service::Ingest)?, question).await?;
    world.answers.push(answer);
    Ok(())
}

#[when(regex = r"^a client posts to (/\S+)$")]
async fn post(world: &mut World, step: &gherkin::Step, path: String) -> Step {
    send(world, Question::post(&path, text(step))).await
}

#[when(regex = r#"^a client posts to (/\S+) with the Idempotency-Key "(.+)"$"#)]
async fn post_with_key(world: &mut World, step: &gherkin::Step, path: String, key: String) -> Step {
    let headers = [("idempotency-key", key.as_str())];
    send(world, Question { headers: &headers, ..Question::post(&path, text(step)) }).await
}

#[when(regex = r"^a client with the trace ([0-9a-f]{32}) posts to (/\S+)$")]
async fn post_with_trace(world: &mut World, step: &gherkin::Step, trace: String, path: String) -> Step {
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("traceparent", traceparent.as_str())];
    send(world, Question { headers: &headers, ..Question::post(&path, text(step)) }).await
}

#[when(regex = r"^a client sends (\S+) (/\S+) as (.+)$")]
async fn send_as(
    world: &mut World,
    step: &gherkin::Step,
    method: Method,
    path: String,
    media_type: String,
) -> Step {
    let question = Question { method, media_type: &media_type, ..Question::post(&path, text(step)) };
    send(world, question).await
}

#[when(regex = r#"^a client posts the bytes "([0-9a-f ]+)" to (/\S+) as (\S+)$"#)]
async fn post_these_bytes(world: &mut World, bytes: String, path: String, media_type: String) -> Step {
    let bytes = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16));
    let question = Question::post(&path, bytes.collect::<Result<Vec<_>, _>>()?);
    send(world, Question { media_type: &media_type, ..question }).await
}

#[when(regex = r"^a client posts (\d+) bytes to (/\S+)$")]
async fn post_bytes(world: &mut World, size: usize, path: String) -> Step {
    let quotes = 2;
    send(world, Question::post(&path, format!("\"{}\"", "x".repeat(size - quotes)))).await
}

#[when(regex = r"^a client posts to (/\S+) with an ordering key of (\d+) characters$")]
async fn post_ordered(world: &mut World, path: String, length: usize) -> Step {
    send(world, Question::post(&path, format!(r#"{{"user": "{}"}}"#, "k".repeat(length)))).await
}

#[when(regex = r"^(\d+) requests are posted to (/\S+) concurrently$")]
async fn post_many(world: &mut World, count: usize, path: String) -> Step {
    let ingest = world.stage.address(Service::Ingest)?;
    let bodies = (0..count).map(|number| format!(r#"{{"number": {number}}}"#).into_bytes());
    world.answers.extend(load::post_all(&world.client, ingest, &path, bodies).await?);
    Ok(())
}

#[then(regex = r"^the answer is (\d+)$")]
fn answer_is(world: &mut World, status: u16) -> Step {
    let answer = world.answer()?;
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    Ok(())
}

#[then("all of them are accepted")]
fn all_are_accepted(world: &mut World) {
    assert_eq!(world.accepted().len(), world.answers.len(), "{:?}", world.answers);
}

#[then(regex = r"^both answers are (\d+) with the same request id$")]
fn same_id_twice(world: &mut World, status: u16) {
    assert!(world.answers.iter().all(|answer| answer.status.as_u16() == status), "{:?}", world.answers);
    let accepted = world.accepted();
    assert_eq!(accepted.len(), 2);
    assert_eq!(accepted[0], accepted[1]);
}

#[then(regex = r"^both answers are (\d+) with different request ids$")]
fn two_ids(world: &mut World, status: u16) {
    assert!(world.answers.iter().all(|answer| answer.status.as_u16() == status), "{:?}", world.answers);
    let accepted = world.accepted();
    assert_eq!(accepted.len(), 2);
    assert_ne!(accepted[0], accepted[1]);
}

#[then(regex = r"^it contains a request id of (\d+) digits$")]
fn id_has_digits(world: &mut World, count: usize) -> Step {
    let id = world.answer()?.request_id().context("no request id")?;
    assert!(id.len() == count && id.bytes().all(|byte| byte.is_ascii_digit()), "{id}");
    Ok(())
}

#[then("its Location header is the URL of that request")]
async fn location_leads_to_it(world: &mut World) -> Step {
    let answer = world.answer()?;
    let id = answer.request_id().context("no request id")?;
    assert_eq!(answer.header("location"), Some(format!("/v1/requests/{id}").as_str()));
    let status = world.client.status(world.stage.address(Service::Ingest)?, &id).await?;
    assert_eq!(status["request_id"], id);
    Ok(())
}

#[then(regex = r#"^the answer is (\d+) with the problem "(.+)"$"#)]
fn answer_is_problem(world: &mut World, status: u16, name: String) -> Step {
    let answer = world.answer()?;
    let problem = answer.json().with_context(|| format!("{answer:?}"))?;
    assert_eq!(answer.status.as_u16(), status, "{problem}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(problem["type"], format!("{PROBLEMS}{name}"));
    assert_eq!(problem["status"], status);
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()), "{problem}");
    Ok(())
}

#[then("its errors point at")]
fn points_at(world: &mut World, step: &gherkin::Step) -> Step {
    let problem = world.answer()?.json()?;
    let errors = problem["errors"].as_array().with_context(|| problem.to_string())?;
    assert!(errors.iter().all(|error| error["detail"].is_string()), "{problem}");
    let mut pointers: Vec<_> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
    let mut wanted: Vec<_> = rows(step).iter().map(|row| row[0].as_str()).collect();
    pointers.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(pointers, wanted, "{problem}");
    Ok(())
}
