//! Prints the outcome of each attempt as dispatch reports it.

use std::time::Duration;

use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_kafka::{Consumer, KafkaError};
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, Outcome, Topics};
use throughline_settings::Settings;

use crate::command::say;

const BUFFER: usize = 1024;
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Reads the outcomes in a consumer group of its own, until shutdown begins.
pub(super) async fn run(
    settings: Settings,
    clock: Clock,
    shutdown: Shutdown,
    meter: Meter,
) -> Result<(), KafkaError> {
    let topics = Topics::new(&settings.kafka.prefix);
    let started = clock.now();
    let group = format!("{}-dev-{}", settings.kafka.prefix, started.timestamp_micros());
    let mut consumer = Consumer::subscribe(&settings.kafka, &group, &[&topics.outcomes], BUFFER, &meter)?;
    while let Some(Some(received)) = shutdown.soft().run_until_cancelled(consumer.recv()).await {
        if let Ok(report) = serde_json::from_slice::<AttemptReport>(&received.record.payload)
            && report.started_at >= started
        {
            say(&line(&report));
        }
        received.receipt.done();
    }
    consumer.close(CLOSE_DEADLINE).await
}

fn line(report: &AttemptReport) -> String {
    let status = report.status.map_or_else(String::new, |status| format!("  {status}"));
    let trace = report.trace_id.as_ref().map_or_else(String::new, |id| format!("  trace {id}"));
    let why = match &report.outcome {
        Outcome::Delivered => String::new(),
        Outcome::Retry { failure, .. } => format!("  {}", failure.error),
        Outcome::Deferred { cause, .. } => format!("  {}", cause.as_str()),
        Outcome::Dead { reason, failure } => format!("  {}: {}", reason.as_str(), failure.error),
    };
    format!(
        "{:<9}  {} → {}{status}  {} ms{trace}{why}",
        report.outcome.as_str(),
        report.request_id,
        report.destination,
        report.duration_ms
    )
}
