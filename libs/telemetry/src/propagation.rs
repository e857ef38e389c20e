use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use throughline_messages::TraceContext;
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetrySpanExt, SetParentError};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Returns the W3C context of this span, for outgoing calls and records.
///
/// Returns `None` if the span is disabled or telemetry is not set up. Afterwards the span's parent can no longer
/// change.
#[must_use]
pub fn context_of(span: &Span) -> Option<TraceContext> {
    write(&span.context())
}

/// Returns the id of the span's trace: 32 lower-case hexadecimal digits.
///
/// Returns `None` if the span is disabled or telemetry is not set up. Afterwards the span's parent can no longer
/// change.
#[must_use]
pub fn trace_id_of(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Makes a span the child of a remote one.
///
/// An unreadable context leaves the span unchanged. Call this before the span is entered or its context is read.
pub fn set_parent(span: &Span, context: &TraceContext) {
    let Some(parent) = read(context) else { return };
    if let Err(SetParentError::AlreadyStarted) =
        span.set_parent(Context::new().with_remote_span_context(parent))
    {
        tracing::warn!(
            parent: span, event = "trace.broken",
            "the span started before its parent was set: the trace is broken"
        );
    }
}

/// Links a span to a remote one, of the same trace or another. An unreadable context adds no link.
pub fn add_link(span: &Span, context: &TraceContext) {
    if let Some(linked) = read(context) {
        span.add_link(linked);
    }
}

/// Returns the context that a peer sent, if it is well formed.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    // Unlike `traceparent`, `tracestate` may span several header lines.
    let states: Vec<&str> =
        headers.get_all(TRACESTATE).iter().filter_map(|line| line.to_str().ok()).collect();
    let sent = TraceContext {
        traceparent: parent.to_str().ok()?.to_owned(),
        tracestate: (!states.is_empty()).then(|| states.join(",")),
    };
    write(&Context::new().with_remote_span_context(read(&sent)?))
}

/// Sets the context of a span on a request, replacing any existing one.
///
/// Leaves the headers unchanged if the span is disabled or telemetry is not set up.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    let Some(TraceContext { traceparent, tracestate }) = context_of(span) else { return };
    headers.remove(TRACESTATE);
    for (name, value) in [(TRACEPARENT, Some(traceparent)), (TRACESTATE, tracestate)] {
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn read(context: &TraceContext) -> Option<SpanContext> {
    if !is_well_formed(&context.traceparent) {
        return None;
    }
    let read = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier::of(context));
    let span_context = read.span().span_context().clone();
    span_context.is_valid().then_some(span_context)
}

fn write(context: &Context) -> Option<TraceContext> {
    let mut carrier = Carrier::default();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    Some(TraceContext {
        traceparent: carrier.traceparent?,
        tracestate: carrier.tracestate.filter(|state| !state.is_empty()),
    })
}

/// Whether the [fields](https://www.w3.org/TR/trace-context/#traceparent-header-field-values) have the required
/// lengths and are lower-case hexadecimal, which the SDK does not enforce. A later version of the format may have
/// more fields.
fn is_well_formed(traceparent: &str) -> bool {
    let is_hex = |field: &str| field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let fields: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags, rest @ ..] = fields.as_slice() else { return false };
    [(version, 2), (trace, 32), (span, 16), (flags, 2)]
        .into_iter()
        .all(|(field, length)| field.len() == length && is_hex(field))
        && (rest.is_empty() || *version != "00")
}

/// The carrier that the propagator reads and writes.
#[derive(Default)]
struct Carrier {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl Carrier {
    fn of(context: &TraceContext) -> Self {
        Self { traceparent: Some(context.traceparent.clone()), tracestate: context.tracestate.clone() }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent.as_deref(),
            TRACESTATE => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.traceparent = Some(value),
            TRACESTATE => self.tracestate = Some(value),
            _ => {}
        }
    }
}
