//! The metrics of HTTP calls, following OpenTelemetry's conventions for HTTP clients, and of tokens.

use std::time::Duration;

use http::StatusCode;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use throughline_messages::ErrorClass;
use throughline_telemetry::SHORT;

use super::call::Exchange;

/// Instruments for the calls to one destination.
#[derive(Debug)]
pub(super) struct Metrics {
    duration: Histogram<f64>,
    tokens: Counter<u64>,
    destination: KeyValue,
    host: String,
}

/// The source of a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenResult {
    /// From memory.
    Hit,
    /// From the token endpoint.
    Miss,
    /// The token could not be obtained.
    Error,
}

impl Metrics {
    /// Creates the instruments. `host` is the host of the destination's third party.
    pub(super) fn new(meter: &Meter, destination: &str, host: &str) -> Self {
        Self {
            duration: meter
                .f64_histogram("http.client.request.duration")
                .with_unit("s")
                .with_description("Duration of calls to third parties, up to the end of their responses.")
                .with_boundaries(SHORT.to_vec())
                .build(),
            tokens: meter
                .u64_counter("throughline.token.requests")
                .with_unit("{request}")
                .with_description(
                    "Token requests: answered from memory, by the token endpoint, or not at all.",
                )
                .build(),
            destination: KeyValue::new("throughline.destination", destination.to_owned()),
            host: host.to_owned(),
        }
    }

    /// Records the duration of a call that has ended.
    pub(super) fn ended(&self, exchange: &Exchange, took: Duration) {
        let mut attributes = vec![
            self.destination.clone(),
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("server.address", self.host.clone()),
        ];
        if let Some(status) = exchange.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        }
        match &exchange.end {
            Ok(status) => attributes.extend(failed_status(*status)),
            Err(error) => {
                let class: ErrorClass = error.class();
                attributes.push(KeyValue::new("error.type", class.as_str().to_owned()));
            }
        }
        self.duration.record(took.as_secs_f64(), &attributes);
    }

    /// Counts a token that was needed.
    pub(super) fn token(&self, result: TokenResult) {
        let result = match result {
            TokenResult::Hit => "hit",
            TokenResult::Miss => "miss",
            TokenResult::Error => "error",
        };
        self.tokens.add(1, &[self.destination.clone(), KeyValue::new("throughline.result", result)]);
    }
}

/// Returns the status of a failed response as its error type, which the conventions require too.
fn failed_status(status: StatusCode) -> Option<KeyValue> {
    (!status.is_success()).then(|| KeyValue::new("error.type", status.as_str().to_owned()))
}
