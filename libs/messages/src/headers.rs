use bytes::Bytes;

/// The headers of a Kafka record, in order; a name may repeat, and the last one counts.
pub type Headers = Vec<(String, Bytes)>;

/// Header names on the wire.
pub mod name {
    /// `CloudEvents` version; always `1.0`.
    pub const CE_SPECVERSION: &str = "ce_specversion";
    /// The request id, 20 digits. A record without it is foreign.
    pub const CE_ID: &str = "ce_id";
    /// Who published the record.
    pub const CE_SOURCE: &str = "ce_source";
    /// The route.
    pub const CE_TYPE: &str = "ce_type";
    /// When the request was accepted, RFC 3339.
    pub const CE_TIME: &str = "ce_time";
    /// The media type of the body.
    pub const CONTENT_TYPE: &str = "content-type";
    /// W3C trace context: trace id, parent span id, flags.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context: what vendors add.
    pub const TRACESTATE: &str = "tracestate";
    /// A destination that is not to be called for this record; there may be several.
    pub const HELD: &str = "throughline-held";
    /// On retries and dead letters: the destination meant.
    pub const DESTINATION: &str = "throughline-destination";
    /// On retries: the number of the attempt to make, from 1. On dead letters: that of the last one.
    pub const ATTEMPT: &str = "throughline-attempt";
    /// On retries: how many of the attempts before it counted.
    pub const SPENT: &str = "throughline-spent";
    /// On retries: when the delivery's time began, RFC 3339.
    pub const SINCE: &str = "throughline-since";
    /// On dead letters: why the delivery ended.
    pub const REASON: &str = "throughline-reason";
    /// On dead letters: the error in words.
    pub const ERROR: &str = "throughline-error";
    /// On dead letters: what kind of error the last attempt met.
    pub const ERROR_CLASS: &str = "throughline-error-class";
    /// On dead letters: the status of the last response.
    pub const STATUS: &str = "throughline-status";
    /// On dead letters: the beginning of the last response's body.
    pub const RESPONSE_EXCERPT: &str = "throughline-response-excerpt";
    /// On dead letters: `value`, if that is left out because the broker refuses it.
    pub const LEFT_OUT: &str = "throughline-left-out";
    /// On records of ours that services read: that a holder of the key has produced it.
    pub const SIGNATURE: &str = "throughline-signature";
    /// On dead letters and adoptions: `topic/partition/offset` of the record they come from.
    pub const ORIGIN: &str = "throughline-origin";
    /// On adoptions: the time that the topic has of the record, RFC 3339.
    pub const ORIGIN_TIME: &str = "throughline-origin-time";
}

/// A record that cannot be read: which header, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header {header}: {problem}")]
pub struct Malformed {
    /// The header's name.
    pub header: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Malformed {
    pub(crate) fn new(header: &'static str, problem: impl Into<String>) -> Self {
        Self { header, problem: problem.into() }
    }

    /// The record is on a topic where only services produce, and none has signed it.
    #[must_use]
    pub fn unsigned() -> Self {
        Self::new(
            name::SIGNATURE,
            "is missing, or none of a key that `kafka.signing_key` or `kafka.accepted_key` holds",
        )
    }
}

/// The last value of a header, as it is.
pub(crate) fn find<'a>(headers: &'a [(String, Bytes)], name: &str) -> Option<&'a Bytes> {
    headers.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The last value of a header, as text; absent is fine.
pub(crate) fn text<'a>(
    headers: &'a [(String, Bytes)],
    name: &'static str,
) -> Result<Option<&'a str>, Malformed> {
    find(headers, name)
        .map(|value| std::str::from_utf8(value).map_err(|_| Malformed::new(name, "is not UTF-8")))
        .transpose()
}

/// All values of a header, as text.
pub(crate) fn all(headers: &[(String, Bytes)], name: &'static str) -> Result<Vec<String>, Malformed> {
    let values = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let text =
        |value: &Bytes| String::from_utf8(value.to_vec()).map_err(|_| Malformed::new(name, "is not UTF-8"));
    values.map(|(_, value)| text(value)).collect()
}

/// The last value of a header that must be there.
pub(crate) fn required<'a>(headers: &'a [(String, Bytes)], name: &'static str) -> Result<&'a str, Malformed> {
    text(headers, name)?.ok_or_else(|| Malformed::new(name, "is missing"))
}

/// The last value of a header that must be there, parsed.
pub(crate) fn parsed<T>(headers: &[(String, Bytes)], name: &'static str) -> Result<T, Malformed>
where
    T: std::str::FromStr<Err: ToString>,
{
    required(headers, name)?.parse().map_err(|error: T::Err| Malformed::new(name, error.to_string()))
}

pub(crate) fn put(headers: &mut Headers, name: &str, value: impl Into<Bytes>) {
    headers.push((name.to_owned(), value.into()));
}
