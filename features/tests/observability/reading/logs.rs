//! The log lines of a request.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use throughline_testkit::eventually;

use crate::backends::{Backends, Time};
use crate::scene::Scene;
use crate::script::{Played, Traced};

const DEADLINE: Duration = Duration::from_secs(30);

/// Returns all violations.
pub(super) async fn read(
    backends: &Backends,
    scene: &Scene,
    played: &Played,
    time: impl Fn() -> Time,
) -> Vec<String> {
    let mut wrong = Vec::new();
    wrong.extend(lines_lead_to_traces(backends, &played.first, &time, "delivery.succeeded").await.err());
    wrong.extend(lines_lead_to_traces(backends, &played.retried, &time, "attempt.failed").await.err());
    wrong.extend(streams_are_few(backends, scene, time()).await.err());
    wrong.iter().map(|error| format!("{error:#}")).collect()
}

/// A line that names the request also has the id of its trace.
async fn lines_lead_to_traces(
    backends: &Backends,
    traced: &Traced,
    time: impl Fn() -> Time,
    event: &str,
) -> anyhow::Result<()> {
    let Traced { request, trace, .. } = traced;
    let query = format!("{{service_namespace=\"throughline\"}} | request_id=`{request}` | event=`{event}`");
    eventually(&format!("the line {event} of request {request}"), DEADLINE, async || {
        let streams = backends.logs(&query, time()).await?;
        let metadata = &streams.first().context("no line")?["stream"];
        ensure!(metadata["trace_id"] == trace.as_str(), "not of trace {trace}: {metadata}");
        ensure!(metadata["span_id"].is_string(), "no span: {metadata}");
        Ok(())
    })
    .await
}

/// Attributes with many values are not stream labels, because each value would create a stream.
async fn streams_are_few(backends: &Backends, scene: &Scene, time: Time) -> anyhow::Result<()> {
    let environment = scene.environment();
    let (from, to) = (time.from.timestamp().to_string(), (time.to.timestamp() + 1).to_string());
    let selector = format!("{{deployment_environment_name=\"{environment}\"}}");
    let parameters = [("query", selector.as_str()), ("start", &from), ("end", &to)];
    let labels = backends.loki("/loki/api/v1/labels", &parameters).await?;
    let labels: Vec<_> = labels.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let expected = ["deployment_environment_name", "service_name", "service_namespace"];
    ensure!(labels == expected, "the labels are {labels:?}");
    Ok(())
}
