use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::foreign::Origin;
use crate::headers::{Headers, name, put};
use crate::outcome::ErrorClass;
use crate::unknown::{self, InvalidName, Unknown};

/// Why a delivery ended without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", expecting = "must be the name of a reason, such as `attempts_exhausted`")]
pub enum DeadReason {
    /// The third party rejected it for good: a retry would not help.
    Rejected,
    /// The last permitted attempt failed.
    AttemptsExhausted,
    /// Its time window at the destination closed before it was delivered.
    Expired,
    /// The body could not be transformed for the destination.
    Untransformable,
    /// The configuration has no such route or destination.
    Unroutable,
    /// The record cannot be read.
    Malformed,
    /// The broker refuses the record.
    Unpublishable,
    /// The service failed on it twice because of a defect of its own.
    Internal,
    /// A reason of a later version, by its name.
    #[serde(untagged)]
    Other(Unknown),
}

impl DeadReason {
    /// Returns the reason's name, as on the wire and in the database.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Expired => "expired",
            Self::Untransformable => "untransformable",
            Self::Unroutable => "unroutable",
            Self::Malformed => "malformed",
            Self::Unpublishable => "unpublishable",
            Self::Internal => "internal",
            Self::Other(name) => name.as_str(),
        }
    }
}

impl FromStr for DeadReason {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        unknown::parse(name)
    }
}

/// The content of a dead letter's headers, apart from the headers of the record that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The destination that did not receive it; `None` if all destinations of the request are affected, or if the
    /// record could not be read that far.
    pub destination: Option<String>,
    /// Why it ended.
    pub reason: DeadReason,
    /// The last error, as text.
    pub error: String,
    /// The record that it comes from; for an adopted request, the foreign producer's record. `None` if there never was
    /// a record.
    pub origin: Option<Origin>,
    /// The last attempt; `None` if the record could not be read that far.
    pub last: Option<LastAttempt>,
}

/// The last attempt, as a dead letter reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastAttempt {
    /// How many attempts were made.
    pub number: u32,
    /// The class of its error.
    pub class: ErrorClass,
    /// The status of the response, if there was one.
    pub status: Option<u16>,
    /// The beginning of the response's body.
    pub response_excerpt: Option<String>,
}

impl DeadLetter {
    /// Returns the dead letter's headers: those of the record that it comes from, and its own.
    #[must_use]
    pub fn to_headers(&self, mut origin_headers: Headers) -> Headers {
        // The signature covers the original record only.
        origin_headers.retain(|(header, _)| header != name::SIGNATURE);
        if let Some(destination) = &self.destination {
            origin_headers.retain(|(header, _)| header != name::DESTINATION);
            put(&mut origin_headers, name::DESTINATION, destination.clone());
        }
        put(&mut origin_headers, name::REASON, self.reason.as_str().to_owned());
        put(&mut origin_headers, name::ERROR, self.error.clone());
        if let Some(origin) = &self.origin {
            origin_headers.retain(|(header, _)| header != name::ORIGIN);
            put(&mut origin_headers, name::ORIGIN, origin.to_string());
        }
        // On a retry, this header has the number of the attempt to make.
        origin_headers.retain(|(header, _)| header != name::ATTEMPT);
        if let Some(last) = &self.last {
            put(&mut origin_headers, name::ATTEMPT, last.number.to_string());
            put(&mut origin_headers, name::ERROR_CLASS, last.class.as_str().to_owned());
            if let Some(status) = last.status {
                put(&mut origin_headers, name::STATUS, status.to_string());
            }
            if let Some(excerpt) = &last.response_excerpt {
                put(&mut origin_headers, name::RESPONSE_EXCERPT, excerpt.clone());
            }
        }
        origin_headers
    }

    /// Returns the headers of a dead letter that is sent without its value because the broker refuses the value.
    #[must_use]
    pub fn without_value(mut headers: Headers) -> Headers {
        put(&mut headers, name::LEFT_OUT, "value");
        headers
    }
}
