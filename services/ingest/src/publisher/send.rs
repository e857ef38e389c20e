//! A request as a Kafka record, with its PRODUCER span.

use bytes::Bytes;
use throughline_kafka::{Outgoing, Position, SendError};
use throughline_messages::{Headers, Keys, Kind, RequestRecord, RouteRecord, TraceContext};
use throughline_store::OutboxRequest;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::refusals::Stub;

/// Bytes of a record's fixed headers, including its signature, and of librdkafka's bookkeeping for it.
const OVERHEAD: usize = 640;

/// Returns the maximum size of a request as a record, in bytes.
pub(crate) fn size_of(request: &OutboxRequest) -> usize {
    let trace =
        |trace: &TraceContext| trace.traceparent.len() + trace.tracestate.as_ref().map_or(0, String::len);
    // Each destination has a header of its own.
    let destinations: usize = request.destinations.iter().map(|destination| destination.len() + 64).sum();
    OVERHEAD
        + request.body.len()
        + request.ordering_key.as_ref().map_or(0, String::len)
        + request.route.len()
        + request.content_type.len()
        + request.trace.as_ref().map_or(0, trace)
        + destinations
}

/// Creates the record of a request for a topic, and the span of its sending, which ends when it is dropped.
///
/// `headers` makes the record's headers from the description of the request. The record is signed as a record of
/// `kind`.
pub(crate) fn outgoing(
    topic: &str,
    request: OutboxRequest,
    (keys, kind): (&Keys, Kind),
    headers: impl FnOnce(RouteRecord) -> Headers,
) -> (Outgoing, Span) {
    let span = send_span(topic, &request);
    let trace = throughline_telemetry::context_of(&span).or_else(|| request.trace.clone());
    let (key, payload) = (key_of(&request), request.body.clone());
    let mut headers = headers(record_of(request, trace));
    keys.sign(kind, &mut headers, &payload);
    (Outgoing { topic: topic.to_owned(), key: Some(key), headers, payload }, span)
}

/// Returns the dead-letter data of a request that has no topic.
pub(super) fn unroutable(request: OutboxRequest) -> Stub {
    stub(request, |record| record.to_headers())
}

/// Returns the dead-letter data of a request that is not published.
pub(crate) fn stub(request: OutboxRequest, headers: impl FnOnce(RouteRecord) -> Headers) -> Stub {
    let (key, trace) = (key_of(&request), request.trace.clone());
    Stub { key: Some(key), headers: headers(record_of(request, trace)) }
}

fn key_of(request: &OutboxRequest) -> Bytes {
    request.ordering_key.clone().unwrap_or_else(|| request.id.to_string()).into()
}

fn record_of(request: OutboxRequest, trace: Option<TraceContext>) -> RouteRecord {
    let OutboxRequest { id, route, accepted_at, content_type, destinations, .. } = request;
    RouteRecord { request: RequestRecord { id, route, accepted_at, content_type, trace }, destinations }
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

/// Records the result of the sending in the span.
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
