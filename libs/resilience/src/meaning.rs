use std::collections::BTreeMap;

use http::StatusCode;

/// The meaning of a finished call for its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The third party has accepted the request.
    Delivered,
    /// Another attempt may succeed.
    Retry,
    /// No other attempt can succeed.
    Dead,
}

/// The meanings of statuses.
#[derive(Debug, Clone, Default)]
pub struct Statuses(BTreeMap<u16, Meaning>);

impl Statuses {
    /// Returns the standard meanings, overridden by `others`.
    #[must_use]
    pub fn with(others: impl IntoIterator<Item = (u16, Meaning)>) -> Self {
        Self(others.into_iter().collect())
    }

    /// Returns the meaning of a status for the delivery.
    #[must_use]
    pub fn meaning(&self, status: StatusCode) -> Meaning {
        self.0.get(&status.as_u16()).copied().unwrap_or_else(|| usual(status))
    }

    /// Whether the status shows that the third party itself is failing and accepts no calls at all. A rejection
    /// concerns only the request that was sent.
    #[must_use]
    pub fn is_failing(&self, status: StatusCode) -> bool {
        let is_about_the_request = status.is_redirection() || status.is_client_error();
        self.meaning(status) == Meaning::Retry
            && (status == StatusCode::TOO_MANY_REQUESTS || !is_about_the_request)
    }
}

fn usual(status: StatusCode) -> Meaning {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => Meaning::Retry,
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => Meaning::Dead,
        status if status.is_success() => Meaning::Delivered,
        status if status.is_redirection() || status.is_client_error() => Meaning::Dead,
        _ => Meaning::Retry,
    }
}

/// Why a call ended without a complete response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection could be established.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The third party's certificate is not acceptable.
    Certificate,
    /// The response did not arrive in time.
    Timeout,
    /// The connection broke during the call.
    Transport,
}

impl Fault {
    /// Returns the meaning of the fault for the delivery.
    #[must_use]
    pub fn meaning(self) -> Meaning {
        match self {
            Self::Certificate => Meaning::Dead,
            Self::Connect | Self::Tls | Self::Timeout | Self::Transport => Meaning::Retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).unwrap()
    }

    #[test]
    fn a_status_has_a_meaning_and_may_count_as_a_failure() {
        use Meaning::{Dead, Delivered, Retry};
        let table = [
            (200, Delivered, false),
            (201, Delivered, false),
            (202, Delivered, false),
            (204, Delivered, false),
            (299, Delivered, false),
            (301, Dead, false),
            (302, Dead, false),
            (304, Dead, false),
            (307, Dead, false),
            (308, Dead, false),
            (400, Dead, false),
            (401, Dead, false),
            (403, Dead, false),
            (404, Dead, false),
            (408, Retry, false),
            (409, Dead, false),
            (410, Dead, false),
            (413, Dead, false),
            (422, Dead, false),
            (425, Retry, false),
            (429, Retry, true),
            (451, Dead, false),
            (499, Dead, false),
            (500, Retry, true),
            (501, Dead, false),
            (502, Retry, true),
            (503, Retry, true),
            (504, Retry, true),
            (505, Dead, false),
            (507, Retry, true),
            (599, Retry, true),
            // Outside of what RFC 9110 defines: the server does not know what it says.
            (101, Retry, true),
            (999, Retry, true),
        ];
        let statuses = Statuses::default();
        for (code, meaning, is_failing) in table {
            let status = status(code);
            assert_eq!(
                (statuses.meaning(status), statuses.is_failing(status)),
                (meaning, is_failing),
                "{code}"
            );
        }
    }

    #[test]
    fn a_destination_can_redefine_meanings() {
        use Meaning::{Dead, Delivered, Retry};
        let table = [
            (409, Delivered, false),
            (404, Retry, false),
            (302, Retry, false),
            (501, Retry, true),
            (200, Retry, true),
            (500, Dead, false),
            (503, Delivered, false),
            (429, Dead, false),
        ];
        let statuses = Statuses::with(table.map(|(code, meaning, _)| (code, meaning)));
        for (code, meaning, is_failing) in table {
            let status = status(code);
            assert_eq!(
                (statuses.meaning(status), statuses.is_failing(status)),
                (meaning, is_failing),
                "{code}"
            );
        }
        assert_eq!(statuses.meaning(status(410)), Dead);
    }

    #[test]
    fn a_fault_may_be_temporary_except_for_a_bad_certificate() {
        let table = [
            (Fault::Connect, Meaning::Retry),
            (Fault::Tls, Meaning::Retry),
            (Fault::Certificate, Meaning::Dead),
            (Fault::Timeout, Meaning::Retry),
            (Fault::Transport, Meaning::Retry),
        ];
        for (fault, meaning) in table {
            assert_eq!(fault.meaning(), meaning, "{fault:?}");
        }
    }
}
