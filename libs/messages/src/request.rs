use bytes::Bytes;
use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};
use throughline_snowflake::RequestId;

use crate::headers::{Headers, Malformed, all, name, parsed, put, required, text};
use crate::trace::TraceContext;

const SOURCE: &str = "/throughline/ingest";

/// What the headers of a request's record say; its body is the record's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// The request's id.
    pub id: RequestId,
    /// The route it came in by.
    pub route: String,
    /// When it was accepted, to the millisecond.
    pub accepted_at: DateTime<Utc>,
    /// The media type of the body.
    pub content_type: String,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// The destinations that are not to be called for this record: their turn has not come, or is over.
    pub held: Vec<String>,
}

impl RequestRecord {
    /// The record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = Headers::with_capacity(8);
        put(&mut headers, name::CE_SPECVERSION, "1.0");
        put(&mut headers, name::CE_ID, self.id.to_string());
        put(&mut headers, name::CE_SOURCE, SOURCE);
        put(&mut headers, name::CE_TYPE, self.route.clone());
        put(&mut headers, name::CE_TIME, rfc3339(self.accepted_at));
        put(&mut headers, name::CONTENT_TYPE, self.content_type.clone());
        if let Some(trace) = &self.trace {
            trace.write(&mut headers);
        }
        for destination in &self.held {
            put(&mut headers, name::HELD, destination.clone());
        }
        headers
    }

    /// Reads a record of ours, which is known by its [signature](crate::Keys).
    ///
    /// # Errors
    /// [`Malformed`] if a header is missing or cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Self, Malformed> {
        Ok(Self {
            id: parsed(headers, name::CE_ID)?,
            route: required(headers, name::CE_TYPE)?.to_owned(),
            accepted_at: instant(headers, name::CE_TIME)?,
            content_type: text(headers, name::CONTENT_TYPE)?.unwrap_or("application/json").to_owned(),
            trace: TraceContext::from_headers(headers),
            held: all(headers, name::HELD)?,
        })
    }
}

/// A record on the retries topic: one destination's delivery is to be attempted (again).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRecord {
    /// The request.
    pub request: RequestRecord,
    /// The destination to call.
    pub destination: String,
    /// The number of the attempt to make, from 1.
    pub attempt: u32,
    /// How many of those before it counted.
    pub spent: u32,
    /// When the delivery's time began: when its request was accepted, or when it was replayed.
    pub since: DateTime<Utc>,
}

impl RetryRecord {
    /// The record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = self.request.to_headers();
        put(&mut headers, name::DESTINATION, self.destination.clone());
        put(&mut headers, name::ATTEMPT, self.attempt.to_string());
        put(&mut headers, name::SPENT, self.spent.to_string());
        put(&mut headers, name::SINCE, rfc3339(self.since));
        headers
    }

    /// Reads a record of the retries topic.
    ///
    /// # Errors
    /// [`Malformed`] if a header is missing or cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Self, Malformed> {
        Ok(Self {
            request: RequestRecord::from_headers(headers)?,
            destination: required(headers, name::DESTINATION)?.to_owned(),
            attempt: count(headers, name::ATTEMPT, 1)?,
            spent: count(headers, name::SPENT, 0)?,
            since: instant(headers, name::SINCE)?,
        })
    }
}

/// Which request a record belongs to, for a record of ours that cannot be used otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The request's id.
    pub id: RequestId,
    /// The route that the record names.
    pub route: Option<String>,
    /// The destination that a retry names.
    pub destination: Option<String>,
    /// The destinations that are not to be called for this record.
    pub held: Vec<String>,
    /// The number of the attempt to make, from 1.
    pub attempt: u32,
    /// How many of those before it counted.
    pub spent: u32,
}

impl Identity {
    /// Reads as much as is readable; `None` without the request's id.
    #[must_use]
    pub fn from_headers(headers: &[(String, Bytes)]) -> Option<Self> {
        let owned = |name| text(headers, name).ok().flatten().map(str::to_owned);
        Some(Self {
            id: parsed(headers, name::CE_ID).ok()?,
            route: owned(name::CE_TYPE),
            destination: owned(name::DESTINATION),
            held: all(headers, name::HELD).unwrap_or_default(),
            attempt: count(headers, name::ATTEMPT, 1).unwrap_or(1),
            spent: count(headers, name::SPENT, 0).unwrap_or(0),
        })
    }
}

/// A number of attempts, which the database keeps in 31 bits.
fn count(headers: &[(String, Bytes)], name: &'static str, least: u32) -> Result<u32, Malformed> {
    let count: u32 = parsed(headers, name)?;
    if (least..=i32::MAX.cast_unsigned()).contains(&count) {
        Ok(count)
    } else {
        Err(Malformed::new(name, format!("is not between {least} and {}", i32::MAX)))
    }
}

/// An instant in RFC 3339, between the Unix epoch and the last year of four digits: far from the ends of the calendar,
/// where sums overflow.
fn instant(headers: &[(String, Bytes)], name: &'static str) -> Result<DateTime<Utc>, Malformed> {
    let instant = DateTime::parse_from_rfc3339(required(headers, name)?)
        .map_err(|error| Malformed::new(name, error.to_string()))?
        .to_utc();
    if (1970..=9999).contains(&instant.year()) {
        Ok(instant)
    } else {
        Err(Malformed::new(name, "is not between the years 1970 and 9999"))
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::find;

    fn record() -> RequestRecord {
        RequestRecord {
            id: "00000000000000000042".parse().unwrap(),
            route: "one".to_owned(),
            accepted_at: DateTime::from_timestamp_millis(1_767_225_600_123).unwrap(),
            content_type: "application/vnd.api+json".to_owned(),
            trace: Some(TraceContext {
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                tracestate: Some("vendor=1".to_owned()),
            }),
            held: vec!["three".to_owned(), "four".to_owned()],
        }
    }

    #[test]
    fn headers_follow_the_cloudevents_binding() {
        let headers = record().to_headers();
        let value = |name: &str| String::from_utf8(find(&headers, name).unwrap().to_vec()).unwrap();
        assert_eq!(value("ce_specversion"), "1.0");
        assert_eq!(value("ce_id"), "00000000000000000042");
        assert_eq!(value("ce_source"), "/throughline/ingest");
        assert_eq!(value("ce_type"), "one");
        assert_eq!(value("ce_time"), "2026-01-01T00:00:00.123Z");
        assert_eq!(value("content-type"), "application/vnd.api+json");
        assert_eq!(value("tracestate"), "vendor=1");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let since = DateTime::from_timestamp_millis(1_767_225_700_456).unwrap();
        let retry =
            RetryRecord { request: record(), destination: "three".to_owned(), attempt: 7, spent: 4, since };
        assert_eq!(RequestRecord::from_headers(&record().to_headers()), Ok(record()));
        assert_eq!(RetryRecord::from_headers(&retry.to_headers()), Ok(retry));
    }

    #[test]
    fn numbers_and_times_beyond_reason_are_malformed_and_the_rest_is_still_identified() {
        let since = record().accepted_at;
        let retry =
            RetryRecord { request: record(), destination: "three".to_owned(), attempt: 7, spent: 4, since };
        for (name, values) in [
            (
                name::CE_TIME,
                &["+262142-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z"][..],
            ),
            (name::SINCE, &["+262142-12-31T23:59:59Z", "1969-12-31T23:59:59Z", "now"]),
            (name::ATTEMPT, &["0", "2147483648", "4294967295", "-1"]),
            (name::SPENT, &["2147483648", "soon"]),
        ] {
            for value in values {
                let mut headers = retry.to_headers();
                put(&mut headers, name, *value);
                assert_eq!(RetryRecord::from_headers(&headers).unwrap_err().header, name, "{value}");
                let identity = Identity::from_headers(&headers).unwrap();
                assert_eq!((identity.id, identity.destination.as_deref()), (record().id, Some("three")));
                assert_eq!(identity.attempt, if name == name::ATTEMPT { 1 } else { 7 });
            }
        }
        assert_eq!(Identity::from_headers(&[]), None);
    }

    #[test]
    fn a_record_without_an_id_or_with_a_bad_one_is_malformed() {
        assert_eq!(RequestRecord::from_headers(&[]).unwrap_err().header, "ce_id");
        let headers = [("ce_id".to_owned(), Bytes::from_static(b"42"))];
        assert_eq!(RequestRecord::from_headers(&headers).unwrap_err().header, "ce_id");
        let headers = [("ce_id".to_owned(), Bytes::from_static(b"00000000000000000042"))];
        assert_eq!(RequestRecord::from_headers(&headers).unwrap_err().header, "ce_type");
    }
}
