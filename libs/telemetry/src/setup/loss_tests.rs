//! Tests of spans, logs and metrics while a collector is unreachable or hangs.

use std::time::Duration;

use throughline_testkit::{Collector, Number, eventually};
use tokio::time::Instant;
use tracing::{info, info_span};

use super::Telemetry;
use super::tests::SERVICE;
use crate::environment::Settings;

/// For whatever is to happen next.
const DEADLINE: Duration = Duration::from_secs(20);

/// Many times the size of the queues.
const ITEMS: usize = 2_000;

/// A process that exports to a collector, with short queues, and gives up soon.
struct Process {
    telemetry: Telemetry,
    made: usize,
}

impl Process {
    fn start(collector: &Collector, protocol: &str) -> Self {
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000".to_owned()),
            ("OTEL_BSP_EXPORT_TIMEOUT", "300".to_owned()),
            ("OTEL_BLRP_EXPORT_TIMEOUT", "300".to_owned()),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "300".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100".to_owned()),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50".to_owned()),
            ("OTEL_BLRP_SCHEDULE_DELAY", "10".to_owned()),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "100".to_owned()),
            ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "50".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", "20".to_owned()),
        ];
        let settings = Settings::read(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
        });
        let telemetry = Telemetry::new(SERVICE, &settings.unwrap()).unwrap();
        Self { telemetry, made: 0 }
    }

    /// Creates spans, each with a log record, and returns how long that took.
    fn work(&mut self, count: usize) -> Duration {
        self.made += count;
        let started = Instant::now();
        let subscriber = self.telemetry.subscriber("test", "info", false, std::io::sink);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..count {
                info_span!("a unit of work").in_scope(|| info!("working"));
            }
        });
        started.elapsed()
    }

    /// Waits until the queued items and the metrics have been tried without success, and returns how long that took.
    fn try_to_flush(&self) -> Duration {
        let started = Instant::now();
        let Telemetry { traces, logs, metrics } = &self.telemetry;
        // These say how the last batch fared, and there may be none left.
        let _ = (traces.force_flush(), logs.as_ref().unwrap().force_flush());
        metrics.as_ref().unwrap().force_flush().unwrap_err();
        started.elapsed()
    }
}

fn dropped(collector: &Collector, signal: &str, reason: &str) -> anyhow::Result<Number> {
    let attributes = [("throughline.signal", signal), ("error.type", reason)];
    collector.value("throughline.telemetry.dropped", &attributes)
}

/// Waits until every span and every log record has come, or is known as dropped.
async fn accounted_for(collector: &Collector, made: usize) {
    eventually("all to be accounted for", DEADLINE, async || {
        for (signal, come) in [("traces", collector.spans().len()), ("logs", collector.logs().len())] {
            let refused = dropped(collector, signal, "queue_full")?;
            let failed = dropped(collector, signal, "export_failed")?;
            let is_balanced = Number(refused.0 + failed.0) == i32::try_from(made - come)?;
            anyhow::ensure!(is_balanced, "{signal}: {come} + {refused:?} + {failed:?} of {made}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_items_are_not_counted_as_dropped() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::open().unwrap();
        let mut process = Process::start(&collector, protocol);
        process.work(50);
        accounted_for(&collector, 50).await;
        assert_eq!((collector.spans().len(), collector.logs().len()), (50, 50), "{protocol}");
        process.telemetry.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn items_lost_while_a_collector_is_unreachable_are_counted_and_exports_resume() {
    for protocol in ["grpc", "http/protobuf"] {
        let mut collector = Collector::open().unwrap();
        let mut process = Process::start(&collector, protocol);
        collector.close();
        let took = process.work(ITEMS);
        assert!(took < Duration::from_secs(2), "{protocol}: {took:?}");
        collector.reopen().unwrap();
        accounted_for(&collector, process.made).await;
        for signal in ["traces", "logs"] {
            assert!(dropped(&collector, signal, "queue_full").unwrap() > Number(0.0), "{protocol}, {signal}");
        }
        let so_far = collector.spans().len();
        process.work(10);
        accounted_for(&collector, process.made).await;
        assert_eq!(collector.spans().len(), so_far + 10, "{protocol}");
        process.telemetry.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_slows_nothing_down_and_lost_items_are_counted() {
    for protocol in ["grpc", "http/protobuf"] {
        let collector = Collector::open().unwrap();
        let mut process = Process::start(&collector, protocol);
        process.work(10);
        accounted_for(&collector, 10).await;
        collector.hang();
        let took = process.work(ITEMS);
        assert!(took < Duration::from_secs(2), "{protocol}: {took:?}");
        let took = process.try_to_flush();
        assert!(took < Duration::from_secs(10), "{protocol}: {took:?}");
        collector.answer();
        accounted_for(&collector, process.made).await;
        for signal in ["traces", "logs"] {
            assert!(
                dropped(&collector, signal, "export_failed").unwrap() > Number(0.0),
                "{protocol}, {signal}"
            );
            assert!(dropped(&collector, signal, "queue_full").unwrap() > Number(0.0), "{protocol}, {signal}");
        }
        assert!(dropped(&collector, "metrics", "export_failed").unwrap() > Number(0.0), "{protocol}");
        process.telemetry.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_metrics_a_meter_does_nothing() {
    let telemetry = Telemetry::new(SERVICE, &Settings::read(|_| None).unwrap()).unwrap();
    assert!(telemetry.metrics.is_none());
    telemetry.meter("test").u64_counter("nothing").build().add(1, &[]);
    telemetry.shutdown().await;
}
