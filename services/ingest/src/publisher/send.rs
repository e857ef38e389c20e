//! A request as a record, with its PRODUCER span.

use bytes::Bytes;
use throughline_kafka::{Outgoing, Position, SendError};
use throughline_messages::{Headers, Keys, Kind, RequestRecord, TraceContext};
use throughline_store::OutboxRequest;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::refusals::Stub;

/// Bytes of a record's fixed headers, its signature among them, and of librdkafka's bookkeeping for it.
const OVERHEAD: usize = 640;

/// Bytes that a request takes as a record, at most.
pub(crate) fn size_of(request: &OutboxRequest) -> usize {
    let trace =
        |trace: &TraceContext| trace.traceparent.len() + trace.tracestate.as_ref().map_or(0, String::len);
    // Each name that is held is a header of its own.
    let held: usize = request.held.iter().map(|destination| destination.len() + 64).sum();
    OVERHEAD
        + request.body.len()
        + request.ordering_key.as_ref().map_or(0, String::len)
        + request.route.len()
        + request.content_type.len()
        + request.trace.as_ref().map_or(0, trace)
        + held
}

/// The record of a request for a topic, and the span of its sending, which is over when dropped.
///
/// `headers` makes the record's headers from what they say of the request. It is signed as what it is.
pub(crate) fn outgoing(
    topic: &str,
    request: OutboxRequest,
    (keys, kind): (&Keys, Kind),
    headers: impl FnOnce(RequestRecord) -> Headers,
) -> (Outgoing, Span) {
    let span = send_span(topic, &request);
    let trace = throughline_telemetry::context_of(&span).or_else(|| request.trace.clone());
    let (key, payload) = (key_of(&request), request.body.clone());
    let mut headers = headers(record_of(request, trace));
    keys.sign(kind, &mut headers, &payload);
    (Outgoing { topic: topic.to_owned(), key: Some(key), headers, payload }, span)
}

/// What there is to tell of a request that nobody knows where to publish.
pub(super) fn unroutable(request: OutboxRequest) -> Stub {
    stub(request, |request| request.to_headers())
}

/// What there is to tell of a request that is not published.
pub(crate) fn stub(request: OutboxRequest, headers: impl FnOnce(RequestRecord) -> Headers) -> Stub {
    let (key, trace) = (key_of(&request), request.trace.clone());
    Stub { key: Some(key), headers: headers(record_of(request, trace)) }
}

fn key_of(request: &OutboxRequest) -> Bytes {
    request.ordering_key.clone().unwrap_or_else(|| request.id.to_string()).into()
}

fn record_of(request: OutboxRequest, trace: Option<TraceContext>) -> RequestRecord {
    RequestRecord {
        id: request.id,
        route: request.route,
        accepted_at: request.accepted_at,
        content_type: request.content_type,
        trace,
        held: request.held,
    }
}

fn send_span(topic: &str, request: &OutboxRequest) -> Span {
    let span = info_span!(
        parent: None,
        "send",
        otel.kind = "producer",
        otel.name = format!("send {topic}"),
        otel.status_code = Empty,
        error.r#type = Empty,
        messaging.system = "kafka",
        messaging.operation.name = "send",
        messaging.operation.r#type = "send",
        messaging.destination.name = topic,
        messaging.destination.partition.id = Empty,
        messaging.kafka.offset = Empty,
        messaging.message.id = %request.id,
        messaging.message.body.size = request.body.len(),
    );
    if let Some(trace) = &request.trace {
        throughline_telemetry::set_parent(&span, trace);
    }
    span
}

/// Writes into the span how the sending ended.
pub(crate) fn note(span: &Span, sent: &Result<Position, SendError>) {
    match sent {
        Ok(position) => {
            span.record("messaging.destination.partition.id", position.partition.to_string());
            span.record("messaging.kafka.offset", position.offset);
        }
        Err(error) => {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", if error.is_refusal() { "refused" } else { "failed" });
        }
    }
}
