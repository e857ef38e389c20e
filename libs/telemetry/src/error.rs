use opentelemetry_otlp::ExporterBuildError;

use crate::signal::Signal;

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// An environment variable has an unsupported value.
    #[error("{variable}: {problem}")]
    Variable {
        /// The name of the variable.
        variable: String,
        /// The problem, and the accepted values.
        problem: String,
    },
    /// The exporter's variables are inconsistent.
    #[error("cannot export {signal}")]
    Exporter {
        /// The signal that cannot be exported.
        signal: Signal,
        /// The exporter's error.
        source: ExporterBuildError,
    },
    /// Exporting needs a tokio runtime, and none is running.
    #[error("telemetry must be set up within a Tokio runtime, which exports it")]
    NoRuntime,
    /// The process already has a global subscriber.
    #[error("telemetry is already set up in this process")]
    Twice,
}
