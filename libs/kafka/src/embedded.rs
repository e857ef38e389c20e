use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::Producer as _;

use crate::KafkaError;
use crate::producer::{self, Client, Reports};

/// A broker inside this process: librdkafka's mock cluster, which speaks Kafka's protocol on a port of the loopback
/// interface.
///
/// It forgets everything when it is dropped, keeps about 5 MB per partition, and does not support Kafka's
/// administration: create topics with [`EmbeddedBroker::create_topics`]. The first members of a group wait about 3 s.
pub struct EmbeddedBroker {
    /// The client that owns the cluster. (Threads could not share a separate `MockCluster`.)
    owner: Client,
    partitions: i32,
}

impl EmbeddedBroker {
    /// Starts the broker on a free port. Each topic is created with `partitions` partitions.
    ///
    /// # Errors
    /// If no port could be opened.
    pub fn start(partitions: u32) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", "1");
        let owner = producer::connect(&config).map_err(embedded)?;
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        let broker = Self { owner, partitions };
        broker.cluster()?;
        Ok(broker)
    }

    /// Returns `host:port`, for [`Settings::bootstrap_servers`](crate::Settings::bootstrap_servers).
    #[must_use]
    pub fn bootstrap_servers(&self) -> String {
        self.cluster().map(|cluster| cluster.bootstrap_servers()).unwrap_or_default()
    }

    /// Creates the topics that do not exist yet.
    ///
    /// # Errors
    /// If a name is invalid.
    pub fn create_topics(&self, names: &[&str]) -> Result<(), KafkaError> {
        for name in names {
            match self.cluster()?.create_topic(name, self.partitions, 1) {
                Ok(()) | Err(Native::MockCluster(Code::TopicAlreadyExists)) => {}
                Err(error) => return Err(embedded(error)),
            }
        }
        Ok(())
    }

    /// Closes all connections and accepts no new ones. The broker keeps its records.
    ///
    /// # Errors
    /// If the cluster has no broker.
    pub fn down(&self) -> Result<(), KafkaError> {
        self.cluster()?.broker_down(ALL).map_err(embedded)
    }

    /// Accepts connections again.
    ///
    /// # Errors
    /// If the cluster has no broker.
    pub fn up(&self) -> Result<(), KafkaError> {
        self.cluster()?.broker_up(ALL).map_err(embedded)
    }

    /// Takes the leader of a topic's partition away, or gives it back.
    ///
    /// # Errors
    /// If there is no such partition.
    pub fn lead(&self, topic: &str, partition: i32, has_leader: bool) -> Result<(), KafkaError> {
        let leader = has_leader.then_some(ONLY);
        self.cluster()?.partition_leader(topic, partition, leader).map_err(embedded)
    }

    pub(crate) fn cluster(&self) -> Result<MockCluster<'_, Reports>, KafkaError> {
        self.owner.client().mock_cluster().ok_or_else(|| embedded(Native::MockCluster(Code::Fail)))
    }
}

/// The id of the broker.
const ONLY: i32 = 1;
/// All brokers of the cluster.
const ALL: i32 = -1;

fn embedded(error: Native) -> KafkaError {
    KafkaError::Embedded(error.into())
}
