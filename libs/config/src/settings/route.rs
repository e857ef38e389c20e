use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::Rate;

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
    /// JSON pointer (RFC 6901) into the body: requests with the same value there are delivered in order. It is a
    /// string, a number or a boolean of at most 255 characters; beyond, 422.
    #[serde(default)]
    pub ordering_key: Option<String>,
    /// What becomes of later requests with the same ordering key while one is tried again. Default
    /// `continue`.
    #[serde(default)]
    pub after_failure: AfterFailure,
    /// Names of request headers that are kept with the request.
    #[serde(default)]
    pub keep_headers: Vec<String>,
    /// Most requests of each client in a time, such as `100/s`, for each ingest; beyond, 429. So many may come at
    /// once, and then one after the other at that pace. Without `clients` it holds for all callers together. Default
    /// none.
    #[serde(default)]
    pub rate: Option<Rate>,
}

/// What becomes of later requests with the same ordering key while one is tried again at a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`continue` or `hold`"))]
pub enum AfterFailure {
    /// They are delivered: one failure holds nobody up.
    #[default]
    Continue,
    /// They wait until it has ended: the order is kept, come what may.
    Hold,
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
