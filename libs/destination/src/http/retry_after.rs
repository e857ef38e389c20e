use chrono::{DateTime, TimeDelta, Utc};

/// The earliest time at which a third party accepts another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RetryAfter(DateTime<Utc>);

impl RetryAfter {
    /// Parses the value of a `Retry-After` header (RFC 9110, 10.2.3): seconds, or an HTTP date. Returns `None` if it
    /// is neither. A delay beyond the calendar becomes the latest representable time.
    pub(super) fn parse(value: &str, now: DateTime<Utc>) -> Option<Self> {
        let value = value.trim();
        if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
            let seconds = value.parse().ok().and_then(TimeDelta::try_seconds);
            let then = seconds.and_then(|seconds| now.checked_add_signed(seconds));
            return Some(Self(then.unwrap_or(DateTime::<Utc>::MAX_UTC)));
        }
        httpdate::parse_http_date(value).ok().map(|date| Self(date.into()))
    }

    /// Returns the time, which may be in the past.
    pub(super) fn at(self) -> DateTime<Utc> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_seconds_or_any_of_the_three_forms_of_a_date() {
        let now: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        let table = [
            ("0", "2026-01-01T00:00:00Z"),
            ("120", "2026-01-01T00:02:00Z"),
            (" 007 ", "2026-01-01T00:00:07Z"),
            ("Fri, 02 Jan 2026 03:04:05 GMT", "2026-01-02T03:04:05Z"),
            ("Friday, 02-Jan-26 03:04:05 GMT", "2026-01-02T03:04:05Z"),
            ("Fri Jan  2 03:04:05 2026", "2026-01-02T03:04:05Z"),
            ("Thu, 01 Jan 1970 00:00:00 GMT", "1970-01-01T00:00:00Z"),
        ];
        for (value, then) in table {
            assert_eq!(
                RetryAfter::parse(value, now).map(RetryAfter::at),
                Some(then.parse().unwrap()),
                "{value}"
            );
        }
        for value in ["9223372036854775", "99999999999999999999999999"] {
            let then = RetryAfter::parse(value, now).map(RetryAfter::at);
            assert_eq!(then, Some(DateTime::<Utc>::MAX_UTC), "{value}");
        }
    }

    #[test]
    fn any_other_value_is_ignored() {
        let now = DateTime::UNIX_EPOCH;
        for value in ["", " ", "-1", "+1", "1.5", "1s", "soon", "2026-01-01T00:00:00Z", "1, 2"] {
            assert_eq!(RetryAfter::parse(value, now), None, "{value:?}");
        }
    }
}
