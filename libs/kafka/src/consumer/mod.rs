mod clients;
mod commits;
mod coordinator;
mod group;
mod lag;
mod membership;
mod pump;
mod receipt;
mod room;

use std::sync::Arc;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use opentelemetry::metrics::Meter;
use throughline_config::Kafka;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

use self::clients::Subscription;
use self::group::Group;
use self::membership::Membership;
pub(crate) use self::pump::Buffered;
use self::pump::Pump;
pub use self::receipt::{Claim, Receipt, Received};
pub(crate) use self::room::Room;
use crate::metrics::STATISTICS_INTERVAL;
use crate::{KafkaError, client};

/// How long after the deadline leaving the group may take: a last commit and a goodbye, one round
/// trip each.
const LEAVE: Duration = Duration::from_secs(3);

/// How much sooner than it has to a member gives partitions away: a last commit, and a round trip, on a slow network.
const GOODBYE: Duration = Duration::from_secs(10);

/// What it means that a last commit failed.
const REPEATED: &str = "records that were finished last may be consumed again";

/// How much a consumer holds of its partitions, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    records: usize,
    bytes: usize,
    drain: Duration,
}

impl Bounds {
    /// Holds so many `records` ready beyond those that were received, 32 MiB of records in all, and partitions that go
    /// to another member for 10 s.
    #[must_use]
    pub fn records(records: usize) -> Self {
        Self { records, bytes: 32 << 20, drain: Duration::from_secs(10) }
    }

    /// No further record is taken while those that are ready or received, and not finished, have this many `bytes`
    /// together, or more.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Partitions that go to another member are held for up to so long, until their records in progress are finished.
    /// A record that takes longer is processed twice.
    #[must_use]
    pub fn drain(self, drain: Duration) -> Self {
        Self { drain, ..self }
    }
}

impl From<usize> for Bounds {
    fn from(records: usize) -> Self {
        Self::records(records)
    }
}

/// A member of a consumer group, with a thread of its own.
///
/// Records come in the order of their partitions and may be finished in any. Ten times a second it commits the
/// contiguous prefix of finished records, and beside it which records beyond are finished: the next owner of a partition
/// skips those. Partitions change hands cooperatively: one that goes to another member is held until its records in
/// progress are finished, while the others go on. When the application does not keep up, the buffer is full and
/// fetching stops, while the membership lives on.
#[derive(Debug)]
pub struct Consumer {
    intake: Intake,
    member: Member,
}

impl Consumer {
    /// Joins a group, and holds as much ready as `bounds` say.
    ///
    /// A new group starts at the beginning of its topics. With `kafka.group_instance_id` the
    /// membership is static: the id, followed by the group's name, is this member's in the group.
    ///
    /// Measured with `meter` are the records that are received and finished, how far this member is behind, and
    /// how librdkafka does.
    ///
    /// # Errors
    /// If librdkafka does not take the settings. That a broker is away, or a topic, is not an error.
    pub fn subscribe(
        settings: &Kafka,
        group: &str,
        topics: &[&str],
        bounds: impl Into<Bounds>,
        meter: &Meter,
    ) -> Result<Self, KafkaError> {
        let Bounds { records, bytes, drain } = bounds.into();
        let shared = Group::new(group, meter);
        let config = config(settings, group)?;
        let drain = drain.min(longest_drain(&config));
        let subscription = Subscription { config, topics: topics.iter().map(ToString::to_string).collect() };
        let membership = Membership::join(subscription, Arc::clone(&shared), drain)?;
        let (sender, received) = mpsc::channel(records.max(1));
        let pump = Pump::new(membership, Arc::clone(&shared), sender, Room::new(bytes));
        let member = Member::spawn(shared, pump)?;
        Ok(Self { intake: Intake::new(received, member.pump.clone()), member })
    }

    /// The next record. None once the consumer has stopped; [`Consumer::close`] then says why.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Received> {
        self.intake.recv().await
    }

    /// Waits for a record and takes what else is there, up to `max`. Empty once the consumer has
    /// stopped.
    ///
    /// Cancel safe.
    pub async fn recv_batch(&mut self, max: usize) -> Vec<Received> {
        let mut batch = Vec::from_iter(self.recv().await);
        while !batch.is_empty() && batch.len() < max {
            let Ok(next) = self.intake.records.try_recv() else { break };
            self.intake.pump.unpark();
            batch.extend(Received::start(next));
        }
        batch
    }

    /// Leaves the group, after the receipts of all received records, or at the deadline, and with a
    /// last commit. Dropping the consumer instead leaves at once.
    ///
    /// # Errors
    /// What went wrong with the consumer, now or earlier; records may then be consumed again. So they
    /// may if the broker is away and takes no last commit, which is only worth a warning.
    pub async fn close(self, deadline: Duration) -> Result<(), KafkaError> {
        let Self { intake, member } = self;
        drop(intake);
        member.close(deadline).await
    }

    pub(crate) fn intake(&mut self) -> &mut Intake {
        &mut self.intake
    }
}

/// The end of the buffer at which records come out.
#[derive(Debug)]
pub(crate) struct Intake {
    records: mpsc::Receiver<Buffered>,
    /// To be woken when there is room.
    pump: Thread,
}

impl Intake {
    pub(crate) fn new(records: mpsc::Receiver<Buffered>, pump: Thread) -> Self {
        Self { records, pump }
    }

    pub(crate) async fn recv(&mut self) -> Option<Received> {
        loop {
            let next = self.records.recv().await?;
            self.pump.unpark();
            if let Some(received) = Received::start(next) {
                return Some(received);
            }
        }
    }
}

/// How a member ended.
type Ended = Result<(), KafkaError>;

/// The thread that is the member.
#[derive(Debug)]
struct Member {
    group: Arc<Group>,
    pump: Thread,
    running: Option<(JoinHandle<()>, oneshot::Receiver<Ended>)>,
}

impl Member {
    fn spawn(group: Arc<Group>, pump: Pump) -> Result<Self, KafkaError> {
        let (report, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                // Nobody listens when the consumer was dropped.
                let _ = report.send(pump.run());
            })
            .map_err(KafkaError::Thread)?;
        Ok(Self { group, pump: thread.thread().clone(), running: Some((thread, ended)) })
    }

    async fn close(mut self, deadline: Duration) -> Result<(), KafkaError> {
        self.leave_by(Instant::now() + deadline);
        let Some((thread, ended)) = self.running.take() else { return Ok(()) };
        let Ok(ended) = tokio::time::timeout(deadline + LEAVE, ended).await else {
            // The thread waits for a broker that is away, for as long as a session lasts.
            warn!(group = self.group.name, "the group could not be left in time; {REPEATED}");
            return Ok(());
        };
        // It has nothing left to do.
        let joined = thread.join();
        match (ended, joined) {
            (Ok(result), Ok(())) => result,
            _ => Err(KafkaError::ConsumerStopped { group: self.group.name.clone(), source: None }),
        }
    }

    fn leave_by(&self, deadline: Instant) {
        self.group.close_by(deadline);
        self.pump.unpark();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave_by(Instant::now());
    }
}

/// A member that holds partitions for longer than `max.poll.interval.ms` is put out of the group when another one joins.
fn longest_drain(config: &rdkafka::ClientConfig) -> Duration {
    let interval =
        config.get("max.poll.interval.ms").and_then(|millis| millis.parse().ok()).unwrap_or(300_000);
    Duration::from_millis(interval).saturating_sub(GOODBYE)
}

fn config(settings: &Kafka, group: &str) -> Result<rdkafka::ClientConfig, KafkaError> {
    let mut config = client::config(
        settings,
        &[
            ("group.id", group),
            ("client.id", group),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("auto.offset.reset", "earliest"),
            // What is committed is what we say: finished records.
            ("enable.auto.offset.store", "false"),
            ("enable.auto.commit", "false"),
            // librdkafka's default of 64 MiB fetched ahead is more than the buffer can ask for.
            ("queued.max.messages.kbytes", "16384"),
            // No less than one record, however large, and no more at once than may be queued: by default it is 50 MiB.
            ("fetch.max.bytes", "16777216"),
            // When as much is fetched, look again soon: the default of 1 s would be felt.
            ("fetch.queue.backoff.ms", "50"),
            STATISTICS_INTERVAL,
        ],
    )?;
    if let Some(instance) = &settings.group_instance_id {
        config.set("group.instance.id", format!("{instance}-{group}"));
    }
    Ok(config)
}
