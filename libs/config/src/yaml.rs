//! A YAML reader that supports merge keys and numeric keys.

use std::fmt;

use figment::value::{Dict, Empty, Value};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{NonFiniteFloatPolicy, UserMessageFormatter, options};

use crate::value;

/// Parses YAML. A numeric key, such as a status, becomes a string, as in all other sources.
///
/// # Errors
/// If the text is not YAML: where and why, without quoting the text, which may contain secrets.
pub(crate) fn read(text: &str) -> Result<Value, String> {
    let options = options! {
        with_snippet: false,
        // Untyped text such as a version or a key is not a number: `0755`, `1_000`.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        strict_booleans: true,
        // No setting is infinite. As a string it is reported with its path.
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    };
    let read = serde_saphyr::from_str_with_options(text, options);
    read.map(|Node(value)| value).map_err(|error| error.render_with_formatter(&UserMessageFormatter))
}

struct Node(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes).map(Self)
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Empty::Unit.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Node(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Dict::new();
        while let Some((Node(key), Node(value))) = entries.next_entry()? {
            let key = match key {
                Value::String(_, text) => text,
                Value::Num(..) | Value::Bool(..) => value::to_json(&key).to_string(),
                _ => return Err(A::Error::custom("a key must be a string or a number")),
            };
            values.insert(key, value);
        }
        Ok(values.into())
    }
}
