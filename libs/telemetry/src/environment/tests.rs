//! The settings that result from the variables.

use tempfile::NamedTempFile;

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Settings, TelemetryError> {
    Settings::read(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn endpoint(collector: Option<Collector>) -> String {
    collector.unwrap().endpoint
}

fn is_exported(settings: &Settings) -> [bool; 3] {
    [&settings.traces, &settings.logs, &settings.metrics].map(Option::is_some)
}

/// Returns the problem of these variables, beside an endpoint.
fn problem(variables: &[(&str, &str)]) -> String {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
    read(&[variables, &[endpoint]].concat()).unwrap_err().to_string()
}

fn file(content: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, content).unwrap();
    file
}

#[test]
fn without_an_endpoint_nothing_is_exported() {
    let settings = read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
    assert_eq!(is_exported(&settings.unwrap()), [false; 3]);
}

#[test]
fn a_common_endpoint_gets_the_path_of_its_signal_and_a_specific_one_is_unchanged() {
    let settings = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/tenant/"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs.example/in"),
    ])
    .unwrap();
    assert_eq!(endpoint(settings.traces), "http://collector:4318/tenant/v1/traces");
    assert_eq!(endpoint(settings.metrics), "http://collector:4318/tenant/v1/metrics");
    assert_eq!(endpoint(settings.logs), "https://logs.example/in");
}

#[test]
fn each_signal_may_have_its_own_protocol_or_no_exporter() {
    let settings = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_LOGS_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ])
    .unwrap();
    assert_eq!(is_exported(&settings), [true, false, false]);
    assert_eq!(settings.traces.unwrap().protocol, Protocol::Grpc);
}

#[test]
fn a_grpc_endpoint_without_a_scheme_uses_tls_unless_it_is_marked_insecure() {
    let traces = |variables: &[(&str, &str)]| {
        let grpc =
            [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")];
        read(&[variables, &grpc].concat()).unwrap().traces.unwrap()
    };
    let secure = traces(&[]);
    assert_eq!((secure.endpoint.as_str(), secure.tls.is_some()), ("https://collector:4317", true));
    let insecure = traces(&[("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true")]);
    assert_eq!((insecure.endpoint.as_str(), insecure.tls.is_some()), ("http://collector:4317", false));
    let said = traces(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317")]);
    assert!(said.tls.is_none());
}

#[test]
fn files_for_tls_are_checked() {
    const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    const CLIENT_CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
    const CLIENT_KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (file(&cert.pem()), file(&signing_key.serialize_pem()));
    let [certificate, key] = [&certificate, &key].map(|file| file.path().to_str().unwrap());

    assert!(problem(&[(CERTIFICATE, "/nowhere/ca.pem")]).contains("cannot read this file"));
    let no_certificate = format!("{CERTIFICATE}: this file contains no PEM certificates");
    assert_eq!(problem(&[(CERTIFICATE, key)]), no_certificate);
    let no_key = format!("{CLIENT_KEY}: this file contains no PEM private key");
    assert_eq!(problem(&[(CLIENT_CERTIFICATE, certificate), (CLIENT_KEY, certificate)]), no_key);
    assert!(problem(&[(CLIENT_CERTIFICATE, certificate)]).ends_with("CLIENT_KEY"));
    assert!(problem(&[(CLIENT_KEY, key)]).ends_with("CLIENT_CERTIFICATE"));
    let plain = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    assert!(read(&[plain, (CERTIFICATE, "/nowhere/ca.pem")]).is_ok(), "not needed");
}

#[test]
fn spans_and_logs_have_the_configured_delays() {
    let settings = read(&[
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "20"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "5"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "30"),
    ])
    .unwrap();
    let batches = |it: Batches| (it.delay.as_millis(), it.queue, it.size);
    assert_eq!(batches(settings.span_batches), (10, 2_048, 512));
    assert_eq!(batches(settings.log_batches), (1_000, 20, 5));
    assert_eq!(settings.interval.as_millis(), 30);
}

#[test]
fn each_signal_may_have_its_own_deadline() {
    let settings = read(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1000"),
        ("OTEL_BLRP_EXPORT_TIMEOUT", "2000"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "3000"),
    ])
    .unwrap();
    let deadlines = [settings.traces, settings.logs, settings.metrics].map(|it| it.unwrap().deadline);
    assert_eq!(deadlines, [1, 2, 3].map(Duration::from_secs));
}

#[test]
fn metrics_are_cumulative_by_default() {
    const PREFERENCE: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    assert_eq!(read(&[]).unwrap().temporality, Temporality::Cumulative);
    assert_eq!(read(&[(PREFERENCE, "Delta")]).unwrap().temporality, Temporality::Delta);
    assert_eq!(read(&[(PREFERENCE, "lowmemory")]).unwrap().temporality, Temporality::LowMemory);
}

#[test]
fn a_disabled_sdk_exports_nothing() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    let settings = read(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap();
    assert_eq!(is_exported(&settings), [false; 3]);
}

#[test]
fn the_sampler_is_the_standard_one() {
    let sampler = |variables: &[(&str, &str)]| format!("{:?}", read(variables).unwrap().sampler);
    assert_eq!(sampler(&[]), "ParentBased(AlwaysOn)");
    assert_eq!(sampler(&[("OTEL_TRACES_SAMPLER", "always_off")]), "AlwaysOff");
    let ratio = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
    assert_eq!(sampler(&ratio), "ParentBased(TraceIdRatioBased(0.25))");
    assert_eq!(sampler(&ratio[..1]), "ParentBased(TraceIdRatioBased(1.0))");
}

#[test]
fn resource_attributes_are_decoded_and_the_service_name_comes_last() {
    let settings = read(&[
        ("OTEL_SERVICE_NAME", "mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs, deployment.environment.name = a%2Cb%20c ,"),
    ]);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let expected = [
        pair("service.name", "theirs"),
        pair("deployment.environment.name", "a,b c"),
        pair("service.name", "mine"),
    ];
    assert_eq!(settings.unwrap().attributes, expected);
}

#[test]
fn an_unsupported_variable_is_reported_without_its_value() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
    for (name, value) in [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http:///in"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: secret"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_RESOURCE_ATTRIBUTES", "secret"),
        ("OTEL_METRICS_EXPORTER", "prometheus"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "sometimes"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1s"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "15s"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "0"),
        ("RUST_LOG", "info,throughline=loud"),
    ] {
        let error = read(&[(name, value), endpoint]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn a_ratio_is_from_0_to_1() {
    for ratio in ["2", "-0.1", "NaN", "half"] {
        let variables = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
        let error = read(&variables).unwrap_err().to_string();
        assert_eq!(error, "OTEL_TRACES_SAMPLER_ARG: must be a ratio, from 0.0 to 1.0");
    }
}
