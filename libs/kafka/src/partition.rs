//! An assigned partition: what is in work of it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tracing::warn;

use crate::offsets::Offsets;

/// A partition for as long as it is assigned once. When it comes back later, it is another one: the
/// receipts of this one then count for nothing.
#[derive(Debug)]
pub(crate) struct Partition {
    work: Mutex<Work>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    offsets: Offsets,
    /// The offset that librdkafka was last given to commit.
    stored: Option<i64>,
    /// Records the application has and has not finished or dropped.
    started: usize,
    revoked: bool,
}

impl Partition {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { work: Mutex::default(), idle: Condvar::new() })
    }

    /// A record was polled, for the application to start some time.
    pub(crate) fn take(&self, offset: i64) {
        self.work().offsets.take(offset);
    }

    /// The application starts on a record; not once the partition is revoked.
    pub(crate) fn start(&self) -> bool {
        let mut work = self.work();
        if !work.revoked {
            work.started += 1;
        }
        !work.revoked
    }

    pub(crate) fn finish(&self, offset: i64) {
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

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partitions that are assigned.
#[derive(Debug, Default)]
pub(crate) struct Assignment(Mutex<HashMap<String, HashMap<i32, Arc<Partition>>>>);

impl Assignment {
    pub(crate) fn add(&self, list: &TopicPartitionList) {
        let mut topics = self.topics();
        for element in list.elements() {
            let partitions = topics.entry(element.topic().to_owned()).or_default();
            partitions.insert(element.partition(), Partition::new());
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
