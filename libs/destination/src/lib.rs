//! Third parties, and how each kind of destination calls them.
//!
//! A [`Destination`] makes one call for one delivery. It knows nothing of retries, breakers, limits or order: these
//! are the same for all kinds, and dispatch applies them to the result of the call. What a failed call means, only its
//! kind knows, so the kind classifies it ([`CallFailure`]).
//!
//! [`Settings`] is a section `destinations.<name>` of the configuration: the common settings, and those of the kind
//! that `type` selects.
//!
//! | kind | module | a call |
//! |---|---|---|
//! | `http`, the default | [`http`] | posts the body to a URL, with an OAuth2 token if configured |
//! | `kafka` | [`kafka`] | produces a record to a topic of this or another cluster |
//!
//! To add a kind, write a module with its settings ([`KindSettings`]) and its [`Destination`], and add it to [`Kind`].

mod breaker;
mod kind;
mod retry;
mod settings;

pub mod http;
pub mod kafka;

use std::time::Duration;

use ::http::HeaderValue;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use throughline_messages::{DeferralCause, Failure, RequestRecord};
use throughline_resilience::Cause;

pub use breaker::Breaker;
pub use kind::{BuildError, Context, Kind, KindSettings};
pub use retry::Retry;
pub use settings::{Limits, Settings};

/// A third party that can be called.
pub trait Destination: Send + Sync + 'static {
    /// Makes one call, within the request's timeout.
    ///
    /// # Errors
    /// If the call cannot be made, so that the delivery has to wait.
    fn call<'a>(&'a self, request: &'a OutgoingRequest<'a>) -> BoxFuture<'a, Result<Called, Deferral>>;

    /// Returns whether the credentials for the third party are refused, so that an operator has to correct them.
    fn credentials_are_refused(&self) -> bool {
        false
    }
}

/// A request as it is delivered to one destination.
pub struct OutgoingRequest<'a> {
    /// The description of the request.
    pub request: &'a RequestRecord,
    /// The key of the request's record: its ordering key, or else its id.
    pub key: Option<&'a Bytes>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The body, transformed for this destination.
    pub body: Body,
    /// Timeout for the whole call.
    pub timeout: Duration,
}

/// A body and its media type.
#[derive(Debug, Clone)]
pub struct Body {
    /// The bytes.
    pub content: Bytes,
    /// The media type.
    pub content_type: HeaderValue,
}

/// The result of a call.
#[derive(Debug)]
pub struct Called {
    /// The status code of the response, if the kind has status codes and a response has begun.
    pub status: Option<u16>,
    /// The beginning of the response, for operators.
    pub excerpt: Option<String>,
    /// Whether the third party has accepted the request.
    pub result: Result<(), CallFailure>,
}

/// A call that the third party did not accept, or did not answer.
#[derive(Debug)]
pub struct CallFailure {
    /// The error, without secrets.
    pub failure: Failure,
    /// How the failure affects a retry; `None` if no other attempt can succeed.
    pub retry: Option<Cause>,
    /// Whether the third party itself is failing and accepts no calls at all, as far as the failure shows.
    pub is_outage: bool,
}

impl Called {
    /// Returns whether the third party is healthy: it answered, even if it did not accept this request.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.result.as_ref().err().is_none_or(|failed| !failed.is_outage)
    }
}

/// The reason why no call is made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deferral {
    /// The cause.
    pub cause: DeferralCause,
    /// How long to wait before trying again.
    pub wait: Duration,
}
