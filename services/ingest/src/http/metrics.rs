//! Metrics of requests, according to OpenTelemetry's conventions for HTTP servers.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter, UpDownCounter};
use throughline_telemetry::SHORT;
use tokio::time::Instant;

/// The name of all unknown methods.
pub(super) const OTHER: &str = "_OTHER";

#[derive(Debug, Clone)]
pub(super) struct Measures {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
}

/// A request in progress, until it is dropped: the client may disconnect before the answer.
struct Active<'a>(&'a UpDownCounter<i64>, [KeyValue; 1]);

impl Measures {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            duration: meter
                .f64_histogram("http.server.request.duration")
                .with_unit("s")
                .with_description("Duration of requests to this server.")
                .with_boundaries(SHORT.to_vec())
                .build(),
            active: meter
                .i64_up_down_counter("http.server.active_requests")
                .with_unit("{request}")
                .with_description("Requests that are being answered.")
                .build(),
        }
    }
}

/// Counts and times a request.
pub(super) async fn measure(State(measures): State<Measures>, request: Request, next: Next) -> Response {
    let method = KeyValue::new("http.request.method", method(request.method()));
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let _active = Active::new(&measures.active, method.clone());
    let began = Instant::now();
    let response = next.run(request).await;
    let status = response.status();
    let mut attributes = vec![method, KeyValue::new("http.response.status_code", i64::from(status.as_u16()))];
    attributes.extend(route.map(|route| KeyValue::new("http.route", route)));
    if status.is_server_error() {
        attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
    }
    measures.duration.record(began.elapsed().as_secs_f64(), &attributes);
    response
}

/// Returns the name of a known method; clients can send any other.
pub(super) fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

impl<'a> Active<'a> {
    fn new(active: &'a UpDownCounter<i64>, method: KeyValue) -> Self {
        let attributes = [method];
        active.add(1, &attributes);
        Self(active, attributes)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.add(-1, &self.1);
    }
}
