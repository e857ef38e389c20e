//! A broker for each test: where a Docker engine answers a real one, on which it has topics and groups of its own,
//! else an embedded one.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use throughline_kafka::{Bounds, Consumer, EmbeddedBroker, Outgoing, Producer, Received, ensure_topics};
use throughline_kafka::{Settings, Topics};
use throughline_testkit::Measured;

use crate::container::Container;

/// For anything that should happen at once; a group's first members wait 3 s.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Broker {
    server: Server,
    pub(crate) settings: Settings,
    pub(crate) topic: String,
    /// The metrics of its clients.
    pub(crate) measured: Measured,
}

/// What serves it, as long as it is there.
enum Server {
    Embedded(EmbeddedBroker),
    Real { _container: Arc<Container> },
}

impl Broker {
    /// Creates a topic with this number of partitions.
    pub(crate) async fn start(name: &str, partitions: u32) -> Self {
        match Container::shared().await {
            Some(container) => Self::real(container, name, partitions).await,
            None => Self::embedded(name, partitions),
        }
    }

    async fn real(container: Arc<Container>, name: &str, partitions: u32) -> Self {
        let mut settings = settings(container.open.clone(), partitions);
        settings.topics.create = true;
        ensure_topics(&settings, &[name], SOON).await.unwrap();
        let server = Server::Real { _container: container };
        Self { server, settings, topic: name.to_owned(), measured: Measured::new() }
    }

    /// For what the embedded one cannot do; none where there is no Docker engine.
    pub(crate) async fn real_only(name: &str, partitions: u32) -> Option<Self> {
        Some(Self::real(Container::needed().await?, name, partitions).await)
    }

    /// Whether librdkafka's mock cluster serves it, which is not as exact as a real one.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self.server, Server::Embedded(_))
    }

    /// One that can be taken down.
    pub(crate) fn embedded(topic: &str, partitions: u32) -> Self {
        let broker = EmbeddedBroker::start(partitions).unwrap();
        broker.create_topics(&[topic]).unwrap();
        let settings = settings(broker.bootstrap_servers(), partitions);
        let server = Server::Embedded(broker);
        Self { server, settings, topic: topic.to_owned(), measured: Measured::new() }
    }

    pub(crate) fn down(&self) {
        self.mock().down().unwrap();
    }

    pub(crate) fn up(&self) {
        self.mock().up().unwrap();
    }

    fn mock(&self) -> &EmbeddedBroker {
        match &self.server {
            Server::Embedded(broker) => broker,
            Server::Real { .. } => panic!("only an embedded broker can be taken down"),
        }
    }

    pub(crate) fn producer(&self) -> Producer {
        Producer::new(&self.settings, "a producer", &self.measured.meter()).unwrap()
    }

    /// A member of the test's group.
    pub(crate) fn consumer(&self, bounds: impl Into<Bounds>) -> Consumer {
        let group = format!("{}-group", self.topic);
        Consumer::subscribe(&self.settings, &group, &[&self.topic], bounds, &self.measured.meter()).unwrap()
    }

    pub(crate) fn record(&self, key: Option<&str>, payload: impl Into<Bytes>) -> Outgoing {
        Outgoing {
            topic: self.topic.clone(),
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            headers: Vec::new(),
            payload: payload.into(),
        }
    }

    /// Produces the numbers as payloads and keys.
    pub(crate) async fn produce(&self, numbers: std::ops::Range<u32>) {
        let producer = self.producer();
        let sent: Vec<_> = numbers
            .map(|n| producer.enqueue(&self.record(Some(&n.to_string()), n.to_string())).unwrap())
            .collect();
        for acknowledgement in sent {
            acknowledgement.await.unwrap();
        }
    }
}

pub(crate) fn settings(servers: String, partitions: u32) -> Settings {
    Settings {
        bootstrap_servers: servers,
        topics: Topics { partitions: NonZeroU32::new(partitions).unwrap(), ..Topics::default() },
        // A rebalance of the embedded broker takes a session's length, less a second; 6 s is the least
        // that a real one grants.
        properties: BTreeMap::from([
            ("session.timeout.ms".to_owned(), secret("6000")),
            ("heartbeat.interval.ms".to_owned(), secret("500")),
        ]),
        ..Settings::default()
    }
}

/// The next record, soon.
pub(crate) async fn next(consumer: &mut Consumer) -> Received {
    tokio::time::timeout(SOON, consumer.recv()).await.expect("a record soon").expect("an open consumer")
}

pub(crate) fn number(received: &Received) -> u32 {
    std::str::from_utf8(&received.record.payload).unwrap().parse().unwrap()
}

/// Waits until one of the records' partitions is revoked, and takes it out.
pub(crate) async fn until_revoked(records: &mut Vec<Received>) -> Received {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    tokio::time::timeout(SOON, async {
        loop {
            tick.tick().await;
            if let Some(at) = records.iter().position(|received| received.receipt.is_revoked()) {
                return records.remove(at);
            }
        }
    })
    .await
    .expect("a revoked partition soon")
}

pub(crate) fn secret(value: &str) -> throughline_config::Secret {
    value.into()
}

/// Waits until the test's group has committed this offset of partition 0.
pub(crate) async fn until_committed(broker: &Broker, offset: i64) {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    config.set("group.id", format!("{}-group", broker.topic));
    let onlooker: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition(&broker.topic, 0);
    let wait = move || {
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            let committed = onlooker.committed_offsets(list.clone(), SOON).unwrap();
            if committed.elements()[0].offset() == Offset::Offset(offset) {
                return true;
            }
        }
        false
    };
    assert!(tokio::task::spawn_blocking(wait).await.unwrap(), "{offset} was not committed");
}

/// Waits until the test's group has this number of members, all of them with partitions.
pub(crate) async fn until_members(broker: &Broker, members: usize) {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};

    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    let onlooker: BaseConsumer = config.create().unwrap();
    let group = format!("{}-group", broker.topic);
    let wait = move || {
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            let groups = onlooker.fetch_group_list(Some(&group), SOON).unwrap();
            let is_there = |group: &rdkafka::groups::GroupInfo| {
                group.state() == "Stable" && group.members().len() == members
            };
            if groups.groups().iter().any(is_there) {
                return true;
            }
        }
        false
    };
    assert!(tokio::task::spawn_blocking(wait).await.unwrap(), "the group has not {members} members");
}
