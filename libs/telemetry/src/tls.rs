use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig, Identity};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretSlice};

/// How an exporter and a collector authenticate each other.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    /// The trusted authorities, in PEM, in place of those of the machine.
    authorities: Option<Vec<u8>>,
    /// The client certificate for a collector that requires one, in PEM, followed by its chain.
    certificates: Vec<u8>,
    /// The key of the client certificate, in PEM.
    key: SecretSlice<u8>,
}

impl Tls {
    /// Trusts only these authorities, and not those of the machine.
    pub(crate) fn trust_only(&mut self, authorities: Vec<u8>) -> Result<(), &'static str> {
        check_certificates(&authorities)?;
        self.authorities = Some(authorities);
        Ok(())
    }

    /// Presents this certificate, with its chain, to a collector that requires one.
    pub(crate) fn show(&mut self, certificates: Vec<u8>) -> Result<(), &'static str> {
        check_certificates(&certificates)?;
        self.certificates = certificates;
        Ok(())
    }

    /// Sets the key of the client certificate.
    pub(crate) fn prove_by(&mut self, key: Vec<u8>) -> Result<(), &'static str> {
        PrivateKeyDer::from_pem_slice(&key).map_err(|_| "this file contains no PEM private key")?;
        self.key = key.into();
        Ok(())
    }

    pub(crate) fn for_grpc(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new();
        let config = match &self.authorities {
            Some(authorities) => config.ca_certificate(Certificate::from_pem(authorities)),
            None => config.with_enabled_roots(),
        };
        if self.certificates.is_empty() {
            return config;
        }
        config.identity(Identity::from_pem(&self.certificates, self.key.expose_secret()))
    }

    pub(crate) fn for_http(
        &self,
        client: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, reqwest::Error> {
        let client = match &self.authorities {
            Some(authorities) => client.tls_certs_only(reqwest::Certificate::from_pem_bundle(authorities)?),
            None => client,
        };
        if self.certificates.is_empty() {
            return Ok(client);
        }
        let both = [self.key.expose_secret(), b"\n", &self.certificates].concat();
        Ok(client.identity(reqwest::Identity::from_pem(&both)?))
    }
}

/// Checks that the file contains only certificates: invalid ones would be skipped, and no authority would be trusted.
fn check_certificates(pem: &[u8]) -> Result<(), &'static str> {
    let mut certificates = CertificateDer::pem_slice_iter(pem).peekable();
    if certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok()) {
        return Ok(());
    }
    Err("this file contains no PEM certificates")
}
