use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use crate::text::REFERENCE;

/// The text shown in place of a secret.
pub const MASK: &str = "***";

/// A string that is never shown, and is wiped from memory when dropped.
///
/// In the file it is written as the value itself, `{env: NAME}` or `{file: PATH}`. [`load`](crate::load()) reads the
/// variable or the file, so a `Secret` always holds the value.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// Returns the value. It must not reach logs or errors.
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
            "x-expected": "a string, `{env: NAME}` or `{file: PATH}`",
            "x-reference": "secret",
        })
    }
}

/// The schema of a librdkafka setting: a secret that may also be a number or a boolean. So `socket.timeout.ms: 30000`
/// needs no quotes.
pub struct Property;

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
