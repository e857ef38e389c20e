//! The SERVER span of a request, according to OpenTelemetry's conventions for HTTP.

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument as _, info_span};

use super::metrics::{self, OTHER};

/// Continues the client's trace, if it sent one, and records the status of the answer.
pub(super) async fn server_span(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = metrics::method(request.method());
    let name = if method == OTHER { "HTTP" } else { method };
    let span = info_span!(
        "request",
        otel.kind = "server",
        otel.name = route.map_or_else(|| name.to_owned(), |route| format!("{name} {route}")),
        otel.status_code = Empty,
        error.r#type = Empty,
        http.request.method = method,
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
        span.record("error.type", response.status().as_str());
    }
    response
}
