//! Reads and checks the standard variables. The SDK ignores values that it does not understand, and then the cause of
//! missing telemetry is hard to find.
//!
//! See <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

mod collector;
mod variable;

use std::time::Duration;

use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::trace::Sampler;
use opentelemetry_semantic_conventions::resource::SERVICE_NAME;
use percent_encoding::percent_decode_str;
use tracing_subscriber::EnvFilter;

pub(crate) use self::collector::{Collector, Protocol};
use self::variable::Environment;
use crate::error::TelemetryError;
use crate::signal::Signal;

/// The settings of telemetry, as read from the environment.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Directives of `RUST_LOG`.
    pub(crate) log_filter: Option<String>,
    pub(crate) sampler: Sampler,
    /// The collector of traces, if they are exported.
    pub(crate) traces: Option<Collector>,
    /// The collector of logs, if they are exported.
    pub(crate) logs: Option<Collector>,
    /// The collector of metrics, if they are exported.
    pub(crate) metrics: Option<Collector>,
    pub(crate) span_batches: Batches,
    pub(crate) log_batches: Batches,
    /// The time between two exports of metrics.
    pub(crate) interval: Duration,
    pub(crate) temporality: Temporality,
    /// Attributes of the resource; later ones override earlier ones.
    pub(crate) attributes: Vec<(String, String)>,
}

/// How spans or logs are queued and exported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batches {
    /// The maximum time in the queue while the collector keeps up.
    pub(crate) delay: Duration,
    /// The maximum number of queued items; items that do not fit are dropped.
    pub(crate) queue: usize,
    /// The maximum number of items per export.
    pub(crate) size: usize,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, TelemetryError> {
        Self::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    pub(crate) fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, TelemetryError> {
        let environment = Environment { lookup };
        Ok(Self {
            log_filter: environment.log_filter()?,
            sampler: environment.sampler()?,
            traces: environment.collector(Signal::Traces)?,
            logs: environment.collector(Signal::Logs)?,
            metrics: environment.collector(Signal::Metrics)?,
            span_batches: environment.batches("OTEL_BSP", Duration::from_secs(5))?,
            log_batches: environment.batches("OTEL_BLRP", Duration::from_secs(1))?,
            interval: environment.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", Duration::from_mins(1))?,
            temporality: environment.temporality()?,
            attributes: environment.attributes()?,
        })
    }
}

impl<L: Fn(&str) -> Option<String>> Environment<L> {
    fn log_filter(&self) -> Result<Option<String>, TelemetryError> {
        let Some(variable) = self.get("RUST_LOG") else { return Ok(None) };
        EnvFilter::builder().parse(&variable.value).map_err(|error| variable.wrong(error.to_string()))?;
        Ok(Some(variable.value))
    }

    fn sampler(&self) -> Result<Sampler, TelemetryError> {
        let Some(variable) = self.get("OTEL_TRACES_SAMPLER") else {
            return Ok(parent_based(Sampler::AlwaysOn));
        };
        Ok(match variable.value.as_str() {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => self.ratio()?,
            "parentbased_always_on" => parent_based(Sampler::AlwaysOn),
            "parentbased_always_off" => parent_based(Sampler::AlwaysOff),
            "parentbased_traceidratio" => parent_based(self.ratio()?),
            _ => {
                return Err(variable.wrong(
                    "must be always_on, always_off, traceidratio, or one of these after `parentbased_`",
                ));
            }
        })
    }

    fn ratio(&self) -> Result<Sampler, TelemetryError> {
        let Some(variable) = self.get("OTEL_TRACES_SAMPLER_ARG") else {
            return Ok(Sampler::TraceIdRatioBased(1.0));
        };
        match variable.value.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Sampler::TraceIdRatioBased(ratio)),
            _ => Err(variable.wrong("must be a ratio, from 0.0 to 1.0")),
        }
    }

    fn batches(&self, processor: &str, delay: Duration) -> Result<Batches, TelemetryError> {
        Ok(Batches {
            delay: self.milliseconds(&format!("{processor}_SCHEDULE_DELAY"), delay)?,
            queue: self.number(&format!("{processor}_MAX_QUEUE_SIZE"), 2_048)?,
            size: self.number(&format!("{processor}_MAX_EXPORT_BATCH_SIZE"), 512)?,
        })
    }

    fn temporality(&self) -> Result<Temporality, TelemetryError> {
        if let Some(aggregation) = self.get("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION")
            && aggregation.value != "explicit_bucket_histogram"
        {
            return Err(aggregation.wrong("must be explicit_bucket_histogram"));
        }
        let Some(preference) = self.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE") else {
            return Ok(Temporality::Cumulative);
        };
        preference.value.parse().map_err(|()| preference.wrong("must be cumulative, delta or lowmemory"))
    }

    fn attributes(&self) -> Result<Vec<(String, String)>, TelemetryError> {
        let mut attributes = Vec::new();
        if let Some(variable) = self.get("OTEL_RESOURCE_ATTRIBUTES") {
            for pair in variable.value.split_terminator(',') {
                attributes.push(attribute(pair).ok_or_else(|| {
                    variable.wrong("must be comma-separated key=value pairs, percent-encoded where necessary")
                })?);
            }
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            attributes.push((SERVICE_NAME.to_owned(), name.value));
        }
        Ok(attributes)
    }
}

fn parent_based(root: Sampler) -> Sampler {
    Sampler::ParentBased(Box::new(root))
}

fn attribute(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let key = key.trim();
    (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
}

#[cfg(test)]
mod tests;
