use std::time::Duration;

use http::HeaderName;

use crate::error::TelemetryError;
use crate::signal::Signal;

/// A source of variables.
pub(super) struct Environment<L> {
    pub(super) lookup: L,
}

/// A variable that is set.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

impl<L: Fn(&str) -> Option<String>> Environment<L> {
    /// Returns a variable if it is set; an empty one counts as not set.
    pub(super) fn get(&self, name: &str) -> Option<Variable> {
        let value = (self.lookup)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| Variable { name: name.to_owned(), value: value.to_owned() })
    }

    /// Returns `OTEL_EXPORTER_OTLP_<signal>_<what>`, else `OTEL_EXPORTER_OTLP_<what>`.
    pub(super) fn of_exporter(&self, signal: Signal, what: &str) -> Option<Variable> {
        self.get(&format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.variable()))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    pub(super) fn milliseconds(&self, name: &str, default: Duration) -> Result<Duration, TelemetryError> {
        self.get(name).map_or(Ok(default), |variable| variable.milliseconds())
    }

    pub(super) fn number(&self, name: &str, default: usize) -> Result<usize, TelemetryError> {
        self.get(name).map_or(Ok(default), |variable| Ok(variable.number()? as usize))
    }

    /// Whether a switch is on; it is off by default.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|switch| switch.is_true())
    }
}

impl Variable {
    /// Creates an error without the value, which may be a secret.
    pub(super) fn wrong(&self, problem: impl Into<String>) -> TelemetryError {
        TelemetryError::Variable { variable: self.name.clone(), problem: problem.into() }
    }

    /// Following the standard, any other value is `false`.
    pub(super) fn is_true(&self) -> bool {
        self.value.eq_ignore_ascii_case("true")
    }

    pub(super) fn milliseconds(&self) -> Result<Duration, TelemetryError> {
        Ok(Duration::from_millis(self.number()?.into()))
    }

    fn number(&self) -> Result<u32, TelemetryError> {
        match self.value.parse() {
            Ok(number @ 1..) => Ok(number),
            _ => Err(self.wrong("must be a whole number of at least 1")),
        }
    }

    pub(super) fn check_compression(&self) -> Result<(), TelemetryError> {
        match self.value.as_str() {
            "gzip" | "none" => Ok(()),
            _ => Err(self.wrong("must be gzip or none")),
        }
    }

    pub(super) fn check_headers(&self) -> Result<(), TelemetryError> {
        let is_header = |pair: &str| {
            pair.split_once('=').is_some_and(|(name, _)| HeaderName::try_from(name.trim()).is_ok())
        };
        if self.value.split_terminator(',').all(is_header) {
            return Ok(());
        }
        Err(self.wrong("must be comma-separated name=value pairs, percent-encoded where necessary"))
    }
}
