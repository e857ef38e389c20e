//! librdkafka's log lines and errors as tracing events.

use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use tracing::{debug, error, info, warn};

/// Takes a log line. Losing a broker is expected of networks, and librdkafka gets over it by itself:
/// that is a warning. librdkafka holds back lines that only repeat themselves.
pub(crate) fn line(level: Level, facility: &str, text: &str) {
    match level {
        Level::Error if matches!(facility, "FAIL" | "ERROR" | "BROKERFAIL") => {
            warn!(target: "librdkafka", facility, "{text}");
        }
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
            error!(target: "librdkafka", facility, "{text}");
        }
        // Producers and consumers share `kafka.properties`, and each remarks on what is the other's.
        Level::Warning if text.contains("will be ignored by this") => {
            debug!(target: "librdkafka", facility, "{text}");
        }
        Level::Warning => warn!(target: "librdkafka", facility, "{text}"),
        Level::Notice => info!(target: "librdkafka", facility, "{text}"),
        Level::Info | Level::Debug => debug!(target: "librdkafka", facility, "{text}"),
    }
}

/// Takes an error that belongs to no record. Connection failures were log lines already.
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
