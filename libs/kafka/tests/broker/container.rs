//! Apache Kafka in a container, for all tests together: open at one port, and at another one it wants TLS and a
//! password. Where no Docker engine answers, there is none, unless `REQUIRE_CONTAINERS=1`.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, LazyLock, Weak};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use testcontainers_modules::testcontainers::core::{
    CmdWaitFor, ExecCommand, IntoContainerPort as _, WaitFor,
};
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

pub(crate) const PASSWORD: &str = "hunter2";

/// One for all tests: the container's connections must outlive the test that made them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub(crate) struct Container {
    /// The listener without authentication.
    pub(crate) open: String,
    /// Where TLS and a password are wanted.
    pub(crate) secured: String,
    /// The certificate of its authority.
    pub(crate) authority: String,
    _running: ContainerAsync<GenericImage>,
}

/// What the tests know of their container.
enum Known {
    /// It goes with its last user: nothing in a `static` is ever dropped.
    Started(Weak<Container>),
    Impossible,
}

impl Container {
    /// The one that other tests use right now, or a new one; none where there is no Docker engine.
    pub(crate) async fn shared() -> Option<Arc<Self>> {
        static KNOWN: Mutex<Known> = Mutex::const_new(Known::Started(Weak::new()));
        let mut known = KNOWN.lock().await;
        match &*known {
            Known::Impossible => return None,
            Known::Started(container) => {
                if let Some(container) = container.upgrade() {
                    return Some(container);
                }
            }
        }
        match RUNTIME.spawn(Self::start()).await.unwrap() {
            Ok(container) => {
                let container = Arc::new(container);
                *known = Known::Started(Arc::downgrade(&container));
                Some(container)
            }
            Err(why) if std::env::var("REQUIRE_CONTAINERS").is_ok_and(|value| value == "1") => {
                panic!("no Kafka to test with: {why}")
            }
            Err(why) => {
                // Past the capture of a test's output, which is shown only when it fails.
                let line = format!("\n*** on the embedded broker only: {why} ***\n\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                *known = Known::Impossible;
                None
            }
        }
    }

    /// Like [`Container::shared`], for a test that needs it; says so if it is skipped.
    pub(crate) async fn needed() -> Option<Arc<Self>> {
        let container = Self::shared().await;
        if container.is_none() {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            std::io::stderr().write_all(format!("*** SKIPPED: {test} ***\n").as_bytes()).unwrap();
        }
        container
    }

    async fn start() -> Result<Self, String> {
        let authority = Authority::new();
        // The broker tells clients its ports, so it must know them beforehand.
        let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [open, secured] = listeners.map(|listener| listener.local_addr().unwrap().port());
        let user = format!("required username=\"admin\" password=\"x\" user_throughline=\"{PASSWORD}\";");
        let container = GenericImage::new("apache/kafka", "4.3.1")
            .with_wait_for(WaitFor::message_on_stdout("Kafka Server started"))
            .with_mapped_port(secured, 9092.tcp())
            .with_mapped_port(open, 9095.tcp())
            .with_copy_to("/etc/kafka/secrets/broker.pem", authority.certified("localhost").into_bytes())
            .with_env_var("KAFKA_NODE_ID", "1")
            .with_env_var("KAFKA_PROCESS_ROLES", "broker,controller")
            .with_env_var("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER")
            .with_env_var("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9094")
            .with_env_var("KAFKA_LISTENERS", "CLIENTS://:9092,BROKER://:9093,CONTROLLER://:9094,OPEN://:9095")
            .with_env_var(
                "KAFKA_ADVERTISED_LISTENERS",
                format!("CLIENTS://localhost:{secured},BROKER://localhost:9093,OPEN://127.0.0.1:{open}"),
            )
            .with_env_var(
                "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
                "CLIENTS:SASL_SSL,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,OPEN:PLAINTEXT",
            )
            .with_env_var("KAFKA_INTER_BROKER_LISTENER_NAME", "BROKER")
            .with_env_var("KAFKA_SSL_KEYSTORE_TYPE", "PEM")
            .with_env_var("KAFKA_SSL_KEYSTORE_LOCATION", "/etc/kafka/secrets/broker.pem")
            .with_env_var("KAFKA_SASL_ENABLED_MECHANISMS", "PLAIN,SCRAM-SHA-256")
            // `___` stands for `-`.
            .with_env_var(
                "KAFKA_LISTENER_NAME_CLIENTS_PLAIN_SASL_JAAS_CONFIG",
                format!("org.apache.kafka.common.security.plain.PlainLoginModule {user}"),
            )
            .with_env_var(
                "KAFKA_LISTENER_NAME_CLIENTS_SCRAM___SHA___256_SASL_JAAS_CONFIG",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            )
            .with_env_var("KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "1")
            .with_env_var("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "1")
            .with_env_var("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
            .with_env_var("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
            .with_env_var("KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS", "1")
            // Else the first member of each consumer group waits 3 s for others.
            .with_env_var("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
            .start()
            .await
            .map_err(|error| format!("Kafka does not start in a container: {error}"))?;
        let add_user = format!(
            "/opt/kafka/bin/kafka-configs.sh --bootstrap-server localhost:9093 --alter \
             --entity-type users --entity-name throughline --add-config 'SCRAM-SHA-256=[password={PASSWORD}]'"
        );
        let add_user = ExecCommand::new(["bash", "-c", &add_user]);
        container.exec(add_user.with_cmd_ready_condition(CmdWaitFor::exit_code(0))).await.unwrap();
        Ok(Self {
            open: format!("127.0.0.1:{open}"),
            secured: format!("localhost:{secured}"),
            authority: authority.pem,
            _running: container,
        })
    }
}

/// The certificate authority of a broker.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pem = issuer.pem();
        Self { issuer, pem }
    }

    /// A key and its certificate, in one file as Kafka wants them.
    fn certified(&self, host: &str) -> String {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        key.serialize_pem() + &params.signed_by(&key, &self.issuer).unwrap().pem()
    }
}
