//! An assigned partition: what is in work of it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tracing::warn;

use crate::lag::{Bounds, Lag};
use crate::metrics::{Consuming, Tally};
use crate::offsets::Offsets;

/// A partition for as long as it is assigned once. When it comes back later, it is another one: the
/// receipts of this one then count for nothing.
#[derive(Debug)]
pub(crate) struct Partition {
    work: Mutex<Work>,
    idle: Condvar,
    tally: Tally,
}

#[derive(Debug)]
struct Work {
    offsets: Offsets,
    lag: Lag,
    /// The offset that librdkafka was last given to commit.
    stored: Option<i64>,
    /// Records the application has and has not finished or dropped.
    started: usize,
    /// The last one of them on which work has begun.
    begun: Option<i64>,
    revoked: bool,
}

impl Partition {
    /// One that is assigned `now`; `tally` counts its records.
    pub(crate) fn new(tally: Tally, now: DateTime<Utc>) -> Arc<Self> {
        let work = Work {
            offsets: Offsets::default(),
            lag: Lag::new(now),
            stored: None,
            started: 0,
            begun: None,
            revoked: false,
        };
        Arc::new(Self { work: Mutex::new(work), idle: Condvar::new(), tally })
    }

    /// A record of this time was polled, for the application to start some day.
    pub(crate) fn take(&self, offset: i64, time: Option<DateTime<Utc>>) {
        self.work().offsets.take(offset, time);
    }

    /// The application starts on a record; not once the partition is revoked.
    pub(crate) fn start(&self) -> bool {
        let starts = {
            let mut work = self.work();
            work.started += usize::from(!work.revoked);
            !work.revoked
        };
        if starts {
            self.tally.handed_out();
        }
        starts
    }

    /// The application has finished a record, so long after it was started.
    pub(crate) fn finish(&self, offset: i64, took: Duration) {
        self.tally.finished(took);
        let mut work = self.work();
        work.offsets.finish(offset);
        self.end(&mut work);
    }

    /// The application dropped a record unfinished: nobody need wait for it.
    pub(crate) fn abandon(&self) {
        self.end(&mut self.work());
    }

    fn end(&self, work: &mut Work) {
        work.started -= 1;
        if work.started == 0 {
            self.idle.notify_all();
        }
    }

    /// Work on a record is about to begin. Who leaves had better not begin, so that the next owner need not wait,
    /// unless work on a later one has begun: of that it would make two.
    pub(crate) fn begin(&self, offset: i64, leaves: impl FnOnce() -> bool) -> bool {
        let mut work = self.work();
        let begins = work.begun.is_some_and(|begun| offset < begun) || !(work.revoked || leaves());
        if begins {
            work.begun = work.begun.max(Some(offset));
        }
        begins
    }

    /// No record of it is started any more.
    pub(crate) fn revoke(&self) {
        self.work().revoked = true;
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.work().revoked
    }

    /// Blocks until nothing is in work; answers how many records are at the deadline.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> usize {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = self.idle.wait_timeout_while(self.work(), left, |work| work.started > 0);
        wait.unwrap_or_else(PoisonError::into_inner).0.started
    }

    /// The offset up to which everything is finished.
    pub(crate) fn prefix(&self) -> Option<i64> {
        self.work().offsets.prefix()
    }

    /// The same, if it was not stored yet; from now on it counts as stored.
    fn store(&self) -> Option<i64> {
        let mut work = self.work();
        let prefix = work.offsets.prefix();
        let news = prefix.filter(|_| prefix != work.stored);
        work.stored = prefix;
        news
    }

    /// Takes what librdkafka knows.
    fn note(&self, bounds: Bounds, now: DateTime<Utc>) {
        let mut work = self.work();
        let Work { lag, offsets, .. } = &mut *work;
        lag.note(bounds, offsets, now);
    }

    /// By how many records it is behind, if that is known.
    fn lag(&self) -> Option<u64> {
        let work = self.work();
        work.lag.records(&work.offsets)
    }

    /// How old the oldest record is that is not finished, if anything is known of it.
    fn age(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let work = self.work();
        match work.lag.since(&work.offsets) {
            // The clock of who has produced it may be ahead.
            Some(since) => Some((now - since).max(TimeDelta::zero())),
            None => work.lag.records(&work.offsets).map(|_| TimeDelta::zero()),
        }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partitions that are assigned.
#[derive(Debug, Default)]
pub(crate) struct Assignment(Mutex<HashMap<String, HashMap<i32, Arc<Partition>>>>);

impl Assignment {
    /// Adds partitions that are assigned `now`.
    pub(crate) fn add(&self, list: &TopicPartitionList, consuming: &Consuming, now: DateTime<Utc>) {
        let mut topics = self.topics();
        for element in list.elements() {
            let partitions = topics.entry(element.topic().to_owned()).or_default();
            partitions.insert(element.partition(), Partition::new(consuming.tally(element.topic()), now));
        }
    }

    /// Takes partitions out, so that none of their records is started any more.
    pub(crate) fn remove(&self, list: &TopicPartitionList) -> Revoked {
        let mut topics = self.topics();
        let mut revoked = Vec::new();
        for element in list.elements() {
            let partition = topics.get_mut(element.topic()).and_then(|p| p.remove(&element.partition()));
            if let Some(partition) = partition {
                partition.revoke();
                revoked.push((element.topic().to_owned(), element.partition(), partition));
            }
        }
        Revoked(revoked)
    }

    /// Takes all out: others have them.
    pub(crate) fn clear(&self) {
        for (_, partitions) in self.topics().drain() {
            for partition in partitions.values() {
                partition.revoke();
            }
        }
    }

    pub(crate) fn find(&self, topic: &str, partition: i32) -> Option<Arc<Partition>> {
        self.topics().get(topic)?.get(&partition).cloned()
    }

    /// The offsets to store: those that have moved since the last call.
    pub(crate) fn to_store(&self) -> TopicPartitionList {
        let topics = self.topics();
        list(topics.iter().flat_map(|(topic, partitions)| {
            partitions.iter().map(move |(number, partition)| (topic.as_str(), *number, partition.store()))
        }))
    }

    /// Blocks until nothing is in work; answers how many records are at the deadline.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> usize {
        let partitions: Vec<_> = self.topics().values().flat_map(HashMap::values).cloned().collect();
        partitions.iter().map(|partition| partition.wait_idle(deadline)).sum()
    }

    /// Takes what librdkafka knows of a partition, if it is one of them.
    pub(crate) fn note(&self, topic: &str, partition: i32, bounds: Bounds, now: DateTime<Utc>) {
        if let Some(partition) = self.find(topic, partition) {
            partition.note(bounds, now);
        }
    }

    /// Of each partition by how many records it is behind, where that is known.
    pub(crate) fn lags(&self) -> Vec<(String, i32, u64)> {
        let topics = self.topics();
        let of_topic = |(topic, partitions): (&String, &HashMap<i32, Arc<Partition>>)| {
            let lag = |(number, partition): (&i32, &Arc<Partition>)| {
                Some((topic.clone(), *number, partition.lag()?))
            };
            partitions.iter().filter_map(lag).collect::<Vec<_>>()
        };
        topics.iter().flat_map(of_topic).collect()
    }

    /// Of each topic how old the oldest record is that is not finished; zero if there is none.
    pub(crate) fn ages(&self, now: DateTime<Utc>) -> Vec<(String, TimeDelta)> {
        let topics = self.topics();
        let oldest = |(topic, partitions): (&String, &HashMap<i32, Arc<Partition>>)| {
            let ages = partitions.values().filter_map(|partition| partition.age(now));
            Some((topic.clone(), ages.max()?))
        };
        topics.iter().filter_map(oldest).collect()
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<String, HashMap<i32, Arc<Partition>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Partitions that were taken out of the assignment.
pub(crate) struct Revoked(Vec<(String, i32, Arc<Partition>)>);

impl Revoked {
    pub(crate) fn wait_idle(&self, deadline: Instant) -> usize {
        self.0.iter().map(|(_, _, partition)| partition.wait_idle(deadline)).sum()
    }

    /// The offsets to commit: all of them, since those stored before may not have been committed yet.
    pub(crate) fn to_commit(&self) -> TopicPartitionList {
        list(self.0.iter().map(|(topic, number, partition)| (topic.as_str(), *number, partition.prefix())))
    }
}

fn list<'a>(offsets: impl Iterator<Item = (&'a str, i32, Option<i64>)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in offsets {
        let Some(offset) = offset else { continue };
        if let Err(error) = list.add_partition_offset(topic, partition, Offset::Offset(offset)) {
            warn!(topic, partition, offset, %error, "an offset cannot be committed");
        }
    }
    list
}
