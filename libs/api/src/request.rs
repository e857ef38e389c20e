use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Unknown};
use throughline_snowflake::RequestId;

/// Identifies a request in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestPath {
    /// The request's id, 20 digits.
    pub id: RequestId,
}

/// Identifies a delivery in a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryPath {
    /// The request's id, 20 digits.
    pub id: RequestId,
    /// Name of its destination.
    #[schemars(regex(pattern = r"^[^\u0000]*$"))]
    pub destination: String,
}

/// The deliveries to cancel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Cancellation {
    /// Cancel only the delivery to this destination (default: all deliveries).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\u0000]*$"))]
    pub destination: Option<String>,
}

/// The answer to an accepted request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The request's id, 20 digits.
    pub request_id: RequestId,
}

/// A request and its deliveries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// The request's id, 20 digits.
    pub request_id: RequestId,
    /// The route that accepted it.
    pub route: String,
    /// Requests with the same key are delivered in order.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ordering_key: Option<String>,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// The media type of the body.
    pub content_type: String,
    /// Size of the body, in bytes.
    pub body_bytes: u64,
    /// The headers that the route keeps, each a name and a value.
    pub headers: Vec<(String, String)>,
    /// The trace that it belongs to, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// Name of the client that sent the request, if clients are configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client: Option<String>,
    /// `topic/partition/offset` of the record from which the request was adopted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<String>,
    /// Its deliveries, ordered by destination.
    pub deliveries: Vec<Delivery>,
}

/// The state of the request at one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delivery {
    /// The destination's name.
    pub destination: String,
    /// Its state.
    pub state: DeliveryState,
    /// When the next step is due, unless an outcome arrives earlier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub due_at: Option<DateTime<Utc>>,
    /// Why the delivery waits without counting an attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deferred_by: Option<DeferralCause>,
    /// When its state last changed.
    pub updated_at: DateTime<Utc>,
    /// Why it is dead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<DeadReason>,
    /// The status of the last response.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_status: Option<u16>,
    /// The class of the last attempt's error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error_class: Option<ErrorClass>,
    /// The last error, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
    /// Its attempts, in order.
    pub attempts: Vec<Attempt>,
}

/// The state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// No attempt was reported yet.
    Pending,
    /// An attempt failed, and a retry follows.
    Retrying,
    /// The third party accepted it.
    Delivered,
    /// It ended without success.
    Dead,
    /// It was cancelled.
    Cancelled,
}

impl DeliveryState {
    /// Returns the state's name, as in responses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One call to the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attempt {
    /// The number of the attempt within the delivery, from 1.
    pub number: u32,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Its outcome for the delivery.
    pub outcome: AttemptOutcome,
    /// The status of the response, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The class of its error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_class: Option<ErrorClass>,
    /// The error, as text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The beginning of the response's body.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_excerpt: Option<String>,
    /// Its trace, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// `topic/partition/offset` of the record that caused the attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<String>,
}

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", expecting = "the name of an outcome")]
pub enum AttemptOutcome {
    /// The third party accepted the request.
    Delivered,
    /// It failed, and a retry follows.
    Retry,
    /// It failed, and no retry follows.
    Dead,
    /// An outcome of a later version, by its name.
    #[serde(untagged)]
    Other(Unknown),
}

impl AttemptOutcome {
    /// Returns the outcome's name, as in responses.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Dead => "dead",
            Self::Other(name) => name.as_str(),
        }
    }
}
