use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_snowflake::RequestId;

use crate::request::DeliveryState;

/// The history and the current state of a request, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The request's id.
    pub request_id: RequestId,
    /// URL of a page that shows more about the request, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub request_url: Option<String>,
    /// The events of the request, in order.
    #[serde(rename = "story")]
    pub history: Vec<Event>,
    /// The current state of each delivery.
    pub now: Vec<DeliveryExplanation>,
}

/// An event in the history of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Absent if the event concerns the request as a whole.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub destination: Option<String>,
    /// What happened.
    pub text: String,
    /// The trace that shows the event, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// URL of a page that shows the trace, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_url: Option<String>,
}

/// The current state of a delivery: the condition that it waits for, until when, and what would advance it; or how it
/// ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeliveryStatus")]
pub struct DeliveryExplanation {
    /// The destination's name.
    pub destination: String,
    /// Its state.
    pub state: DeliveryState,
    /// The explanation.
    pub text: String,
}
