//! Steps for the telemetry of the services.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use cucumber::{gherkin, given, then, when};
use opentelemetry::trace::SpanKind;
use throughline_testkit::{Collector, LogRecord, Span, eventually};

use super::asking::delivery_in;
use super::posting::send;
use super::records::topic_of;
use super::{DEADLINE, rows};
use crate::client::Question;
use crate::world::{Step, World};

const BODY: &str = r#"{"user_id": "u-1"}"#;

/// The name of a span in the features. That of a call includes its path, because all calls have the same name.
fn name(span: &Span) -> String {
    let path =
        span.attributes.get("url.full").and_then(|url| Some(url.split_once("://")?.1.split_once('/')?.1));
    path.map_or_else(|| span.name.clone(), |path| format!("{} /{path}", span.name))
}

/// Replaces a word in braces by its value: the request's id, or the topic of a route.
fn expand(world: &World, text: &str) -> anyhow::Result<String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(text.to_owned()) };
    let route = rest.strip_suffix('}').with_context(|| text.to_owned())?;
    Ok(before.to_owned() + &if route == "id" { world.request_id()? } else { topic_of(world, route)? })
}

/// The spans of a trace so far.
fn spans_of(world: &World, trace: &str) -> anyhow::Result<Vec<Span>> {
    let mut spans = world.collector()?.spans();
    spans.retain(|span| span.trace_id == trace);
    Ok(spans)
}

/// The only span of that name among those that an earlier step found.
fn found<'a>(world: &'a World, called: &str) -> anyhow::Result<&'a Span> {
    let called = expand(world, called)?;
    let mut such = world.spans.iter().filter(|span| name(span) == called);
    let span = such.next().with_context(|| format!("no {called} among {:?}", world.spans))?;
    ensure!(such.next().is_none(), "more than one {called}");
    Ok(span)
}

/// A span in a row: name, kind, parent and service.
fn row_of(span: &Span, trace: &[Span]) -> [String; 4] {
    let parent = span.parent_id.clone().unwrap_or_default();
    let parent = trace.iter().find(|span| span.span_id == parent).map_or(parent, name);
    let kind = format!("{:?}", span.kind).to_lowercase();
    [name(span), kind, parent, span.resource.get("service.name").cloned().unwrap_or_default()]
}

#[given("a collector that receives the telemetry of the services")]
fn collector_is_there(world: &mut World) -> Step {
    let collector = Collector::open()?;
    world.stage.export_to(&collector)?;
    world.collector = Some(collector);
    Ok(())
}

#[when(regex = r"^a client(?: with the trace ([0-9a-f]{32}))? posts to (/\S+), with the headers$")]
async fn post_with_headers(world: &mut World, step: &gherkin::Step, trace: String, path: String) -> Step {
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    let mut headers: Vec<_> = rows(step).iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
    if !trace.is_empty() {
        headers.push(("traceparent", &traceparent));
    }
    send(world, Question { headers: &headers, ..Question::post(&path, BODY) }).await
}

#[then(regex = "^the trace ([0-9a-f]{32}) has exactly these spans$")]
async fn trace_is(world: &mut World, step: &gherkin::Step, trace: String) -> Step {
    let mut wanted = BTreeSet::new();
    for row in &rows(step)[1..] {
        let cells: Result<Vec<_>, _> = row.iter().map(|cell| expand(world, cell)).collect();
        wanted.insert(cells?);
    }
    world.spans = eventually("the spans of the trace", DEADLINE, async || {
        let spans = spans_of(world, &trace)?;
        let rows: BTreeSet<_> = spans.iter().map(|span| row_of(span, &spans).to_vec()).collect();
        ensure!(rows == wanted && spans.len() == wanted.len(), "{rows:#?}");
        Ok(spans)
    })
    .await?;
    Ok(())
}

/// Reliable only after later spans have arrived.
#[then(regex = "^the trace ([0-9a-f]{32}) has no spans$")]
fn trace_is_empty(world: &mut World, trace: String) -> Step {
    assert_eq!(spans_of(world, &trace)?, []);
    Ok(())
}

#[then("none of them failed")]
fn none_has_failed(world: &mut World) {
    let failed: Vec<_> = world.spans.iter().filter(|span| span.error.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[then(regex = r#"^"(.+)" is linked to "(.+)"$"#)]
fn is_linked(world: &mut World, from: String, to: String) -> Step {
    let (from, to) = (found(world, &from)?, found(world, &to)?);
    assert!(from.links.iter().any(|link| link.span_id == to.span_id), "{from:#?}");
    Ok(())
}

#[then("they have the attributes")]
fn they_say(world: &mut World, step: &gherkin::Step) -> Step {
    for row in &rows(step)[1..] {
        let (span, wanted) = (found(world, &row[0])?, expand(world, &row[2])?);
        assert_eq!(span.attributes.get(&row[1]), Some(&wanted), "{} of {span:#?}", row[1]);
    }
    Ok(())
}

#[then(regex = r#"^the call is made by the span "(.+)"$"#)]
fn call_is_made_by(world: &mut World, called: String) -> Step {
    let span = found(world, &called)?;
    let traceparent = format!("00-{}-{}-01", span.trace_id, span.span_id);
    assert_eq!(world.call()?.header("traceparent"), Some(traceparent.as_str()));
    Ok(())
}

#[then(regex = r#"^the call has no header "(.+)"$"#)]
fn call_has_no_header(world: &mut World, name: String) -> Step {
    assert_eq!(world.call()?.header(&name), None);
    Ok(())
}

#[then(regex = r#"^a span "(.+)" outside of the trace ([0-9a-f]{32}) is linked to "(.+)"$"#)]
async fn outsider_is_linked(world: &mut World, called: String, trace: String, to: String) -> Step {
    let linked = eventually("a span that is linked to it", DEADLINE, async || {
        let target = spans_of(world, &trace)?;
        let target =
            target.iter().find(|span| name(span) == to).context("the target of the link has not arrived")?;
        let spans = world.collector()?.spans();
        let is_linked = |span: &&Span| span.links.iter().any(|link| link.span_id == target.span_id);
        let mut such = spans.iter().filter(|span| span.name == called && span.trace_id != trace);
        such.find(is_linked).cloned().with_context(|| format!("{spans:#?}"))
    });
    world.spans = vec![linked.await?];
    Ok(())
}

#[then("each of their traces is linked from the span of its commit")]
async fn commits_are_linked(world: &mut World) -> Step {
    let count = world.some_accepted()?.len();
    let looked = eventually("a link from a commit to each request", DEADLINE, async || {
        let spans = world.collector()?.spans();
        let posted = spans.iter().filter(|span| span.name == "POST /one");
        let posted: BTreeSet<_> = posted.map(|span| (&span.trace_id, &span.span_id)).collect();
        let commits: Vec<_> = spans.iter().filter(|span| span.name == "accept requests").collect();
        let links = commits.iter().flat_map(|span| &span.links);
        let linked: BTreeSet<_> = links.map(|link| (&link.trace_id, &link.span_id)).collect();
        ensure!(posted.len() == count && linked == posted, "{} of {}", linked.len(), posted.len());
        for commit in commits {
            let size = commit.attributes.get("db.operation.batch.size").map_or("1", String::as_str);
            ensure!(size == commit.links.len().to_string(), "{commit:#?}");
        }
        Ok(())
    });
    Ok(looked.await?)
}

#[then(regex = "^its last attempt has its own trace, linked to the trace ([0-9a-f]{32})$")]
async fn last_attempt_is_linked(world: &mut World, trace: String) -> Step {
    let delivery = delivery_in(world, &world.request_id()?, "flaky", "delivered").await?;
    let attempts = delivery["attempts"].as_array().context("no attempts")?;
    let ids: Vec<_> = attempts.iter().filter_map(|attempt| attempt["trace_id"].as_str()).collect();
    let [first, own] = ids[..] else { return Err(anyhow::anyhow!("{delivery}").into()) };
    assert_eq!(first, trace);
    assert_ne!(own, trace);
    let retries = format!("process {}", world.stage.topics().retries);
    let looked = eventually("the spans of the attempt", DEADLINE, async || {
        let spans = spans_of(world, own)?;
        let rows: Vec<_> = spans.iter().map(|span| row_of(span, &spans)).collect();
        let root = spans.iter().find(|span| span.parent_id.is_none()).with_context(|| format!("{rows:?}"))?;
        let is_linked = root.links.iter().all(|link| link.trace_id == trace) && root.links.len() == 1;
        ensure!(root.name == retries && root.kind == SpanKind::Consumer && is_linked, "{root:#?}");
        let call = spans.iter().find(|span| name(span) == "POST /flaky");
        ensure!(call.is_some_and(|call| call.parent_id.as_ref() == Some(&root.span_id)), "{rows:?}");
        Ok(())
    });
    Ok(looked.await?)
}

#[then(regex = r#"^one log record reports it, in the span "(.+)" of the trace ([0-9a-f]{32}), with$"#)]
async fn log_leads_to_trace(world: &mut World, step: &gherkin::Step, span: String, trace: String) -> Step {
    let (id, span) = (world.request_id()?, expand(world, &span)?);
    let reported = eventually("a log record of the request", DEADLINE, async || {
        let spans = spans_of(world, &trace)?;
        let span = spans.iter().find(|it| name(it) == span).with_context(|| format!("{spans:#?}"))?;
        let is_report = |record: &LogRecord| {
            let is_of_request = record.attributes.get("request_id") == Some(&id);
            is_of_request && matches!(record.severity.as_str(), "WARN" | "ERROR")
        };
        let logs = world.collector()?.logs();
        let reports: Vec<_> = logs.iter().filter(|record| is_report(record)).collect();
        let [record] = reports[..] else { bail!("{reports:#?}") };
        ensure!(record.trace_id.as_ref() == Some(&trace), "{record:#?}");
        ensure!(record.span_id.as_ref() == Some(&span.span_id), "{record:#?}");
        Ok(record.clone())
    });
    let report = reported.await?;
    for row in rows(step) {
        assert_eq!(report.attributes.get(&row[0]), Some(&row[1]), "{} of {report:#?}", row[0]);
    }
    Ok(())
}

#[then(regex = r#"^no exported telemetry contains "(.+)", a token or a secret$"#)]
async fn no_secret_is_exported(world: &mut World, of_body: String) -> Step {
    let collector = world.collector()?;
    let all = format!("{:?}{:?}{:?}", collector.spans(), collector.logs(), collector.metrics());
    let secrets = world.stage.third_party().secrets().await?;
    for secret in secrets.iter().chain([&of_body]) {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
    Ok(())
}
