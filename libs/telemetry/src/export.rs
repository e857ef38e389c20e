//! OTLP exporters that cope with an unreachable collector.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, LogExporter as OtlpLogs, MetricExporter as OtlpMetrics, Protocol as OtlpProtocol,
    SpanExporter as OtlpSpans, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::context::TokioContext;

use crate::environment::{Collector, Protocol};
use crate::error::TelemetryError;
use crate::ledger::Ledger;

/// The minimum time between two warnings: a collector may be unreachable for days, and each batch would log another
/// one.
const BETWEEN_COMPLAINTS: Duration = Duration::from_mins(5);

/// An exporter of one signal.
///
/// The SDK exports on threads of its own, so that no runtime worker ever waits for a collector. The exporters'
/// futures need the runtime's context on those threads. The SDK neither reports failures nor limits the duration of
/// an export, so this type does both.
#[derive(Debug)]
pub(crate) struct Exporter<E> {
    inner: E,
    runtime: Handle,
    deadline: Duration,
    ledger: Arc<Ledger>,
    complained_at: Mutex<Option<Instant>>,
}

/// Creates the exporter of spans.
pub(crate) fn traces(
    collector: &Collector,
    ledger: &Arc<Ledger>,
) -> Result<Exporter<OtlpSpans>, TelemetryError> {
    Exporter::new(collector, ledger, || match collector.protocol {
        Protocol::Grpc => grpc(OtlpSpans::builder().with_tonic(), collector).build(),
        Protocol::HttpProtobuf => http(OtlpSpans::builder().with_http(), collector)?.build(),
    })
}

/// Creates the exporter of logs.
pub(crate) fn logs(
    collector: &Collector,
    ledger: &Arc<Ledger>,
) -> Result<Exporter<OtlpLogs>, TelemetryError> {
    Exporter::new(collector, ledger, || match collector.protocol {
        Protocol::Grpc => grpc(OtlpLogs::builder().with_tonic(), collector).build(),
        Protocol::HttpProtobuf => http(OtlpLogs::builder().with_http(), collector)?.build(),
    })
}

/// Creates the exporter of metrics.
pub(crate) fn metrics(
    collector: &Collector,
    temporality: Temporality,
    ledger: &Arc<Ledger>,
) -> Result<Exporter<OtlpMetrics>, TelemetryError> {
    let builder = OtlpMetrics::builder().with_temporality(temporality);
    Exporter::new(collector, ledger, || match collector.protocol {
        Protocol::Grpc => grpc(builder.with_tonic(), collector).build(),
        Protocol::HttpProtobuf => http(builder.with_http(), collector)?.build(),
    })
}

fn grpc<B: WithExportConfig + WithTonicConfig>(builder: B, collector: &Collector) -> B {
    let builder = builder.with_endpoint(&collector.endpoint).with_timeout(collector.timeout);
    match &collector.tls {
        Some(tls) => builder.with_tls_config(tls.for_grpc()),
        None => builder,
    }
}

fn http<B: WithExportConfig + WithHttpConfig>(
    builder: B,
    collector: &Collector,
) -> Result<B, ExporterBuildError> {
    let client = http_client(collector).map_err(|error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        ExporterBuildError::InternalFailure(format!("{error}{cause}"))
    })?;
    Ok(builder
        .with_endpoint(&collector.endpoint)
        .with_timeout(collector.timeout)
        .with_protocol(OtlpProtocol::HttpBinary)
        .with_http_client(client))
}

fn http_client(collector: &Collector) -> Result<reqwest::Client, reqwest::Error> {
    let client = reqwest::Client::builder().timeout(collector.timeout);
    match &collector.tls {
        Some(tls) => tls.for_http(client)?.build(),
        None => client.build(),
    }
}

impl<E> Exporter<E> {
    fn new(
        collector: &Collector,
        ledger: &Arc<Ledger>,
        build: impl FnOnce() -> Result<E, ExporterBuildError>,
    ) -> Result<Self, TelemetryError> {
        let runtime = Handle::try_current().map_err(|_| TelemetryError::NoRuntime)?;
        let signal = ledger.signal();
        let inner = build().map_err(|source| TelemetryError::Exporter { signal, source })?;
        let (deadline, ledger) = (collector.deadline, Arc::clone(ledger));
        Ok(Self { inner, runtime, deadline, ledger, complained_at: Mutex::default() })
    }

    async fn run(&self, count: usize, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        let in_time = async {
            timeout(self.deadline, export).await.unwrap_or(Err(OTelSdkError::Timeout(self.deadline)))
        };
        let exported = TokioContext::new(in_time, self.runtime.clone()).await;
        if let Err(error) = &exported {
            self.ledger.failed(count);
            if self.may_complain() {
                let signal = self.ledger.signal().name();
                tracing::warn!(
                    event = "telemetry.export_failed", signal, %error,
                    "cannot export telemetry; dropping it"
                );
            }
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
        let count = batch.len();
        self.ledger.left(count);
        self.run(count, self.inner.export(batch)).await
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
        let count = batch.iter().count();
        self.ledger.left(count);
        self.run(count, self.inner.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Exporter<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let count = metrics.scope_metrics().map(|scope| scope.metrics().count()).sum();
        self.run(count, self.inner.export(metrics)).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}
