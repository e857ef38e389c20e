use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::secret::{Property, Secret};

/// The broker.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// `host:port`, several with commas. It must be given.
    pub bootstrap_servers: String,
    /// Prefix of internal topics and of consumer groups. Default `throughline`.
    pub prefix: String,
    /// How records are compressed. Default `lz4`.
    pub compression: Compression,
    /// Static membership: `group.instance.id`, unique to the replica. Default none.
    pub group_instance_id: Option<String>,
    /// Topics at start.
    pub topics: Topics,
    /// The key that records between the services are signed with, so that records of others do not pass for them: at
    /// least 16 visible ASCII characters, the same for all services. Default one that everybody knows, for development.
    pub signing_key: Option<Secret>,
    /// Another key whose signatures are accepted too, for a change of keys. Default none.
    pub accepted_key: Option<Secret>,
    /// Further librdkafka settings by their own names; a value may be a secret.
    #[schemars(with = "BTreeMap<String, Property>")]
    pub properties: BTreeMap<String, Secret>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            prefix: "throughline".to_owned(),
            compression: Compression::Lz4,
            group_instance_id: None,
            topics: Topics::default(),
            signing_key: None,
            accepted_key: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Bodies are limited by ingest, at 1 MiB by default; headers and a raised limit must fit too.
const LARGEST_RECORD: u64 = 8 << 20;

/// Signs records where nothing else is configured. It is in the source, so with `environment: production` it is refused.
pub(crate) const DEVELOPMENT_KEY: &str = "development-only";

impl Kafka {
    /// The largest record that is produced, headers included, and that a topic created here takes:
    /// `message.max.bytes` of the properties. Default 8 MiB.
    #[must_use]
    pub fn largest_record(&self) -> u64 {
        let configured = self.properties.get("message.max.bytes");
        configured.and_then(|bytes| bytes.expose().parse().ok()).unwrap_or(LARGEST_RECORD)
    }

    /// The key that records are signed with.
    #[must_use]
    pub fn signing_key(&self) -> &str {
        self.signing_key.as_ref().map_or(DEVELOPMENT_KEY, Secret::expose)
    }

    /// The key whose signatures are accepted too.
    #[must_use]
    pub fn accepted_key(&self) -> Option<&str> {
        self.accepted_key.as_ref().map(Secret::expose)
    }
}

/// Topics at start.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// Create those that are missing. Default false: a missing topic is an error.
    pub create: bool,
    /// Partitions of a topic that is created. Default 12.
    pub partitions: NonZeroU32,
    /// Replicas of a topic that is created. Default 1. Of three or more, two must have a record before it counts as
    /// published (`min.insync.replicas`).
    pub replication: NonZeroU32,
}

impl Default for Topics {
    fn default() -> Self {
        Self { create: false, partitions: super::at_least_one(12), replication: NonZeroU32::MIN }
    }
}

/// How records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`lz4`, `zstd` or `none`"))]
pub enum Compression {
    /// Fast.
    Lz4,
    /// Smaller.
    Zstd,
    /// Not at all.
    None,
}
