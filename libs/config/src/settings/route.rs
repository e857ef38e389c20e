use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named way in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The path of its POST, e.g. `/one`.
    pub path: String,
    /// The topic its requests are published to.
    pub topic: String,
    /// Names of the destinations, at least one.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// A JSON Schema which bodies must fulfil: itself, or `{file: PATH}`.
    #[serde(default)]
    pub schema: Option<SchemaSource>,
    /// JSON pointer (RFC 6901) into the body: requests with the same value there are delivered in
    /// order.
    #[serde(default)]
    pub ordering_key: Option<String>,
    /// Names of request headers that are kept with the request.
    #[serde(default)]
    pub keep_headers: Vec<String>,
}

/// A JSON Schema, read and known to compile.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend(
    "type" = "object",
    "x-expected" = "a JSON Schema, or `{file: PATH}`",
    "x-reference" = "schema"
))]
pub struct SchemaSource(serde_json::Value);

impl SchemaSource {
    /// The schema itself.
    #[must_use]
    pub fn document(&self) -> &serde_json::Value {
        &self.0
    }
}
