//! The kinds of destinations. This is the only list of them.

use opentelemetry::metrics::Meter;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};
use throughline_clock::Clock;
use throughline_config::{Findings, Path};
use throughline_token::Tokens;

use crate::{Destination, http, kafka};

/// The kind of a destination without a `type`.
pub(crate) const DEFAULT: &str = "http";

/// The settings of a destination's kind.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Kind {
    /// A third-party API.
    Http(Box<http::Settings>),
    /// A Kafka topic.
    Kafka(kafka::Settings),
}

impl Kind {
    /// Returns the settings of the kind.
    #[must_use]
    pub fn settings(&self) -> &dyn KindSettings {
        match self {
            Self::Http(settings) => settings.as_ref(),
            Self::Kafka(settings) => settings,
        }
    }
}

/// Returns the schemas of all kinds by their names.
pub(crate) fn schemas() -> Vec<(&'static str, Schema)> {
    vec![("http", schema::<http::Settings>()), ("kafka", schema::<kafka::Settings>())]
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut settings = Map::deserialize(deserializer)?;
        let name = settings.remove("type");
        let kind = match name.as_ref().and_then(Json::as_str).unwrap_or(DEFAULT) {
            "http" => read(settings).map(|settings| Self::Http(Box::new(settings))),
            "kafka" => read(settings).map(Self::Kafka),
            other => return Err(D::Error::custom(format!("unknown kind of destination: {other}"))),
        };
        kind.map_err(D::Error::custom)
    }
}

fn read<T: DeserializeOwned>(settings: Map<String, Json>) -> serde_json::Result<T> {
    serde_json::from_value(Json::Object(settings))
}

fn schema<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

/// The settings of one kind of destination.
pub trait KindSettings {
    /// Checks the meaning of settings of valid form. `path` is that of the destination.
    fn check(&self, path: &Path, findings: &mut Findings);

    /// Returns the passwords among the settings, which must not be publicly known ones in production.
    fn passwords(&self, path: &Path) -> Vec<(Path, &str)>;

    /// Returns the topic of the service's own cluster that calls produce to, if they do.
    fn topic_of_own_cluster(&self) -> Option<&str> {
        None
    }

    /// Prepares a destination of this name. Connections are made later.
    ///
    /// # Errors
    /// If a client cannot be created with these settings.
    fn build(&self, name: &str, context: &Context<'_>) -> Result<Box<dyn Destination>, BuildError>;
}

/// What destinations have in common with the service that calls them.
#[derive(Debug)]
pub struct Context<'a> {
    /// The cluster of the service itself.
    pub kafka: &'a throughline_kafka::Settings,
    /// Timeout for a whole attempt at this destination.
    pub timeout: std::time::Duration,
    /// Tokens, shared by all destinations.
    pub tokens: &'a Tokens,
    /// The clock.
    pub clock: &'a Clock,
    /// Records the metrics of the calls.
    pub meter: &'a Meter,
}

/// Why a destination cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A configured header cannot be sent.
    #[error("headers.{name}: {problem}")]
    Header {
        /// The header's name.
        name: String,
        /// The problem with it.
        problem: &'static str,
    },
    /// The HTTP client cannot be created.
    #[error("cannot create its HTTP client")]
    HttpClient(#[source] reqwest::Error),
    /// The Kafka client cannot be created.
    #[error("cannot create its Kafka client")]
    KafkaClient(#[source] throughline_kafka::KafkaError),
}
