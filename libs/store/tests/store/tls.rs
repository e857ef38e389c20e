//! TLS, with a PostgreSQL of the test's own in a container.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use sea_orm::{ConnectionTrait, Statement};
use tempfile::TempDir;
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt as _};
use throughline_store::{Store, StoreError};
use throughline_testkit::unmeasured;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::databases::{or_skip, settings};

/// Where a PostgreSQL looks for them by itself. It takes no key that others can read.
const SWITCH_ON: &str = r#"
    install --mode=600 /tls/server.key /tls/server.crt "$PGDATA"
    echo 'ssl = on' >> "$PGDATA/postgresql.conf"
"#;

#[tokio::test]
async fn a_trusted_server_is_used_over_tls() {
    let Some(server) = or_skip(Server::start().await) else { return };
    for mode in ["verify-full", "verify-ca"] {
        let store = Store::connect(&settings(&server.url("localhost", mode, "authority.pem")), &unmeasured())
            .await
            .unwrap();
        store.migrate().await.unwrap();
        store.check_schema().await.unwrap();
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let statement = Statement::from_string(store.connection().get_database_backend(), sql);
        let row = store.connection().query_one_raw(statement).await.unwrap().unwrap();
        assert!(row.try_get::<bool>("", "ssl").unwrap(), "{mode}");
        store.close().await;
    }
}

#[tokio::test]
async fn an_untrusted_server_is_rejected_and_the_error_says_what_to_check() {
    let Some(server) = or_skip(Server::start().await) else { return };
    for (host, mode, authority, reason) in [
        ("localhost", "verify-full", "another.pem", "invalid peer certificate"),
        ("localhost", "verify-ca", "another.pem", "invalid peer certificate"),
        ("localhost", "verify-full", "missing.pem", "No such file"),
        // Its certificate is for localhost.
        ("127.0.0.1", "verify-full", "authority.pem", "not valid for name \"127.0.0.1\""),
    ] {
        let line = refused(&server.url(host, mode, authority)).await;
        assert!(line.contains(reason) && line.contains(&format!("{host}:{}", server.port)), "{line}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_rejected_if_tls_is_required() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://me:hunter2@{}/x?sslmode=require", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        // To the client's SSLRequest of eight bytes, PostgreSQL's no.
        client.read_exact(&mut [0; 8]).await.unwrap();
        client.write_all(b"N").await.unwrap();
    });
    let line = refused(&url).await;
    assert!(line.contains("server does not support TLS"), "{line}");
}

async fn refused(url: &str) -> String {
    let error = Store::connect(&settings(url), &unmeasured()).await.expect_err("it is not to be trusted");
    assert!(matches!(error, StoreError::Tls { .. }) && !error.is_unavailable(), "{error:?}");
    let line = error.to_string();
    assert!(line.lines().count() == 1 && line.contains("sslrootcert"), "{line}");
    assert!(!line.contains("hunter2"), "{line}");
    line
}

struct Server {
    port: u16,
    /// Has the certificates of who vouches for it, and of another.
    folder: TempDir,
    _container: ContainerAsync<Postgres>,
}

impl Server {
    async fn start() -> Result<Self, String> {
        let (authority, key) = (authority(), KeyPair::generate().unwrap());
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("authority.pem"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("another.pem"), self::authority().pem()).unwrap();
        let container = Postgres::default()
            .with_tag("18")
            .with_copy_to("/tls/server.key", key.serialize_pem().into_bytes())
            .with_copy_to("/tls/server.crt", certificate.pem().into_bytes())
            .with_copy_to("/docker-entrypoint-initdb.d/tls.sh", SWITCH_ON.as_bytes().to_vec())
            .start()
            .await
            .map_err(|error| format!("no Docker engine answers: {error}"))?;
        let port = container.get_host_port_ipv4(5432).await.map_err(|error| error.to_string())?;
        Ok(Self { port, folder, _container: container })
    }

    fn url(&self, host: &str, mode: &str, authority: &str) -> String {
        let file = self.folder.path().join(authority);
        let port = self.port;
        format!(
            "postgres://postgres:postgres@{host}:{port}/postgres?sslmode={mode}&sslrootcert={}",
            file.display()
        )
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "the authority");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
