use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::headers::{Headers, Malformed, name, parsed, put, required, text};
use crate::trace::TraceContext;

/// Where a record stands: `topic/partition/offset`, as text everywhere.
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
        parts().ok_or("is not topic/partition/offset")
    }
}

/// A record that somebody else produced onto a route's topic, on its way to ingest, which accepts
/// it as it would an HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The route on whose topic it was found.
    pub route: String,
    /// Where it was found; its idempotency key.
    pub origin: Origin,
    /// The media type it says it has.
    pub content_type: Option<String>,
    /// The trace it belongs to, if it says so.
    pub trace: Option<TraceContext>,
}

impl Adoption {
    /// The record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = Headers::new();
        put(&mut headers, name::CE_TYPE, self.route.clone());
        put(&mut headers, name::ORIGIN, self.origin.to_string());
        if let Some(content_type) = &self.content_type {
            put(&mut headers, name::CONTENT_TYPE, content_type.clone());
        }
        if let Some(trace) = &self.trace {
            trace.write(&mut headers);
        }
        headers
    }

    /// Reads a record of the adoptions topic.
    ///
    /// # Errors
    /// [`Malformed`] if a header is missing or cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Self, Malformed> {
        Ok(Self {
            route: required(headers, name::CE_TYPE)?.to_owned(),
            origin: parsed(headers, name::ORIGIN)?,
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
            content_type: None,
            trace: None,
        };
        assert_eq!(Adoption::from_headers(&adoption.to_headers()), Ok(adoption));
    }

    #[test]
    fn an_origin_that_is_not_one_is_refused() {
        for text in ["", "topic", "topic/1", "topic/x/1", "topic/1/x"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
