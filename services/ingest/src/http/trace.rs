//! The SERVER span of a request, after OpenTelemetry's conventions for HTTP.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument as _, info_span};

/// Continues the client's trace, if it sent one, and says how the request was answered.
pub(super) async fn server_span(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let span = info_span!(
        "request",
        otel.kind = "server",
        otel.name = format!("{} {route}", request.method()),
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        http.route = route,
        http.response.status_code = Empty,
        url.path = request.uri().path(),
        url.scheme = "http",
        throughline.client = Empty,
        throughline.request.id = Empty,
    );
    if let Some(context) = throughline_telemetry::extract(request.headers()) {
        throughline_telemetry::set_parent(&span, &context);
    }
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}
