//! librdkafka's log lines and errors as tracing events.

use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use tracing::{debug, error, info, warn};

/// Logs a line of librdkafka. Losing a broker is normal in a network, and librdkafka recovers by itself, so that is a
/// warning. librdkafka itself holds back lines that only repeat.
pub(crate) fn line(level: Level, facility: &str, text: &str) {
    match level {
        Level::Error if matches!(facility, "FAIL" | "ERROR" | "BROKERFAIL") => {
            warn!(target: "librdkafka", facility, "{text}");
        }
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
            error!(target: "librdkafka", facility, "{text}");
        }
        // Producers and consumers share `kafka.properties`, and each warns about the properties of the other.
        Level::Warning if text.contains("will be ignored by this") => {
            debug!(target: "librdkafka", facility, "{text}");
        }
        Level::Warning => warn!(target: "librdkafka", facility, "{text}"),
        Level::Notice => info!(target: "librdkafka", facility, "{text}"),
        Level::Info | Level::Debug => debug!(target: "librdkafka", facility, "{text}"),
    }
}

/// Logs an error that belongs to no record. Connection failures were already logged as lines.
pub(crate) fn error_event(error: &Native, reason: &str) {
    match error.rdkafka_error_code() {
        Some(
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::Authentication
            | Code::SSL,
        ) => {
            debug!(target: "librdkafka", %error, "{reason}");
        }
        Some(Code::Fatal) => error!(target: "librdkafka", %error, "{reason}"),
        _ => warn!(target: "librdkafka", %error, "{reason}"),
    }
}
