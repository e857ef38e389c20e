use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A range of node ids such as `0-1023`, or a single one such as `7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIds {
    /// The lowest id.
    pub first: u16,
    /// The highest id, inclusive.
    pub last: u16,
}

impl NodeIds {
    /// All node ids that fit into a request id.
    pub const ALL: Self = Self { first: 0, last: 1023 };

    /// Returns the number of ids in the range.
    #[must_use]
    pub fn count(self) -> u16 {
        self.last - self.first + 1
    }
}

/// The name of the format in the schema.
pub(crate) const FORMAT: &str = "node-ids-text";

impl FromStr for NodeIds {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let id = |text: &str| text.parse::<u16>().map_err(|_| ());
        let ids = Self { first: id(first)?, last: id(last)? };
        if ids.first <= ids.last && ids.last <= Self::ALL.last { Ok(ids) } else { Err(()) }
    }
}

impl fmt::Display for NodeIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last > self.first { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

impl Serialize for NodeIds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u16),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(|()| D::Error::custom("not node ids"))
    }
}

impl JsonSchema for NodeIds {
    fn schema_name() -> Cow<'static, str> {
        "NodeIds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": FORMAT,
            "minimum": Self::ALL.first,
            "maximum": Self::ALL.last,
            "x-expected": "node ids from 0 to 1023, such as `0-511`, or a single one",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_a_range_or_a_single_id() {
        for (text, first, last, shown) in
            [("0-1023", 0, 1023, "0-1023"), ("10-19", 10, 19, "10-19"), ("7", 7, 7, "7"), ("7-7", 7, 7, "7")]
        {
            let ids: NodeIds = text.parse().unwrap();
            assert_eq!((ids.first, ids.last, ids.to_string().as_str()), (first, last, shown), "{text}");
        }
        for text in ["", "-", "-1", "1-", "2-1", "0-1024", "1024", "a-b", "1-2-3", "1 - 2"] {
            assert_eq!(text.parse::<NodeIds>(), Err(()), "{text}");
        }
    }
}
