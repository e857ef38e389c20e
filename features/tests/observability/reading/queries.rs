//! Every query of every panel, variable, recording rule and alert.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use throughline_testkit::eventually;

use crate::backends::{Backends, Time};
use crate::dashboards::{self, Kind, Query};
use crate::rules::{self, Rule};
use crate::say;
use crate::scene::Scene;
use crate::script::Played;

/// Deadline for all queries to return a result: traces reach the backends after 15 s, their metrics reach Prometheus half
/// a minute later, and rules are evaluated every 15 s.
const DEADLINE: Duration = Duration::from_mins(3);

/// Metrics in the expressions of alerts that may be missing, with the reason.
const RIGHTLY_MISSING: [(&str, &str); 1] =
    [("otelcol_exporter_(send|enqueue)_failed", "the Collector creates them when a backend fails")];

/// Returns all violations.
pub(super) async fn read(
    backends: &Backends,
    scene: &Scene,
    played: &Played,
    time: impl Fn() -> Time,
) -> anyhow::Result<Vec<String>> {
    let values = [
        ("environment", scene.environment()),
        ("route", ".*"),
        ("destination", ".*"),
        ("service", "throughline/.+"),
        ("instance", ".+"),
        ("request", &played.dead),
        // Grafana's value for an export interval of 15 s.
        ("__rate_interval", "1m"),
        ("__auto", "1h"),
        ("__tags", r#"service="throughline-ingest""#),
        ("{__trace.traceId}", &played.retried.trace),
    ];
    let mut queries = dashboards::queries(&values)?;
    let rules = rules::rules(backends).await?;
    let (alerts, recordings): (Vec<_>, Vec<_>) = rules.into_iter().partition(|rule| rule.is_alert);
    queries.extend(recordings.into_iter().map(recorded));
    say(format_args!("{} queries, and {} alerts", queries.len(), alerts.len()));
    let mut wrong = all_find(backends, queries, &time).await;
    for alert in &alerts {
        wrong.extend(can_fire(backends, alert, time()).await.err().map(|error| format!("{error:#}")));
    }
    Ok(wrong)
}

/// A query for the result of a recording rule.
fn recorded(rule: Rule) -> Query {
    Query { name: format!("recording rule {}", rule.name), kind: Kind::Now, text: rule.name }
}

/// Repeats the queries until each has returned a result, and returns the others.
async fn all_find(backends: &Backends, queries: Vec<Query>, time: impl Fn() -> Time) -> Vec<String> {
    let mut left = queries;
    let mut last = Vec::new();
    // After the deadline, `last` contains the remaining queries.
    let _ = eventually("all queries to return a result", DEADLINE, async || {
        last.clear();
        let mut still = Vec::new();
        for query in left.drain(..) {
            if let Err(why) = finds(backends, &query, time()).await {
                last.push(format!("{}: {why:#}: {}", query.name, query.text));
                still.push(query);
            }
        }
        left = still;
        ensure!(left.is_empty());
        Ok(())
    })
    .await;
    last
}

async fn finds(backends: &Backends, query: &Query, time: Time) -> anyhow::Result<()> {
    let text = &query.text;
    match query.kind {
        Kind::Over => has_number(&backends.over(text, time).await?),
        Kind::Now => has_number(&backends.now(text, time.to).await?),
        Kind::CountNow => has_number(&backends.logs_now(text, time.to).await?),
        Kind::Lines => is_some(&backends.logs(text, time).await?),
        Kind::Traces => is_some(&backends.traces(text, time).await?),
        Kind::Values => {
            let (series, label) = text
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
                .context("not label_values(SERIES, LABEL)")?;
            let path = format!("/api/v1/label/{label}/values");
            let values = backends.prometheus(&path, &[("match[]", series)]).await?;
            is_some(values.as_array().context("no list")?)
        }
    }
}

fn is_some(found: &[Value]) -> anyhow::Result<()> {
    ensure!(!found.is_empty(), "empty result");
    Ok(())
}

/// Verifies that a result contains a number other than `NaN`.
fn has_number(series: &[Value]) -> anyhow::Result<()> {
    is_some(series)?;
    let of = |series: &Value| {
        let values = series["values"].as_array().cloned().unwrap_or_default();
        values.into_iter().chain([series["value"].clone()])
    };
    let is_number = |value: Value| {
        value[1].as_str().and_then(|text| text.parse::<f64>().ok()).is_some_and(f64::is_finite)
    };
    ensure!(series.iter().flat_map(of).any(is_number), "no number in {} series", series.len());
    Ok(())
}

/// The expression of an alert usually returns nothing. So this verifies that all its series exist.
async fn can_fire(backends: &Backends, alert: &Rule, time: Time) -> anyhow::Result<()> {
    backends.now(&alert.expression, time.to).await.with_context(|| alert.name.clone())?;
    let tree = backends.prometheus("/api/v1/parse_query", &[("query", &alert.expression)]).await?;
    let mut selectors = BTreeSet::new();
    collect(&tree, &mut selectors)?;
    ensure!(!selectors.is_empty(), "{} has no selectors", alert.name);
    for selector in selectors {
        if RIGHTLY_MISSING.iter().any(|(part, _)| selector.contains(part)) {
            continue;
        }
        let from = time.from.timestamp().to_string();
        let series =
            backends.prometheus("/api/v1/series", &[("match[]", &selector), ("start", &from)]).await?;
        if series.as_array().is_none_or(Vec::is_empty) {
            bail!("{} can never fire: no series match {selector}", alert.name);
        }
    }
    Ok(())
}

/// The selectors in the tree of an expression.
fn collect(node: &Value, selectors: &mut BTreeSet<String>) -> anyhow::Result<()> {
    match node {
        Value::Object(fields) => {
            if node["type"] == "vectorSelector" || node["type"] == "matrixSelector" {
                selectors.insert(selector(node)?);
            }
            fields.values().try_for_each(|value| collect(value, selectors))
        }
        Value::Array(nodes) => nodes.iter().try_for_each(|node| collect(node, selectors)),
        _ => Ok(()),
    }
}

fn selector(node: &Value) -> anyhow::Result<String> {
    let mut matchers = Vec::new();
    for matcher in node["matchers"].as_array().context("a selector without matchers")? {
        let part = |of: &str| matcher[of].as_str().with_context(|| format!("no {of}: {matcher}"));
        matchers.push(format!("{}{}{:?}", part("name")?, part("type")?, part("value")?));
    }
    Ok(format!("{{{}}}", matchers.join(",")))
}
