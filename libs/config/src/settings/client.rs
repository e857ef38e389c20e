use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Somebody who may call ingest.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// What it sends as `Authorization: Bearer <key>`: at least 16 visible ASCII characters.
    pub key: Secret,
    /// Names of the routes that it may post to. Default all.
    #[serde(default)]
    pub routes: Option<Vec<String>>,
    /// Whether it may use all that is under `/v1`. Default false.
    #[serde(default)]
    pub manage: bool,
}
