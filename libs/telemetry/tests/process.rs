//! A process with telemetry, and the collector it exports to, or does not.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic like these")]

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Duration;

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use serde_json::Value;
use throughline_messages::TraceContext;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing::{info, info_span};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

/// What starts the process, which is this very program again.
const PROCESS: &str = "the_process";
const PARENT: &str = "PARENT";

/// More than the queue of the SDK holds.
const SPANS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is started by the other tests"]
async fn the_process() {
    let started = Instant::now();
    let telemetry = throughline_telemetry::init("throughline-test", "1.2.3").unwrap();
    for _ in 0..SPANS {
        let span = info_span!("a unit of work");
        if let Ok(traceparent) = std::env::var(PARENT) {
            throughline_telemetry::set_parent(&span, &TraceContext { traceparent, tracestate: None });
        }
        span.in_scope(|| tracing::debug!("working"));
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

fn contains(request: &Request, bytes: &[u8]) -> bool {
    request.body.windows(bytes.len()).any(|window| window == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_and_logs_are_exported_over_http() {
    let collector = MockServer::start().await;
    for signal in ["/v1/traces", "/v1/logs"] {
        Mock::given(method("POST"))
            .and(path(signal))
            .and(header("content-type", "application/x-protobuf"))
            .respond_with(ResponseTemplate::new(200))
            .expect(1..)
            .mount(&collector)
            .await;
    }
    let trace = RandomIdGenerator::default().new_trace_id();
    let ended = run(vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.uri()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
        (PARENT, format!("00-{trace}-b7ad6b7169203331-01")),
        ("RUST_LOG", "trace".to_owned()),
    ])
    .await;
    assert!(ended.output.status.success(), "{:?}", ended.output);

    let requests = collector.received_requests().await.unwrap();
    for request in &requests {
        assert_eq!(request.headers["x-tenant"], "a b");
        assert!(contains(request, b"throughline-test") && contains(request, b"1.2.3"), "the resource");
        assert!(contains(request, b"deployment.environment.name"), "the resource's attributes");
        for of_the_export in [&b"hyper"[..], b"h2::", b"reqwest"] {
            assert!(!contains(request, of_the_export), "an export is not to be exported");
        }
    }
    let of = |signal: &'static str| requests.iter().filter(move |request| request.url.path() == signal);
    let mut traces = of("/v1/traces");
    assert!(
        traces.any(|request| contains(request, b"a unit of work") && contains(request, &trace.to_bytes()))
    );
    let mut logs = of("/v1/logs");
    assert!(logs.any(|request| contains(request, b"working") && contains(request, &trace.to_bytes())));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_grpc_when_that_is_asked_for() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", listener.local_addr().unwrap())),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
    ];
    let heard = async {
        let mut preface = [0; PREFACE.len()];
        listener.accept().await.unwrap().0.read_exact(&mut preface).await.unwrap();
        preface
    };
    let (heard, ended) = tokio::join!(heard, run(environment));
    assert_eq!(heard, PREFACE);
    assert!(ended.output.status.success(), "{:?}", ended.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_neither_slows_nor_floods() {
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
        ])
        .await;
        let lines = ended.lines();
        assert!(ended.output.status.success(), "{:?}", ended.output);
        let (done, complaints): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["level"] == "INFO");
        assert!(done[0]["worked_ms"].as_u64().unwrap() < 5_000, "{lines:?}");
        assert!(complaints.len() <= 2, "at most one a signal: {lines:?}");
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
async fn what_the_environment_gets_wrong_keeps_the_process_from_starting() {
    let ended = run(vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318".to_owned())]).await;
    assert!(!ended.output.status.success());
    let stderr = str::from_utf8(&ended.output.stderr).unwrap();
    assert!(stderr.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{stderr}");
}

#[tokio::test]
async fn telemetry_is_set_up_once() {
    let first = throughline_telemetry::init_quiet("throughline-test", "1.2.3").unwrap();
    let second = throughline_telemetry::init("throughline-test", "1.2.3");
    assert!(matches!(second, Err(throughline_telemetry::TelemetryError::Twice)));
    first.shutdown().await;
}
