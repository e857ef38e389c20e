//! The OTLP exporters, made fit for a collector that is away.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter as OtlpLogs, Protocol as OtlpProtocol, SpanExporter as OtlpSpans,
    WithExportConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::context::TokioContext;

use crate::environment::{Collector, Protocol};
use crate::error::TelemetryError;

/// A collector that is away may stay so for days, and each batch would say it again.
const BETWEEN_COMPLAINTS: Duration = Duration::from_mins(5);

/// An exporter of one signal.
///
/// The SDK exports from threads of its own, so that no worker of ours ever waits for a collector; what the
/// exporters wait with needs the runtime's context there. And the SDK says nothing about failures.
#[derive(Debug)]
pub(crate) struct Exporter<E> {
    inner: E,
    runtime: Handle,
    signal: &'static str,
    complained_at: Mutex<Option<Instant>>,
}

/// The exporter of spans.
pub(crate) fn traces(collector: &Collector) -> Result<Exporter<OtlpSpans>, TelemetryError> {
    Exporter::new("traces", || match collector.protocol {
        Protocol::Grpc => {
            let exporter = OtlpSpans::builder().with_tonic().with_endpoint(&collector.endpoint);
            exporter.with_tls_config(tls()).build()
        }
        Protocol::HttpProtobuf => {
            let exporter = OtlpSpans::builder().with_http().with_endpoint(&collector.endpoint);
            exporter.with_protocol(OtlpProtocol::HttpBinary).build()
        }
    })
}

/// The exporter of log records.
pub(crate) fn logs(collector: &Collector) -> Result<Exporter<OtlpLogs>, TelemetryError> {
    Exporter::new("logs", || match collector.protocol {
        Protocol::Grpc => {
            let exporter = OtlpLogs::builder().with_tonic().with_endpoint(&collector.endpoint);
            exporter.with_tls_config(tls()).build()
        }
        Protocol::HttpProtobuf => {
            let exporter = OtlpLogs::builder().with_http().with_endpoint(&collector.endpoint);
            exporter.with_protocol(OtlpProtocol::HttpBinary).build()
        }
    })
}

/// What the machine trusts; only an `https` endpoint makes use of it.
fn tls() -> ClientTlsConfig {
    ClientTlsConfig::new().with_enabled_roots()
}

impl<E> Exporter<E> {
    fn new(
        signal: &'static str,
        build: impl FnOnce() -> Result<E, ExporterBuildError>,
    ) -> Result<Self, TelemetryError> {
        let runtime = Handle::try_current().map_err(|_| TelemetryError::NoRuntime)?;
        let inner = build().map_err(|source| TelemetryError::Exporter { signal, source })?;
        Ok(Self { inner, runtime, signal, complained_at: Mutex::default() })
    }

    async fn run(&self, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        let exported = TokioContext::new(export, self.runtime.clone()).await;
        if let Err(error) = &exported
            && self.may_complain()
        {
            tracing::warn!(signal = self.signal, %error, "cannot export; what cannot be exported is dropped");
        }
        exported
    }

    fn may_complain(&self) -> bool {
        let now = Instant::now();
        let mut last = self.complained_at.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| now.duration_since(last) >= BETWEEN_COMPLAINTS);
        if may {
            *last = Some(now);
        }
        may
    }
}

impl<E: SpanExporter> SpanExporter for Exporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.run(self.inner.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Exporter<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.run(self.inner.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
