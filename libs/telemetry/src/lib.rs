//! Logs, traces, metrics and the W3C trace context, set up after OpenTelemetry's conventions.
//!
//! [`init`] is called once, by `main`. Everything else in the project only uses `tracing`, and what is here
//! to carry a trace across a process border: [`extract`] and [`set_parent`] on the way in, [`inject`] or
//! [`context_of`] on the way out. Baggage is never carried: third parties get what they are sent on purpose.
//! Who measures is handed a [`Meter`](Telemetry::meter), and makes histograms with the boundaries that are
//! here: [`SHORT`] or [`LONG`].
//!
//! Logs go to stdout: lines for people when that is a terminal, otherwise one flat JSON object a line. Logs,
//! traces and metrics are exported over OTLP when there is an endpoint for them. Spans have ids, and carry them on,
//! also when nothing is exported. A collector that is away slows nothing: what waits for it is bounded, what
//! it cannot take is dropped and counted (`throughline.telemetry.dropped`), and that is said at most every
//! five minutes. How the process and its runtime do is measured, too (`process.…`, `tokio.runtime.…`).
//!
//! What `init` reads are the [standard variables](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
//! One that cannot be followed is an error. Where the sampler follows the parent, a trace that has none but is
//! linked to others follows those.
//!
//! | variable | meaning |
//! |---|---|
//! | `RUST_LOG` | what is logged; by default `info`, and of noisy libraries `warn` |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | who is speaking |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces are recorded; by default `parentbased_always_on` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | where to; over HTTP `/v1/traces`, `/v1/logs` and `/v1/metrics` are appended |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf`, the default, or `grpc` |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`, `_COMPRESSION` | sent along; milliseconds, 10,000 by default; `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE` | a PEM file: whom to trust, in place of those that the machine trusts |
//! | `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, `_CLIENT_KEY` | PEM files: what to show to a collector that asks who is there |
//! | `OTEL_EXPORTER_OTLP_INSECURE` | `true`: a gRPC endpoint without a scheme is not a secure one |
//! | `OTEL_EXPORTER_OTLP_TRACES_…`, `…_LOGS_…`, `…_METRICS_…` | the same for one signal; its endpoint is taken as it is |
//! | `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE` | `cumulative`, the default, `delta` or `lowmemory` |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_LOGS_EXPORTER`, `OTEL_METRICS_EXPORTER` | `otlp`, the default, or `none` |
//! | `OTEL_SDK_DISABLED` | `true`: nothing is exported |
//! | `OTEL_BSP_…`, `OTEL_BLRP_…` | batches: `SCHEDULE_DELAY`, `MAX_QUEUE_SIZE`, `MAX_EXPORT_BATCH_SIZE`, `EXPORT_TIMEOUT` |
//! | `OTEL_METRIC_EXPORT_INTERVAL`, `OTEL_METRIC_EXPORT_TIMEOUT` | milliseconds; by default 60,000 and 30,000 |

mod bounded;
mod buckets;
mod environment;
mod error;
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
