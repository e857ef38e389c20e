//! Logs, traces and the W3C trace context, set up after OpenTelemetry's conventions.
//!
//! [`init`] is called once, by `main`. Everything else in the project only uses `tracing`, and what is here
//! to carry a trace across a process border: [`extract`] and [`set_parent`] on the way in, [`inject`] or
//! [`context_of`] on the way out. Baggage is never carried: third parties get what they are sent on purpose.
//!
//! Logs go to stdout: lines for people when that is a terminal, otherwise one flat JSON object a line. Logs
//! and traces are exported over OTLP when there is an endpoint for them. Spans have ids, and carry them on,
//! also when nothing is exported. A collector that is away slows nothing: what waits for it is bounded, what
//! it cannot take is dropped, and that is said at most every five minutes.
//!
//! What `init` reads are the [standard variables](https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
//! One that cannot be followed is an error.
//!
//! | variable | meaning |
//! |---|---|
//! | `RUST_LOG` | what is logged; by default `info`, and of noisy libraries `warn` |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | who is speaking |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces are recorded; by default `parentbased_always_on` |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | where to; over HTTP `/v1/traces` and `/v1/logs` are appended |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf`, the default, or `grpc` |
//! | `OTEL_EXPORTER_OTLP_HEADERS`, `_TIMEOUT`, `_COMPRESSION` | sent along; milliseconds, 10,000 by default; `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_TRACES_…`, `OTEL_EXPORTER_OTLP_LOGS_…` | the same for one signal; its endpoint is taken as it is |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_LOGS_EXPORTER` | `otlp`, the default, or `none` |
//! | `OTEL_SDK_DISABLED` | `true`: nothing is exported |
//! | `OTEL_BSP_…`, `OTEL_BLRP_…` | batches: `SCHEDULE_DELAY`, `MAX_QUEUE_SIZE`, `MAX_EXPORT_BATCH_SIZE` |

mod environment;
mod error;
mod export;
mod format;
mod propagation;
mod setup;

pub use error::TelemetryError;
pub use propagation::{add_link, context_of, extract, inject, set_parent, trace_id_of};
pub use setup::{Telemetry, init, init_quiet};
