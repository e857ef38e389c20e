//! A broker, and the records that dispatch produces.

use std::io::Write as _;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use throughline_clock::Clock;
use throughline_dispatch::Dispatch;
use throughline_kafka::{Consumer, EmbeddedBroker, Outgoing, Producer, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{
    AttemptReport, Headers, Keys, Kind, Origin, Outcome, RequestRecord, RetryRecord, RouteRecord, Topics,
};
use throughline_settings::{Flags, Settings};
use throughline_snowflake::RequestId;
use throughline_telemetry::{Service, Telemetry};
use throughline_testkit::{Measured, unmeasured};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wiremock::MockServer;

use crate::third_party;

/// For anything that a test waits for. Joining a group alone takes the mock broker three seconds.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// One dispatch that all tests share which do not stop it: every test has its own routes.
pub(crate) struct World {
    pub(crate) kafka: Kafka,
    pub(crate) third: MockServer,
    pub(crate) dispatch: Dispatch,
    _telemetry: Telemetry,
}

static SHARED: LazyLock<(Runtime, World)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let world = runtime.block_on(World::start());
    (runtime, world)
});

/// Runs a test in the shared world.
pub(crate) fn in_the_world<Test: AsyncFnOnce(&'static World)>(test: Test) {
    let (runtime, world) = &*SHARED;
    runtime.block_on(test(world));
}

impl World {
    async fn start() -> Self {
        let telemetry = throughline_telemetry::init_quiet(Service {
            name: "throughline-dispatch",
            version: "0",
            environment: None,
        })
        .unwrap();
        let third = MockServer::start().await;
        let kafka = Kafka::start(&third_party::routes(&third.uri()));
        let dispatch = kafka.dispatch(Shutdown::new()).await;
        Self { kafka, third, dispatch, _telemetry: telemetry }
    }

    /// Publishes a request as ingest does, and returns its id.
    pub(crate) async fn publish(&self, route: &str, body: &'static str) -> RequestId {
        let request = request(route);
        self.kafka.publish(&request, None, body).await;
        request.id
    }

    /// Publishes a request and waits for the report on it.
    pub(crate) async fn attempt(&self, route: &str, body: &'static str) -> AttemptReport {
        let id = self.publish(route, body).await;
        self.kafka.heard.report(id).await
    }

    /// The calls that a path of the third party got.
    pub(crate) async fn calls(&self, path: &str) -> Vec<wiremock::Request> {
        let calls = self.third.received_requests().await.unwrap();
        calls.into_iter().filter(|call| call.url.path() == path).collect()
    }
}

/// A broker, and everything that dispatch produces there.
pub(crate) struct Kafka {
    broker: Option<EmbeddedBroker>,
    pub(crate) topics: Topics,
    pub(crate) heard: Heard,
    pub(crate) measured: Measured,
    file: NamedTempFile,
    settings: Settings,
    producer: Producer,
}

impl Kafka {
    /// Each route has the topic `<name>-requests`.
    pub(crate) fn start(destinations: &Value) -> Self {
        let broker = EmbeddedBroker::start(4).unwrap();
        let file = configuration(&broker.bootstrap_servers(), "3000", destinations);
        let settings = load(&file);
        broker.create_topics(&topics_of(&settings).iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        Self::with(Some(broker), file, settings)
    }

    /// The same on a real broker.
    pub(crate) async fn on(broker: &throughline_testkit::Broker, destinations: &Value) -> Self {
        let file = configuration(&broker.bootstrap_servers(), "6000", destinations);
        let mut settings = load(&file);
        settings.kafka.topics.create = true;
        let topics = topics_of(&settings);
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        throughline_kafka::ensure_topics(&settings.kafka, &names, DEADLINE).await.unwrap();
        Self::with(None, file, settings)
    }

    fn with(broker: Option<EmbeddedBroker>, file: NamedTempFile, settings: Settings) -> Self {
        let topics = Topics::new(&settings.kafka.prefix);
        let producer = Producer::new(&settings.kafka, "test", &unmeasured()).unwrap();
        let heard = Heard::listen(&settings, &[&topics.outcomes, &topics.dead_letters, &topics.adoptions]);
        Self { broker, topics, heard, measured: Measured::new(), file, settings, producer }
    }

    pub(crate) fn broker(&self) -> &EmbeddedBroker {
        self.broker.as_ref().expect("an embedded broker")
    }

    /// The file that the settings are from.
    pub(crate) fn file(&self) -> &Path {
        self.file.path()
    }

    /// Starts dispatch.
    pub(crate) async fn dispatch(&self, shutdown: Shutdown) -> Dispatch {
        self.dispatch_at(Clock::system(), shutdown).await
    }

    /// Starts dispatch with a clock that may be wrong.
    pub(crate) async fn dispatch_at(&self, clock: Clock, shutdown: Shutdown) -> Dispatch {
        let meter = self.measured.meter();
        throughline_dispatch::start(self.settings.clone(), clock, shutdown, &meter).await.unwrap()
    }

    /// Publishes a request with an ordering key, or with its id as the key, and returns its origin.
    pub(crate) async fn publish(
        &self,
        request: &RequestRecord,
        key: Option<&'static str>,
        body: &'static str,
    ) -> Origin {
        let topic = format!("{}-requests", request.route);
        let key = key.map_or_else(|| request.id.to_string().into(), |key| Bytes::from_static(key.as_bytes()));
        self.produce_signed(&topic, Some(key), (Kind::Request, of_route(request).to_headers()), body).await
    }

    /// Publishes a delivery again, as ingest does when it is due.
    pub(crate) async fn retry(&self, retry: &RetryRecord) {
        let key = Some(retry.request.id.to_string().into());
        self.produce_signed(&self.topics.retries, key, (Kind::Retry, retry.to_headers()), "{}").await;
    }

    /// Produces a record as ingest does, with its signature.
    pub(crate) async fn produce_signed(
        &self,
        topic: &str,
        key: Option<Bytes>,
        (kind, headers): (Kind, Headers),
        body: &'static str,
    ) -> Origin {
        let headers = self.signed(kind, headers, body);
        self.produce(topic, key, headers, body).await
    }

    pub(crate) fn signed(&self, kind: Kind, mut headers: Headers, body: &str) -> Headers {
        let kafka = &self.settings.kafka;
        Keys::new(kafka.signing_key(), kafka.accepted_key()).sign(kind, &mut headers, body.as_bytes());
        headers
    }

    /// Publishes a request and sees its only delivery through, as ingest does: whenever it is due, it is published
    /// again. Returns all that dispatch reported, the end last.
    pub(crate) async fn see_through(&self, request: RequestRecord) -> Vec<AttemptReport> {
        self.publish(&request, None, "{}").await;
        let mut heard = 0;
        loop {
            heard += 1;
            let mut reports = self.heard.reports(request.id, heard).await;
            reports.truncate(heard);
            let last = &reports[heard - 1];
            let (attempt, due_at) = match &last.outcome {
                Outcome::Retry { due_at: None, .. } => continue,
                Outcome::Retry { due_at: Some(due_at), .. } => (last.attempt + 1, *due_at),
                Outcome::Deferred { due_at, .. } => (last.attempt, *due_at),
                Outcome::Delivered | Outcome::Dead { .. } => return reports,
            };
            let until_due = (due_at - Clock::system().now()).to_std().unwrap_or_default();
            tokio::time::sleep(until_due).await;
            let (window_started_at, destination) = (request.accepted_at, last.destination.clone());
            let (request, counted_attempts) = (request.clone(), last.counted_attempts);
            self.retry(&RetryRecord { request, destination, attempt, counted_attempts, window_started_at })
                .await;
        }
    }

    pub(crate) async fn produce(
        &self,
        topic: &str,
        key: Option<Bytes>,
        headers: Headers,
        body: &'static str,
    ) -> Origin {
        let payload = Bytes::from_static(body.as_bytes());
        let record = Outgoing { topic: topic.to_owned(), key, headers, payload };
        let position = self.producer.send(&record).await.unwrap();
        Origin { topic: record.topic, partition: position.partition, offset: position.offset }
    }
}

/// The records that dispatch has produced so far: outcomes, dead letters and adoptions.
pub(crate) struct Heard {
    records: watch::Receiver<Vec<Record>>,
    outcomes: String,
    _listener: JoinHandle<()>,
}

impl Heard {
    fn listen(settings: &Settings, topics: &[&str]) -> Self {
        let mut consumer =
            Consumer::subscribe(&settings.kafka, "listener", topics, 64, &unmeasured()).unwrap();
        let (sender, records) = watch::channel(Vec::new());
        let listener = tokio::spawn(async move {
            while let Some(received) = consumer.recv().await {
                sender.send_modify(|records| records.push(received.record));
                received.receipt.done();
            }
        });
        Self { records, outcomes: topics[0].to_owned(), _listener: listener }
    }

    /// Waits until what was heard is enough to answer.
    pub(crate) async fn wait_for<T>(&self, answer: impl Fn(&[Record]) -> Option<T>) -> T {
        let mut records = self.records.clone();
        let found = async {
            loop {
                if let Some(found) = answer(&records.borrow_and_update()) {
                    return found;
                }
                records.changed().await.expect("the listener listens");
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("dispatch says what the test waits for")
    }

    /// Waits for a record on a topic with this header.
    pub(crate) async fn record(&self, topic: &str, header: (&str, &str)) -> Record {
        self.wait_for(|records| {
            records.iter().find(|record| record.topic == topic && has(record, header)).cloned()
        })
        .await
    }

    /// Waits for as many reports as a request has destinations.
    pub(crate) async fn reports(&self, id: RequestId, destinations: usize) -> Vec<AttemptReport> {
        self.wait_for(|records| {
            let reports: Vec<_> = self.reports_in(records).filter(|report| report.request_id == id).collect();
            (reports.len() >= destinations).then_some(reports)
        })
        .await
    }

    /// Waits for the report on a request that has one destination.
    pub(crate) async fn report(&self, id: RequestId) -> AttemptReport {
        self.reports(id, 1).await.remove(0)
    }

    /// The reports among records.
    pub(crate) fn reports_in(&self, records: &[Record]) -> impl Iterator<Item = AttemptReport> {
        let outcomes = records.iter().filter(|record| record.topic == self.outcomes);
        outcomes.map(|record| serde_json::from_slice(&record.payload).unwrap())
    }
}

/// A request as ingest publishes it at first, for all destinations of its route.
pub(crate) fn of_route(request: &RequestRecord) -> RouteRecord {
    let destinations: &[&str] = if request.route == "both" { &["left", "right"] } else { &[&request.route] };
    let destinations = destinations.iter().map(|name| (*name).to_owned()).collect();
    RouteRecord { request: request.clone(), destinations }
}

/// A new request on a route, accepted now.
pub(crate) fn request(route: &str) -> RequestRecord {
    static LAST_ID: AtomicI64 = AtomicI64::new(0);
    RequestRecord {
        id: RequestId::from_i64(LAST_ID.fetch_add(1, Ordering::Relaxed) + 1).unwrap(),
        route: route.to_owned(),
        accepted_at: Clock::system().now(),
        content_type: "application/json".to_owned(),
        trace: None,
    }
}

pub(crate) fn has(record: &Record, (name, value): (&str, &str)) -> bool {
    header(record, name) == Some(value)
}

pub(crate) fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().rev().find(|(header, _)| header == name)?;
    std::str::from_utf8(value).ok()
}

/// One route a destination, of the same name; and `both`, which has two.
fn configuration(bootstrap_servers: &str, session: &str, destinations: &Value) -> NamedTempFile {
    let names = destinations.as_object().unwrap().keys();
    let route = |name: &str, destinations: &[&str]| {
        let route = json!({
            "path": format!("/{name}"),
            "topic": format!("{name}-requests"),
            "destinations": destinations,
        });
        (name.to_owned(), route)
    };
    let mut routes: serde_json::Map<_, _> = names.map(|name| route(name, &[name])).collect();
    if destinations.get("left").is_some() {
        routes.extend([route("both", &["left", "right"])]);
    }
    let file = json!({
        "kafka": {
            "bootstrap_servers": bootstrap_servers,
            "properties": {
                // The mock broker has a group whose last member left wait that long for another one; a real one grants
                // no less than 6 s.
                "session.timeout.ms": session,
                "heartbeat.interval.ms": "500",
                // Tests wait for every single record.
                "fetch.wait.max.ms": "20",
            },
        },
        "dispatch": {"address": "127.0.0.1:0", "concurrency": 32},
        "routes": routes,
        "destinations": destinations,
    });
    let mut path = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    write!(path, "{file}").unwrap();
    path
}

fn load(file: &NamedTempFile) -> Settings {
    let flags = Flags { config: Some(file.path().to_owned()), http: None, kafka: None, database: None };
    throughline_settings::load(&flags).unwrap_or_else(|problems| panic!("{problems}")).settings
}

/// The topics of the routes and the internal ones.
fn topics_of(settings: &Settings) -> Vec<String> {
    let internal = Topics::new(&settings.kafka.prefix).all().map(ToOwned::to_owned);
    internal.into_iter().chain(settings.routes.values().map(|route| route.topic.clone())).collect()
}
