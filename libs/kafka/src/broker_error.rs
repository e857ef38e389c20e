//! Tracks the errors that keep a client from its brokers. librdkafka reports them to the client's context, and not to
//! the call that waits for a broker: the call just times out.

use std::future::pending;

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use tokio::sync::watch;

use crate::KafkaError;

/// The last error between a client and a broker.
#[derive(Debug, Default)]
pub(crate) struct BrokerError(watch::Sender<Option<Last>>);

#[derive(Debug)]
struct Last {
    /// None if the broker just closed the connection.
    code: Option<Code>,
    reason: String,
}

impl Last {
    /// Returns an error if the broker is reachable but will refuse us again.
    fn refusal(&self) -> Option<KafkaError> {
        let reason = self.reason.clone();
        match self.code {
            Some(Code::Authentication) => Some(KafkaError::Credentials { reason }),
            Some(Code::SSL) => Some(KafkaError::Tls { reason }),
            // If the broker answers so soon that the handshake fails in its first step, librdkafka reports a failure
            // of the connection.
            _ if reason.contains("certificate verify failed") => Some(KafkaError::Tls { reason }),
            _ => None,
        }
    }
}

impl BrokerError {
    /// Stores an error of the client's context.
    pub(crate) fn note(&self, error: &Native, reason: &str) {
        match error.rdkafka_error_code() {
            // It only sums up the errors of the brokers.
            None | Some(Code::AllBrokersDown) => {}
            code => self.set(code, reason),
        }
    }

    /// Stores the log line of a failure: librdkafka reports no error when a broker closes a connection.
    pub(crate) fn note_line(&self, line: &str) {
        // The text before it names a thread of librdkafka.
        let reason = line.split_once("]: ").map_or(line, |(_, reason)| reason);
        self.set(None, reason);
    }

    fn set(&self, code: Option<Code>, reason: &str) {
        self.0.send_replace(Some(Last { code, reason: reason.to_owned() }));
    }

    /// Forgets the error, since a broker has answered.
    pub(crate) fn is_over(&self) {
        self.0.send_replace(None);
    }

    /// Waits until a broker refuses us.
    pub(crate) async fn refusal(&self) -> KafkaError {
        let mut last = self.0.subscribe();
        loop {
            let refusal = last.borrow_and_update().as_ref().and_then(Last::refusal);
            match refusal {
                Some(error) => return error,
                // `self` is the sender, so it is not dropped meanwhile.
                None if last.changed().await.is_err() => pending().await,
                None => {}
            }
        }
    }

    /// Returns why no broker has answered: the stored error, or else the error of the call itself.
    pub(crate) fn explain(&self, servers: &str, silence: &Native) -> KafkaError {
        let servers = servers.to_owned();
        match &*self.0.borrow() {
            None => KafkaError::Unreachable { servers, reason: silence.to_string() },
            Some(Last { code: None, reason }) => KafkaError::HungUp { reason: reason.clone() },
            Some(last) => last
                .refusal()
                .unwrap_or_else(|| KafkaError::Unreachable { servers, reason: last.reason.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_certificate_is_recognised_in_each_step_of_the_handshake() {
        let of_first_step =
            "sasl_ssl://h:1/bootstrap: error:0A000086:SSL routines::certificate verify failed (after 2ms)";
        let silence = Native::MetadataFetch(Code::OperationTimedOut);
        for (code, reason, is_refused) in [
            (Code::SSL, "sasl_ssl://h:1/bootstrap: SSL handshake failed: certificate verify failed", true),
            (Code::BrokerTransportFailure, of_first_step, true),
            (
                Code::BrokerTransportFailure,
                "error:0A000126:SSL routines::unexpected eof while reading",
                false,
            ),
        ] {
            let broker_error = BrokerError::default();
            broker_error.note(&Native::Global(code), reason);
            let error = broker_error.explain("h:1", &silence);
            assert_eq!(matches!(error, KafkaError::Tls { .. }), is_refused, "{code:?}: {error:?}");
        }
    }
}
