use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use throughline_config::{DurationText, Findings, Path, Rate, at_least_one, variants};
use throughline_transform::Filter;

use crate::breaker::Breaker;
use crate::kind::{self, Kind};
use crate::retry::Retry;

/// A third party that requests are delivered to: what all kinds of destinations have in common, and the settings of
/// its kind in the same mapping.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields, transform = add_kinds)]
pub struct Settings {
    /// The kind, which `type` selects; `http` by default.
    #[serde(flatten)]
    #[schemars(skip)]
    pub kind: Kind,
    /// A jq filter that builds the body; without one, the request's body is sent unchanged, byte for byte. A filter
    /// that exceeds its limits is terminated, and the delivery is dead.
    #[serde(default)]
    pub filter: Option<String>,
    /// Timeout for a whole attempt. Default 10 s.
    #[serde(with = "DurationText", default = "ten_seconds")]
    pub timeout: Duration,
    /// How failed attempts are retried.
    #[serde(default)]
    pub retry: Retry,
    /// The circuit breaker.
    #[serde(default)]
    pub breaker: Breaker,
    /// Limits on concurrent calls and on their rate.
    #[serde(default)]
    pub limits: Limits,
}

impl Settings {
    /// Checks the meaning of settings of valid form.
    pub fn check(&self, path: &Path, findings: &mut Findings) {
        if let Some(Err(error)) = self.filter.as_deref().map(Filter::compile) {
            findings.add(path.key("filter"), format!("the filter does not compile: {error}"));
        }
        self.retry.check(&path.key("retry"), findings);
        self.breaker.check(&path.key("breaker"), findings);
        self.kind.settings().check(path, findings);
    }

    /// Returns the passwords among the settings, which must not be publicly known ones in production.
    #[must_use]
    pub fn passwords(&self, path: &Path) -> Vec<(Path, &str)> {
        self.kind.settings().passwords(path)
    }
}

/// Completes the schema of the common settings: each kind adds its own.
fn add_kinds(common: &mut Schema) {
    let with_common = |(name, mut kind): (_, Schema)| {
        for keyword in ["properties", "required"] {
            merge(&mut kind, keyword, common.get(keyword));
        }
        (name, kind)
    };
    let mut schema = variants(kind::DEFAULT, kind::schemas().into_iter().map(with_common));
    if let Some(description) = common.get("description") {
        schema.insert("description".to_owned(), description.clone());
    }
    *common = schema;
}

fn merge(schema: &mut Schema, keyword: &str, added: Option<&Json>) {
    match (schema.ensure_object().entry(keyword).or_insert_with(|| empty_like(added)), added) {
        (Json::Object(members), Some(Json::Object(added))) => members.extend(added.clone()),
        (Json::Array(items), Some(Json::Array(added))) => items.extend(added.iter().cloned()),
        _ => {}
    }
}

fn empty_like(value: Option<&Json>) -> Json {
    match value {
        Some(Json::Object(_)) => Map::new().into(),
        _ => Json::Array(Vec::new()),
    }
}

/// Limits on calls to a third party, for each dispatch replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum number of concurrent calls. Default 64; capped at the share of `dispatch.concurrency` that leaves room
    /// for other destinations.
    pub concurrency: NonZeroU32,
    /// Maximum rate of calls, such as `100/s`. Default none.
    pub rate: Option<Rate>,
    /// How long a delivery may wait for its destination before it is deferred. It is deferred immediately if the
    /// estimated wait is longer. Waiting that dispatch itself causes does not count. Default 1 s.
    #[serde(with = "DurationText")]
    pub max_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: at_least_one(64), rate: None, max_wait: Duration::from_secs(1) }
    }
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
