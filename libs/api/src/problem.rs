use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Problem details of a refused request (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// URI of the problem type; stable across versions.
    #[serde(rename = "type")]
    pub kind: String,
    /// Human-readable name of the problem type.
    pub title: String,
    /// HTTP status, as in the status line.
    pub status: u16,
    /// Details of this occurrence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// The positions in the body that violate the route's requirements.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<Violation>,
}

/// A position in the body that violates the route's requirements, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Violation {
    /// JSON pointer (RFC 6901) to the position.
    pub pointer: String,
    /// Description of the violation.
    pub detail: String,
}
