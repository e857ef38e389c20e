use bytes::Bytes;

/// The headers of a Kafka record, in order; a name may repeat, and the last one counts.
pub type Headers = Vec<(String, Bytes)>;

/// Header names on the wire.
pub mod name {
    /// `CloudEvents` version; always `1.0`.
    pub const CE_SPECVERSION: &str = "ce_specversion";
    /// The request id, 20 digits. A record without it is foreign.
    pub const CE_ID: &str = "ce_id";
    /// The publisher of the record.
    pub const CE_SOURCE: &str = "ce_source";
    /// The route.
    pub const CE_TYPE: &str = "ce_type";
    /// When the request was accepted, RFC 3339.
    pub const CE_TIME: &str = "ce_time";
    /// The media type of the body.
    pub const CONTENT_TYPE: &str = "content-type";
    /// W3C trace context: trace id, parent span id, flags.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context: additions by vendors.
    pub const TRACESTATE: &str = "tracestate";
    /// On records of a route's topic: a destination to call. There is one header for each destination.
    pub const DELIVER_TO: &str = "throughline-deliver-to";
    /// On retries and dead letters: the destination.
    pub const DESTINATION: &str = "throughline-destination";
    /// On retries: the number of the attempt to make, from 1. On dead letters: the number of the last attempt.
    pub const ATTEMPT: &str = "throughline-attempt";
    /// On retries: how many of the previous attempts counted.
    pub const COUNTED_ATTEMPTS: &str = "throughline-counted-attempts";
    /// On retries: when the delivery's time window began, RFC 3339.
    pub const WINDOW_STARTED_AT: &str = "throughline-window-started-at";
    /// On dead letters: why the delivery ended.
    pub const REASON: &str = "throughline-reason";
    /// On dead letters: the error, as text.
    pub const ERROR: &str = "throughline-error";
    /// On dead letters: the class of the last attempt's error.
    pub const ERROR_CLASS: &str = "throughline-error-class";
    /// On dead letters: the status of the last response.
    pub const STATUS: &str = "throughline-status";
    /// On dead letters: the beginning of the last response's body.
    pub const RESPONSE_EXCERPT: &str = "throughline-response-excerpt";
    /// On dead letters: `value` if the value is left out because the broker refuses it.
    pub const LEFT_OUT: &str = "throughline-left-out";
    /// On our records that services read: the signature, which proves that a holder of the key has produced the record.
    pub const SIGNATURE: &str = "throughline-signature";
    /// On dead letters and adoptions: `topic/partition/offset` of the record that they come from.
    pub const ORIGIN: &str = "throughline-origin";
    /// On adoptions: the record's timestamp on its topic, RFC 3339.
    pub const ORIGIN_TIME: &str = "throughline-origin-time";
}

/// The record cannot be read because of one of its headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header {header}: {problem}")]
pub struct Malformed {
    /// The header's name.
    pub header: &'static str,
    /// Why the header cannot be used.
    pub problem: String,
}

impl Malformed {
    pub(crate) fn new(header: &'static str, problem: impl Into<String>) -> Self {
        Self { header, problem: problem.into() }
    }

    /// Returns the error for a record without a valid signature on a topic where only services produce.
    #[must_use]
    pub fn unsigned() -> Self {
        Self::new(
            name::SIGNATURE,
            "is missing, or not made with the key in `kafka.signing_key` or `kafka.accepted_key`",
        )
    }
}

/// Returns the last value of a header, unchanged.
pub(crate) fn find<'a>(headers: &'a [(String, Bytes)], name: &str) -> Option<&'a Bytes> {
    headers.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Returns the last value of a header as text, or `None` if the header is absent.
pub(crate) fn text<'a>(
    headers: &'a [(String, Bytes)],
    name: &'static str,
) -> Result<Option<&'a str>, Malformed> {
    find(headers, name)
        .map(|value| std::str::from_utf8(value).map_err(|_| Malformed::new(name, "is not UTF-8")))
        .transpose()
}

/// Returns all values of a header as text.
pub(crate) fn all(headers: &[(String, Bytes)], name: &'static str) -> Result<Vec<String>, Malformed> {
    let values = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    let text =
        |value: &Bytes| String::from_utf8(value.to_vec()).map_err(|_| Malformed::new(name, "is not UTF-8"));
    values.map(|(_, value)| text(value)).collect()
}

/// Returns the last value of a required header.
pub(crate) fn required<'a>(headers: &'a [(String, Bytes)], name: &'static str) -> Result<&'a str, Malformed> {
    text(headers, name)?.ok_or_else(|| Malformed::new(name, "is missing"))
}

/// Returns the last value of a required header, parsed.
pub(crate) fn parsed<T>(headers: &[(String, Bytes)], name: &'static str) -> Result<T, Malformed>
where
    T: std::str::FromStr<Err: ToString>,
{
    required(headers, name)?.parse().map_err(|error: T::Err| Malformed::new(name, error.to_string()))
}

pub(crate) fn put(headers: &mut Headers, name: &str, value: impl Into<Bytes>) {
    headers.push((name.to_owned(), value.into()));
}
