//! The partitions assigned to this member.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use crate::lag::Watermarks;
use crate::partition::Partition;

/// The name of a partition: its topic and its number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) topic: String,
    pub(crate) number: i32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// The partitions that are assigned and consumed.
#[derive(Debug, Default)]
pub(crate) struct Assignment(Mutex<HashMap<String, HashMap<i32, Arc<Partition>>>>);

impl Assignment {
    pub(crate) fn add(&self, name: &Name, partition: Arc<Partition>) {
        self.topics().entry(name.topic.clone()).or_default().insert(name.number, partition);
    }

    /// Removes a partition, so that none of its records is started any more.
    pub(crate) fn remove(&self, name: &Name) -> Option<Arc<Partition>> {
        let partition =
            self.topics().get_mut(&name.topic).and_then(|numbers| numbers.remove(&name.number))?;
        partition.revoke();
        Some(partition)
    }

    /// Removes all partitions.
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

    pub(crate) fn all(&self) -> Vec<(Name, Arc<Partition>)> {
        let topics = self.topics();
        let of_topic = |(topic, partitions): (&String, &HashMap<i32, Arc<Partition>>)| {
            let named = |(number, partition): (&i32, &Arc<Partition>)| {
                (Name { topic: topic.clone(), number: *number }, Arc::clone(partition))
            };
            partitions.iter().map(named).collect::<Vec<_>>()
        };
        topics.iter().flat_map(of_topic).collect()
    }

    /// Passes the watermarks that librdkafka reports to a partition, if it is assigned.
    pub(crate) fn note(&self, topic: &str, partition: i32, watermarks: Watermarks, now: DateTime<Utc>) {
        if let Some(partition) = self.find(topic, partition) {
            partition.note(watermarks, now);
        }
    }

    /// Returns the number of unfinished records of each partition, where it is known.
    pub(crate) fn lags(&self) -> Vec<(Name, u64)> {
        self.all().into_iter().filter_map(|(name, partition)| Some((name, partition.lag()?))).collect()
    }

    /// Returns the highest `age` among the partitions of each topic.
    pub(crate) fn ages(&self, age: impl Fn(&Partition) -> Option<TimeDelta>) -> HashMap<String, TimeDelta> {
        let mut oldest = HashMap::new();
        for (name, partition) in self.all() {
            if let Some(age) = age(&partition) {
                oldest
                    .entry(name.topic)
                    .and_modify(|oldest: &mut TimeDelta| *oldest = age.max(*oldest))
                    .or_insert(age);
            }
        }
        oldest
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<String, HashMap<i32, Arc<Partition>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
