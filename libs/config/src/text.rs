//! Durations, sizes and addresses in their written form, and their schemas.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The schema keyword for a description of the expected value.
pub(crate) const EXPECTED: &str = "x-expected";
/// The schema keyword for the kind of value that `{env: …}` and `{file: …}` stand for.
pub(crate) const REFERENCE: &str = "x-reference";

/// Far longer than any useful setting, and short enough to be added to any instant.
const LONGEST: Duration = Duration::from_hours(24 * 3650);

/// One day, in seconds.
const DAY: u64 = 24 * 60 * 60;

/// `#[serde(with = "DurationText")]`: a duration such as `30s` or `1h 30m`; above zero, at most ten
/// years.
pub(crate) struct DurationText;

/// The name of the format in the schema.
pub(crate) const DURATION: &str = "duration-text";

impl DurationText {
    pub(crate) fn parse(text: &str) -> Option<Duration> {
        humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero() && *duration <= LONGEST)
    }

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        match duration.as_secs() / DAY {
            // `humantime` would print months and years of average length, a form that configurations do not use.
            days if days > 1 && *duration == Duration::from_secs(days * DAY) => {
                serializer.collect_str(&format_args!("{days}days"))
            }
            _ => serializer.collect_str(&humantime::format_duration(*duration)),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("not a duration"))
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": DURATION,
            EXPECTED: "a duration above zero, such as `500ms`, `30s` or `1h 30m`",
        })
    }
}

/// `#[serde(with = "SizeText")]`: a size such as `64KiB` or `1MiB`, or a number of bytes; above zero.
pub(crate) struct SizeText;

/// The name of the format in the schema.
pub(crate) const SIZE: &str = "size-text";

impl SizeText {
    pub(crate) fn parse(text: &str) -> Option<ByteSize> {
        text.parse().ok().filter(|size: &ByteSize| size.as_u64() > 0)
    }

    /// Writes the size in the largest unit that represents it exactly.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(crate) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = size.as_u64();
        let units = [(bytesize::GIB, "GiB"), (bytesize::MIB, "MiB"), (bytesize::KIB, "KiB")];
        match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
            Some((unit, name)) => serializer.collect_str(&format_args!("{}{name}", bytes / unit)),
            None => serializer.serialize_u64(bytes),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(ByteSize::b(bytes)),
            Written::Text(text) => Self::parse(&text).ok_or_else(|| D::Error::custom("not a size")),
        }
    }
}

impl JsonSchema for SizeText {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": SIZE,
            "minimum": 1,
            EXPECTED: "a size above zero, such as `64KiB` or `1MiB`",
        })
    }
}

/// `#[schemars(with = "AddressText")]`: an IP address and a port.
pub(crate) struct AddressText;

/// The name of the format in the schema.
pub(crate) const ADDRESS: &str = "address-text";

impl JsonSchema for AddressText {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": ADDRESS,
            EXPECTED: "an IP address and a port, such as `0.0.0.0:8099`",
        })
    }
}

/// An HTTP status as the key of a mapping: `409`.
pub(crate) struct StatusText;

impl StatusText {
    pub(crate) fn parse(text: &str) -> Option<u16> {
        text.parse().ok().filter(|status| (100..=599).contains(status))
    }
}

impl JsonSchema for StatusText {
    fn schema_name() -> Cow<'static, str> {
        "Status".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[1-5][0-9]{2}$"})
    }
}

/// A rate such as `100/s`, `600/min` or `5/10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The number of events per period.
    pub count: NonZeroU32,
    /// The period; above zero.
    pub per: Duration,
}

/// The name of the format in the schema.
pub(crate) const RATE: &str = "rate-text";

impl FromStr for Rate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, per) = text.split_once('/').ok_or(())?;
        // `100/s` is one hundred per second, `5/10s` is five per ten seconds.
        let is_unit = !per.starts_with(|c: char| c.is_ascii_digit());
        let per = if is_unit { DurationText::parse(&format!("1{per}")) } else { DurationText::parse(per) };
        let per = per.ok_or(())?;
        Ok(Self { count: count.parse().map_err(|_| ())?, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, humantime::format_duration(self.per))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|()| D::Error::custom("not a rate"))
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": RATE,
            EXPECTED: "a rate, such as `100/s`, `600/min` or `5/10s`",
        })
    }
}

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
pub(crate) const NODE_IDS: &str = "node-ids-text";

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
            "format": NODE_IDS,
            "minimum": Self::ALL.first,
            "maximum": Self::ALL.last,
            EXPECTED: "node ids from 0 to 1023, such as `0-511`, or a single one",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_count_per_time() {
        let table = [
            ("100/s", 100, Duration::from_secs(1), "100/1s"),
            ("600/min", 600, Duration::from_mins(1), "600/1m"),
            ("5/10s", 5, Duration::from_secs(10), "5/10s"),
            ("1/500ms", 1, Duration::from_millis(500), "1/500ms"),
        ];
        for (text, count, per, shown) in table {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count.get(), rate.per), (count, per), "{text}");
            assert_eq!((rate.to_string().as_str(), shown.parse()), (shown, Ok(rate)));
        }
        for text in ["", "100", "/s", "0/s", "-1/s", "1/", "1/0s", "1.5/s", "1/x", "1/s/s"] {
            assert_eq!(text.parse::<Rate>(), Err(()), "{text}");
        }
    }

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
