//! The errors that prevent a complete response.

use std::error::Error;
use std::io;
use std::time::Duration;

use throughline_messages::ErrorClass;

/// The error that prevented a complete response. No text contains a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The request was never sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The third party's certificate is not acceptable.
    #[error("TLS: {0}")]
    Certificate(String),
    /// The TLS handshake failed for another reason.
    #[error("TLS: {0}")]
    Tls(String),
    /// The request or its response was not complete in time.
    #[error("no complete response within {0:?}")]
    Timeout(Duration),
    /// The connection broke during the exchange.
    #[error("the connection broke: {0}")]
    Transport(String),
}

impl CallError {
    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Self::Connect(_) => ErrorClass::Connect,
            Self::Certificate(_) | Self::Tls(_) => ErrorClass::Tls,
            Self::Timeout(_) => ErrorClass::Timeout,
            Self::Transport(_) => ErrorClass::Transport,
        }
    }

    /// Returns whether another call may succeed. An unacceptable certificate stays unacceptable.
    pub(super) fn is_retryable(&self) -> bool {
        !matches!(self, Self::Certificate(_))
    }
}

/// Classifies the error of a call.
///
/// The text is that of the innermost error: the outer errors repeat the kind and, in reqwest's case, the URL, which
/// may hold secrets.
pub(super) fn of_call(error: &reqwest::Error) -> CallError {
    tell(error, error.is_connect())
}

fn tell(error: &(dyn Error + 'static), while_connecting: bool) -> CallError {
    if let Some(tls) = chain(error).find_map(|error| error.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::InvalidCertificate(_) => CallError::Certificate(tls.to_string()),
            _ => CallError::Tls(tls.to_string()),
        };
    }
    let innermost = chain(error).last().map_or_else(|| "no reason given".to_owned(), ToString::to_string);
    if while_connecting { CallError::Connect(innermost) } else { CallError::Transport(innermost) }
}

/// Returns the sources of an error, without the error itself.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(inner(error), |error| inner(*error))
}

/// Returns the next source. An [`io::Error`] that wraps another error does not return that error as its source, but
/// the source of that error; TLS errors are wrapped this way.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use rustls::CertificateError;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("error sending request for url (https://user:password@example.com/?key=secret)")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_bad_certificate_is_distinguished_from_another_tls_error() {
        let certificate = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let error = tell(&Outer(io::Error::other(certificate)), true);
        assert!(matches!(&error, CallError::Certificate(text) if text.contains("Expired")), "{error}");
        let error = tell(&Outer(io::Error::other(rustls::Error::HandshakeNotComplete)), true);
        assert!(matches!(error, CallError::Tls(_)), "{error}");
    }

    #[test]
    fn a_refused_connection_is_distinguished_from_a_broken_one() {
        let refused = || Outer(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(matches!(tell(&refused(), true), CallError::Connect(text) if text == "connection refused"));
        assert!(matches!(tell(&refused(), false), CallError::Transport(_)));
    }

    #[test]
    fn the_message_never_contains_the_url() {
        for while_connecting in [true, false] {
            let error =
                tell(&Outer(io::Error::from(io::ErrorKind::BrokenPipe)), while_connecting).to_string();
            assert!(!error.contains("secret") && !error.contains("password"), "{error}");
        }
    }
}
