//! Durations, sizes and addresses as people write them, and how the schema speaks of them.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// The word in the schema for what people should write.
pub(crate) const EXPECTED: &str = "x-expected";
/// The word in the schema for what `{env: …}` and `{file: …}` stand for.
pub(crate) const REFERENCE: &str = "x-reference";

/// Far more than makes sense anywhere, and little enough to be added to any instant.
const LONGEST: Duration = Duration::from_hours(24 * 3650);

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
        serializer.collect_str(&humantime::format_duration(*duration))
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

    /// In the largest unit that shows it exactly.
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
