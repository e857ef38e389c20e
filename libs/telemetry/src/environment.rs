//! The standard variables, checked: the SDK ignores what it does not understand, and then nobody knows why
//! nothing arrives.
//!
//! See <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/> and
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.

use http::{HeaderName, Uri};
use opentelemetry_sdk::trace::Sampler;
use opentelemetry_semantic_conventions::resource::SERVICE_NAME;
use percent_encoding::percent_decode_str;
use tracing_subscriber::EnvFilter;

use crate::error::TelemetryError;

/// Variables that the SDK reads, of the batches that wait for export: all are numbers from 1.
const BATCHES: [&str; 6] = [
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
];

const COMMON_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// What the environment asks of telemetry.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Directives of `RUST_LOG`.
    pub(crate) log_filter: Option<String>,
    pub(crate) sampler: Sampler,
    /// Where traces are exported to, if they are.
    pub(crate) traces: Option<Collector>,
    /// Where logs are exported to, if they are.
    pub(crate) logs: Option<Collector>,
    /// Attributes of the resource, later ones over earlier ones.
    pub(crate) attributes: Vec<(String, String)>,
}

/// Where a signal is exported to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Collector {
    /// The whole URL over HTTP; `host:port`, with or without a scheme, over gRPC.
    pub(crate) endpoint: String,
    pub(crate) protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    HttpProtobuf,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, TelemetryError> {
        Self::read(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, TelemetryError> {
        let environment = Environment { lookup };
        for name in BATCHES {
            environment.get(name).map_or(Ok(()), |variable| variable.check_number())?;
        }
        Ok(Self {
            log_filter: environment.log_filter()?,
            sampler: environment.sampler()?,
            traces: environment.collector("TRACES", "/v1/traces")?,
            logs: environment.collector("LOGS", "/v1/logs")?,
            attributes: environment.attributes()?,
        })
    }
}

struct Environment<L> {
    lookup: L,
}

struct Variable {
    name: String,
    value: String,
}

impl Variable {
    /// The value is not repeated, it may be a secret.
    fn wrong(&self, problem: impl Into<String>) -> TelemetryError {
        TelemetryError::Variable { variable: self.name.clone(), problem: problem.into() }
    }

    fn check_number(&self) -> Result<(), TelemetryError> {
        match self.value.parse::<u32>() {
            Ok(1..) => Ok(()),
            _ => Err(self.wrong("must be a whole number from 1")),
        }
    }

    fn check_compression(&self) -> Result<(), TelemetryError> {
        match self.value.as_str() {
            "gzip" | "none" => Ok(()),
            _ => Err(self.wrong("must be gzip or none")),
        }
    }

    fn check_headers(&self) -> Result<(), TelemetryError> {
        let is_header = |pair: &str| {
            pair.split_once('=').is_some_and(|(name, _)| HeaderName::try_from(name.trim()).is_ok())
        };
        if self.value.split_terminator(',').all(is_header) {
            return Ok(());
        }
        Err(self.wrong("must be name=value pairs with commas between, percent-encoded where need be"))
    }

    /// The URL for a signal whose own path is `path`, for it alone or common to all.
    fn into_endpoint(self, protocol: Protocol, path: &str) -> Result<String, TelemetryError> {
        if protocol == Protocol::Grpc {
            return Ok(self.value);
        }
        let is_url = self.value.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
        });
        if !is_url {
            return Err(self.wrong("must be a URL that begins with http:// or https://"));
        }
        let is_common = self.name == COMMON_ENDPOINT;
        Ok(if is_common { self.value.trim_end_matches('/').to_owned() + path } else { self.value })
    }
}

impl<L: Fn(&str) -> Option<String>> Environment<L> {
    /// A variable that is set; an empty one counts as not set.
    fn get(&self, name: &str) -> Option<Variable> {
        let value = (self.lookup)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| Variable { name: name.to_owned(), value: value.to_owned() })
    }

    /// `OTEL_EXPORTER_OTLP_<signal>_<what>`, else `OTEL_EXPORTER_OTLP_<what>`.
    fn of_exporter(&self, signal: &str, what: &str) -> Option<Variable> {
        self.get(&format!("OTEL_EXPORTER_OTLP_{signal}_{what}"))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    fn log_filter(&self) -> Result<Option<String>, TelemetryError> {
        let Some(variable) = self.get("RUST_LOG") else { return Ok(None) };
        EnvFilter::builder().parse(&variable.value).map_err(|error| variable.wrong(error.to_string()))?;
        Ok(Some(variable.value))
    }

    fn sampler(&self) -> Result<Sampler, TelemetryError> {
        let Some(variable) = self.get("OTEL_TRACES_SAMPLER") else {
            return Ok(parent_based(Sampler::AlwaysOn));
        };
        Ok(match variable.value.as_str() {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => self.ratio()?,
            "parentbased_always_on" => parent_based(Sampler::AlwaysOn),
            "parentbased_always_off" => parent_based(Sampler::AlwaysOff),
            "parentbased_traceidratio" => parent_based(self.ratio()?),
            _ => {
                return Err(variable.wrong(
                    "must be always_on, always_off, traceidratio, or one of these after `parentbased_`",
                ));
            }
        })
    }

    fn ratio(&self) -> Result<Sampler, TelemetryError> {
        let Some(variable) = self.get("OTEL_TRACES_SAMPLER_ARG") else {
            return Ok(Sampler::TraceIdRatioBased(1.0));
        };
        match variable.value.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Sampler::TraceIdRatioBased(ratio)),
            _ => Err(variable.wrong("must be a ratio, from 0.0 to 1.0")),
        }
    }

    /// Where a signal goes: nowhere, unless an endpoint is set.
    fn collector(&self, signal: &str, path: &str) -> Result<Option<Collector>, TelemetryError> {
        if self.is_switched_off(signal)? {
            return Ok(None);
        }
        let Some(endpoint) = self.of_exporter(signal, "ENDPOINT") else { return Ok(None) };
        for name in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"] {
            if let Some(variable) = self.of_exporter(signal, name) {
                return Err(variable.wrong("is not supported; SSL_CERT_FILE names certificates to trust"));
            }
        }
        self.of_exporter(signal, "TIMEOUT").map_or(Ok(()), |timeout| timeout.check_number())?;
        self.of_exporter(signal, "COMPRESSION")
            .map_or(Ok(()), |compression| compression.check_compression())?;
        self.of_exporter(signal, "HEADERS").map_or(Ok(()), |headers| headers.check_headers())?;
        let protocol = self.protocol(signal)?;
        Ok(Some(Collector { endpoint: endpoint.into_endpoint(protocol, path)?, protocol }))
    }

    fn is_switched_off(&self, signal: &str) -> Result<bool, TelemetryError> {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.value.eq_ignore_ascii_case("true")) {
            return Ok(true);
        }
        let Some(exporter) = self.get(&format!("OTEL_{signal}_EXPORTER")) else { return Ok(false) };
        match exporter.value.as_str() {
            "otlp" => Ok(false),
            "none" => Ok(true),
            _ => Err(exporter.wrong("must be otlp or none")),
        }
    }

    fn protocol(&self, signal: &str) -> Result<Protocol, TelemetryError> {
        let Some(protocol) = self.of_exporter(signal, "PROTOCOL") else { return Ok(Protocol::HttpProtobuf) };
        match protocol.value.as_str() {
            "grpc" => Ok(Protocol::Grpc),
            "http/protobuf" => Ok(Protocol::HttpProtobuf),
            _ => Err(protocol.wrong("must be grpc or http/protobuf")),
        }
    }

    fn attributes(&self) -> Result<Vec<(String, String)>, TelemetryError> {
        let mut attributes = Vec::new();
        if let Some(variable) = self.get("OTEL_RESOURCE_ATTRIBUTES") {
            for pair in variable.value.split_terminator(',') {
                attributes.push(attribute(pair).ok_or_else(|| {
                    variable
                        .wrong("must be key=value pairs with commas between, percent-encoded where need be")
                })?);
            }
        }
        if let Some(name) = self.get("OTEL_SERVICE_NAME") {
            attributes.push((SERVICE_NAME.to_owned(), name.value));
        }
        Ok(attributes)
    }
}

fn parent_based(root: Sampler) -> Sampler {
    Sampler::ParentBased(Box::new(root))
}

fn attribute(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let key = key.trim();
    (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, TelemetryError> {
        Settings::read(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn http(endpoint: &str) -> Collector {
        Collector { endpoint: endpoint.to_owned(), protocol: Protocol::HttpProtobuf }
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        let settings = read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
        let settings = settings.unwrap();
        assert_eq!((settings.traces, settings.logs), (None, None));
    }

    #[test]
    fn a_common_endpoint_gets_the_path_of_its_signal_and_an_own_one_is_left_alone() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/tenant/"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs.example/in"),
        ])
        .unwrap();
        assert_eq!(settings.traces, Some(http("http://collector:4318/tenant/v1/traces")));
        assert_eq!(settings.logs, Some(http("https://logs.example/in")));
    }

    #[test]
    fn each_signal_may_have_its_own_protocol_or_no_exporter() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_LOGS_EXPORTER", "none"),
        ])
        .unwrap();
        let endpoint = "http://collector:4317".to_owned();
        assert_eq!(settings.traces, Some(Collector { endpoint, protocol: Protocol::Grpc }));
        assert_eq!(settings.logs, None);
    }

    #[test]
    fn a_disabled_sdk_exports_nothing() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        let settings = read(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap();
        assert_eq!((settings.traces, settings.logs), (None, None));
    }

    #[test]
    fn the_sampler_is_the_standard_one() {
        let sampler = |variables: &[(&str, &str)]| format!("{:?}", read(variables).unwrap().sampler);
        assert_eq!(sampler(&[]), "ParentBased(AlwaysOn)");
        assert_eq!(sampler(&[("OTEL_TRACES_SAMPLER", "always_off")]), "AlwaysOff");
        let ratio =
            [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
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
    fn what_cannot_be_followed_is_named_and_its_value_not_repeated() {
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
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_TRACES_EXPORTER", "jaeger"),
            ("OTEL_RESOURCE_ATTRIBUTES", "secret"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("RUST_LOG", "info,throughline=loud"),
        ] {
            let error = read(&[(name, value), endpoint]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_ratio_lies_between_none_and_all() {
        for ratio in ["2", "-0.1", "NaN", "half"] {
            let variables = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            let error = read(&variables).unwrap_err().to_string();
            assert_eq!(error, "OTEL_TRACES_SAMPLER_ARG: must be a ratio, from 0.0 to 1.0");
        }
    }
}
