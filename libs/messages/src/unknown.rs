use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use serde::{Deserialize, Serialize};

/// Maximum length of a name in bytes.
const LONGEST: usize = 32;

/// A name that only a later version knows: 1 to 32 characters `a` to `z`, `0` to `9` and `_`, kept unchanged. It is
/// `Copy`, because the enums that contain it are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Unknown {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Unknown {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<Unknown> for String {
    fn from(name: Unknown) -> Self {
        name.as_str().to_owned()
    }
}

impl TryFrom<String> for Unknown {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.as_str().try_into()
    }
}

impl TryFrom<&str> for Unknown {
    type Error = &'static str;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "must be a name of 1 to 32 characters `a` to `z`, `0` to `9` and `_`";
        let is_of_a_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.is_empty() || !name.bytes().all(is_of_a_name) {
            return Err(EXPECTED);
        }
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..name.len()).ok_or(EXPECTED)?.copy_from_slice(name.as_bytes());
        Ok(Self { bytes, length: name.len() })
    }
}

impl JsonSchema for Unknown {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[a-z0-9_]{1,32}$" })
    }
}

/// Parses the name of a variant, as serde writes it.
pub(crate) fn parse<T: DeserializeOwned>(name: &str) -> Result<T, InvalidName> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    T::deserialize(name).map_err(|error| InvalidName(error.to_string()))
}

/// The text is not the name of a variant, nor of one that a later version may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_unchanged_if_it_is_valid() {
        for name in ["unpaid", "http_402", &"a".repeat(32)] {
            assert_eq!(Unknown::try_from(name).unwrap().as_str(), name);
        }
        for invalid in ["", "Unpaid", "un-paid", "é", "\0", &"a".repeat(33)] {
            assert!(Unknown::try_from(invalid).is_err(), "{invalid}");
        }
    }
}
