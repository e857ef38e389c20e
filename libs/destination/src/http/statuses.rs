//! The meanings of a third party's statuses.
//!
//! | status | meaning |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429 | retry |
//! | 5xx except 501 and 505, and statuses that RFC 9110 does not define | retry |
//! | 501, 505, 3xx, other 4xx | dead |

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The meaning of a third party's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`delivered`, `retry` or `dead`"))]
pub enum StatusMeaning {
    /// The third party has accepted the request.
    Delivered,
    /// A later attempt may succeed.
    Retry,
    /// No later attempt can succeed.
    Dead,
}

/// The meanings of statuses.
#[derive(Debug, Clone, Default)]
pub(super) struct Statuses(BTreeMap<u16, StatusMeaning>);

impl Statuses {
    /// Returns the standard meanings, overridden by `others`.
    pub(super) fn with(others: impl IntoIterator<Item = (u16, StatusMeaning)>) -> Self {
        Self(others.into_iter().collect())
    }

    /// Returns the meaning of a status for the delivery.
    pub(super) fn meaning(&self, status: StatusCode) -> StatusMeaning {
        self.0.get(&status.as_u16()).copied().unwrap_or_else(|| usual(status))
    }

    /// Whether the status shows that the third party itself is failing and accepts no calls at all. A rejection
    /// concerns only the request that was sent.
    pub(super) fn is_failing(&self, status: StatusCode) -> bool {
        let is_about_the_request = status.is_redirection() || status.is_client_error();
        self.meaning(status) == StatusMeaning::Retry
            && (status == StatusCode::TOO_MANY_REQUESTS || !is_about_the_request)
    }
}

fn usual(status: StatusCode) -> StatusMeaning {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            StatusMeaning::Retry
        }
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => StatusMeaning::Dead,
        status if status.is_success() => StatusMeaning::Delivered,
        status if status.is_redirection() || status.is_client_error() => StatusMeaning::Dead,
        _ => StatusMeaning::Retry,
    }
}

/// An HTTP status as the key of a mapping: `409`.
pub(super) struct StatusText;

impl StatusText {
    fn parse(text: &str) -> Option<u16> {
        text.parse().ok().filter(|status| (100..=599).contains(status))
    }
}

impl JsonSchema for StatusText {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[1-5][0-9]{2}$"})
    }
}

/// The written form of status meanings: keys are strings in every source.
pub(super) mod meanings {
    use std::collections::BTreeMap;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer};

    use super::{StatusMeaning, StatusText};

    pub(in crate::http) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u16, StatusMeaning>, D::Error> {
        let meanings = BTreeMap::<String, StatusMeaning>::deserialize(deserializer)?;
        let parse = |(text, meaning): (String, _)| Some((StatusText::parse(&text)?, meaning));
        let parsed =
            meanings.into_iter().map(|entry| parse(entry).ok_or_else(|| D::Error::custom("not a status")));
        parsed.collect()
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
        use StatusMeaning::{Dead, Delivered, Retry};
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
        use StatusMeaning::{Dead, Delivered, Retry};
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
}
