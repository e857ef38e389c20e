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
use throughline_config::{Compression, Kafka};
use tokio::time::Instant;

pub use self::generation::Acknowledgement;
use self::generation::{Generation, Waiting};
use crate::lost::Lost;
use crate::metrics::{STATISTICS_INTERVAL, Sending, Vitals};
use crate::trouble::Trouble;
use crate::{KafkaError, Outgoing, Position, SendError, client, log};

const QUEUE_RECORDS: &str = "queue.buffering.max.messages";
const QUEUE_KBYTES: &str = "queue.buffering.max.kbytes";
/// How often a full queue is asked for room: librdkafka does not say when there is some.
const ROOM_POLL: Duration = Duration::from_millis(5);
/// The first pause before a record that was not delivered is sent again; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// What kept it away may end at any time, and is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Produces records. Clones share one client.
///
/// It is idempotent and waits for all replicas in sync. Records never time out: through an outage
/// they wait in memory, in their order, and the caller bounds how many it leaves unacknowledged.
/// If librdkafka declares the client broken, or the client knows no broker any more, a new client replaces it. The
/// unacknowledged records of the old client then fail, and the new client takes no record until the caller has seen
/// that: a later record cannot overtake them.
#[derive(Clone)]
pub struct Producer(Arc<Inner>);

/// How much a producer's queue takes, by librdkafka's settings.
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

/// What clients have in common that take each other's place.
struct Common {
    sending: Sending,
    vitals: Arc<Vitals>,
    /// Whose clients they are.
    producer: OnceLock<Weak<Inner>>,
}

pub(crate) type Client = ThreadedProducer<Reports>;
impl Producer {
    /// Creates the client; it connects by itself in the background. By its name, the `client.id`, brokers and metrics
    /// tell it from others. Measured with `meter` are the records that are produced, and how librdkafka does.
    ///
    /// # Errors
    /// If librdkafka does not take the settings.
    pub fn new(settings: &Kafka, name: &str, meter: &Meter) -> Result<Self, KafkaError> {
        let config = config(settings, name)?;
        let (sending, vitals) = (Sending::new(meter), Vitals::observed(meter));
        let common = Arc::new(Common { sending, vitals, producer: OnceLock::new() });
        let client = connect_measured(&config, &common).map_err(client::not_created)?;
        let servers = settings.bootstrap_servers.clone();
        let current = RwLock::new(Generation::new(client));
        let inner = Arc::new(Inner { config, servers, current, common });
        inner.common.producer.get_or_init(|| Arc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// How much the queue takes.
    #[must_use]
    pub fn queue(&self) -> QueueLimits {
        let limit = |name| self.0.config.get(name).and_then(|limit| limit.trim().parse::<usize>().ok());
        let of = |name| match limit(name) {
            // To librdkafka, none.
            Some(0) | None => usize::MAX,
            Some(limit) => limit,
        };
        QueueLimits { records: of(QUEUE_RECORDS), bytes: of(QUEUE_KBYTES).saturating_mul(1 << 10) }
    }

    /// Hands a record to librdkafka, which copies it. Never blocks.
    ///
    /// Records of one key lie in the order of these calls.
    ///
    /// # Errors
    /// [`SendError::QueueFull`] when enough is waiting already, [`SendError::Replaced`] while records of a replaced
    /// client are unsettled, and what can be said without asking the broker.
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
        // For room one waits; the record is not given up.
        if error.rdkafka_error_code() != Some(Code::QueueFull) {
            self.0.common.sending.ended(&record.topic, Instant::now(), Some(&error));
        }
        SendError::new(error)
    }

    /// Produces a record and waits for its acknowledgement, before that until the queue takes it.
    ///
    /// # Errors
    /// If the record was refused, or not delivered.
    pub async fn send(&self, record: &Outgoing) -> Result<Position, SendError> {
        loop {
            match self.enqueue(record) {
                Err(SendError::QueueFull | SendError::Replaced) => tokio::time::sleep(ROOM_POLL).await,
                other => return other?.await,
            }
        }
    }

    /// Produces a record again and again, until the broker has it or will never take it. Dropped before
    /// that, it may have been taken, and will be if it waits in the queue.
    ///
    /// # Errors
    /// If the record was refused.
    pub async fn send_until_taken(&self, record: &Outgoing) -> Result<Position, SendError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.send(record).await {
                Err(error) if !error.is_refusal() => {
                    if pause == FIRST_PAUSE {
                        tracing::warn!(topic = record.topic, %error, "a record was not delivered, trying until it is");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                taken_or_refused => return taken_or_refused,
            }
        }
    }

    /// Waits until everything is acknowledged.
    ///
    /// # Errors
    /// If it is not by the deadline; it is then still on its way.
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

    /// Asks a broker for its metadata, for readiness.
    ///
    /// # Errors
    /// If none answers by the deadline.
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

    /// Replaces a client that is of no use any more, unless another call did so already.
    fn renew(&self) -> Result<(), SendError> {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let broken = current.client.client().fatal_error().map(|(_, reason)| reason);
        let lost = || current.client.context().lost.is_so().then(|| "it knows no broker any more".to_owned());
        if let Some(reason) = broken.or_else(lost) {
            tracing::error!(reason, "the producer broke; a new one takes its place");
            let new = connect_measured(&self.0.config, &self.0.common).map_err(SendError::new)?;
            client::let_go(current.replace(new));
        }
        Ok(())
    }
}

impl Common {
    /// Has a client replaced that will never say so itself. Not by its own thread, which has to end with it.
    fn replace(&self) {
        let Some(producer) = self.producer.get().cloned() else { return };
        std::thread::spawn(move || {
            let producer = producer.upgrade().map(Producer);
            if let Some(Err(error)) = producer.as_ref().map(Producer::renew) {
                tracing::error!(%error, "the producer could not be replaced");
            }
        });
    }
}

/// A client of which nothing is measured.
pub(crate) fn connect(config: &ClientConfig) -> Result<Client, Native> {
    Client::from_config_and_context(config, Reports::default())
}

fn connect_measured(config: &ClientConfig, common: &Arc<Common>) -> Result<Client, Native> {
    let reports = Reports { common: Some(Arc::clone(common)), ..Reports::default() };
    Client::from_config_and_context(config, reports)
}

/// Asks for the brokers' metadata. Blocks until one answers, or the time is up.
pub(crate) fn ask(client: &Client, servers: &str, wait: Duration) -> Result<Metadata, KafkaError> {
    let trouble = &client.context().trouble;
    let answer = client.client().fetch_metadata(None, wait);
    if answer.is_ok() {
        trouble.is_over();
    }
    answer.map_err(|silence| trouble.explain(servers, &silence))
}

fn config(settings: &Kafka, name: &str) -> Result<ClientConfig, KafkaError> {
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
            // Infinite: a record that timed out would be overtaken by those behind it.
            ("message.timeout.ms", "0"),
            ("compression.codec", compression),
            // Requests that were committed together are enqueued together, within a millisecond or
            // two; waiting longer for company adds latency and no company.
            ("linger.ms", "2"),
            // librdkafka's default of 1 GiB is more than a service should hold for a broker that is away.
            (QUEUE_KBYTES, "131072"),
            (QUEUE_RECORDS, "100000"),
            // A topic's limit decides what is too large, and it counts compressed bytes.
            ("message.max.bytes", &settings.largest_record().to_string()),
            // Below a broker's usual limit of 1 MiB, so that what is refused as too large was alone in
            // its batch: a batch is refused as a whole.
            ("batch.size", "900000"),
            // Where Java's producers would put a key, so that others may produce to the same topics.
            ("partitioner", "murmur2_random"),
            STATISTICS_INTERVAL,
        ],
    )
}

/// Runs what blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| KafkaError::Cancelled)?
}

/// Passes delivery reports on to who waits for them.
#[derive(Default)]
pub(crate) struct Reports {
    pub(crate) trouble: Trouble,
    lost: Lost,
    common: Option<Arc<Common>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log::line(level, facility, text);
        // Its error, if it is one, comes after it.
        if facility == "FAIL" {
            self.trouble.note_line(text);
        }
    }

    fn error(&self, error: Native, reason: &str) {
        log::error_event(&error, reason);
        self.trouble.note(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if let Some(common) = &self.common {
            common.vitals.note(&statistics);
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
