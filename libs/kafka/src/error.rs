use std::time::Duration;

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

/// What librdkafka said; opaque, to be shown.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct Cause(Native);

impl From<Native> for Cause {
    fn from(native: Native) -> Self {
        Self(native)
    }
}

/// Why something with the broker, or towards it, did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// `kafka.properties` holds what is not open to change.
    #[error("kafka.properties: `{name}` cannot be set here: {reason}")]
    ReservedProperty {
        /// The property's name.
        name: String,
        /// Why, and what to set instead.
        reason: &'static str,
    },
    /// librdkafka did not take a setting. The value is withheld: it may be a secret.
    #[error("kafka.properties: `{name}`: {reason}")]
    Property {
        /// The property's name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The client could not be created from these settings.
    #[error("the Kafka client could not be created")]
    Client(#[source] Cause),
    /// A thread could not be started.
    #[error("a thread for Kafka could not be started")]
    Thread(#[source] std::io::Error),
    /// No broker answered in time.
    #[error("no Kafka broker answered at {servers}: {reason}; start it, or change kafka.bootstrap_servers")]
    Unreachable {
        /// `kafka.bootstrap_servers`.
        servers: String,
        /// What librdkafka made of it.
        reason: String,
    },
    /// The broker takes connections and ends them, as it does if it wants TLS and gets none.
    #[error(
        "the Kafka broker hangs up: {reason}; \
         set security.protocol in kafka.properties if it wants TLS or a password"
    )]
    HungUp {
        /// What librdkafka says, with the broker's name.
        reason: String,
    },
    /// The broker does not let us in.
    #[error(
        "the Kafka broker does not let us in: {reason}; \
         change sasl.mechanism, sasl.username or sasl.password in kafka.properties"
    )]
    Credentials {
        /// What librdkafka says, with the broker's name and words.
        reason: String,
    },
    /// TLS with the broker did not come about.
    #[error(
        "no secure connection to the Kafka broker: {reason}; \
         change ssl.ca.location (or ssl.ca.pem) or security.protocol in kafka.properties"
    )]
    Tls {
        /// What librdkafka says, with the broker's name.
        reason: String,
    },
    /// Topics are not there and are not to be created.
    #[error("missing topics: {}: create them, or set kafka.topics.create to true", names.join(", "))]
    MissingTopics {
        /// Their names.
        names: Vec<String>,
    },
    /// The broker did not create a topic, or several.
    #[error("the topic {name} could not be created")]
    TopicNotCreated {
        /// Its name.
        name: String,
        /// The broker's reason.
        #[source]
        source: Cause,
    },
    /// The subscription was not taken.
    #[error("topics could not be subscribed to")]
    Subscription(#[source] Cause),
    /// The consumer cannot go on: it was fenced, or its client broke.
    #[error("the consumer of group {group} stopped")]
    ConsumerStopped {
        /// Its group.
        group: String,
        /// Why; none if its thread panicked.
        #[source]
        source: Option<Cause>,
    },
    /// Records were still in work at the deadline; they will be consumed again.
    #[error("{records} records were still in work after {waited:?}")]
    Unfinished {
        /// How many.
        records: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// Records were still not acknowledged at the deadline.
    #[error("{records} records were not acknowledged within {deadline:?}")]
    Unflushed {
        /// How many.
        records: usize,
        /// How long they were waited for.
        deadline: Duration,
    },
    /// A handler panicked; its record is unfinished.
    #[error("a record's handler panicked")]
    HandlerPanicked(#[source] tokio::task::JoinError),
    /// A handler abandoned a record though no shut-down had begun; it holds up its partition's offsets for good.
    #[error("a record was abandoned without a shut-down")]
    RecordAbandoned,
    /// The runtime ended while a broker was asked.
    #[error("cancelled")]
    Cancelled,
    /// The embedded broker did not do as told.
    #[error("the embedded broker failed")]
    Embedded(#[source] Cause),
}

/// Why a record was not produced.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// The producer holds as much as it may; later there is room again.
    #[error("the producer's queue is full")]
    QueueFull,
    /// The producer's client was replaced, and records that the old one failed to deliver come before this one.
    #[error("the producer's client was replaced, and records before this one are not settled")]
    Replaced,
    /// No broker with the same topic settings takes this record, e.g. because it is too large.
    #[error("the record was refused: {source}")]
    Refused {
        /// The broker's reason, or librdkafka's.
        #[source]
        source: Cause,
    },
    /// It was not delivered, and may be another time.
    #[error("the record was not delivered: {source}")]
    Failed {
        /// What happened.
        #[source]
        source: Cause,
    },
}

impl SendError {
    /// Whether trying again is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    pub(crate) fn new(source: Native) -> Self {
        match source.rdkafka_error_code() {
            Some(Code::QueueFull) => Self::QueueFull,
            Some(code) if refuses(code) => Self::Refused { source: source.into() },
            _ => Self::Failed { source: source.into() },
        }
    }
}

/// Whether the fault is the record's own. These are not: `InvalidTimestamp`, since a clock is wrong, this machine's
/// or the broker's; `PolicyViolation`, which an administrator has set up; a missing permission or topic; and
/// `InvalidDifferentRecord`, which blames another record of the batch.
fn refuses(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord)
}
