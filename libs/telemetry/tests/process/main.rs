//! A process with telemetry, and the collector it exports to, or does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic like these")]

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use serde_json::Value;
use throughline_messages::TraceContext;
use throughline_telemetry::Service;
use throughline_testkit::{Collector, LogRecord};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing::{info, info_span};

mod secured;

/// What starts the process, which is this very program again.
const PROCESS: &str = "the_process";
const PARENT: &str = "PARENT";

const SERVICE: Service<'static> = Service { name: "throughline-test", version: "1.2.3", environment: None };

/// More than the queue of the SDK holds.
const SPANS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is started by the other tests"]
async fn the_process() {
    let started = Instant::now();
    let telemetry = throughline_telemetry::init(SERVICE).unwrap();
    let worked = telemetry.meter("the process").u64_counter("units.of.work").build();
    for _ in 0..SPANS {
        let span = info_span!("a unit of work");
        if let Ok(traceparent) = std::env::var(PARENT) {
            throughline_telemetry::set_parent(&span, &TraceContext { traceparent, tracestate: None });
        }
        span.in_scope(|| tracing::debug!("working"));
        worked.add(1, &[]);
    }
    info_span!("last").in_scope(|| info!(worked_ms = started.elapsed().as_millis(), "done"));
    telemetry.shutdown().await;
}

/// What the process left behind, and how long it took.
struct Ended {
    output: Output,
    took: Duration,
}

impl Ended {
    fn lines(&self) -> Vec<Value> {
        let stdout = str::from_utf8(&self.output.stdout).unwrap();
        // The test harness says a few words, too.
        stdout
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

async fn run(environment: Vec<(&'static str, String)>) -> Ended {
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([PROCESS, "--exact", "--ignored", "--nocapture"]).env_remove("RUST_LOG").envs(environment);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Ended { output, took: started.elapsed() }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_signals_are_exported_with_their_resource_over_either_protocol() {
    for (protocol, compression) in [("grpc", "none"), ("grpc", "gzip"), ("http/protobuf", "gzip")] {
        let collector = Collector::open().unwrap();
        let trace = RandomIdGenerator::default().new_trace_id().to_string();
        let ended = run(vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b".to_owned()),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
            ("OTEL_BSP_MAX_QUEUE_SIZE", (SPANS + 1).to_string()),
            (PARENT, format!("00-{trace}-b7ad6b7169203331-01")),
            ("RUST_LOG", "trace".to_owned()),
        ])
        .await;
        assert!(ended.output.status.success(), "{:?}", ended.output);

        let (spans, logs, metrics) = (collector.spans(), collector.logs(), collector.metrics());
        let resources = spans.iter().map(|it| &it.resource).chain(logs.iter().map(|it| &it.resource));
        for resource in resources.chain(metrics.iter().map(|it| &it.resource)) {
            assert_eq!(resource["service.namespace"], "throughline");
            assert_eq!(resource["service.name"], "throughline-test");
            assert_eq!(resource["service.version"], "1.2.3");
            assert_eq!(resource["deployment.environment.name"], "test");
            assert!(resource.contains_key("service.instance.id"), "{resource:?}");
        }
        assert!(collector.exports().iter().all(|export| export.headers["x-tenant"] == "a b"), "{protocol}");
        let mut of_trace = spans.iter().filter(|span| span.trace_id == trace);
        assert!(of_trace.all(|span| span.name == "a unit of work"), "an export is not to be exported");
        assert_eq!(spans.len(), SPANS + 1, "flushed at the end");
        let working = logs.iter().find(|record| record.body == "working").unwrap();
        assert_eq!(working.trace_id.as_deref(), Some(trace.as_str()));
        for of_the_export in ["hyper", "h2", "reqwest", "tonic"] {
            let is_of_it = |record: &LogRecord| format!("{record:?}").contains(of_the_export);
            assert!(!logs.iter().any(is_of_it), "an export is not to be exported");
        }
        let worked = collector.value("units.of.work", &[]).unwrap();
        assert_eq!(worked, i32::try_from(SPANS).unwrap(), "flushed at the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_collector_neither_slows_the_process_nor_floods_its_log() {
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // Connections are made, by the system, and never answered.
    let silent_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent_listener.local_addr().unwrap();
    let away = async |address: SocketAddr, protocol: &str| {
        let ended = run(vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", "10".to_owned()),
        ])
        .await;
        let lines = ended.lines();
        assert!(ended.output.status.success(), "{:?}", ended.output);
        let (done, complaints): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["level"] == "INFO");
        assert!(done[0]["worked_ms"].as_u64().unwrap() < 5_000, "{lines:?}");
        assert!(complaints.len() <= 3, "at most one a signal: {lines:?}");
        assert!(ended.took < Duration::from_secs(20), "{protocol} {address}: {:?}", ended.took);
    };
    tokio::join!(
        away(refused, "http/protobuf"),
        away(refused, "grpc"),
        away(silent, "http/protobuf"),
        away(silent, "grpc")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_a_process_only_logs() {
    let ended = run(vec![]).await;
    let [line] = &ended.lines()[..] else { panic!("{:?}", ended.output) };
    assert_eq!((&line["message"], &line["level"]), (&"done".into(), &"INFO".into()));
    assert_eq!(line["trace_id"].as_str().map(str::len), Some(32));
    assert!(ended.output.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_variable_prevents_the_start() {
    let ended = run(vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318".to_owned())]).await;
    assert!(!ended.output.status.success());
    let stderr = str::from_utf8(&ended.output.stderr).unwrap();
    assert!(stderr.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{stderr}");
}

#[tokio::test]
async fn telemetry_is_set_up_once() {
    let first = throughline_telemetry::init_quiet(SERVICE).unwrap();
    let second = throughline_telemetry::init(SERVICE);
    assert!(matches!(second, Err(throughline_telemetry::TelemetryError::Twice)));
    first.shutdown().await;
}
