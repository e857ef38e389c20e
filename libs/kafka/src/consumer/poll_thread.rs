//! The consumer's own thread, where blocking is allowed: librdkafka on one side, a buffer on the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rdkafka::error::KafkaError as Native;
use rdkafka::message::Message as _;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tracing::{info, warn};

use super::REPEATED;
use super::budget::{Budget, Held};
use super::group::Group;
use super::membership::Membership;
use crate::assignment::Name;
use crate::offsets::Read;
use crate::partition::Partition;
use crate::{KafkaError, Record};

/// How long to block at a time, and so how late a commit, a rebalance or a shutdown is noticed.
const TICK: Duration = Duration::from_millis(50);

/// How often the group is served while records keep arriving.
const SERVE: Duration = Duration::from_millis(20);

/// How long to wait for space in a full buffer before fetching is paused. A pause discards the records that librdkafka
/// has fetched ahead, so waiting is better during a short stop; but librdkafka's statistics are delayed meanwhile.
const PAUSE_AFTER: Duration = Duration::from_secs(2);

/// How long the broker may take for the last commit when no time is left.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// A record that the application has not received yet.
#[derive(Debug)]
pub(crate) struct Buffered {
    pub(crate) record: Record,
    pub(crate) partition: Arc<Partition>,
    pub(crate) held: Held,
}

pub(super) struct PollThread {
    membership: Membership,
    group: Arc<Group>,
    buffer: mpsc::Sender<Buffered>,
    /// The bytes of all records that the consumer holds.
    budget: Arc<Budget>,
    /// The records that did not fit into the buffer: one record, or a few that arrived before a pause took effect.
    backlog: VecDeque<Buffered>,
    /// Since when there has been no space.
    full: Option<Instant>,
    served: Instant,
}

impl PollThread {
    pub(super) fn new(
        membership: Membership,
        group: Arc<Group>,
        buffer: mpsc::Sender<Buffered>,
        budget: Arc<Budget>,
    ) -> Self {
        let (backlog, served) = (VecDeque::new(), Instant::now());
        Self { membership, group, buffer, budget, backlog, full: None, served }
    }

    /// Runs until the consumer is closed or librdkafka fails for good.
    pub(super) fn run(mut self) -> Result<(), KafkaError> {
        self.budget.wakes(thread::current());
        let deadline = loop {
            if let Some(deadline) = self.group.closing() {
                break deadline;
            }
            self.step().map_err(|error| self.stopped(error))?;
            if self.membership.is_stuck() {
                self.membership.replace()?;
                self.backlog.clear();
                self.full = None;
            }
        };
        self.finish(deadline)
    }

    fn step(&mut self) -> Result<(), Native> {
        if self.served.elapsed() >= SERVE {
            self.membership.serve(Duration::ZERO)?;
            self.served = Instant::now();
            // Only here, at intervals: librdkafka reports a missing partition once for each partition, one after the
            // other.
            self.membership.join_again_if_stale(&self.group.stale)?;
        }
        self.fill_buffer();
        let paused = self.group.paused.load(Ordering::Relaxed);
        if self.backlog.is_empty() && self.budget.is_left() {
            self.full = None;
            if paused {
                info!(event = "fetching.resumed", group = self.group.name, "fetching resumed");
                self.membership.set_paused(false);
            }
            self.poll(TICK)?;
        } else if paused {
            self.poll(TICK)?;
        } else if self.full.get_or_insert_with(Instant::now).elapsed() < PAUSE_AFTER {
            // Woken when the application receives a record, or has finished some.
            thread::park_timeout(TICK);
        } else {
            info!(
                event = "fetching.paused",
                group = self.group.name,
                "fetching paused: records arrive faster than they are processed"
            );
            self.membership.set_paused(true);
        }
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
                // The consumer was dropped, which the loop is about to notice.
                Err(TrySendError::Closed(_)) => break,
            }
        }
    }

    fn poll(&mut self, wait: Duration) -> Result<(), Native> {
        let message = match self.membership.clients().fetcher.poll(wait) {
            Some(Ok(message)) => message,
            Some(Err(error @ Native::MessageConsumptionFatal(_))) => return Err(error),
            // The context has logged any other error, and librdkafka recovers by itself.
            Some(Err(_)) | None => return Ok(()),
        };
        // A record of a partition that was given away belongs to the next owner.
        let Some(mut partition) = self.group.assignment.find(message.topic(), message.partition()) else {
            return Ok(());
        };
        let (offset, time) = (message.offset(), Record::time(&message));
        let mut read = partition.read(offset, time);
        if read == Read::BeginsAgain {
            let name = Name { topic: message.topic().to_owned(), number: message.partition() };
            partition = self.membership.begin_again(&name);
            read = partition.read(offset, time);
        }
        if read == Read::Skip {
            return Ok(());
        }
        let record = Record::read(&message);
        drop(message);
        if self.membership.has_unplaced() {
            self.membership.note_first(&record.topic, record.partition, time);
        }
        if !partition.has_room() {
            self.membership.rest(Name { topic: record.topic.clone(), number: record.partition });
        }
        let held = self.budget.hold(record.bytes());
        self.backlog.push_back(Buffered { record, partition, held });
        Ok(())
    }

    /// Waits for records in work, commits, and leaves the group.
    fn finish(mut self, deadline: Instant) -> Result<(), KafkaError> {
        let began = Instant::now();
        self.membership.set_paused(true);
        self.backlog.clear();
        let left = loop {
            self.membership.serve(SERVE).map_err(|error| self.stopped(error))?;
            let left = self.membership.in_work();
            let (is_committed, now) = (self.membership.is_committed(), Instant::now());
            let is_over = left == 0 || now >= deadline;
            if (is_over && is_committed) || now >= deadline + LAST_COMMIT {
                break left;
            }
        };
        if !self.membership.is_committed() {
            warn!(
                event = "offsets.commit_failed",
                group = self.group.name,
                "the last commit failed; {REPEATED}"
            );
        }
        drop(self.membership);
        if left > 0 {
            return Err(KafkaError::Unfinished {
                records: left,
                waited: deadline.saturating_duration_since(began),
            });
        }
        Ok(())
    }

    fn stopped(&self, error: Native) -> KafkaError {
        KafkaError::ConsumerStopped { group: self.group.name.clone(), source: Some(error.into()) }
    }
}
