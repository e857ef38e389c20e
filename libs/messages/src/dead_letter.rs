use serde::{Deserialize, Serialize};

use crate::foreign::Origin;
use crate::headers::{Headers, name, put};
use crate::outcome::ErrorClass;
use crate::unknown::Unknown;

/// Why a delivery ended without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The third party's answer is final: trying again would not help.
    Rejected,
    /// The last attempt failed, and there are no more.
    AttemptsExhausted,
    /// Its time is over: the destination's window has closed before it could be delivered.
    Expired,
    /// The body could not be transformed for the destination.
    Untransformable,
    /// The configuration knows no such route or destination.
    Unroutable,
    /// The record cannot be read.
    Malformed,
    /// The broker refuses the record.
    Unpublishable,
    /// The service failed on it twice, by a defect of its own.
    Internal,
    /// A reason that a later version knows, by its name.
    #[serde(untagged)]
    Other(Unknown),
}

impl DeadReason {
    /// The reason's name, as on the wire and in the database.
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

/// What a dead letter's headers say beyond those of the record that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The destination that did not get it; none if all of the request's are meant, or if the record was never
    /// understood that far.
    pub destination: Option<String>,
    /// Why it ended.
    pub reason: DeadReason,
    /// The last error, in words.
    pub error: String,
    /// The record it comes from, of an adopted one that of who produced it; none if there never was one.
    pub origin: Option<Origin>,
    /// How it ended; none if the record was never understood that far.
    pub last: Option<LastAttempt>,
}

/// What a dead letter tells of the last attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastAttempt {
    /// How many attempts were made.
    pub number: u32,
    /// What kind of error it met.
    pub class: ErrorClass,
    /// The status of the response, if there was one.
    pub status: Option<u16>,
    /// The beginning of the response's body.
    pub response_excerpt: Option<String>,
}

impl DeadLetter {
    /// The dead letter's headers: those of the record it comes from, and its own.
    #[must_use]
    pub fn to_headers(&self, mut origin_headers: Headers) -> Headers {
        // Signed was the record as it came.
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
        // Of a retry it is the number of the attempt that was to be made.
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

    /// The headers of a dead letter that goes without its value, because the broker refuses it.
    #[must_use]
    pub fn without_value(mut headers: Headers) -> Headers {
        put(&mut headers, name::LEFT_OUT, "value");
        headers
    }
}
