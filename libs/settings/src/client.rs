use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use throughline_config::Secret;

/// A client of ingest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The key that the client sends as `Authorization: Bearer <key>`: at least 16 visible ASCII characters.
    pub key: Secret,
    /// Names of the routes that the client may post to. Default all.
    #[serde(default)]
    pub routes: Option<Vec<String>>,
    /// Whether the client may use the management API under `/v1`. Default false.
    #[serde(default)]
    pub manage: bool,
}
