use bytes::Bytes;

use crate::headers::{Headers, find, name, put};

/// A W3C trace context. It travels from HTTP to the row, to Kafka headers, and to HTTP.
///
/// It is passed on unchanged; only the tracer checks its form. See <https://www.w3.org/TR/trace-context/>.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// `00-<trace id>-<span id>-<flags>`.
    pub traceparent: String,
    /// Additions by vendors, if there were any.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// Reads the context from record headers. Returns `None` if it is absent or unreadable.
    #[must_use]
    pub fn from_headers(headers: &[(String, Bytes)]) -> Option<Self> {
        let text = |name| find(headers, name).and_then(|v| std::str::from_utf8(v).ok()).map(str::to_owned);
        Some(Self { traceparent: text(name::TRACEPARENT)?, tracestate: text(name::TRACESTATE) })
    }

    /// Returns the trace id, 32 hexadecimal digits, if the context is valid.
    #[must_use]
    pub fn trace_id(&self) -> Option<&str> {
        let id = self.traceparent.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }

    /// Returns whether the sender records the trace.
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
    fn a_trace_is_recorded_if_the_last_bit_of_its_flags_is_set() {
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
