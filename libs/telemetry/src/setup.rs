use std::io::{IsTerminal, stdout};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{self, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{self, BatchSpanProcessor, SdkTracerProvider};
use opentelemetry_semantic_conventions::resource::{
    DEPLOYMENT_ENVIRONMENT_NAME, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_VERSION,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::bounded::Bounded;
use crate::environment::{Batches, Settings};
use crate::error::TelemetryError;
use crate::format::{Json, Readable};
use crate::ledger::Ledger;
use crate::sampler::Following;
use crate::signal::Signal;
use crate::{export, ledger, vitals};

/// The `service.namespace` of all services.
const NAMESPACE: &str = "throughline";

/// The instrumentation scope of this library's own metrics.
const SCOPE: &str = "throughline-telemetry";

/// How long a process waits at its end for a collector to receive traces and logs, and then metrics.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
const PATIENCE_FOR_METRICS: Duration = Duration::from_secs(2);

/// Targets of libraries that an export uses. If their events were exported, each export would cause the next.
const EXPORT_PATH: [&str; 7] = ["h2", "hyper", "opentelemetry", "reqwest", "rustls", "tonic", "tower"];

/// Libraries that log a lot at `info` that does not help operators.
const NOISY: [&str; 5] = ["hyper", "librdkafka", "rdkafka", "sea_orm", "sqlx"];

/// The running telemetry; [shut it down](Self::shutdown) before the process ends.
#[derive(Debug)]
#[must_use = "telemetry that is not exported yet is lost without `shutdown`"]
pub struct Telemetry {
    traces: SdkTracerProvider,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
}

/// The identity of a service, unless the standard variables override it.
#[derive(Debug, Clone, Copy)]
pub struct Service<'a> {
    /// `service.name`.
    pub name: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// `deployment.environment.name`, if it is known.
    pub environment: Option<&'a str>,
}

/// Sets up logs, traces and metrics for the process, as its environment variables configure them.
///
/// # Errors
/// If a variable has an unsupported value, or telemetry was set up before.
pub fn init(service: Service<'_>) -> Result<Telemetry, TelemetryError> {
    install(service, LevelFilter::INFO)
}

/// Like [`init`], for an interactive program: without `RUST_LOG` only warnings and errors are logged.
///
/// # Errors
/// As [`init`].
pub fn init_quiet(service: Service<'_>) -> Result<Telemetry, TelemetryError> {
    install(service, LevelFilter::WARN)
}

fn install(service: Service<'_>, level: LevelFilter) -> Result<Telemetry, TelemetryError> {
    let settings = Settings::from_env()?;
    let telemetry = Telemetry::new(service, &settings)?;
    let filter = settings.log_filter.unwrap_or_else(|| default_filter(level));
    let subscriber = telemetry.subscriber(service.name, &filter, stdout().is_terminal(), stdout);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    Ok(telemetry)
}

impl Telemetry {
    fn new(service: Service<'_>, settings: &Settings) -> Result<Self, TelemetryError> {
        let resource = resource(service, &settings.attributes);
        let ledgers = [
            Ledger::new(Signal::Traces, settings.span_batches.queue),
            Ledger::new(Signal::Logs, settings.log_batches.queue),
            Ledger::new(Signal::Metrics, 0),
        ];
        let [of_traces, of_logs, of_metrics] = &ledgers;
        let telemetry = Self {
            traces: traces(settings, resource.clone(), of_traces)?,
            logs: logs(settings, resource.clone(), of_logs)?,
            metrics: metrics(settings, resource, of_metrics)?,
        };
        if telemetry.metrics.is_some() {
            let meter = telemetry.meter(SCOPE);
            ledger::show(ledgers, &meter);
            vitals::show(&meter, &Handle::current());
        }
        Ok(telemetry)
    }

    /// Returns a meter, from which a part of the process creates its instruments. The scope is the part's name.
    ///
    /// If no metrics are exported, it records nothing and costs nothing.
    #[must_use]
    pub fn meter(&self, scope: &'static str) -> Meter {
        match &self.metrics {
            Some(metrics) => metrics.meter(scope),
            None => NoopMeterProvider::new().meter(scope),
        }
    }

    fn subscriber<W>(
        &self,
        service: &'static str,
        filter: &str,
        is_terminal: bool,
        writer: W,
    ) -> impl Subscriber + Send + Sync + use<W>
    where
        W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
    {
        // Events go to the logs, with the ids of their span; they are not repeated in the span.
        let spans = tracing_opentelemetry::layer()
            .with_tracer(self.traces.tracer(service))
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(without_export_path(LevelFilter::INFO).and(filter_fn(is_span)));
        let exported = self.logs.as_ref().map(|logs| {
            let events = EnvFilter::new(filter).and(filter_fn(is_event));
            OpenTelemetryTracingBridge::new(logs)
                .with_filter(events.and(without_export_path(LevelFilter::TRACE)))
        });
        let lines = tracing_subscriber::fmt::layer().with_writer(writer);
        let lines = if is_terminal {
            lines.event_format(Readable).boxed()
        } else {
            lines.with_ansi(false).event_format(Json).boxed()
        };
        let lines = lines.with_filter(EnvFilter::new(filter).and(filter_fn(is_event)));
        Registry::default().with(spans).with(exported).with(lines)
    }

    /// Exports all queued telemetry, for at most 5 seconds.
    pub async fn shutdown(self) {
        let Self { traces, logs, metrics } = self;
        // The exporters need the runtime that this future runs on, so blocking threads do the waiting.
        let traces = spawn_blocking(move || traces.shutdown_with_timeout(SHUTDOWN_TIMEOUT));
        let logs = spawn_blocking(move || logs.map(|logs| logs.shutdown_with_timeout(SHUTDOWN_TIMEOUT)));
        // A failed export has been logged already, and cannot be repeated here.
        let _ = tokio::join!(traces, logs);
        // Metrics are last, since they count the lost traces and logs.
        let metrics = spawn_blocking(move || {
            metrics.map(|metrics| metrics.shutdown_with_timeout(PATIENCE_FOR_METRICS))
        });
        let _ = metrics.await;
    }
}

fn traces(
    settings: &Settings,
    resource: Resource,
    ledger: &Arc<Ledger>,
) -> Result<SdkTracerProvider, TelemetryError> {
    let sampler = Following(settings.sampler.clone());
    let provider = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
    let Some(collector) = &settings.traces else { return Ok(provider.build()) };
    let Batches { delay, queue, size } = settings.span_batches;
    let config = trace::BatchConfigBuilder::default()
        .with_scheduled_delay(delay)
        .with_max_queue_size(queue)
        .with_max_export_batch_size(size)
        .build();
    let exporter = export::traces(collector, ledger)?;
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(provider.with_span_processor(Bounded::new(batches, Arc::clone(ledger))).build())
}

fn logs(
    settings: &Settings,
    resource: Resource,
    ledger: &Arc<Ledger>,
) -> Result<Option<SdkLoggerProvider>, TelemetryError> {
    let Some(collector) = &settings.logs else { return Ok(None) };
    let Batches { delay, queue, size } = settings.log_batches;
    let config = logs::BatchConfigBuilder::default()
        .with_scheduled_delay(delay)
        .with_max_queue_size(queue)
        .with_max_export_batch_size(size)
        .build();
    let exporter = export::logs(collector, ledger)?;
    let batches = BatchLogProcessor::builder(exporter).with_batch_config(config).build();
    let provider = SdkLoggerProvider::builder().with_resource(resource);
    Ok(Some(provider.with_log_processor(Bounded::new(batches, Arc::clone(ledger))).build()))
}

fn metrics(
    settings: &Settings,
    resource: Resource,
    ledger: &Arc<Ledger>,
) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    let Some(collector) = &settings.metrics else { return Ok(None) };
    let exporter = export::metrics(collector, settings.temporality, ledger)?;
    let reader = PeriodicReader::builder(exporter).with_interval(settings.interval).build();
    Ok(Some(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build()))
}

fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span()
}

fn is_event(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
}

fn default_filter(level: LevelFilter) -> String {
    NOISY.iter().fold(level.to_string(), |filter, library| format!("{filter},{library}=warn"))
}

fn without_export_path(level: LevelFilter) -> Targets {
    Targets::new().with_default(level).with_targets(EXPORT_PATH.map(|target| (target, LevelFilter::OFF)))
}

/// Builds the resource; attributes from the environment take precedence.
fn resource(service: Service<'_>, attributes: &[(String, String)]) -> Resource {
    let host = gethostname::gethostname();
    let instance = format!("{}:{}", host.to_string_lossy(), std::process::id());
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new(SERVICE_NAMESPACE, NAMESPACE),
            KeyValue::new(SERVICE_NAME, service.name),
            KeyValue::new(SERVICE_VERSION, service.version),
            KeyValue::new(SERVICE_INSTANCE_ID, instance),
        ])
        .with_attributes(
            service.environment.map(|name| KeyValue::new(DEPLOYMENT_ENVIRONMENT_NAME, name.to_owned())),
        )
        .with_attributes(attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())))
        .build()
}

#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod tests;
