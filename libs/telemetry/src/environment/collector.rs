use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use super::variable::{Environment, Variable};
use crate::error::TelemetryError;
use crate::signal::Signal;
use crate::tls::Tls;

/// The default timeout of a request to a collector.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The default timeout of an export.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

const COMMON_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The collector that receives a signal.
#[derive(Debug)]
pub(crate) struct Collector {
    /// Over HTTP the whole URL; over gRPC scheme, host and port.
    pub(crate) endpoint: String,
    pub(crate) protocol: Protocol,
    /// The timeout of a request.
    pub(crate) timeout: Duration,
    /// The timeout of an export, retries included.
    pub(crate) deadline: Duration,
    /// `None` if the endpoint does not use TLS.
    pub(crate) tls: Option<Tls>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    HttpProtobuf,
}

impl<L: Fn(&str) -> Option<String>> Environment<L> {
    /// Returns the collector of a signal; `None` unless an endpoint is set.
    pub(super) fn collector(&self, signal: Signal) -> Result<Option<Collector>, TelemetryError> {
        if self.is_switched_off(signal)? {
            return Ok(None);
        }
        let Some(endpoint) = self.of_exporter(signal, "ENDPOINT") else { return Ok(None) };
        self.of_exporter(signal, "COMPRESSION")
            .map_or(Ok(()), |compression| compression.check_compression())?;
        self.of_exporter(signal, "HEADERS").map_or(Ok(()), |headers| headers.check_headers())?;
        let timeout = self.of_exporter(signal, "TIMEOUT");
        let protocol = self.protocol(signal)?;
        let endpoint = match protocol {
            Protocol::Grpc => self.grpc_endpoint(endpoint, signal),
            Protocol::HttpProtobuf => http_endpoint(endpoint, signal)?,
        };
        Ok(Some(Collector {
            tls: if is_secure(&endpoint) { Some(self.tls(signal)?) } else { None },
            endpoint,
            protocol,
            timeout: timeout.map_or(Ok(TIMEOUT), |timeout| timeout.milliseconds())?,
            deadline: self.milliseconds(signal.deadline_variable(), DEADLINE)?,
        }))
    }

    fn is_switched_off(&self, signal: Signal) -> Result<bool, TelemetryError> {
        if self.is_on("OTEL_SDK_DISABLED") {
            return Ok(true);
        }
        let Some(exporter) = self.get(&format!("OTEL_{}_EXPORTER", signal.variable())) else {
            return Ok(false);
        };
        match exporter.value.as_str() {
            "otlp" => Ok(false),
            "none" => Ok(true),
            _ => Err(exporter.wrong("must be otlp or none")),
        }
    }

    fn protocol(&self, signal: Signal) -> Result<Protocol, TelemetryError> {
        let Some(protocol) = self.of_exporter(signal, "PROTOCOL") else { return Ok(Protocol::HttpProtobuf) };
        match protocol.value.as_str() {
            "grpc" => Ok(Protocol::Grpc),
            "http/protobuf" => Ok(Protocol::HttpProtobuf),
            _ => Err(protocol.wrong("must be grpc or http/protobuf")),
        }
    }

    /// Adds a scheme to an endpoint without one: https, unless the `INSECURE` variable is `true`.
    fn grpc_endpoint(&self, endpoint: Variable, signal: Signal) -> String {
        if endpoint.value.contains("://") {
            return endpoint.value;
        }
        let is_insecure = self.of_exporter(signal, "INSECURE").is_some_and(|insecure| insecure.is_true());
        let scheme = if is_insecure { Scheme::HTTP } else { Scheme::HTTPS };
        format!("{scheme}://{}", endpoint.value)
    }

    fn tls(&self, signal: Signal) -> Result<Tls, TelemetryError> {
        let read = |variable: &Variable| {
            std::fs::read(&variable.value)
                .map_err(|error| variable.wrong(format!("cannot read this file: {error}")))
        };
        let mut tls = Tls::default();
        if let Some(variable) = self.of_exporter(signal, "CERTIFICATE") {
            tls.trust_only(read(&variable)?).map_err(|problem| variable.wrong(problem))?;
        }
        match (self.of_exporter(signal, "CLIENT_CERTIFICATE"), self.of_exporter(signal, "CLIENT_KEY")) {
            (None, None) => {}
            (Some(certificate), Some(key)) => {
                tls.show(read(&certificate)?).map_err(|problem| certificate.wrong(problem))?;
                tls.prove_by(read(&key)?).map_err(|problem| key.wrong(problem))?;
            }
            (Some(certificate), None) => return Err(certificate.wrong("requires its key: set CLIENT_KEY")),
            (None, Some(key)) => return Err(key.wrong("requires its certificate: set CLIENT_CERTIFICATE")),
        }
        Ok(tls)
    }
}

/// Returns the URL of a signal, from its own endpoint or from the common one.
fn http_endpoint(endpoint: Variable, signal: Signal) -> Result<String, TelemetryError> {
    let is_url = endpoint.value.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if !is_url {
        return Err(endpoint.wrong("must be a URL that begins with http:// or https://"));
    }
    let is_common = endpoint.name == COMMON_ENDPOINT;
    Ok(if is_common {
        endpoint.value.trim_end_matches('/').to_owned() + signal.path()
    } else {
        endpoint.value
    })
}

fn is_secure(endpoint: &str) -> bool {
    endpoint.parse::<Uri>().is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTPS))
}
