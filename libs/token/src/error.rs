use std::time::Duration;

use http::StatusCode;

/// Why there is no token. No message contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The endpoint returned an error.
    #[error("the token endpoint answered {status}{}", in_brackets(.code.as_ref()))]
    Refused {
        /// The status of the response; some endpoints return errors with 200.
        status: StatusCode,
        /// The `error` of [RFC 6749, 5.2](https://www.rfc-editor.org/rfc/rfc6749#section-5.2), if it is a well-known
        /// code.
        code: Option<&'static str>,
    },
    /// The response contains no usable token.
    #[error("invalid response of the token endpoint: {0}")]
    Malformed(&'static str),
    /// The token is not a bearer token.
    #[error("the token endpoint issued a token that is not of type Bearer")]
    NotBearer,
    /// The response exceeds the size limit.
    #[error("the response of the token endpoint is longer than {0} bytes")]
    TooLong(usize),
    /// The request was never sent.
    #[error("no connection to the token endpoint: {0}")]
    Connect(String),
    /// The connection broke during the request.
    #[error("the connection to the token endpoint broke: {0}")]
    Transport(String),
    /// The response did not arrive in time.
    #[error("no complete response of the token endpoint within {0:?}")]
    Timeout(Duration),
    /// The task that requested the token ended without a result.
    #[error("the token request was interrupted")]
    Interrupted,
}

impl TokenError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, code } => {
                matches!(code, Some("server_error" | "slow_down" | "temporarily_unavailable"))
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
                    )
                    || status.is_server_error()
            }
            Self::NotBearer => false,
            // A malformed or overlong response may come from a stand-in for the endpoint, such as a maintenance page.
            Self::Malformed(_)
            | Self::TooLong(_)
            | Self::Connect(_)
            | Self::Transport(_)
            | Self::Timeout(_)
            | Self::Interrupted => true,
        }
    }

    /// Returns the value of a span's `error.type`.
    pub(crate) fn kind(&self) -> &str {
        match self {
            Self::Refused { status, .. } if status.is_success() => "refused",
            Self::Refused { status, .. } => status.as_str(),
            Self::Malformed(_) => "malformed",
            Self::NotBearer => "not_bearer",
            Self::TooLong(_) => "too_long",
            Self::Connect(_) => "connect",
            Self::Transport(_) => "transport",
            Self::Timeout(_) => "timeout",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<reqwest::Error> for TokenError {
    /// Keeps the message of the innermost error: the outer ones only repeat the kind and the URL, which may contain
    /// secrets.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        let words = innermost.to_string();
        if error.is_connect() { Self::Connect(words) } else { Self::Transport(words) }
    }
}

fn in_brackets(code: Option<&&'static str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: Option<&'static str>) -> TokenError {
        TokenError::Refused { status: StatusCode::from_u16(status).unwrap(), code }
    }

    #[test]
    fn a_refusal_is_final_and_an_outage_is_not() {
        let table = [
            (refused(400, None), false),
            (refused(400, Some("invalid_scope")), false),
            (refused(400, Some("temporarily_unavailable")), true),
            (refused(401, Some("invalid_client")), false),
            (refused(403, None), false),
            (refused(307, None), false),
            (refused(408, None), true),
            (refused(429, None), true),
            (refused(500, None), true),
            (refused(503, Some("invalid_client")), true),
            (refused(200, Some("invalid_client")), false),
            (TokenError::NotBearer, false),
            (TokenError::Malformed("not JSON"), true),
            (TokenError::TooLong(1), true),
            (TokenError::Connect(String::new()), true),
            (TokenError::Transport(String::new()), true),
            (TokenError::Timeout(Duration::ZERO), true),
            (TokenError::Interrupted, true),
        ];
        for (error, retryable) in table {
            assert_eq!(error.is_retryable(), retryable, "{error}");
        }
    }

    #[test]
    fn a_refusal_names_its_status_and_its_code() {
        assert_eq!(
            refused(401, Some("invalid_client")).to_string(),
            "the token endpoint answered 401 Unauthorized (invalid_client)"
        );
        assert_eq!(refused(502, None).to_string(), "the token endpoint answered 502 Bad Gateway");
    }
    #[test]
    fn an_error_of_the_client_is_reported_without_its_url() {
        let failed = reqwest::Response::from(http::Response::builder().status(500).body("").unwrap());
        let url = failed.url().to_string();
        let error = failed.error_for_status().unwrap_err();
        assert!(error.to_string().contains(&url));
        assert!(!TokenError::from(error).to_string().contains(&url));
    }
}
