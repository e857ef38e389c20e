use bytes::Bytes;
use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};
use throughline_snowflake::RequestId;

use crate::headers::{Headers, Malformed, all, name, parsed, put, required, text};
use crate::trace::TraceContext;

const SOURCE: &str = "/throughline/ingest";

/// The headers that all records of a request have. The record's value is the request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// The request's id.
    pub id: RequestId,
    /// The route that accepted it.
    pub route: String,
    /// When it was accepted, to the millisecond.
    pub accepted_at: DateTime<Utc>,
    /// The media type of the body.
    pub content_type: String,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

impl RequestRecord {
    /// Returns the record's headers.
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
        headers
    }

    /// Reads the headers that all records of requests have.
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
        })
    }
}

/// A record on a route's topic: a request, and the destinations to call.
///
/// The record names the destinations, so that a dispatch with an older or newer configuration than ingest's neither
/// makes a delivery that ingest does not know nor leaves one out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRecord {
    /// The request.
    pub request: RequestRecord,
    /// The destinations to call. The request may have others, which wait for their ordering group or have ended.
    pub destinations: Vec<String>,
}

impl RouteRecord {
    /// Returns the record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = self.request.to_headers();
        for destination in &self.destinations {
            put(&mut headers, name::DELIVER_TO, destination.clone());
        }
        headers
    }

    /// Reads a record of a route's topic that is signed with one of the [keys](crate::Keys).
    ///
    /// # Errors
    /// [`Malformed`] if a header is missing or cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Self, Malformed> {
        Ok(Self {
            request: RequestRecord::from_headers(headers)?,
            destinations: all(headers, name::DELIVER_TO)?,
        })
    }
}

/// A record on the retries topic: one destination's delivery to attempt (again).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRecord {
    /// The request.
    pub request: RequestRecord,
    /// The destination to call.
    pub destination: String,
    /// The number of the attempt to make, from 1.
    pub attempt: u32,
    /// How many of the previous attempts counted.
    pub counted_attempts: u32,
    /// When the delivery's window began: when its request was accepted, when it was replayed, or when it became the
    /// first of its ordering group.
    pub window_started_at: DateTime<Utc>,
}

impl RetryRecord {
    /// Returns the record's headers.
    #[must_use]
    pub fn to_headers(&self) -> Headers {
        let mut headers = self.request.to_headers();
        put(&mut headers, name::DESTINATION, self.destination.clone());
        put(&mut headers, name::ATTEMPT, self.attempt.to_string());
        put(&mut headers, name::COUNTED_ATTEMPTS, self.counted_attempts.to_string());
        put(&mut headers, name::WINDOW_STARTED_AT, rfc3339(self.window_started_at));
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
            counted_attempts: count(headers, name::COUNTED_ATTEMPTS, 0)?,
            window_started_at: instant(headers, name::WINDOW_STARTED_AT)?,
        })
    }
}

/// The request of one of our records that cannot be used otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The request's id.
    pub id: RequestId,
    /// The destinations that the record names.
    pub destinations: Vec<String>,
    /// The number of the attempt to make, from 1.
    pub attempt: u32,
    /// How many of the previous attempts counted.
    pub counted_attempts: u32,
}

impl Identity {
    /// Reads every readable header. Returns `None` if the request's id is missing or unreadable.
    #[must_use]
    pub fn from_headers(headers: &[(String, Bytes)]) -> Option<Self> {
        let retried = text(headers, name::DESTINATION).ok().flatten();
        let destinations = match retried {
            Some(destination) => vec![destination.to_owned()],
            None => all(headers, name::DELIVER_TO).unwrap_or_default(),
        };
        Some(Self {
            id: parsed(headers, name::CE_ID).ok()?,
            destinations,
            attempt: count(headers, name::ATTEMPT, 1).unwrap_or(1),
            counted_attempts: count(headers, name::COUNTED_ATTEMPTS, 0).unwrap_or(0),
        })
    }
}

/// Reads a number of attempts, which the database stores in 31 bits.
fn count(headers: &[(String, Bytes)], name: &'static str, least: u32) -> Result<u32, Malformed> {
    let count: u32 = parsed(headers, name)?;
    if (least..=i32::MAX.cast_unsigned()).contains(&count) {
        Ok(count)
    } else {
        Err(Malformed::new(name, format!("must be between {least} and {}", i32::MAX)))
    }
}

/// Reads an instant in RFC 3339, from 1970 to 9999: far from the ends of the calendar, where additions overflow.
fn instant(headers: &[(String, Bytes)], name: &'static str) -> Result<DateTime<Utc>, Malformed> {
    let instant = DateTime::parse_from_rfc3339(required(headers, name)?)
        .map_err(|error| Malformed::new(name, error.to_string()))?
        .to_utc();
    if (1970..=9999).contains(&instant.year()) {
        Ok(instant)
    } else {
        Err(Malformed::new(name, "must be between the years 1970 and 9999"))
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
        }
    }

    fn of_route() -> RouteRecord {
        RouteRecord { request: record(), destinations: vec!["three".to_owned(), "four".to_owned()] }
    }

    #[test]
    fn headers_follow_the_cloudevents_binding() {
        let headers = of_route().to_headers();
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
    fn written_records_are_read_back() {
        let window_started_at = DateTime::from_timestamp_millis(1_767_225_700_456).unwrap();
        let retry = RetryRecord {
            request: record(),
            destination: "three".to_owned(),
            attempt: 7,
            counted_attempts: 4,
            window_started_at,
        };
        assert_eq!(RouteRecord::from_headers(&of_route().to_headers()), Ok(of_route()));
        assert_eq!(RetryRecord::from_headers(&retry.to_headers()), Ok(retry));
    }

    #[test]
    fn out_of_range_numbers_and_times_are_malformed_and_the_record_is_still_identified() {
        let window_started_at = record().accepted_at;
        let retry = RetryRecord {
            request: record(),
            destination: "three".to_owned(),
            attempt: 7,
            counted_attempts: 4,
            window_started_at,
        };
        for (name, values) in [
            (
                name::CE_TIME,
                &["+262142-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z"][..],
            ),
            (name::WINDOW_STARTED_AT, &["+262142-12-31T23:59:59Z", "1969-12-31T23:59:59Z", "now"]),
            (name::ATTEMPT, &["0", "2147483648", "4294967295", "-1"]),
            (name::COUNTED_ATTEMPTS, &["2147483648", "soon"]),
        ] {
            for value in values {
                let mut headers = retry.to_headers();
                put(&mut headers, name, *value);
                assert_eq!(RetryRecord::from_headers(&headers).unwrap_err().header, name, "{value}");
                let identity = Identity::from_headers(&headers).unwrap();
                assert_eq!((identity.id, identity.destinations), (record().id, vec!["three".to_owned()]));
                assert_eq!(identity.attempt, if name == name::ATTEMPT { 1 } else { 7 });
            }
        }
        let identity = Identity::from_headers(&of_route().to_headers()).unwrap();
        assert_eq!(identity.destinations, of_route().destinations);
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
