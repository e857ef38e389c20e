use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use throughline_snowflake::RequestId;

use crate::headers::{Headers, Malformed, all, find, name, parsed, put, required, text};
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

    /// Reads a record of ours; `None` if it is a foreign one, which has no `ce_id`.
    ///
    /// # Errors
    /// [`Malformed`] if it has a `ce_id`, and that or another header cannot be read.
    pub fn from_headers(headers: &[(String, Bytes)]) -> Result<Option<Self>, Malformed> {
        if find(headers, name::CE_ID).is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            id: parsed(headers, name::CE_ID)?,
            route: required(headers, name::CE_TYPE)?.to_owned(),
            accepted_at: parsed(headers, name::CE_TIME)?,
            content_type: text(headers, name::CONTENT_TYPE)?.unwrap_or("application/json").to_owned(),
            trace: TraceContext::from_headers(headers),
            held: all(headers, name::HELD)?,
        }))
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
        let request =
            RequestRecord::from_headers(headers)?.ok_or_else(|| Malformed::new(name::CE_ID, "is missing"))?;
        Ok(Self {
            request,
            destination: required(headers, name::DESTINATION)?.to_owned(),
            attempt: parsed(headers, name::ATTEMPT)?,
            spent: parsed(headers, name::SPENT)?,
            since: parsed(headers, name::SINCE)?,
        })
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(RequestRecord::from_headers(&record().to_headers()), Ok(Some(record())));
        assert_eq!(RetryRecord::from_headers(&retry.to_headers()), Ok(retry));
    }

    #[test]
    fn a_record_without_an_id_is_foreign_and_one_with_a_bad_id_is_malformed() {
        assert_eq!(RequestRecord::from_headers(&[]), Ok(None));
        let headers = [("ce_id".to_owned(), Bytes::from_static(b"42"))];
        assert_eq!(RequestRecord::from_headers(&headers).unwrap_err().header, "ce_id");
        let headers = [("ce_id".to_owned(), Bytes::from_static(b"00000000000000000042"))];
        assert_eq!(RequestRecord::from_headers(&headers).unwrap_err().header, "ce_type");
    }
}
