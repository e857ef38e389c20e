//! A collector that is to be talked to by TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use throughline_testkit::{Collector, Credentials};
use tokio::task::JoinSet;

use crate::{Ended, run};

const PROTOCOLS: [&str; 2] = ["grpc", "http/protobuf"];

/// Vouches for certificates. Its own is in `<name>.pem`.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str, folder: &Path) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), issuer.pem()).unwrap();
        Self(issuer)
    }

    /// A certificate and its key.
    fn vouch_for(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A collector that only talks to whom the authority `ours` vouches for, which vouches for it, too.
struct Scene {
    folder: TempDir,
    collector: Collector,
}

impl Scene {
    fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ours = Authority::new("ours", folder.path());
        let theirs = Authority::new("theirs", folder.path());
        for (name, authority) in [("client", &ours), ("stranger", &theirs)] {
            let (certificate, key) = authority.vouch_for(name);
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key).unwrap();
        }
        let (certificate, key) = ours.vouch_for("127.0.0.1");
        let authority_of_clients = Some(ours.0.pem());
        let credentials = Credentials { certificate, key, authority_of_clients };
        Self { collector: Collector::open_secured(&credentials).unwrap(), folder }
    }

    /// Runs the process. It trusts the authority, if any, and shows the certificate, if any.
    async fn run(&self, protocol: &str, authority: Option<&str>, certificate: Option<&str>) -> Ended {
        let path = |name: String| self.folder.path().join(name).to_str().unwrap().to_owned();
        let mut environment = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.collector.endpoint()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000".to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token".to_owned()),
        ];
        if let Some(authority) = authority {
            environment.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", path(format!("{authority}.pem"))));
        }
        if let Some(certificate) = certificate {
            environment.push(("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", path(format!("{certificate}.pem"))));
            environment.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY", path(format!("{certificate}.key"))));
        }
        run(environment).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_and_a_process_that_trust_each_other_use_tls() {
    for protocol in PROTOCOLS {
        let scene = Scene::set();
        let ended = scene.run(protocol, Some("ours"), Some("client")).await;
        assert!(ended.output.status.success(), "{:?}", ended.output);
        assert!(!scene.collector.spans().is_empty(), "{protocol}: {:?}", ended.output);
        assert!(!scene.collector.logs().is_empty(), "{protocol}: {:?}", ended.output);
        assert!(!scene.collector.metrics().is_empty(), "{protocol}: {:?}", ended.output);
        for export in scene.collector.exports() {
            assert_eq!(export.headers["authorization"], "Bearer token", "{protocol}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_exported_between_sides_that_do_not_trust_each_other() {
    let mut refused = JoinSet::new();
    for protocol in PROTOCOLS {
        for (authority, certificate) in [
            (None, Some("client")),
            (Some("theirs"), Some("client")),
            (Some("ours"), Some("stranger")),
            (Some("ours"), None),
        ] {
            refused.spawn(async move {
                let scene = Scene::set();
                let ended = scene.run(protocol, authority, certificate).await;
                assert!(ended.output.status.success(), "{:?}", ended.output);
                assert!(scene.collector.exports().is_empty(), "{protocol}, {authority:?}, {certificate:?}");
                let lines = ended.lines();
                assert!(lines.iter().any(|line| line["level"] == "WARN"), "{protocol}: {lines:?}");
            });
        }
    }
    refused.join_all().await;
}
