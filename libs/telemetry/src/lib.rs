//! Sets up logs, traces, metrics and the W3C trace context, following OpenTelemetry's conventions.
//!
//! `main` calls [`init`] once. All other code only uses `tracing`, and the functions here that carry a trace across a
//! process boundary: [`extract`] and [`set_parent`] for incoming calls, [`inject`] or [`context_of`] for outgoing
//! ones. Baggage is never propagated, so third parties receive only data that is sent on purpose. Code that measures
//! receives a [`Meter`](Telemetry::meter), and creates histograms with the boundaries [`SHORT`] or [`LONG`].
//!
//! Logs go to stdout: readable lines if it is a terminal, otherwise one flat JSON object per line. Logs, traces and
//! metrics are exported over OTLP if an endpoint is configured. Spans have ids and propagate them even if nothing is
//! exported. An unreachable collector slows nothing down: the queue for it is bounded, items that do not fit are
//! dropped and counted (`throughline.telemetry.dropped`), and a warning is logged at most every five minutes. Metrics
//! of the process and its runtime are recorded too (`process.…`, `tokio.runtime.…`).
//!
//! `init` reads the [standard
//! variables](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). An unsupported
//! value is an error. If the sampler follows the parent, a trace without a parent but with links follows the linked
//! traces.
//!
//! | variable | meaning |
//! |---|---|
//! | `RUST_LOG` | the log filter; by default `info`, and `warn` for noisy libraries |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | the identity of the service |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces are recorded; by default `parentbased_always_on` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | the collector; over HTTP, `/v1/traces`, `/v1/logs` and `/v1/metrics` are appended |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf`, the default, or `grpc` |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`, `_COMPRESSION` | headers; milliseconds, by default 10,000; `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE` | a PEM file: trusted authorities, in place of those of the machine |
//! | `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, `_CLIENT_KEY` | PEM files: the client certificate and its key |
//! | `OTEL_EXPORTER_OTLP_INSECURE` | `true`: a gRPC endpoint without a scheme uses no TLS |
//! | `OTEL_EXPORTER_OTLP_TRACES_…`, `…_LOGS_…`, `…_METRICS_…` | the same for one signal; its endpoint is used unchanged |
//! | `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` | `cumulative`, the default, `delta` or `lowmemory` |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_LOGS_EXPORTER`, `OTEL_METRICS_EXPORTER` | `otlp`, the default, or `none` |
//! | `OTEL_SDK_DISABLED` | `true`: nothing is exported |
//! | `OTEL_BSP_…`, `OTEL_BLRP_…` | batches: `SCHEDULE_DELAY`, `MAX_QUEUE_SIZE`, `MAX_EXPORT_BATCH_SIZE`, `EXPORT_TIMEOUT` |
//! | `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_METRIC_EXPORT_TIMEOUT` | milliseconds; by default 60,000 and 30,000 |

mod bounded;
mod buckets;
mod environment;
mod error;
#[cfg(test)]
mod events;
mod export;
mod format;
mod ledger;
mod propagation;
mod sampler;
mod setup;
mod signal;
mod tls;
mod vitals;

pub use buckets::{LONG, SHORT};
pub use error::TelemetryError;
pub use propagation::{add_link, context_of, extract, inject, set_parent, trace_id_of};
pub use setup::{Service, Telemetry, init, init_quiet};
pub use signal::Signal;
