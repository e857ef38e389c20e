//! Links from graphs to traces.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use throughline_testkit::eventually;

use crate::backends::{Backends, Time};

const DEADLINE: Duration = Duration::from_mins(1);

/// Returns all violations.
pub(super) async fn read(backends: &Backends, time: impl Fn() -> Time) -> Option<String> {
    lead_to_traces(backends, time).await.err().map(|error| format!("{error:#}"))
}

/// An exemplar of a span metric has the id of an existing trace, in the label that Grafana's data source expects.
async fn lead_to_traces(backends: &Backends, time: impl Fn() -> Time) -> anyhow::Result<()> {
    eventually("an exemplar that links to a trace", DEADLINE, async || {
        let Time { from, to } = time();
        let parameters = [
            ("query", r#"traces_spanmetrics_latency_bucket{span_kind="SPAN_KIND_SERVER"}"#),
            ("start", &from.timestamp().to_string()),
            ("end", &to.timestamp().to_string()),
        ];
        let found = backends.prometheus("/api/v1/query_exemplars", &parameters).await?;
        let id = found[0]["exemplars"][0]["labels"]["traceID"].as_str().context("no exemplar")?;
        let trace = backends.trace(id).await?;
        ensure!(trace["batches"][0].is_object(), "the trace {id} is empty");
        Ok(())
    })
    .await
}
