use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use throughline_config::{Findings, Path, Property, Secret, at_least_one};

/// The Kafka broker.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `host:port`; several are separated by commas. Required.
    pub bootstrap_servers: String,
    /// Prefix of the names of internal topics and consumer groups. Default `throughline`.
    pub prefix: String,
    /// How records are compressed. Default `lz4`.
    pub compression: Compression,
    /// Static group membership: `group.instance.id`, unique to each replica. Default none.
    pub group_instance_id: Option<String>,
    /// How topics are created when a service starts.
    pub topics: Topics,
    /// The key that signs the records between the services, so that records of other producers are not mistaken for
    /// them: at least 16 visible ASCII characters, the same for all services. The default is a publicly known key,
    /// for development only.
    pub signing_key: Option<Secret>,
    /// A second key, which also validates signatures, for key rotation. Default none.
    pub accepted_key: Option<Secret>,
    /// Further librdkafka settings by their own names; a value may be a secret.
    #[schemars(with = "BTreeMap<String, Property>")]
    pub properties: BTreeMap<String, Secret>,
}

impl Default for Settings {
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

/// Ingest limits bodies, by default to 1 MiB; headers and a raised body limit must fit too.
const LARGEST_RECORD: u64 = 8 << 20;

/// The librdkafka properties that hold passwords.
const PASSWORDS: [&str; 4] =
    ["sasl.password", "sasl.oauthbearer.client.secret", "ssl.key.password", "ssl.keystore.password"];

/// Signs records if no key is configured. It is public in the source, so `environment: production` rejects it.
pub const DEVELOPMENT_KEY: &str = "development-only";

impl Settings {
    /// Returns the maximum size of a produced record in bytes, headers included, which is also the limit of topics
    /// created here: `message.max.bytes` of the properties. Default 8 MiB.
    #[must_use]
    pub fn largest_record(&self) -> u64 {
        let configured = self.properties.get("message.max.bytes");
        configured.and_then(|bytes| bytes.expose().parse().ok()).unwrap_or(LARGEST_RECORD)
    }

    /// Checks the meaning of settings of valid form.
    pub fn check(&self, path: &Path, findings: &mut Findings) {
        findings.expect(
            !self.bootstrap_servers.trim().is_empty(),
            || path.key("bootstrap_servers"),
            "is missing; expected the addresses of the brokers, such as `kafka-1:9092,kafka-2:9092`",
        );
        findings.expect(
            is_topic_name(&self.prefix) && self.prefix.len() <= LONGEST_PREFIX,
            || path.key("prefix"),
            "expected at most 200 letters, digits, `.`, `_` and `-`, because the names of topics begin with it",
        );
        findings.expect(
            self.group_instance_id.as_deref().is_none_or(is_topic_name),
            || path.key("group_instance_id"),
            "expected letters, digits, `.`, `_` and `-`",
        );
        for (name, key) in [("signing_key", &self.signing_key), ("accepted_key", &self.accepted_key)] {
            if let Some(key) = key {
                findings.expect_key(key.expose(), || path.key(name));
            }
        }
    }

    /// Returns the passwords among the properties.
    pub fn passwords<'a>(
        properties: &'a BTreeMap<String, Secret>,
        path: &Path,
    ) -> impl Iterator<Item = (Path, &'a str)> {
        let password = |name: &str| Some((path.key(name), properties.get(name)?.expose()));
        PASSWORDS.into_iter().filter_map(password)
    }

    /// Returns the key that signs records.
    #[must_use]
    pub fn signing_key(&self) -> &str {
        self.signing_key.as_ref().map_or(DEVELOPMENT_KEY, Secret::expose)
    }

    /// Returns the second key that validates signatures, if configured.
    #[must_use]
    pub fn accepted_key(&self) -> Option<&str> {
        self.accepted_key.as_ref().map(Secret::expose)
    }
}

/// How topics are created when a service starts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Topics {
    /// Whether missing topics are created. Default false: a missing topic is an error.
    pub create: bool,
    /// Number of partitions of a created topic. Default 12.
    pub partitions: NonZeroU32,
    /// Replication factor of a created topic. With three or more, two replicas must store a record before it counts as
    /// published (`min.insync.replicas`). Default 1.
    pub replication: NonZeroU32,
}

impl Default for Topics {
    fn default() -> Self {
        Self { create: false, partitions: at_least_one(12), replication: NonZeroU32::MIN }
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
    /// No compression.
    None,
}

/// The longest prefix, in characters; leaves room for the names of internal topics.
const LONGEST_PREFIX: usize = 200;

/// Returns whether Kafka accepts a topic of this name.
#[must_use]
pub fn is_topic_name(name: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=249).contains(&name.len()) && name.chars().all(is_legal) && !matches!(name, "." | "..")
}
