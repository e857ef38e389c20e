use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::text::REFERENCE;

/// What is shown in place of a secret.
pub(crate) const MASK: &str = "***";

/// A text that is never shown, and wiped from memory when it is dropped.
///
/// In the file it is the value itself, `{env: NAME}` or `{file: PATH}`; [`load`](crate::load) reads
/// the variable or file, so that here it is always the value.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// The value itself. It must not get into logs or errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.into())
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object"],
            "properties": {"env": {"type": "string"}, "file": {"type": "string"}},
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
            "x-expected": "a text, `{env: NAME}` or `{file: PATH}`",
            "x-reference": "secret",
        })
    }
}

/// The form of a librdkafka setting: a secret that may also be written as number or boolean, since
/// that is how people write `socket.timeout.ms: 30000`.
pub(crate) struct Property;

impl JsonSchema for Property {
    fn schema_name() -> Cow<'static, str> {
        "Property".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Secret::json_schema(generator);
        schema.insert("type".to_owned(), serde_json::json!(["string", "integer", "boolean", "object"]));
        schema.insert(REFERENCE.to_owned(), "property".into());
        schema
    }
}
