use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::Path;

use throughline_store::{ConnectionTrait as _, Settings, Store};
use throughline_testkit::{Database, Environment, unmeasured};

use super::markdown::{Block, documents, project};
use super::{assert_none, blocks};

/// The values that the programs give to the labels of their log streams.
const LABELS: [(&str, &[&str]); 2] = [
    ("service_namespace", &["throughline"]),
    ("service_name", &["throughline", "throughline-dispatch", "throughline-ingest"]),
];
/// The structured metadata that queries may select by; `docs/events.md` describes it.
const FIELDS: [&str; 3] = ["event", "destination", "request_id"];

/// A selector, and conditions on structured metadata: ``{label="value"} | field=`value` ``. The values of `event` are
/// in `docs/events.md`, which another test compares with the sources.
pub(super) fn logql(text: &str) -> Result<(), String> {
    let mut stages = text.trim().split(" | ");
    let selector = stages.next().and_then(|stage| stage.strip_prefix('{')?.strip_suffix('}'));
    for matcher in selector.ok_or("expected a selector in braces")?.split(", ") {
        let (label, value) = matcher.split_once('=').ok_or("expected label=\"value\"")?;
        let value =
            value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).ok_or("expected quotes")?;
        if !LABELS.iter().any(|(name, values)| *name == label && values.contains(&value)) {
            return Err(format!("no stream has the label {matcher}"));
        }
    }
    let events = read_to_string(project().join("docs/events.md")).unwrap();
    for stage in stages {
        let (field, condition) = stage.split_once('=').ok_or("expected a condition on a field")?;
        let value =
            condition.trim_start_matches('~').strip_prefix('`').and_then(|value| value.strip_suffix('`'));
        let value = value.ok_or("expected backquotes")?;
        if !FIELDS.contains(&field) || !events.contains(&format!("`{field}`")) {
            return Err(format!("docs/events.md has no field {field}"));
        }
        let is_event = |name: &&str| events.contains(&format!("\n| `{name}` |"));
        if field == "event"
            && let Some(name) = value.split('|').find(|name| !is_event(name))
        {
            return Err(format!("docs/events.md has no event {name}"));
        }
    }
    Ok(())
}

/// The names of telemetry begin with this.
const PREFIX: &str = "throughline.";

/// Returns the strings in the programs' sources that begin like the name of a metric or an attribute.
fn names() -> BTreeSet<String> {
    fn find(folder: &Path, names: &mut BTreeSet<String>) {
        for entry in read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                find(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = read_to_string(path).unwrap();
                let literals = text.split('"').filter(|text| text.starts_with(PREFIX));
                names.extend(literals.map(str::to_owned));
            }
        }
    }
    let mut names = BTreeSet::new();
    for parts in ["libs", "services"] {
        for part in read_dir(project().join(parts)).unwrap() {
            find(&part.unwrap().path().join("src"), &mut names);
        }
    }
    names
}

/// PromQL: each metric of ours in it is one of the programs, with the unit that Prometheus appends to its name.
pub(super) fn promql(text: &str) -> Result<(), String> {
    let known: BTreeSet<_> = names().iter().map(|name| name.replace('.', "_")).collect();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut metrics = words.filter(|word| word.starts_with("throughline_")).peekable();
    if metrics.peek().is_none() {
        return Err("no metric of ours".to_owned());
    }
    let units =
        ["", "_seconds", "_total", "_ratio", "_bucket", "_seconds_bucket", "_seconds_count", "_seconds_sum"];
    let is_known = |metric: &str| {
        units.iter().filter_map(|unit| metric.strip_suffix(unit)).any(|name| known.contains(name))
    };
    metrics
        .find(|metric| !is_known(metric))
        .map_or(Ok(()), |metric| Err(format!("no program has the metric {metric}")))
}

#[test]
fn every_metric_in_the_documents_exists() {
    let names = names();
    // A single word may be the name of a topic instead.
    let is_metric = |span: &&Block| {
        span.text.starts_with(PREFIX) && span.text.matches('.').count() > 1 && !span.text.contains('*')
    };
    let spans: Vec<_> = documents().into_values().flat_map(|document| document.spans).collect();
    let metrics: Vec<_> = spans.iter().filter(is_metric).collect();
    assert!(metrics.len() > 30, "{} metrics", metrics.len());
    let unknown = metrics.into_iter().filter(|span| !names.contains(&span.text));
    let problems: Vec<_> =
        unknown.map(|span| span.problem(format!("no program has the metric {}", span.text))).collect();
    assert_none(&problems);
}

#[tokio::test]
async fn postgresql_accepts_every_statement_in_the_documents() {
    if !Environment::engine_or_skip("the SQL in the documents").await.unwrap() {
        return;
    }
    let postgres = Database::start().await.unwrap();
    let url = postgres.create("documents").await.unwrap();
    let settings = Settings { url: url.as_str().into(), ..Settings::default() };
    let store = Store::connect(&settings, &unmeasured()).await.unwrap();
    store.migrate().await.unwrap();
    store.connection().execute_unprepared("CREATE ROLE throughline").await.unwrap();
    let mut problems = Vec::new();
    for block in blocks("sql") {
        if let Err(error) = store.connection().execute_unprepared(&block.text).await {
            problems.push(block.problem(error));
        }
    }
    store.close().await;
    assert_none(&problems);
}
