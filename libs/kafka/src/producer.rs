mod generation;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use opentelemetry::metrics::Meter;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, Statistics};
use tokio::time::Instant;

pub use self::generation::Acknowledgement;
use self::generation::{Generation, Waiting};
use crate::broker_error::BrokerError;
use crate::metrics::{ClientStats, STATISTICS_INTERVAL, Sending};
use crate::stuck_client::StuckClient;
use crate::{Compression, KafkaError, Outgoing, Position, SendError, Settings, client, log};

const QUEUE_RECORDS: &str = "queue.buffering.max.messages";
/// In milliseconds; 0 is no timeout.
const MESSAGE_TIMEOUT: &str = "message.timeout.ms";
const QUEUE_KBYTES: &str = "queue.buffering.max.kbytes";
/// How often a full queue is polled until another record fits: librdkafka does not report that.
const FULL_QUEUE_POLL: Duration = Duration::from_millis(5);
/// The first backoff before a record that was not delivered is sent again; each further one is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest backoff: an outage may end at any time, and its end is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Produces records. Clones share one client.
///
/// The producer is idempotent and waits for all in-sync replicas. Records never time out: through an outage they wait
/// in memory, in their order, and the caller limits how many it leaves unacknowledged. If librdkafka declares the
/// client broken, or the client no longer knows any broker, a new client replaces it. The unacknowledged records of
/// the old client then fail, and the new client takes no record until the caller has seen that: a later record cannot
/// overtake them.
#[derive(Clone)]
pub struct Producer(Arc<Inner>);

/// The capacity of a producer's queue, according to librdkafka's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// `queue.buffering.max.messages`.
    pub records: usize,
    /// Bytes of values: `queue.buffering.max.kbytes`.
    pub bytes: usize,
}

struct Inner {
    config: ClientConfig,
    servers: String,
    current: RwLock<Generation>,
    common: Arc<Common>,
}

/// The state that successive clients of a producer share.
struct Common {
    sending: Sending,
    client_stats: Arc<ClientStats>,
    /// The producer that the clients belong to.
    producer: OnceLock<Weak<Inner>>,
}

pub(crate) type Client = ThreadedProducer<Reports>;
impl Producer {
    /// Creates the client, which connects by itself in the background. Brokers and metrics distinguish it from others
    /// by its name, the `client.id`. `meter` records the records that are produced, and librdkafka's statistics.
    ///
    /// # Errors
    /// If librdkafka rejects the settings.
    pub fn new(settings: &Settings, name: &str, meter: &Meter) -> Result<Self, KafkaError> {
        Self::of(config(settings, name)?, settings, meter)
    }

    /// Creates a client as [`Producer::new`] does, except that it gives up a record that is not acknowledged within
    /// `timeout`. Such a record may be stored nevertheless, and records behind it may overtake a repetition of it.
    ///
    /// # Errors
    /// If librdkafka rejects the settings.
    pub fn with_timeout(
        settings: &Settings,
        name: &str,
        timeout: Duration,
        meter: &Meter,
    ) -> Result<Self, KafkaError> {
        let mut config = config(settings, name)?;
        let millis = timeout.as_millis().clamp(1, i32::MAX.unsigned_abs().into());
        config.set(MESSAGE_TIMEOUT, millis.to_string());
        Self::of(config, settings, meter)
    }

    fn of(config: ClientConfig, settings: &Settings, meter: &Meter) -> Result<Self, KafkaError> {
        let (sending, client_stats) = (Sending::new(meter), ClientStats::observed(meter));
        let common = Arc::new(Common { sending, client_stats, producer: OnceLock::new() });
        let client = connect_measured(&config, &common).map_err(client::not_created)?;
        let servers = settings.bootstrap_servers.clone();
        let current = RwLock::new(Generation::new(client));
        let inner = Arc::new(Inner { config, servers, current, common });
        inner.common.producer.get_or_init(|| Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// Returns the capacity of the queue.
    #[must_use]
    pub fn queue(&self) -> QueueLimits {
        let limit = |name| self.0.config.get(name).and_then(|limit| limit.trim().parse::<usize>().ok());
        let of = |name| match limit(name) {
            // librdkafka takes zero as no limit.
            Some(0) | None => usize::MAX,
            Some(limit) => limit,
        };
        QueueLimits { records: of(QUEUE_RECORDS), bytes: of(QUEUE_KBYTES).saturating_mul(1 << 10) }
    }

    /// Hands a record to librdkafka, which copies it. Never blocks.
    ///
    /// Records with the same key are stored in the order of these calls.
    ///
    /// # Errors
    /// [`SendError::QueueFull`] when the queue is full, [`SendError::Replaced`] while records of a replaced client
    /// are unsettled, and errors that librdkafka finds without asking the broker.
    pub fn enqueue(&self, record: &Outgoing) -> Result<Acknowledgement, SendError> {
        let mut enqueued = self.current().enqueue(record);
        if let Some(Err(error)) = &enqueued
            && error.rdkafka_error_code() == Some(Code::Fatal)
        {
            self.renew()?;
            enqueued = self.current().enqueue(record);
        }
        enqueued.ok_or(SendError::Replaced)?.map_err(|error| self.not_enqueued(record, error))
    }

    fn not_enqueued(&self, record: &Outgoing, error: Native) -> SendError {
        // A full queue is not a failure of the record: the caller waits until the record fits.
        if error.rdkafka_error_code() != Some(Code::QueueFull) {
            self.0.common.sending.ended(&record.topic, Instant::now(), Some(&error));
        }
        SendError::new(error)
    }

    /// Waits until the queue takes a record, produces it, and waits for its acknowledgement.
    ///
    /// # Errors
    /// If the record was refused, or not delivered.
    pub async fn send(&self, record: &Outgoing) -> Result<Position, SendError> {
        loop {
            match self.enqueue(record) {
                Err(SendError::QueueFull | SendError::Replaced) => tokio::time::sleep(FULL_QUEUE_POLL).await,
                other => return other?.await,
            }
        }
    }

    /// Produces a record, with retries, until the broker has it or will never accept it. If the future is dropped
    /// before that, the broker may have the record already, or will get it if it waits in the queue.
    ///
    /// # Errors
    /// If the record was refused.
    pub async fn send_until_taken(&self, record: &Outgoing) -> Result<Position, SendError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.send(record).await {
                Err(error) if !error.is_refusal() => {
                    if pause == FIRST_PAUSE {
                        tracing::warn!(
                            event = "record.send_failed", topic = record.topic, %error,
                            "cannot publish a record; retrying"
                        );
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                taken_or_refused => return taken_or_refused,
            }
        }
    }

    /// Waits until all records are acknowledged.
    ///
    /// # Errors
    /// If they are not by the deadline; the others then remain in flight.
    pub async fn flush(&self, deadline: Duration) -> Result<(), KafkaError> {
        let client = self.client();
        blocking(move || {
            client.flush(deadline).map_err(|_| KafkaError::Unflushed {
                records: usize::try_from(client.in_flight_count()).unwrap_or_default(),
                deadline,
            })
        })
        .await
    }

    /// Asks a broker for its metadata, to check readiness.
    ///
    /// # Errors
    /// If no broker answers by the deadline.
    pub async fn probe(&self, deadline: Duration) -> Result<(), KafkaError> {
        let client = self.client();
        let servers = self.0.servers.clone();
        blocking(move || ask(&client, &servers, deadline).map(drop)).await
    }

    fn client(&self) -> Client {
        self.current().client.clone()
    }

    fn current(&self) -> RwLockReadGuard<'_, Generation> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces a client that is no longer usable, unless another call has already done so.
    fn renew(&self) -> Result<(), SendError> {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let broken = current.client.client().fatal_error().map(|(_, reason)| reason);
        let lost = || current.client.context().lost.is_so().then(|| "it has lost all brokers".to_owned());
        if let Some(reason) = broken.or_else(lost) {
            tracing::error!(event = "producer.replaced", reason, "the producer failed; replacing it");
            let new = connect_measured(&self.0.config, &self.0.common).map_err(SendError::new)?;
            client::drop_in_background(current.replace(new));
        }
        Ok(())
    }
}

impl Common {
    /// Replaces a client that will never report its loss itself. This runs on another thread than the client's own,
    /// which has to end with the client.
    fn replace(&self) {
        let Some(producer) = self.producer.get().cloned() else { return };
        std::thread::spawn(move || {
            let producer = producer.upgrade().map(Producer);
            if let Some(Err(error)) = producer.as_ref().map(Producer::renew) {
                tracing::error!(
                    event = "producer.replacement_failed", %error,
                    "cannot replace the failed producer"
                );
            }
        });
    }
}

/// Creates a client without metrics.
pub(crate) fn connect(config: &ClientConfig) -> Result<Client, Native> {
    Client::from_config_and_context(config, Reports::default())
}

fn connect_measured(config: &ClientConfig, common: &Arc<Common>) -> Result<Client, Native> {
    let reports = Reports { common: Some(Arc::clone(common)), ..Reports::default() };
    Client::from_config_and_context(config, reports)
}

/// Asks for the brokers' metadata. Blocks until a broker answers or `wait` has passed.
pub(crate) fn ask(client: &Client, servers: &str, wait: Duration) -> Result<Metadata, KafkaError> {
    let broker_error = &client.context().broker_error;
    let answer = client.client().fetch_metadata(None, wait);
    if answer.is_ok() {
        broker_error.is_over();
    }
    answer.map_err(|silence| broker_error.explain(servers, &silence))
}

fn config(settings: &Settings, name: &str) -> Result<ClientConfig, KafkaError> {
    let compression = match settings.compression {
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
        Compression::None => "none",
    };
    client::config(
        settings,
        &[
            ("client.id", name),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // No timeout: a record that timed out would be overtaken by the records behind it.
            (MESSAGE_TIMEOUT, "0"),
            ("compression.codec", compression),
            // Requests that were committed together are enqueued together, within a millisecond or two; a longer wait
            // adds latency, but no records to the batch.
            ("linger.ms", "2"),
            // librdkafka's default of 1 GiB is more than a service should hold while the broker is unreachable.
            (QUEUE_KBYTES, "131072"),
            (QUEUE_RECORDS, "100000"),
            // A topic's limit decides which record is too large, and it counts compressed bytes.
            ("message.max.bytes", &settings.largest_record().to_string()),
            // Below a broker's usual limit of 1 MiB, so that a record that is refused as too large was alone in its
            // batch: a batch is refused as a whole.
            ("batch.size", "900000"),
            // Chooses the partition of a key as Java's producers do, so that others may produce to the same topics.
            ("partitioner", "murmur2_random"),
            STATISTICS_INTERVAL,
        ],
    )
}

/// Runs blocking work on a thread where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| KafkaError::Cancelled)?
}

/// Passes delivery reports on to the acknowledgements that wait for them.
#[derive(Default)]
pub(crate) struct Reports {
    pub(crate) broker_error: BrokerError,
    lost: StuckClient,
    common: Option<Arc<Common>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log::line(level, facility, text);
        // The error that belongs to the line, if any, follows it.
        if facility == "FAIL" {
            self.broker_error.note_line(text);
        }
    }

    fn error(&self, error: Native, reason: &str) {
        log::error_event(&error, reason);
        self.broker_error.note(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(common) = &self.common {
            common.client_stats.note(&statistics);
            if self.lost.note(&statistics) {
                common.replace();
            }
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Self::DeliveryOpaque) {
        let (message, error) = match result {
            Ok(message) => (message, None),
            Err((error, message)) => (message, Some(error)),
        };
        if let Some(common) = &self.common {
            common.sending.ended(message.topic(), waiting.since, error);
        }
        waiting.answer(match error {
            None => Ok(Position { partition: message.partition(), offset: message.offset() }),
            Some(error) => Err(SendError::new(error.clone())),
        });
    }
}
