//! Which alerts fire after all that, and which do not.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use throughline_clock::Clock;
use throughline_testkit::eventually;

use crate::backends::Backends;
use crate::scene::Scene;

/// Rules are evaluated every 15 s, and one of these wants to see it for a minute.
const DEADLINE: Duration = Duration::from_secs(100);

/// What a user cares about, and what it names.
const FIRE: [&str; 5] = [
    r#"alertname="DeadLetters", throughline_destination="strict", throughline_reason="rejected""#,
    r#"alertname="DeadLetters", throughline_reason="malformed""#,
    r#"alertname="TokenRefused", throughline_destination="refused""#,
    r#"alertname="TelemetryDropped", job="throughline/throughline-ingest", throughline_signal="traces""#,
    r#"alertname="TelemetryDropped", job="throughline/throughline-dispatch", throughline_signal="logs""#,
];

/// What was away for seconds, or is well.
const SILENT: &str = "PublisherStuck|SweeperStuck|RequestsRefused|RequestsFailing|SamplesMissing|RecorderLagging|NoIngest|NoDispatch|NodeIdsRunningOut|DeadLettersMany|DeliveryObjectiveBurning|TokenEndpointFailing";

/// All that is wrong.
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

/// Each request has two spans or more in each service, and a queue keeps 512 for later: what was dropped is more than
/// one for each request that nobody saw.
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
    eventually(&format!("what {service} has dropped to be counted"), DEADLINE, async || {
        let series = backends.now(&dropped, Clock::system().now()).await?;
        let value = series.first().and_then(|series| series["value"][1].as_str()).context("not counted")?;
        let value: usize = value.parse()?;
        ensure!(value > unseen, "{value} spans dropped, though {unseen} requests were not seen");
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
        ensure!(!series.is_empty(), "it does not fire");
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
    ensure!(series.is_empty(), "these fire, and should not: {series:?}");
    Ok(())
}
