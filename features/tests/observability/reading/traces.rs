//! Traces, span by span.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use throughline_testkit::eventually;

use crate::backends::{Backends, Time};
use crate::script::{Played, Traced};

/// The Collector decides on a trace 15 s after its start; the rest is a margin for a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// A span and its relations to other spans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    service: String,
    name: String,
    kind: String,
    /// The name of its parent, or the id if the parent is not in the trace.
    parent: String,
    /// The names of the linked spans, or the ids of their traces if these are other traces.
    links: Vec<String>,
}

/// Returns all violations.
pub(super) async fn read(backends: &Backends, played: &Played, time: impl Fn() -> Time) -> Vec<String> {
    let mut wrong = Vec::new();
    let send = "send one-request-local";
    let first = |traced: &Traced| {
        BTreeSet::from([
            span("ingest", "POST /one", "SERVER", traced.parent, &[]),
            span("ingest", send, "PRODUCER", "POST /one", &[]),
            span("dispatch", "process one-request-local", "CONSUMER", send, &[send]),
            span("dispatch", "POST /three", "CLIENT", "process one-request-local", &[]),
        ])
    };
    let mut with_token = first(&played.first);
    with_token.insert(span("dispatch", "POST /token", "CLIENT", "process one-request-local", &[]));
    // The failed call, and the publication of the retry, whose processing has its own trace.
    let retried = BTreeSet::from([
        span("ingest", "POST /flaky", "SERVER", played.retried.parent, &[]),
        span("ingest", "send flaky", "PRODUCER", "POST /flaky", &[]),
        span("dispatch", "process flaky", "CONSUMER", "send flaky", &["send flaky"]),
        span("dispatch", "POST /flaky", "CLIENT", "process flaky", &[]),
        span("ingest", "send throughline.retries", "PRODUCER", "POST /flaky", &[]),
    ]);
    for (traced, expected, what) in [
        (&played.first, with_token, "a delivery that fetched a token"),
        (&played.second, first(&played.second), "a delivery with a cached token"),
        (&played.retried, retried, "a first attempt that failed"),
    ] {
        wrong.extend(is_as_expected(backends, traced, &expected, what).await.err());
    }
    wrong.extend(retry_is_linked(backends, &played.retried, &time).await.err());
    wrong.extend(commit_is_linked(backends, &played.first, &time).await.err());
    wrong.iter().map(|error| format!("{error:#}")).collect()
}

fn span(service: &str, name: &str, kind: &str, parent: &str, links: &[&str]) -> Span {
    Span {
        service: format!("throughline-{service}"),
        name: name.to_owned(),
        kind: format!("SPAN_KIND_{kind}"),
        parent: parent.to_owned(),
        links: links.iter().map(|&link| link.to_owned()).collect(),
    }
}

async fn is_as_expected(
    backends: &Backends,
    traced: &Traced,
    expected: &BTreeSet<Span>,
    what: &str,
) -> anyhow::Result<()> {
    eventually(&format!("the trace of {what}"), DEADLINE, async || {
        let found = spans(&backends.trace(&traced.trace).await?)?;
        let seen: BTreeSet<_> = found.iter().cloned().collect();
        ensure!(
            found.len() == expected.len() && &seen == expected,
            "found the spans{}\ninstead of{}",
            Listed(&seen),
            Listed(expected)
        );
        Ok(())
    })
    .await
}

/// A later attempt has its own trace, which is linked to the trace of the request.
async fn retry_is_linked(
    backends: &Backends,
    retried: &Traced,
    time: impl Fn() -> Time,
) -> anyhow::Result<()> {
    let query = format!(
        "{{ name = \"process throughline.retries\" && span.throughline.request.id = \"{}\" }}",
        retried.request
    );
    eventually("the trace of a retry", DEADLINE, async || {
        let found = backends.traces(&query, time()).await?;
        let id = found.first().and_then(|trace| trace["traceID"].as_str()).context("none")?;
        ensure!(id != retried.trace, "the retry is part of the request's trace");
        let spans = spans(&backends.trace(id).await?)?;
        let process = spans.iter().find(|span| span.kind == "SPAN_KIND_CONSUMER").context("no CONSUMER")?;
        ensure!(process.links.contains(&retried.trace), "linked to {:?}", process.links);
        ensure!(
            spans.iter().any(|span| span.kind == "SPAN_KIND_CLIENT" && span.parent == process.name),
            "the trace of the retry has no call: {spans:?}"
        );
        Ok(())
    })
    .await
}

/// The commit of many requests has its own trace, which is linked to their traces.
async fn commit_is_linked(
    backends: &Backends,
    first: &Traced,
    time: impl Fn() -> Time,
) -> anyhow::Result<()> {
    let query = format!("{{ name = \"accept requests\" && link:traceID = \"{}\" }}", first.trace);
    eventually("the commit of the first request", DEADLINE, async || {
        let found = backends.traces(&query, time()).await?;
        let id = found.first().and_then(|trace| trace["traceID"].as_str()).context("none")?;
        let spans = spans(&backends.trace(id).await?)?;
        let is_alone = spans.len() == 1 && spans[0].kind == "SPAN_KIND_CLIENT";
        ensure!(is_alone, "the trace contains more than the commit: {spans:?}");
        Ok(())
    })
    .await
}

/// The spans of a trace from Tempo. The names of calls include the path.
fn spans(trace: &Value) -> anyhow::Result<Vec<Span>> {
    let mut raw = Vec::new();
    for batch in trace["batches"].as_array().with_context(|| format!("no batches: {trace}"))? {
        let service = attribute(&batch["resource"], "service.name").context("no service")?;
        for scope in batch["scopeSpans"].as_array().into_iter().flatten() {
            raw.extend(scope["spans"].as_array().into_iter().flatten().map(|span| (service, span)));
        }
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |span: &Value| match attribute(span, "url.full").and_then(|url| url.rsplit_once('/')) {
        Some((_, path)) => format!("{} /{path}", text(&span["name"])),
        None => text(&span["name"]),
    };
    let named = |id: &Value| {
        let found = raw.iter().find(|(_, span)| span["spanId"] == *id);
        found.map(|(_, span)| name(span))
    };
    let trace_id = |span: &Value| hexadecimal(&span["traceId"]);
    Ok(raw
        .iter()
        .map(|(service, span)| Span {
            service: (*service).to_owned(),
            name: name(span),
            kind: text(&span["kind"]),
            parent: named(&span["parentSpanId"]).unwrap_or_else(|| hexadecimal(&span["parentSpanId"])),
            links: span["links"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|link| named(&link["spanId"]).unwrap_or_else(|| trace_id(link)))
                .collect(),
        })
        .collect())
}

fn attribute<'a>(of: &'a Value, key: &str) -> Option<&'a str> {
    let attributes = of["attributes"].as_array()?;
    attributes.iter().find(|attribute| attribute["key"] == key)?["value"]["stringValue"].as_str()
}

/// Converts the id of a trace or span, which is Base64 in JSON.
fn hexadecimal(id: &Value) -> String {
    let bytes = id.as_str().and_then(|id| STANDARD.decode(id).ok()).unwrap_or_default();
    let trace = <[u8; 16]>::try_from(bytes.as_slice()).map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    let span = <[u8; 8]>::try_from(bytes.as_slice()).map(|id| format!("{:016x}", u64::from_be_bytes(id)));
    trace.or(span).unwrap_or_default()
}

struct Listed<'a>(&'a BTreeSet<Span>);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|span| write!(f, "\n    {span:?}"))
    }
}
