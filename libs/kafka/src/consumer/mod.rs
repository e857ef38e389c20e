mod budget;
mod clients;
mod commits;
mod coordinator;
mod group;
mod handover;
mod lag;
mod membership;
mod poll_thread;
mod receipt;

use std::sync::Arc;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use crate::Settings;
use opentelemetry::metrics::Meter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

pub(crate) use self::budget::Budget;
use self::clients::Subscription;
use self::group::Group;
use self::handover::Drain;
use self::membership::Membership;
pub(crate) use self::poll_thread::Buffered;
use self::poll_thread::PollThread;
pub use self::receipt::{Claim, Receipt, Received};
use crate::metrics::STATISTICS_INTERVAL;
use crate::{KafkaError, client};

/// How long after the deadline leaving the group may take: a last commit and a goodbye, one round trip each.
const LEAVE: Duration = Duration::from_secs(3);

/// How much earlier than required a member gives partitions away: enough for a last commit and a round trip on a slow
/// network.
const GOODBYE: Duration = Duration::from_secs(10);

/// The consequence of a failed last commit, for messages.
const REPEATED: &str = "the records finished last may be redelivered";

/// Limits on the records that a consumer holds, and on the time for which it holds partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    records: usize,
    bytes: usize,
    drain: Duration,
}

impl Bounds {
    /// Holds up to `records` records ready, beyond those that were received, up to 32 MiB of records in all, and
    /// partitions that go to another member for up to 10 s.
    #[must_use]
    pub fn records(records: usize) -> Self {
        Self { records, bytes: 32 << 20, drain: Duration::from_secs(10) }
    }

    /// Sets the limit in bytes: while the records that are ready, or received and not finished, have this many
    /// `bytes` or more in all, no further record is taken.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// Sets how long partitions that go to another member wait for their records in progress. A record that takes longer
    /// is processed twice.
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
/// Records arrive in the order of their partitions and may be finished in any order. Ten times a second the consumer
/// commits the contiguous prefix of finished records, and beside it which records beyond the prefix are finished: the
/// next owner of a partition skips those. Partitions change hands cooperatively: one that goes to another member is
/// held until its records in progress are finished, while consumption of the others continues. When the application
/// does not keep up, the buffer fills and fetching stops, while the membership stays alive.
#[derive(Debug)]
pub struct Consumer {
    intake: Intake,
    member: Member,
}

impl Consumer {
    /// Joins a group, and holds as many records ready as `bounds` permit.
    ///
    /// A new group starts at the beginning of its topics. With `kafka.group_instance_id` the membership is static:
    /// this member's id in the group is that id followed by the group's name.
    ///
    /// `meter` records the records that are received and finished, how far this member is behind, and librdkafka's
    /// statistics.
    ///
    /// # Errors
    /// If librdkafka rejects the settings. An unreachable broker or a missing topic is not an error.
    pub fn subscribe(
        settings: &Settings,
        group: &str,
        topics: &[&str],
        bounds: impl Into<Bounds>,
        meter: &Meter,
    ) -> Result<Self, KafkaError> {
        let Bounds { records, bytes, drain } = bounds.into();
        let shared = Group::new(group, meter);
        let config = config(settings, group)?;
        let drain = Drain::new(drain, longest_drain(&config));
        let subscription = Subscription { config, topics: topics.iter().map(ToString::to_string).collect() };
        let membership = Membership::join(subscription, Arc::clone(&shared), drain)?;
        let (sender, received) = mpsc::channel(records.max(1));
        let poll_thread = PollThread::new(membership, Arc::clone(&shared), sender, Budget::new(bytes));
        let member = Member::spawn(shared, poll_thread)?;
        Ok(Self { intake: Intake::new(received, member.poll_thread.clone()), member })
    }

    /// Returns the next record, or `None` once the consumer has stopped; [`Consumer::close`] then returns the reason.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Received> {
        self.intake.recv().await
    }

    /// Waits for a record and returns it with the others that are ready, up to `max` in all. The batch is empty once
    /// the consumer has stopped.
    ///
    /// Cancel safe.
    pub async fn recv_batch(&mut self, max: usize) -> Vec<Received> {
        let mut batch = Vec::from_iter(self.recv().await);
        while !batch.is_empty() && batch.len() < max {
            let Ok(next) = self.intake.records.try_recv() else { break };
            self.intake.poll_thread.unpark();
            batch.extend(Received::start(next));
        }
        batch
    }

    /// Leaves the group once the receipts of all received records are given or dropped, or at the deadline, and makes
    /// a last commit. Dropping the consumer instead leaves at once.
    ///
    /// # Errors
    /// If the consumer failed, now or earlier; records may then be consumed again. They may also be consumed again if
    /// the broker is unreachable and accepts no last commit, which only causes a warning.
    pub async fn close(self, deadline: Duration) -> Result<(), KafkaError> {
        let Self { intake, member } = self;
        drop(intake);
        member.close(deadline).await
    }

    pub(crate) fn intake(&mut self) -> &mut Intake {
        &mut self.intake
    }
}

/// The end of the buffer from which records are received.
#[derive(Debug)]
pub(crate) struct Intake {
    records: mpsc::Receiver<Buffered>,
    /// The thread to wake when there is space.
    poll_thread: Thread,
}

impl Intake {
    pub(crate) fn new(records: mpsc::Receiver<Buffered>, poll_thread: Thread) -> Self {
        Self { records, poll_thread }
    }

    pub(crate) async fn recv(&mut self) -> Option<Received> {
        loop {
            let next = self.records.recv().await?;
            self.poll_thread.unpark();
            if let Some(received) = Received::start(next) {
                return Some(received);
            }
        }
    }
}

/// How a member ended.
type Ended = Result<(), KafkaError>;

/// The thread that runs the member.
#[derive(Debug)]
struct Member {
    group: Arc<Group>,
    poll_thread: Thread,
    running: Option<(JoinHandle<()>, oneshot::Receiver<Ended>)>,
}

impl Member {
    fn spawn(group: Arc<Group>, poll_thread: PollThread) -> Result<Self, KafkaError> {
        let (report, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                // The receiver is gone if the consumer was dropped.
                let _ = report.send(poll_thread.run());
            })
            .map_err(KafkaError::Thread)?;
        Ok(Self { group, poll_thread: thread.thread().clone(), running: Some((thread, ended)) })
    }

    async fn close(mut self, deadline: Duration) -> Result<(), KafkaError> {
        self.leave_by(Instant::now() + deadline);
        let Some((thread, ended)) = self.running.take() else { return Ok(()) };
        let Ok(ended) = tokio::time::timeout(deadline + LEAVE, ended).await else {
            // The thread waits for an unreachable broker, for as long as a session lasts.
            warn!(
                event = "group.leave_failed",
                group = self.group.name,
                "the consumer did not leave the group in time; {REPEATED}"
            );
            return Ok(());
        };
        // The thread has nothing left to do.
        let joined = thread.join();
        match (ended, joined) {
            (Ok(result), Ok(())) => result,
            _ => Err(KafkaError::ConsumerStopped { group: self.group.name.clone(), source: None }),
        }
    }

    fn leave_by(&self, deadline: Instant) {
        self.group.close_by(deadline);
        self.poll_thread.unpark();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave_by(Instant::now());
    }
}

/// Returns how long partitions may be held: a member that holds partitions for longer than `max.poll.interval.ms` is
/// removed from the group when another one joins.
fn longest_drain(config: &rdkafka::ClientConfig) -> Duration {
    let interval =
        config.get("max.poll.interval.ms").and_then(|millis| millis.parse().ok()).unwrap_or(300_000);
    Duration::from_millis(interval).saturating_sub(GOODBYE)
}

/// Compressed bytes of one fetch: 256 KiB, hundreds of ordinary records. LZ4 expands them to 64 MiB at most; Zstandard
/// has no such bound.
const FETCH: &str = "262144";

fn config(settings: &Settings, group: &str) -> Result<rdkafka::ClientConfig, KafkaError> {
    let mut config = client::config(
        settings,
        &[
            ("group.id", group),
            ("client.id", group),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("auto.offset.reset", "earliest"),
            // Only finished records are committed, explicitly.
            ("enable.auto.offset.store", "false"),
            ("enable.auto.commit", "false"),
            // librdkafka's default of 64 MiB fetched ahead is more than the buffer can use.
            ("queued.max.messages.kbytes", "16384"),
            // A fetch returns at least one batch, however large. The limit counts compressed bytes, and librdkafka
            // decompresses everything it has fetched; the default is 50 MiB.
            ("fetch.max.bytes", FETCH),
            ("fetch.message.max.bytes", FETCH),
            // librdkafka raises `fetch.max.bytes` to this value.
            ("message.max.bytes", FETCH),
            // How soon to fetch again when the queue is full: the default of 1 s would be noticeable.
            ("fetch.queue.backoff.ms", "50"),
            STATISTICS_INTERVAL,
        ],
    )?;
    if let Some(instance) = &settings.group_instance_id {
        config.set("group.instance.id", format!("{instance}-{group}"));
    }
    Ok(config)
}
