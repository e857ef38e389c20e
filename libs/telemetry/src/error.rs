use opentelemetry_otlp::ExporterBuildError;

use crate::signal::Signal;

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// A variable of the environment says what cannot be followed.
    #[error("{variable}: {problem}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The variables that say where to export to, taken together, make no sense.
    #[error("cannot export {signal}")]
    Exporter {
        /// What cannot be exported.
        signal: Signal,
        /// What the exporter says.
        source: ExporterBuildError,
    },
    /// Exporting needs a runtime, and there was none.
    #[error("telemetry is exported on a tokio runtime, and was set up outside of one")]
    NoRuntime,
    /// The process has a global subscriber already.
    #[error("telemetry was set up before in this process")]
    Twice,
}
