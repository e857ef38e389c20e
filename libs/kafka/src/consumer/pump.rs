//! The consumer's own thread, where blocking is allowed: librdkafka on one side, a buffer on the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tracing::{info, warn};

use super::REPEATED;
use super::group::{Context, Group};
use crate::partition::Partition;
use crate::{KafkaError, Record, client};

/// How long to block at once: how late a finished offset is stored, or a shut-down noticed.
const TICK: Duration = Duration::from_millis(100);

/// How long a full buffer is waited for before fetching is paused. A pause throws away what
/// librdkafka has fetched ahead, so a short stop is better waited out; but rebalances, which are
/// served by polling, wait along.
const PATIENCE: Duration = Duration::from_secs(2);

/// A record the application has not seen yet.
#[derive(Debug)]
pub(crate) struct Buffered {
    pub(crate) record: Record,
    pub(crate) partition: Arc<Partition>,
}

/// What it takes to become a member.
pub(super) struct Subscription {
    pub(super) config: ClientConfig,
    pub(super) topics: Vec<String>,
}

impl Subscription {
    fn join(&self, group: &Arc<Group>) -> Result<BaseConsumer<Context>, KafkaError> {
        let context = Context::new(Arc::clone(group));
        let client =
            BaseConsumer::from_config_and_context(&self.config, context).map_err(client::not_created)?;
        self.subscribe(&client).map_err(|error| KafkaError::Subscription(error.into()))?;
        Ok(client)
    }

    fn subscribe(&self, client: &BaseConsumer<Context>) -> Result<(), Native> {
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        client.subscribe(&topics)
    }
}

pub(super) struct Pump {
    client: BaseConsumer<Context>,
    subscription: Subscription,
    group: Arc<Group>,
    buffer: mpsc::Sender<Buffered>,
    /// What found no room in the buffer: one record, or a few that came before a pause took effect.
    backlog: VecDeque<Buffered>,
    /// Since when there is no room.
    full: Option<Instant>,
    stored: Instant,
}

impl Pump {
    pub(super) fn new(
        subscription: Subscription,
        group: Arc<Group>,
        buffer: mpsc::Sender<Buffered>,
    ) -> Result<Self, KafkaError> {
        let (client, backlog, stored) = (subscription.join(&group)?, VecDeque::new(), Instant::now());
        Ok(Self { client, subscription, group, buffer, backlog, full: None, stored })
    }

    /// Works until the consumer is closed, or librdkafka gives up.
    pub(super) fn run(mut self) -> Result<(), KafkaError> {
        let deadline = loop {
            if let Some(deadline) = self.group.closing() {
                break deadline;
            }
            self.step().map_err(|error| self.stopped(error))?;
            if self.client.context().is_lost() {
                self.begin_anew()?;
            }
        };
        self.finish(deadline)
    }

    fn step(&mut self) -> Result<(), Native> {
        self.fill_buffer();
        let paused = self.group.paused.load(Ordering::Relaxed);
        if self.backlog.is_empty() {
            self.full = None;
            if paused {
                info!(group = self.group.name, "fetching resumes");
                self.set_paused(false);
            }
            self.poll(TICK)?;
        } else if paused {
            self.poll(TICK)?;
        } else if self.full.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            // Woken when the application takes a record.
            thread::park_timeout(TICK);
        } else {
            info!(group = self.group.name, "fetching pauses: records are not taken as fast as they come");
            self.set_paused(true);
        }
        if self.stored.elapsed() >= TICK {
            self.store();
            // Here, because it is said of each partition, one after the other.
            if self.group.stale.swap(false, Ordering::Relaxed) {
                self.join_anew()?;
            }
        }
        Ok(())
    }

    /// A topic was deleted, and maybe created again. librdkafka keeps waiting for the partitions of the old one;
    /// as a new member it looks at what there is.
    fn join_anew(&self) -> Result<(), Native> {
        warn!(group = self.group.name, "a topic was deleted; joining the group anew");
        self.client.unsubscribe();
        self.subscription.subscribe(&self.client)
    }

    /// Its client will never reach a broker again, so another one becomes a member. The partitions are lost, as they
    /// are when a session ends: what was not committed comes again.
    fn begin_anew(&mut self) -> Result<(), KafkaError> {
        warn!(group = self.group.name, "the consumer knows no broker any more; a new one takes its place");
        self.client.context().retire();
        self.group.assignment.clear();
        self.backlog.clear();
        (self.full, self.stored) = (None, Instant::now());
        self.group.paused.store(false, Ordering::Relaxed);
        let lost = std::mem::replace(&mut self.client, self.subscription.join(&self.group)?);
        client::let_go(lost);
        Ok(())
    }

    fn fill_buffer(&mut self) {
        while let Some(next) = self.backlog.pop_front() {
            match self.buffer.try_send(next) {
                Ok(()) => {}
                Err(TrySendError::Full(next)) => {
                    self.backlog.push_front(next);
                    break;
                }
                // The consumer was dropped; the loop is about to see it.
                Err(TrySendError::Closed(_)) => break,
            }
        }
    }

    fn poll(&mut self, wait: Duration) -> Result<(), Native> {
        match self.client.poll(wait) {
            Some(Ok(message)) => {
                // A record of a partition that is no longer ours is somebody else's.
                if let Some(buffered) = buffered(&self.group, &message) {
                    self.backlog.push_back(buffered);
                }
            }
            Some(Err(error @ Native::MessageConsumptionFatal(_))) => return Err(error),
            // Any other was logged by the context, and librdkafka goes on by itself.
            Some(Err(_)) | None => {}
        }
        Ok(())
    }

    fn set_paused(&self, pause: bool) {
        let switched = self
            .client
            .assignment()
            .and_then(|all| if pause { self.client.pause(&all) } else { self.client.resume(&all) });
        if let Err(error) = switched {
            warn!(group = self.group.name, pause, %error, "fetching cannot be switched");
        }
        self.group.paused.store(pause, Ordering::Relaxed);
    }

    /// Stores the offsets of finished records; librdkafka commits what is stored every second.
    fn store(&mut self) {
        self.stored = Instant::now();
        let offsets = self.group.assignment.to_store();
        if offsets.count() > 0
            && let Err(error) = self.client.store_offsets(&offsets)
        {
            warn!(group = self.group.name, %error, "offsets could not be stored");
        }
    }

    /// Waits for records in work, commits and leaves.
    fn finish(mut self, deadline: Instant) -> Result<(), KafkaError> {
        let began = Instant::now();
        self.set_paused(true);
        let left = loop {
            let left = self.group.assignment.wait_idle(deadline.min(Instant::now() + TICK));
            let late = Instant::now() >= deadline;
            if left == 0 || late {
                self.store();
                match self.client.commit_consumer_state(CommitMode::Sync) {
                    // The group is between two assignments; in the next one it takes commits again.
                    Err(Native::ConsumerCommit(Code::RebalanceInProgress | Code::IllegalGeneration))
                        if !late =>
                    {
                        self.serve(TICK)?;
                    }
                    Ok(()) | Err(Native::ConsumerCommit(Code::NoOffset)) => break left,
                    Err(error) => {
                        warn!(group = self.group.name, %error, "the last commit failed; {REPEATED}");
                        break left;
                    }
                }
            } else {
                self.serve(Duration::ZERO)?;
            }
        };
        drop(self.client);
        if left > 0 {
            return Err(KafkaError::Unfinished { records: left, waited: deadline - began });
        }
        Ok(())
    }

    /// Stays a member and serves rebalances, but takes no records.
    fn serve(&mut self, wait: Duration) -> Result<(), KafkaError> {
        self.poll(wait).map_err(|error| self.stopped(error))?;
        self.backlog.clear();
        Ok(())
    }

    fn stopped(&self, error: Native) -> KafkaError {
        KafkaError::ConsumerStopped { group: self.group.name.clone(), source: Some(error.into()) }
    }
}

fn buffered(group: &Group, message: &BorrowedMessage<'_>) -> Option<Buffered> {
    let partition = group.assignment.find(message.topic(), message.partition())?;
    let record = Record::read(message);
    partition.take(record.offset, record.timestamp);
    Some(Buffered { record, partition })
}
