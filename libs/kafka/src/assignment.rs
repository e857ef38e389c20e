//! The partitions that are assigned.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use crate::lag::Watermarks;
use crate::partition::Partition;

/// A partition by its name.
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

/// The partitions that are assigned, and consumed.
#[derive(Debug, Default)]
pub(crate) struct Assignment(Mutex<HashMap<String, HashMap<i32, Arc<Partition>>>>);

impl Assignment {
    pub(crate) fn add(&self, name: &Name, partition: Arc<Partition>) {
        self.topics().entry(name.topic.clone()).or_default().insert(name.number, partition);
    }

    /// Takes a partition out, so that none of its records is started any more.
    pub(crate) fn remove(&self, name: &Name) -> Option<Arc<Partition>> {
        let partition =
            self.topics().get_mut(&name.topic).and_then(|numbers| numbers.remove(&name.number))?;
        partition.revoke();
        Some(partition)
    }

    /// Takes all out.
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

    /// Takes what librdkafka knows of a partition, if it is one of them.
    pub(crate) fn note(&self, topic: &str, partition: i32, watermarks: Watermarks, now: DateTime<Utc>) {
        if let Some(partition) = self.find(topic, partition) {
            partition.note(watermarks, now);
        }
    }

    /// Of each partition how many records are not finished, where that is known.
    pub(crate) fn lags(&self) -> Vec<(Name, u64)> {
        self.all().into_iter().filter_map(|(name, partition)| Some((name, partition.lag()?))).collect()
    }

    /// Of each topic the highest of these ages of its partitions.
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
