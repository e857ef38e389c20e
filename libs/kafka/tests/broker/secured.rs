//! TLS and passwords, on a broker that asks for both: Apache Kafka in a container. Where no Docker
//! engine answers, these tests say so and are skipped, unless `REQUIRE_CONTAINERS=1`.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, LazyLock, Once, Weak};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use testcontainers_modules::testcontainers::core::{
    CmdWaitFor, ExecCommand, IntoContainerPort as _, WaitFor,
};
use testcontainers_modules::testcontainers::runners::AsyncRunner as _;
use testcontainers_modules::testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use throughline_config::Kafka;
use throughline_kafka::{Consumer, KafkaError, Outgoing, Producer, ensure_topics};
use throughline_testkit::unmeasured;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::support::{self, SOON, next, secret};

const PASSWORD: &str = "hunter2";

/// Far less than a start-up grants: what is refused is not tried again until then.
const AT_ONCE: Duration = Duration::from_secs(10);

#[test]
fn a_record_goes_there_and_back_by_tls_with_a_password() {
    with_broker(async |broker| {
        for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
            let mut settings = broker.settings(mechanism);
            settings.topics.create = true;
            let topic = mechanism.to_lowercase();
            ensure_topics(&settings, &[&topic], SOON).await.unwrap();
            let record = Outgoing {
                topic: topic.clone(),
                key: None,
                headers: Vec::new(),
                payload: mechanism.as_bytes().into(),
            };
            Producer::new(&settings, "test", &unmeasured()).unwrap().send(&record).await.unwrap();
            let mut consumer = Consumer::subscribe(&settings, "group", &[&topic], 1, &unmeasured()).unwrap();
            let received = next(&mut consumer).await;
            assert_eq!(received.record.payload, record.payload);
            received.receipt.done();
            consumer.close(SOON).await.unwrap();
        }
    });
}

#[test]
fn a_certificate_authority_is_taken_from_a_file_too() {
    with_broker(async |broker| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, &broker.authority).unwrap();
        let mut settings = broker.settings("PLAIN");
        settings.properties.remove("ssl.ca.pem");
        settings.properties.insert("ssl.ca.location".to_owned(), secret(&file.path().display().to_string()));
        Producer::new(&settings, "test", &unmeasured()).unwrap().probe(SOON).await.unwrap();
    });
}

#[test]
fn a_wrong_password_is_refused_at_once_with_what_to_change() {
    with_broker(async |broker| {
        for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
            let mut settings = broker.settings(mechanism);
            settings.properties.insert("sasl.password".to_owned(), secret("hunter3"));
            let line = refused(&settings, |error| matches!(error, KafkaError::Credentials { .. })).await;
            for word in [&settings.bootstrap_servers, "Authentication failed", "change sasl.mechanism, sasl."]
            {
                assert!(line.contains(word), "{word}: {line}");
            }
            assert!(!line.contains("hunter"), "{line}");
        }
    });
}

#[test]
fn a_broker_that_nobody_vouches_for_is_refused_at_once_with_what_to_change() {
    with_broker(async |broker| {
        let mut settings = broker.settings("PLAIN");
        settings.properties.insert("ssl.ca.pem".to_owned(), secret(&Authority::new().pem));
        let line = refused(&settings, |error| matches!(error, KafkaError::Tls { .. })).await;
        for word in [&settings.bootstrap_servers, "certificate verify failed", "change ssl.ca.location"] {
            assert!(line.contains(word), "{word}: {line}");
        }
    });
}

#[test]
fn a_broker_that_wants_tls_and_is_talked_to_without_is_told_from_one_that_is_away() {
    with_broker(async |broker| {
        let mut settings = broker.settings("PLAIN");
        settings.properties.insert("security.protocol".to_owned(), secret("sasl_plaintext"));
        let error = ensure_topics(&settings, &["any"], Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(error, KafkaError::HungUp { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(&settings.bootstrap_servers) && line.contains("security.protocol"), "{line}");
    });
}

/// What is said, in one line, at start and when asked whether the broker is there.
async fn refused(settings: &Kafka, kind: impl Fn(&KafkaError) -> bool) -> String {
    let start = tokio::time::timeout(AT_ONCE, ensure_topics(settings, &["any"], SOON));
    let error = start.await.expect("an answer at once").unwrap_err();
    assert!(kind(&error), "{error:?}");
    let probed = Producer::new(settings, "test", &unmeasured())
        .unwrap()
        .probe(Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(kind(&probed), "{probed:?}");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn with_broker(test: impl AsyncFnOnce(&Secured)) {
    RUNTIME.block_on(async {
        match Secured::shared().await {
            Ok(broker) => test(&broker).await,
            Err(why) if std::env::var("REQUIRE_CONTAINERS").is_ok_and(|value| value == "1") => {
                panic!("no Kafka with TLS to test with: {why}")
            }
            Err(why) => {
                static SAID: Once = Once::new();
                // Past the capture of a test's output, which is shown only when it fails.
                let line = format!("\n*** SKIPPED: all tests on Kafka with TLS: {why} ***\n\n");
                SAID.call_once(|| std::io::stderr().write_all(line.as_bytes()).unwrap());
            }
        }
    });
}

/// One for all tests: the container's connections must outlive the test that made them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

struct Secured {
    servers: String,
    /// The certificate of who vouches for it.
    authority: String,
    _container: ContainerAsync<GenericImage>,
}

impl Secured {
    /// The broker that other tests use right now, or a new one. It goes with its last user: nothing in
    /// a `static` is ever dropped.
    async fn shared() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<Secured>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(broker) = shared.upgrade() {
            return Ok(broker);
        }
        let broker = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&broker);
        Ok(broker)
    }

    async fn start() -> Result<Self, String> {
        let authority = Authority::new();
        // The broker tells clients its port, so it must know it beforehand.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let user = format!("required username=\"admin\" password=\"x\" user_throughline=\"{PASSWORD}\";");
        let container = GenericImage::new("apache/kafka", "4.3.1")
            .with_wait_for(WaitFor::message_on_stdout("Kafka Server started"))
            .with_mapped_port(port, 9092.tcp())
            .with_copy_to("/etc/kafka/secrets/broker.pem", authority.certified("localhost").into_bytes())
            .with_env_var("KAFKA_NODE_ID", "1")
            .with_env_var("KAFKA_PROCESS_ROLES", "broker,controller")
            .with_env_var("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER")
            .with_env_var("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9094")
            .with_env_var("KAFKA_LISTENERS", "CLIENTS://:9092,BROKER://:9093,CONTROLLER://:9094")
            .with_env_var(
                "KAFKA_ADVERTISED_LISTENERS",
                format!("CLIENTS://localhost:{port},BROKER://localhost:9093"),
            )
            .with_env_var(
                "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
                "CLIENTS:SASL_SSL,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
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
        Ok(Self { servers: format!("localhost:{port}"), authority: authority.pem, _container: container })
    }

    fn settings(&self, mechanism: &str) -> Kafka {
        let mut settings = support::settings(self.servers.clone(), 1);
        for (name, value) in [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.pem", &self.authority),
            ("sasl.mechanism", mechanism),
            ("sasl.username", "throughline"),
            ("sasl.password", PASSWORD),
        ] {
            settings.properties.insert(name.to_owned(), secret(value));
        }
        settings
    }
}

/// Who vouches for a broker.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
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
