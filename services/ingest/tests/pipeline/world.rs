//! An ingest on embedded parts of its own, and ways to look at what it does.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use throughline_clock::Clock;
use throughline_ingest::{Broker, Ingest, StartError};
use throughline_kafka::{Consumer, EmbeddedBroker, Outgoing, Producer, Record};
use throughline_lifecycle::{Shutdown, TaskFailed};
use throughline_messages::{Keys, Kind, RequestRecord, Topics};
use throughline_settings::{Flags, Settings, load_over};
use throughline_snowflake::RequestId;
use throughline_store::{Store, outbox};
use throughline_telemetry::{Service, Telemetry};
use throughline_testkit::{Measured, eventually, unmeasured};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for anything in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const TOPIC: &str = "one-requests";

pub(crate) struct World {
    pub(crate) broker: EmbeddedBroker,
    pub(crate) http: reqwest::Client,
    pub(crate) measured: Measured,
    folder: tempfile::TempDir,
    overrides: String,
}

/// An ingest that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) base: String,
    /// The address for health checks.
    pub(crate) health: String,
    pub(crate) shutdown: Shutdown,
    ingest: Ingest,
}

impl World {
    /// `overrides` is YAML that goes over the test's own configuration.
    pub(crate) fn new(overrides: &str) -> Self {
        // Spans have ids, and pass them on.
        static TELEMETRY: OnceLock<Telemetry> = OnceLock::new();
        TELEMETRY.get_or_init(|| {
            throughline_telemetry::init_quiet(Service {
                name: "ingest-tests",
                version: "0",
                environment: None,
            })
            .unwrap()
        });
        let broker = EmbeddedBroker::start(1).unwrap();
        let (http, folder) = (reqwest::Client::new(), tempfile::tempdir().unwrap());
        let world = Self { broker, http, measured: Measured::new(), folder, overrides: overrides.to_owned() };
        let settings = world.settings();
        let routes: Vec<_> = settings.routes.values().map(|route| route.topic.as_str()).collect();
        world.broker.create_topics(&routes).unwrap();
        world.broker.create_topics(&world.topics().all()).unwrap();
        world
    }

    /// Changes the configuration for instances that start from now on; creates no topics for it.
    pub(crate) fn reconfigured(mut self, overrides: &str) -> Self {
        overrides.clone_into(&mut self.overrides);
        self
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("throughline.db")
    }

    pub(crate) fn settings(&self) -> Settings {
        let defaults = format!(
            r#"
http: {{ address: "127.0.0.1:0", health_address: "127.0.0.1:0" }}
database: {{ url: "sqlite://{database}", migrate: true }}
kafka:
  bootstrap_servers: "{broker}"
  topics: {{ create: true, partitions: 1 }}
ingest: {{ node_lease: 2s }}
routes:
  one: {{ path: /one, topic: {TOPIC}, destinations: [three], ordering_key: /user }}
destinations:
  three: {{ url: "http://127.0.0.1:9/three" }}
"#,
            database = self.database().display(),
            broker = self.broker.bootstrap_servers(),
        );
        let file = self.folder.path().join("throughline.yaml");
        std::fs::write(&file, &self.overrides).unwrap();
        let flags = Flags { config: Some(file), ..Flags::default() };
        load_over(&defaults, &flags).unwrap().settings
    }

    pub(crate) async fn start(&self) -> Running {
        self.try_start().await.unwrap()
    }

    pub(crate) async fn start_at(&self, clock: Clock) -> Running {
        self.try_start_at(clock).await.unwrap()
    }

    pub(crate) async fn try_start(&self) -> Result<Running, StartError> {
        self.try_start_at(Clock::system()).await
    }

    async fn try_start_at(&self, clock: Clock) -> Result<Running, StartError> {
        let shutdown = Shutdown::new();
        let (settings, meter) = (self.settings(), self.measured.meter());
        let start = throughline_ingest::start(settings, Broker::Durable, clock, shutdown.clone(), &meter);
        let ingest = start.await?;
        let (base, health) = (ingest.address(), ingest.health_address());
        Ok(Running { base: format!("http://{base}"), health: format!("http://{health}"), shutdown, ingest })
    }

    /// Consumes this many records as dispatch does, and reports no outcomes.
    pub(crate) async fn dispatched(&self, count: usize) {
        let settings = self.settings();
        let group = format!("{}-dispatch", settings.kafka.prefix);
        let retries = self.topics().retries;
        let mut dispatch =
            Consumer::subscribe(&settings.kafka, &group, &[TOPIC, &retries], 64, &unmeasured()).unwrap();
        for _ in 0..count {
            let received = tokio::time::timeout(DEADLINE, dispatch.recv()).await.expect("a record soon");
            received.expect("the consumer continues").receipt.done();
        }
        dispatch.close(DEADLINE).await.unwrap();
    }

    /// Waits until a request is accepted again.
    pub(crate) async fn taken_again(&self, ingest: &Running) {
        eventually("a request to be accepted", DEADLINE, async || {
            let status = self.post(ingest, "{}").await.status();
            anyhow::ensure!(status == 201, "{status}");
            Ok(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn store(&self) -> Store {
        Store::connect(&self.settings().database, &unmeasured()).await.unwrap()
    }

    pub(crate) async fn post(&self, ingest: &Running, body: impl Into<reqwest::Body>) -> reqwest::Response {
        self.post_with(ingest, body, &[]).await
    }

    pub(crate) async fn post_with(
        &self,
        ingest: &Running,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        let mut all = HeaderMap::new();
        for (name, value) in [("content-type", "application/json")].iter().chain(headers) {
            all.insert(HeaderName::from_str(name).unwrap(), value.parse().unwrap());
        }
        let request = self.http.post(format!("{}/one", ingest.base)).headers(all);
        request.body(body).send().await.unwrap()
    }

    /// Waits until everything is published, and known to be.
    pub(crate) async fn outbox_empty(&self) {
        let store = self.store().await;
        eventually("an empty outbox", DEADLINE, async || {
            for node in 0..2u16 {
                let left = outbox::oldest(store.connection(), node.try_into()?).await?;
                anyhow::ensure!(left.is_none(), "{left:?}");
            }
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Posts a body that must be accepted, and returns its id.
    pub(crate) async fn accepted(&self, ingest: &Running, body: impl Into<reqwest::Body>) -> RequestId {
        let response = self.post(ingest, body).await;
        assert_eq!(response.status(), 201);
        id_of(response).await
    }

    /// Reads this many records of a topic, from its beginning.
    pub(crate) async fn records(&self, topic: &str, count: usize) -> Vec<Record> {
        let settings = self.settings();
        let group = format!("test-{}", Clock::system().now().timestamp_micros());
        let mut consumer = Consumer::subscribe(&settings.kafka, &group, &[topic], 64, &unmeasured()).unwrap();
        let mut records = Vec::new();
        while records.len() < count {
            let received = tokio::time::timeout(DEADLINE, consumer.recv())
                .await
                .unwrap_or_else(|_| panic!("{} of {count} records on {topic}", records.len()));
            records.push(received.expect("the consumer continues").record);
        }
        records
    }

    /// Produces a record as another producer would.
    pub(crate) async fn produce(
        &self,
        topic: &str,
        headers: Vec<(String, Bytes)>,
        payload: impl Into<Bytes>,
    ) {
        let producer = Producer::new(&self.settings().kafka, "test", &unmeasured()).unwrap();
        let record = Outgoing { topic: topic.to_owned(), key: None, headers, payload: payload.into() };
        producer.send(&record).await.unwrap();
    }

    /// Produces a record as dispatch does, with its signature.
    pub(crate) async fn produce_signed(
        &self,
        topic: &str,
        (kind, mut headers): (Kind, Vec<(String, Bytes)>),
        payload: impl Into<Bytes>,
    ) {
        let (kafka, payload) = (self.settings().kafka, payload.into());
        Keys::new(kafka.signing_key(), kafka.accepted_key()).sign(kind, &mut headers, &payload);
        self.produce(topic, headers, payload).await;
    }

    /// Returns the answer of `GET /v1/requests/{id}` as soon as it satisfies `is`.
    pub(crate) async fn status_when(
        &self,
        ingest: &Running,
        id: RequestId,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let url = format!("{}/v1/requests/{id}", ingest.base);
        let look = eventually("the request's status", DEADLINE, async || {
            let status: serde_json::Value = self.http.get(&url).send().await?.json().await?;
            anyhow::ensure!(is(&status), "{status}");
            Ok(status)
        });
        look.await.unwrap()
    }

    pub(crate) fn topics(&self) -> Topics {
        Topics::new(&self.settings().kafka.prefix)
    }
}

impl Running {
    /// Waits until the instance begins to end by itself, and then for its end, which it forces.
    pub(crate) async fn ended(self) -> Result<(), TaskFailed> {
        let end = async {
            self.shutdown.soft().cancelled().await;
            self.shutdown.force();
            self.ingest.join().await
        };
        tokio::time::timeout(DEADLINE, end).await.expect("it ends")
    }

    pub(crate) async fn stop(self) {
        self.shutdown.begin();
        tokio::time::timeout(DEADLINE, self.ingest.join()).await.expect("it stops").unwrap();
    }
}

/// Returns the answer of ingest to these bytes, read until ingest closes the connection or waits for more.
pub(crate) async fn says(ingest: &Running, bytes: &str) -> String {
    let mut client = TcpStream::connect(ingest.base.trim_start_matches("http://")).await.unwrap();
    client.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let answered =
        async { while !answer.ends_with(b"}") && client.read_buf(&mut answer).await.unwrap() > 0 {} };
    tokio::time::timeout(DEADLINE, answered).await.expect("an answer");
    String::from_utf8(answer).unwrap()
}

/// A route that accepts any content.
pub(crate) const FILES: &str =
    "routes: {files: {path: /files, topic: files-requests, destinations: [three], content: any}}";
pub(crate) const FILES_TOPIC: &str = "files-requests";

pub(crate) async fn id_of(response: reqwest::Response) -> RequestId {
    let body: serde_json::Value = response.json().await.unwrap();
    body["request_id"].as_str().expect("a request id").parse().unwrap()
}

/// The ids of records of ours, in the order of their offsets.
pub(crate) fn ids(records: &[Record]) -> Vec<RequestId> {
    records.iter().map(|record| RequestRecord::from_headers(&record.headers).unwrap().id).collect()
}
