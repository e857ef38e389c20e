//! What keeps a client from its brokers. librdkafka does not tell the call that waits for one, which
//! just times out, but the client's context.

use std::future::pending;

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use tokio::sync::watch;

use crate::KafkaError;

/// What last went wrong between a client and a broker.
#[derive(Debug, Default)]
pub(crate) struct Trouble(watch::Sender<Option<Last>>);

#[derive(Debug)]
struct Last {
    /// None where the broker just hung up.
    code: Option<Code>,
    reason: String,
}

impl Last {
    /// If the broker is there, but will refuse us the next time too.
    fn refusal(&self) -> Option<KafkaError> {
        let reason = self.reason.clone();
        match self.code {
            Some(Code::Authentication) => Some(KafkaError::Credentials { reason }),
            Some(Code::SSL) => Some(KafkaError::Tls { reason }),
            // Where the broker answers so soon that the handshake fails in its first step, librdkafka takes that for a
            // failure of the connection.
            _ if reason.contains("certificate verify failed") => Some(KafkaError::Tls { reason }),
            _ => None,
        }
    }
}

impl Trouble {
    /// Takes an error of the client's context.
    pub(crate) fn note(&self, error: &Native, reason: &str) {
        match error.rdkafka_error_code() {
            // It sums up what was said of each broker.
            None | Some(Code::AllBrokersDown) => {}
            code => self.set(code, reason),
        }
    }

    /// Takes the log line of a failure: that a broker hung up is no error to librdkafka.
    pub(crate) fn note_line(&self, line: &str) {
        // What comes before names a thread of librdkafka.
        let reason = line.split_once("]: ").map_or(line, |(_, reason)| reason);
        self.set(None, reason);
    }

    fn set(&self, code: Option<Code>, reason: &str) {
        self.0.send_replace(Some(Last { code, reason: reason.to_owned() }));
    }

    /// A broker has answered.
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
                // The sender is this very value: it does not go away meanwhile.
                None if last.changed().await.is_err() => pending().await,
                None => {}
            }
        }
    }

    /// Why no broker has answered: what is known, or else what the call itself said.
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
    fn a_certificate_is_refused_in_whichever_step_of_the_handshake() {
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
            let trouble = Trouble::default();
            trouble.note(&Native::Global(code), reason);
            let error = trouble.explain("h:1", &silence);
            assert_eq!(matches!(error, KafkaError::Tls { .. }), is_refused, "{code:?}: {error:?}");
        }
    }
}
