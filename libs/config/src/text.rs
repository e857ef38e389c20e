//! Durations, sizes, rates and addresses in their written form, and their schemas.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Returns the number, or 1 in place of 0.
#[must_use]
pub fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

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
pub struct DurationText;

/// The name of the format in the schema.
pub(crate) const DURATION: &str = "duration-text";

impl DurationText {
    /// Parses a duration; `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Duration> {
        humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero() && *duration <= LONGEST)
    }

    /// Writes a duration.
    ///
    /// # Errors
    /// If the serializer fails.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        match duration.as_secs() / DAY {
            // `humantime` would print months and years of average length, a form that configurations do not use.
            days if days > 1 && *duration == Duration::from_secs(days * DAY) => {
                serializer.collect_str(&format_args!("{days}days"))
            }
            _ => serializer.collect_str(&humantime::format_duration(*duration)),
        }
    }

    /// Reads a duration.
    ///
    /// # Errors
    /// If the text is not one.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
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
pub struct SizeText;

/// The name of the format in the schema.
pub(crate) const SIZE: &str = "size-text";

impl SizeText {
    /// Parses a size; `None` if the text is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<ByteSize> {
        text.parse().ok().filter(|size: &ByteSize| size.as_u64() > 0)
    }

    /// Writes the size in the largest unit that represents it exactly.
    ///
    /// # Errors
    /// If the serializer fails.
    pub fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = size.as_u64();
        let units = [(bytesize::GIB, "GiB"), (bytesize::MIB, "MiB"), (bytesize::KIB, "KiB")];
        match units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
            Some((unit, name)) => serializer.collect_str(&format_args!("{}{name}", bytes / unit)),
            None => serializer.serialize_u64(bytes),
        }
    }

    /// Reads a size.
    ///
    /// # Errors
    /// If the text is not one.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
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
pub struct AddressText;

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
}
