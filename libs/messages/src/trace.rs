use bytes::Bytes;

use crate::headers::{Headers, find, name, put};

/// A W3C trace context as it travels: HTTP, row, Kafka headers, HTTP.
///
/// Well-formedness is the tracer's concern; here it is carried as it came.
/// See <https://www.w3.org/TR/trace-context/>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// `00-<trace id>-<span id>-<flags>`.
    pub traceparent: String,
    /// Vendors' additions, if there were any.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// Reads the context from record headers; unreadable is the same as absent.
    #[must_use]
    pub fn from_headers(headers: &[(String, Bytes)]) -> Option<Self> {
        let text = |name| find(headers, name).and_then(|v| std::str::from_utf8(v).ok()).map(str::to_owned);
        Some(Self { traceparent: text(name::TRACEPARENT)?, tracestate: text(name::TRACESTATE) })
    }

    /// The trace's id, 32 hexadecimal digits, if the context is one.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        let id = self.traceparent.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }

    /// Whether the sender has the trace recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        let flags = self.traceparent.split('-').nth(3);
        flags.and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
    }

    /// Appends the context to record headers.
    pub fn write(&self, headers: &mut Headers) {
        put(headers, name::TRACEPARENT, self.traceparent.clone());
        if let Some(tracestate) = &self.tracestate {
            put(headers, name::TRACESTATE, tracestate.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_recorded_if_the_last_bit_of_its_flags_says_so() {
        let with_flags = |flags: &str| TraceContext {
            traceparent: format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331{flags}"),
            tracestate: None,
        };
        for (flags, is_sampled) in [("-01", true), ("-03", true), ("-00", false), ("-02", false), ("", false)]
        {
            assert_eq!(with_flags(flags).is_sampled(), is_sampled, "{flags}");
        }
    }
}
