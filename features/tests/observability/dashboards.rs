//! Reads the queries of all panels, variables and data sources from the files of `deploy/grafana`.

use std::fs::{read_dir, read_to_string};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

/// A query and its language.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// Dashboard, panel and letter.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// PromQL over a time range.
    Over,
    /// PromQL at a time.
    Now,
    /// LogQL that finds lines.
    Lines,
    /// LogQL that counts, at a time.
    CountNow,
    /// TraceQL that finds traces.
    Traces,
    /// `label_values(SERIES, LABEL)`.
    Values,
}

/// Reads all queries. `values` are the values of the dashboards' variables and of Grafana's own variables.
pub(crate) fn queries(values: &[(&str, &str)]) -> anyhow::Result<Vec<Query>> {
    let folder = deploy().join("grafana/dashboards");
    let mut queries = Vec::new();
    for entry in read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let dashboard: Value = serde_json::from_str(&read_to_string(&path)?)?;
            read(&dashboard, &mut queries).with_context(|| path.display().to_string())?;
        }
    }
    ensure!(!queries.is_empty(), "no dashboard in {}", folder.display());
    of_data_sources(&mut queries)?;
    for query in &mut queries {
        query.text = filled_in(&query.text, values);
        ensure!(!query.text.contains('$'), "{}: unknown variable in {}", query.name, query.text);
    }
    Ok(queries)
}

/// The queries of the data sources: links from a trace to logs and metrics, and the service map.
fn of_data_sources(queries: &mut Vec<Query>) -> anyhow::Result<()> {
    let file = deploy().join("grafana/provisioning/datasources/throughline.yaml");
    let text = read_to_string(&file).with_context(|| file.display().to_string())?;
    let linked = text.lines().filter_map(|line| line.trim_start().strip_prefix("query: "));
    // The file only enables the service map; this is Grafana's query for it.
    let map =
        r#"traces_service_graph_request_total{client="throughline-ingest", server="throughline-dispatch"}"#;
    for (number, query) in linked.chain([map]).enumerate() {
        let text = query.trim_matches('\'').replace("$$", "$");
        let kind = if text.contains("traces_") { Kind::Over } else { Kind::Lines };
        queries.push(Query { name: format!("data sources / {number}"), kind, text });
    }
    ensure!(
        queries.iter().any(|query| query.text.contains("__trace.traceId")),
        "no query links traces to logs"
    );
    Ok(())
}

/// The folder `deploy`.
pub(crate) fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Replaces variables by values, the longest names first: `$environment` is not `$env`.
fn filled_in(text: &str, values: &[(&str, &str)]) -> String {
    let mut values = values.to_vec();
    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
}

fn read(dashboard: &Value, queries: &mut Vec<Query>) -> anyhow::Result<()> {
    let title = text(&dashboard["title"])?;
    for variable in list(&dashboard["templating"]["list"]) {
        if variable["type"] == "query" {
            let name = format!("{title} / variable {}", text(&variable["name"])?);
            queries.push(Query { name, kind: Kind::Values, text: text(&variable["query"])?.to_owned() });
        }
    }
    for panel in list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row") {
        for target in list(&panel["targets"]) {
            let name = format!("{title} / {} / {}", text(&panel["title"])?, text(&target["refId"])?);
            let (kind, query) = match text(&target["datasource"]["type"])? {
                "prometheus" if target["instant"] == true => (Kind::Now, &target["expr"]),
                "prometheus" => (Kind::Over, &target["expr"]),
                "loki" if target["queryType"] == "instant" => (Kind::CountNow, &target["expr"]),
                "loki" => (Kind::Lines, &target["expr"]),
                "tempo" => (Kind::Traces, &target["query"]),
                other => bail!("{name}: unknown data source {other}"),
            };
            queries.push(Query { name, kind, text: text(query)?.to_owned() });
        }
    }
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value.as_str().with_context(|| format!("not a text: {value}"))
}
