//! The recording rules and alerts that Prometheus has loaded from `deploy/prometheus/rules`.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::backends::Backends;
use crate::dashboards::deploy;

pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) is_alert: bool,
    pub(crate) expression: String,
}

/// Returns all rules. Verifies that they are those of the files, that Prometheus can evaluate them, and that each alert
/// has a runbook.
pub(crate) async fn rules(backends: &Backends) -> anyhow::Result<Vec<Rule>> {
    let answer = backends.prometheus("/api/v1/rules", &[]).await?;
    let groups = answer["groups"].as_array().with_context(|| format!("no groups: {answer}"))?;
    let mut rules = Vec::new();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        let text =
            |of: &str| rule[of].as_str().with_context(|| format!("no {of}: {rule}")).map(str::to_owned);
        ensure!(rule["health"] == "ok", "not evaluated: {rule}");
        let is_alert = rule["type"] == "alerting";
        if is_alert {
            has_runbook(rule)?;
        }
        rules.push(Rule { name: text("name")?, is_alert, expression: text("query")? });
    }
    let written = written(&deploy().join("prometheus/rules"))?;
    let read: BTreeSet<_> = rules.iter().map(|rule| rule.name.clone()).collect();
    ensure!(read == written, "Prometheus has other rules than the files: {read:?}, not {written:?}");
    Ok(rules)
}

/// The names of the rules in a folder's files.
fn written(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in read_dir(folder).with_context(|| folder.display().to_string())? {
        for line in read_to_string(entry?.path())?.lines() {
            let line = line.trim_start();
            let name = line.strip_prefix("- alert: ").or_else(|| line.strip_prefix("- record: "));
            names.extend(name.map(str::to_owned));
        }
    }
    Ok(names)
}

fn has_runbook(alert: &Value) -> anyhow::Result<()> {
    let url = alert["annotations"]["runbook_url"].as_str().with_context(|| format!("no runbook: {alert}"))?;
    let (_, path) =
        url.split_once("/docs/").with_context(|| format!("not a runbook of this project: {url}"))?;
    let file = deploy().join("../docs").join(path);
    ensure!(file.exists(), "missing file: {}", file.display());
    Ok(())
}
