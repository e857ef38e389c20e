//! What the end of a call means for its delivery.

use std::time::Duration;

use http::StatusCode;
use throughline_messages::{DeadReason, ErrorClass, Failure, Outcome};
use throughline_token::TokenError;
use throughline_transform::TransformError;

/// Why no complete response came. None of the texts holds a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The destination's filter failed on this body.
    #[error("{0}")]
    Transform(TransformError),
    /// The token endpoint gave none.
    #[error("no token: {0}")]
    Token(TokenError),
    /// The token endpoint took all the time that the attempt had.
    #[error("no token within {0:?}")]
    TokenTimeout(Duration),
    /// The request was never sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The third party's certificate is not acceptable.
    #[error("TLS: {0}")]
    Certificate(String),
    /// The TLS handshake failed otherwise.
    #[error("TLS: {0}")]
    Tls(String),
    /// The request, its response or both did not make it in time.
    #[error("no complete response within {0:?}")]
    Timeout(Duration),
    /// The connection broke on the way.
    #[error("the connection broke: {0}")]
    Transport(String),
    /// The configuration does not know the destination.
    #[error("no destination is called {0:?}")]
    UnknownDestination(String),
}

impl CallError {
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Transform(_) => ErrorClass::Transform,
            Self::Token(_) | Self::TokenTimeout(_) => ErrorClass::Token,
            Self::Connect(_) => ErrorClass::Connect,
            Self::Certificate(_) | Self::Tls(_) => ErrorClass::Tls,
            Self::Timeout(_) => ErrorClass::Timeout,
            Self::Transport(_) => ErrorClass::Transport,
            Self::UnknownDestination(_) => ErrorClass::Configuration,
        }
    }

    fn reason(&self) -> DeadReason {
        match self {
            Self::Transform(_) => DeadReason::Untransformable,
            Self::UnknownDestination(_) => DeadReason::Unroutable,
            Self::Certificate(_) => DeadReason::Rejected,
            Self::Token(error) if !error.is_retryable() => DeadReason::Rejected,
            Self::Token(_)
            | Self::TokenTimeout(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::Timeout(_)
            | Self::Transport(_) => DeadReason::AttemptsExhausted,
        }
    }
}

/// What becomes of a delivery whose call ended with this status, or with none.
///
/// A delivery has one attempt, so a failure that may pass exhausts them.
pub(crate) fn outcome(end: &Result<StatusCode, CallError>) -> Outcome {
    match end {
        Ok(status) if status.is_success() => Outcome::Delivered,
        Ok(status) => dead(reason_of(*status), class_of(*status), status.to_string()),
        Err(error) => dead(error.reason(), error.class(), error.to_string()),
    }
}

fn dead(reason: DeadReason, class: ErrorClass, error: String) -> Outcome {
    Outcome::Dead { reason, failure: Failure { class, error } }
}

fn reason_of(status: StatusCode) -> DeadReason {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            DeadReason::AttemptsExhausted
        }
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => DeadReason::Rejected,
        status if status.is_redirection() || status.is_client_error() => DeadReason::Rejected,
        _ => DeadReason::AttemptsExhausted,
    }
}

fn class_of(status: StatusCode) -> ErrorClass {
    if status.is_redirection() {
        ErrorClass::Redirect
    } else if status.is_client_error() {
        ErrorClass::ClientError
    } else {
        ErrorClass::ServerError
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(end: &Result<StatusCode, CallError>) -> (DeadReason, ErrorClass, String) {
        match outcome(end) {
            Outcome::Dead { reason, failure } => (reason, failure.class, failure.error),
            Outcome::Delivered => panic!("{end:?} counts as delivered"),
        }
    }

    #[test]
    fn any_2xx_is_delivered() {
        for status in [200, 201, 202, 204, 207, 299] {
            assert_eq!(outcome(&Ok(StatusCode::from_u16(status).unwrap())), Outcome::Delivered, "{status}");
        }
    }

    #[test]
    fn any_other_status_is_dead_with_its_class_and_whether_it_is_final() {
        use DeadReason::{AttemptsExhausted, Rejected};
        use ErrorClass::{ClientError, Redirect, ServerError};
        let table = [
            (301, Rejected, Redirect),
            (302, Rejected, Redirect),
            (304, Rejected, Redirect),
            (308, Rejected, Redirect),
            (400, Rejected, ClientError),
            (401, Rejected, ClientError),
            (403, Rejected, ClientError),
            (404, Rejected, ClientError),
            (408, AttemptsExhausted, ClientError),
            (409, Rejected, ClientError),
            (410, Rejected, ClientError),
            (413, Rejected, ClientError),
            (422, Rejected, ClientError),
            (425, AttemptsExhausted, ClientError),
            (429, AttemptsExhausted, ClientError),
            (500, AttemptsExhausted, ServerError),
            (501, Rejected, ServerError),
            (502, AttemptsExhausted, ServerError),
            (503, AttemptsExhausted, ServerError),
            (504, AttemptsExhausted, ServerError),
            (505, Rejected, ServerError),
            (599, AttemptsExhausted, ServerError),
            // Outside of what RFC 9110 defines: the server does not know what it says.
            (101, AttemptsExhausted, ServerError),
            (999, AttemptsExhausted, ServerError),
        ];
        for (status, reason, class) in table {
            let (got_reason, got_class, error) = ended(&Ok(StatusCode::from_u16(status).unwrap()));
            assert_eq!((got_reason, got_class), (reason, class), "{status}");
            assert!(error.starts_with(&status.to_string()), "{error}");
        }
    }

    #[test]
    fn a_call_without_a_response_is_dead_with_its_class_and_whether_it_is_final() {
        use DeadReason::{AttemptsExhausted, Rejected, Unroutable};
        let second = Duration::from_secs(1);
        let text = || "text".to_owned();
        let table = [
            (
                CallError::Transform(TransformError::NoValue),
                DeadReason::Untransformable,
                ErrorClass::Transform,
                "the filter produced no value",
            ),
            (
                CallError::Token(TokenError::Refused {
                    status: StatusCode::UNAUTHORIZED,
                    code: Some("invalid_client"),
                }),
                Rejected,
                ErrorClass::Token,
                "no token: the token endpoint answered 401 Unauthorized (invalid_client)",
            ),
            (
                CallError::Token(TokenError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, code: None }),
                AttemptsExhausted,
                ErrorClass::Token,
                "no token: the token endpoint answered 503 Service Unavailable",
            ),
            (CallError::TokenTimeout(second), AttemptsExhausted, ErrorClass::Token, "no token within 1s"),
            (CallError::Connect(text()), AttemptsExhausted, ErrorClass::Connect, "no connection: text"),
            (CallError::Certificate(text()), Rejected, ErrorClass::Tls, "TLS: text"),
            (CallError::Tls(text()), AttemptsExhausted, ErrorClass::Tls, "TLS: text"),
            (
                CallError::Timeout(second),
                AttemptsExhausted,
                ErrorClass::Timeout,
                "no complete response within 1s",
            ),
            (
                CallError::Transport(text()),
                AttemptsExhausted,
                ErrorClass::Transport,
                "the connection broke: text",
            ),
            (
                CallError::UnknownDestination("four".to_owned()),
                Unroutable,
                ErrorClass::Configuration,
                "no destination is called \"four\"",
            ),
        ];
        for (error, reason, class, words) in table {
            assert_eq!(ended(&Err(error)), (reason, class, words.to_owned()));
        }
    }
}
