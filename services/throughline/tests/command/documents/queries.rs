use std::fs::read_to_string;

use throughline_store::{ConnectionTrait as _, Settings, Store};
use throughline_testkit::{Database, Environment, unmeasured};

use super::markdown::project;
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
