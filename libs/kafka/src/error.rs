use std::time::Duration;

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

/// An error of librdkafka; opaque, for display only.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct Cause(Native);

impl From<Native> for Cause {
    fn from(native: Native) -> Self {
        Self(native)
    }
}

/// An error of a Kafka client or of the broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// `kafka.properties` sets a property that must not be overridden.
    #[error("kafka.properties: `{name}` cannot be set here: {reason}")]
    ReservedProperty {
        /// The property's name.
        name: String,
        /// The reason, or the setting to use instead.
        reason: &'static str,
    },
    /// librdkafka rejected a setting. The value is withheld: it may be a secret.
    #[error("kafka.properties: `{name}`: {reason}")]
    Property {
        /// The property's name.
        name: String,
        /// The problem with the property.
        reason: &'static str,
    },
    /// The client could not be created from these settings.
    #[error("cannot create the Kafka client")]
    Client(#[source] Cause),
    /// A thread could not be started.
    #[error("cannot start a thread for Kafka")]
    Thread(#[source] std::io::Error),
    /// No broker answered in time.
    #[error(
        "no Kafka broker responded at {servers}: {reason}; start the broker, or change kafka.bootstrap_servers"
    )]
    Unreachable {
        /// `kafka.bootstrap_servers`.
        servers: String,
        /// librdkafka's reason.
        reason: String,
    },
    /// The broker accepts connections and closes them, as it does if it requires TLS and the client uses none.
    #[error(
        "the Kafka broker closes the connection: {reason}; \
         set security.protocol in kafka.properties if the broker requires TLS or a password"
    )]
    HungUp {
        /// librdkafka's message, with the broker's name.
        reason: String,
    },
    /// The broker rejects our credentials.
    #[error(
        "the Kafka broker rejected the login: {reason}; \
         change sasl.mechanism, sasl.username or sasl.password in kafka.properties"
    )]
    Credentials {
        /// librdkafka's message, with the broker's name and text.
        reason: String,
    },
    /// The TLS handshake with the broker failed.
    #[error(
        "no TLS connection to the Kafka broker: {reason}; \
         change ssl.ca.location (or ssl.ca.pem) or security.protocol in kafka.properties"
    )]
    Tls {
        /// librdkafka's message, with the broker's name.
        reason: String,
    },
    /// Topics do not exist and are not to be created.
    #[error("missing topics: {}: create them, or set kafka.topics.create to true", names.join(", "))]
    MissingTopics {
        /// The names of the topics.
        names: Vec<String>,
    },
    /// The broker did not create one or more topics.
    #[error("cannot create the topic {name}")]
    TopicNotCreated {
        /// The name of the topic, or several names.
        name: String,
        /// The broker's reason.
        #[source]
        source: Cause,
    },
    /// The subscription was rejected.
    #[error("cannot subscribe to the topics")]
    Subscription(#[source] Cause),
    /// The consumer cannot continue: it was fenced, or its client failed.
    #[error("the consumer of group {group} stopped")]
    ConsumerStopped {
        /// The consumer group.
        group: String,
        /// The reason; none if the consumer's thread panicked.
        #[source]
        source: Option<Cause>,
    },
    /// Records were still in work at the deadline; they will be consumed again.
    #[error("{records} records were still in progress after {waited:?}")]
    Unfinished {
        /// The number of records.
        records: usize,
        /// How long the records were waited for.
        waited: Duration,
    },
    /// Records were still not acknowledged at the deadline.
    #[error("{records} records were not acknowledged within {deadline:?}")]
    Unflushed {
        /// The number of records.
        records: usize,
        /// How long the records were waited for.
        deadline: Duration,
    },
    /// A handler panicked; its record is unfinished.
    #[error("the handler of a record panicked")]
    HandlerPanicked(#[source] tokio::task::JoinError),
    /// A handler abandoned a record although no shutdown had begun; the record holds up its partition's offsets for
    /// good.
    #[error("a record was abandoned without a shutdown")]
    RecordAbandoned,
    /// The runtime ended during a request to a broker.
    #[error("the request to the broker was cancelled")]
    Cancelled,
    /// The embedded broker failed.
    #[error("the embedded broker failed")]
    Embedded(#[source] Cause),
}

/// The reason why a record was not produced.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// The producer's queue is full; the record will fit later.
    #[error("the producer's queue is full")]
    QueueFull,
    /// The producer's client was replaced, and records that the old client failed to deliver come before this one.
    #[error("the Kafka client was replaced, and earlier records are not acknowledged yet")]
    Replaced,
    /// No broker with the same topic settings accepts this record, for example because it is too large.
    #[error("Kafka rejected the record: {source}")]
    Refused {
        /// The broker's reason, or librdkafka's.
        #[source]
        source: Cause,
    },
    /// The record was not delivered; a retry may succeed.
    #[error("Kafka did not acknowledge the record: {source}")]
    Failed {
        /// The cause.
        #[source]
        source: Cause,
    },
}

impl SendError {
    /// Returns whether a retry is useless.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Returns whether a producer with a timeout gave the record up. The broker may have stored it nevertheless.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Failed { source: Cause(native) } if native.rdkafka_error_code() == Some(Code::MessageTimedOut))
    }

    pub(crate) fn new(source: Native) -> Self {
        match source.rdkafka_error_code() {
            Some(Code::QueueFull) => Self::QueueFull,
            Some(code) if refuses(code) => Self::Refused { source: source.into() },
            _ => Self::Failed { source: source.into() },
        }
    }
}

/// Returns whether the record itself is at fault. These errors are not the record's fault: `InvalidTimestamp`, since
/// a clock is wrong, this machine's or the broker's; `PolicyViolation`, since an administrator has set the policy up;
/// a missing permission or topic; and `InvalidDifferentRecord`, which blames another record of the batch.
fn refuses(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord)
}
