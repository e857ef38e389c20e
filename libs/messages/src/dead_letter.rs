use serde::{Deserialize, Serialize};

use crate::foreign::Origin;
use crate::headers::{Headers, name, put};

/// Why a delivery ended without success. The list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The third party's answer is final: trying again would not help.
    Rejected,
    /// The last attempt failed, and there are no more.
    AttemptsExhausted,
    /// The body could not be transformed for the destination.
    Untransformable,
    /// The configuration knows no such route or destination.
    Unroutable,
    /// The record cannot be read.
    Malformed,
    /// The broker refuses the record.
    Unpublishable,
}

impl DeadReason {
    /// The reason's name, as on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Untransformable => "untransformable",
            Self::Unroutable => "unroutable",
            Self::Malformed => "malformed",
            Self::Unpublishable => "unpublishable",
        }
    }
}

/// What a dead letter's headers say beyond those of the record that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The destination that did not get it; none if the record was never understood that far.
    pub destination: Option<String>,
    /// Why it ended.
    pub reason: DeadReason,
    /// The last error, in words.
    pub error: String,
    /// The record it comes from.
    pub origin: Origin,
}

impl DeadLetter {
    /// The dead letter's headers: those of the record it comes from, and its own.
    #[must_use]
    pub fn to_headers(&self, mut origin_headers: Headers) -> Headers {
        if let Some(destination) = &self.destination {
            origin_headers.retain(|(header, _)| header != name::DESTINATION);
            put(&mut origin_headers, name::DESTINATION, destination.clone());
        }
        put(&mut origin_headers, name::REASON, self.reason.as_str());
        put(&mut origin_headers, name::ERROR, self.error.clone());
        put(&mut origin_headers, name::ORIGIN, self.origin.to_string());
        origin_headers
    }
}
