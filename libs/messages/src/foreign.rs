use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::headers::{Headers, Malformed, find, name, parsed, put, required, text};
use crate::trace::TraceContext;

/// The position of a record: `topic/partition/offset`, as text everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Origin {
    /// The topic; Kafka allows no `/` in its name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.to_string()
    }
}

impl TryFrom<String> for Origin {
    type Error = <Self as FromStr>::Err;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let mut parts = text.rsplitn(3, '/');
            let offset = parts.next()?.parse().ok()?;
            let partition = parts.next()?.parse().ok()?;
            Some(Self { topic: parts.next()?.to_owned(), partition, offset })
        };
        parts().ok_or("expected topic/partition/offset")
    }
}

/// A foreign record: another system produced it onto a route's topic. Dispatch sends it to ingest, which accepts it
/// like an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The route that owns the topic.
    pub route: String,
    /// The record's position on that topic.
    pub origin: Origin,
    /// The record's timestamp on that topic, to the millisecond.
    pub origin_time: Option<DateTime<Utc>>,
    /// The media type from its headers.
    pub content_type: Option<String>,
    /// The trace from its headers.
    pub trace: Option<TraceContext>,
}

impl Adoption {
    /// Returns the record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = Headers::new();
        put(&mut headers, name::CE_TYPE, self.route.clone());
        put(&mut headers, name::ORIGIN, self.origin.to_string());
        if let Some(time) = self.origin_time {
            put(&mut headers, name::ORIGIN_TIME, time.to_rfc3339_opts(SecondsFormat::Millis, true));
        }
        if let Some(content_type) = &self.content_type {
            put(&mut headers, name::CONTENT_TYPE, content_type.clone());
        }
        if let Some(trace) = &self.trace {
            trace.write(&mut headers);
        }
        headers
    }

    /// Returns a digest of the record's position, time and value. It distinguishes the record from all others,
    /// including one at the same position of a topic that was deleted and created again. Two records can have the same
    /// digest only with `CreateTime`, if a producer that sets the time itself has produced the same value at the same
    /// position of both topics.
    #[must_use]
    pub fn identity(&self, value: &[u8]) -> [u8; 32] {
        let time = self.origin_time.map_or_else(String::new, |time| time.timestamp_millis().to_string());
        let mut digest = Sha256::new();
        for part in [self.origin.to_string().as_bytes(), time.as_bytes(), value] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// Reads a record of the adoptions topic.
    ///
    /// # Errors
    /// [`Malformed`] if a header is missing or cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Self, Malformed> {
        Ok(Self {
            route: required(headers, name::CE_TYPE)?.to_owned(),
            origin: parsed(headers, name::ORIGIN)?,
            origin_time: match find(headers, name::ORIGIN_TIME) {
                Some(_) => Some(parsed(headers, name::ORIGIN_TIME)?),
                None => None,
            },
            content_type: text(headers, name::CONTENT_TYPE)?.map(str::to_owned),
            trace: TraceContext::from_headers(headers),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adoption_is_read_back() {
        let adoption = Adoption {
            route: "one".to_owned(),
            origin: Origin { topic: "one-request-local".to_owned(), partition: 2, offset: 17 },
            origin_time: DateTime::from_timestamp_millis(1_767_225_600_123),
            content_type: None,
            trace: None,
        };
        assert_eq!(Adoption::from_headers(&adoption.to_headers()), Ok(adoption.clone()));
        let timeless = Adoption { origin_time: None, ..adoption };
        assert_eq!(Adoption::from_headers(&timeless.to_headers()), Ok(timeless));
    }

    #[test]
    fn a_record_is_distinguished_from_one_at_the_same_position_of_a_recreated_topic() {
        let adoption = |offset, millis| Adoption {
            route: "one".to_owned(),
            origin: Origin { topic: "one-request-local".to_owned(), partition: 2, offset },
            origin_time: DateTime::from_timestamp_millis(millis),
            content_type: None,
            trace: None,
        };
        let identity = adoption(17, 1).identity(b"{}");
        assert_eq!(
            identity,
            Adoption { content_type: Some("a/b".to_owned()), ..adoption(17, 1) }.identity(b"{}")
        );
        for other in [
            adoption(17, 2).identity(b"{}"),
            adoption(18, 1).identity(b"{}"),
            adoption(17, 1).identity(b"[]"),
        ] {
            assert_ne!(identity, other);
        }
    }

    #[test]
    fn an_invalid_origin_is_rejected() {
        for text in ["", "topic", "topic/1", "topic/x/1", "topic/1/x"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
