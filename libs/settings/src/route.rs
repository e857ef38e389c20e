use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use throughline_config::Rate;

/// A route that accepts requests.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The path that requests are posted to, for example `/one`.
    pub path: String,
    /// The topic that requests are published to.
    pub topic: String,
    /// Names of the destinations of the requests, at least one. Required.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// A JSON Schema that bodies must match: inline, or `{file: PATH}`.
    #[serde(default)]
    pub schema: Option<SchemaSource>,
    /// JSON pointer (RFC 6901) into the body: requests with the same value there are delivered in order. The value is
    /// a string, a number or a boolean of at most 255 characters; a longer one is rejected with 422.
    #[serde(default)]
    pub ordering_key: Option<String>,
    /// What a request that fails means for later ones with the same ordering key. `relaxed`: they are delivered
    /// meanwhile. `strict`: they wait until it has ended. Default `relaxed`.
    #[serde(default)]
    pub ordering: Ordering,
    /// Names of request headers that are stored with the request.
    #[serde(default)]
    pub keep_headers: Vec<String>,
    /// Maximum rate of requests per client, such as `100/s`, for each ingest replica; beyond it, the response is 429.
    /// A burst of the whole count is accepted at once, and after it single requests at that pace. Without `clients`,
    /// all callers share the rate. Default none.
    #[serde(default)]
    pub rate: Option<Rate>,
}

/// Whether later requests with the same ordering key wait while a failed one is retried at a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`relaxed` or `strict`"))]
pub enum Ordering {
    /// They are delivered: a failure blocks no other request.
    #[default]
    Relaxed,
    /// They wait until the failed one has ended: the order is always preserved.
    Strict,
}

/// A JSON Schema that was read and compiles.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend(
    "type" = "object",
    "x-expected" = "a JSON Schema, or `{file: PATH}`",
    "x-reference" = "schema"
))]
pub struct SchemaSource(serde_json::Value);

impl SchemaSource {
    /// Returns the schema document.
    #[must_use]
    pub fn document(&self) -> &serde_json::Value {
        &self.0
    }
}
