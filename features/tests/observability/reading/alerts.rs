//! The alerts that must fire after the script, and those that must not.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use throughline_clock::Clock;
use throughline_testkit::eventually;

use crate::backends::Backends;
use crate::scene::Scene;

/// Rules are evaluated every 15 s, and one of these alerts needs a minute to fire.
const DEADLINE: Duration = Duration::from_secs(100);

/// Alerts that must fire, with their labels.
const FIRE: [&str; 5] = [
    r#"alertname="DeadLetters", throughline_destination="strict", throughline_reason="rejected""#,
    r#"alertname="DeadLetters", throughline_reason="malformed""#,
    r#"alertname="TokenRefused", throughline_destination="refused""#,
    r#"alertname="TelemetryDropped", job="throughline/throughline-ingest", throughline_signal="traces""#,
    r#"alertname="TelemetryDropped", job="throughline/throughline-dispatch", throughline_signal="logs""#,
];

/// Alerts that must not fire: their outages were too short, or there were none.
const SILENT: &str = "PublisherStuck|SweeperStuck|RequestsRefused|RequestsFailing|SamplesMissing|RecorderLagging|NoIngest|NoDispatch|NodeIdsRunningOut|DeadLettersMany|DeliveryObjectiveBurning|TokenEndpointFailing";

/// Returns all violations.
pub(super) async fn read(backends: &Backends, scene: &Scene, unseen: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    for service in ["ingest", "dispatch"] {
        wrong.extend(loss_is_counted(backends, scene, service, unseen).await.err());
    }
    for alert in FIRE {
        wrong.extend(fires(backends, scene, alert).await.err());
    }
    wrong.extend(are_silent(backends, scene).await.err());
    wrong.iter().map(|error| format!("{error:#}")).collect()
}

/// Each request has at least two spans in each service, and a queue keeps 512 spans. So more than one span per unseen
/// request was dropped.
async fn loss_is_counted(
    backends: &Backends,
    scene: &Scene,
    service: &str,
    unseen: usize,
) -> anyhow::Result<()> {
    let environment = scene.environment();
    let dropped = format!(
        "sum(throughline_telemetry_dropped_total{{deployment_environment_name=\"{environment}\", \
         job=\"throughline/throughline-{service}\", throughline_signal=\"traces\"}})"
    );
    eventually(&format!("the dropped spans of {service} to be counted"), DEADLINE, async || {
        let series = backends.now(&dropped, Clock::system().now()).await?;
        let value = series.first().and_then(|series| series["value"][1].as_str()).context("not counted")?;
        let value: usize = value.parse()?;
        ensure!(
            value > unseen,
            "only {value} spans counted as dropped, although {unseen} requests were not seen"
        );
        Ok(())
    })
    .await
}

async fn fires(backends: &Backends, scene: &Scene, alert: &str) -> anyhow::Result<()> {
    let environment = scene.environment();
    let alerts =
        format!("ALERTS{{{alert}, alertstate=\"firing\", deployment_environment_name=\"{environment}\"}}");
    eventually(&format!("the alert {alert}"), DEADLINE, async || {
        let series = backends.now(&alerts, Clock::system().now()).await?;
        ensure!(!series.is_empty(), "the alert does not fire");
        Ok(())
    })
    .await
}

async fn are_silent(backends: &Backends, scene: &Scene) -> anyhow::Result<()> {
    let environment = scene.environment();
    let alerts = format!(
        "max_over_time(ALERTS{{alertname=~\"{SILENT}\", alertstate=\"firing\", \
         deployment_environment_name=\"{environment}\"}}[1h])"
    );
    let series = backends.now(&alerts, Clock::system().now()).await?;
    ensure!(series.is_empty(), "alerts that must not fire: {series:?}");
    Ok(())
}
