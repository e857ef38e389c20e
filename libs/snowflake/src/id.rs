use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::layout::{self, Layout};
use crate::node::NodeId;

/// Digits of an id as text: the 19 of the largest 63-bit number, and one more for a round width.
const DIGITS: usize = 20;

/// The id of a request, from its acceptance to its last attempt: a 63-bit snowflake.
///
/// From the highest bit: 41 bits of milliseconds since 2024-01-01T00:00:00Z, which last until September 2093, 10 bits
/// of node, 12 bits of sequence. As text, and in JSON, it is always a string of 20 digits, zero-padded, so that ids
/// sort alike as numbers and as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Layout);

/// The text or number is not a request id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request id has 20 digits, begins with 0, and is at most 09223372036854775807")]
pub struct InvalidId;

impl RequestId {
    pub(crate) fn from_layout(layout: Layout) -> Self {
        Self(layout)
    }

    /// Returns the id with this number.
    ///
    /// # Errors
    /// [`InvalidId`] if the number is negative.
    pub fn from_i64(number: i64) -> Result<Self, InvalidId> {
        u64::try_from(number).map(|raw| Self(Layout::from_raw(raw))).map_err(|_| InvalidId)
    }

    /// Returns the lowest id that any node can generate at this time or later.
    #[must_use]
    pub fn first_at(time: DateTime<Utc>) -> Self {
        Self(Layout::from_components(layout::timestamp(time), 0, 0))
    }

    /// Returns the id as stored in the database; never negative.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        self.0.to_raw().cast_signed()
    }

    /// Returns the node that generated the id.
    #[must_use]
    pub fn node(self) -> NodeId {
        NodeId::from_layout(self.0)
    }

    /// Returns when the id was generated, to the millisecond, by the clock of the generating node.
    #[must_use]
    pub fn created_at(self) -> DateTime<Utc> {
        layout::instant(self.0.timestamp())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$}", self.0.to_raw())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

impl FromStr for RequestId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        // The integer parser accepts a sign; an id has none.
        if text.len() != DIGITS || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidId);
        }
        text.parse().map_err(|_| InvalidId).and_then(Self::from_i64)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for RequestId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "RequestId".into()
    }

    /// The ids up to the year 2092: a pattern that expresses the exact maximum would be hard to read.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^0[0-8][0-9]{18}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_contains_its_time_and_node() {
        let id = RequestId(Layout::from_components(1_000, 5, 7));
        assert_eq!(id.created_at().to_rfc3339(), "2024-01-01T00:00:01+00:00");
        assert_eq!(id.node().as_u16(), 5);
        assert_eq!(id.to_string(), format!("{:020}", (1_000_u64 << 22) | (5 << 12) | 7));
    }

    #[test]
    fn only_twenty_digits_within_63_bits_are_an_id() {
        for text in [
            "",
            "0",
            "0000000000000000001",
            "000000000000000000001",
            "+0000000000000000001",
            "-0000000000000000001",
            "0000000000000000000x",
            " 0000000000000000001",
            "09223372036854775808",
            "99999999999999999999",
            "٠٠٠٠٠٠٠٠٠٠",
        ] {
            assert_eq!(text.parse::<RequestId>(), Err(InvalidId), "{text:?}");
        }
        assert_eq!("09223372036854775807".parse::<RequestId>().map(RequestId::as_i64), Ok(i64::MAX));
        assert_eq!(RequestId::from_i64(-1), Err(InvalidId));
        assert!(serde_json::from_str::<RequestId>("42").is_err(), "a number in JSON is not an id");
    }

    proptest! {
        #[test]
        fn text_and_json_are_read_back(number in 0..=i64::MAX) {
            let id = RequestId::from_i64(number).unwrap();
            prop_assert_eq!(id.as_i64(), number);
            prop_assert_eq!(id.to_string().len(), 20);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(&json, &format!("\"{id}\""));
            prop_assert_eq!(serde_json::from_str::<RequestId>(&json).unwrap(), id);
        }

        #[test]
        fn ids_sort_the_same_as_text_and_as_numbers(a in 0..=i64::MAX, b in 0..=i64::MAX) {
            let (a, b) = (RequestId::from_i64(a).unwrap(), RequestId::from_i64(b).unwrap());
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}
