//! Observes how far another group has come.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Settings;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use crate::{KafkaError, client};

/// How long each poll for records waits.
const READ_POLL: Duration = Duration::from_millis(100);

/// Observes which records a consumer group has finished, without being a member.
///
/// It asks for all partitions at once: a broker answers for all partitions that it leads in one response. Its clients
/// are kept from one look to the next, and are replaced after a look that fails.
#[derive(Clone)]
pub struct Progress {
    servers: String,
    clients: Arc<Clients>,
}

/// A topic's partition.
type Partition = (String, i32);

/// The ends of topics at some moment: the end of each partition that the group has not passed yet.
///
/// A mark holds offsets and not times: records that were produced while a clock was wrong are not in the order of
/// their times.
#[derive(Debug, Clone)]
pub struct Mark {
    ends: BTreeMap<Partition, i64>,
    /// The offsets that the group had committed at the previous look.
    committed: BTreeMap<Partition, i64>,
}

impl Progress {
    /// Observes this group.
    ///
    /// # Errors
    /// If librdkafka rejects the settings.
    pub fn of(settings: &Settings, group: &str) -> Result<Self, KafkaError> {
        let onlooker = config(settings, group, &[("isolation.level", "read_uncommitted")])?;
        let reader = config(
            settings,
            group,
            &[
                // The isolation level of the group's members.
                ("isolation.level", "read_committed"),
                ("enable.auto.commit", "false"),
                ("enable.partition.eof", "true"),
                ("auto.offset.reset", "earliest"),
                // A single record is enough for the answer.
                ("fetch.message.max.bytes", "16384"),
                ("queued.min.messages", "1"),
            ],
        )?;
        let clients = Clients { onlooker, reader, idle: Mutex::default() };
        Ok(Self { servers: settings.bootstrap_servers.clone(), clients: Arc::new(clients) })
    }

    /// Returns the current ends of these topics.
    ///
    /// # Errors
    /// If the broker does not answer by the deadline.
    pub async fn mark(&self, topics: &[String], deadline: Duration) -> Result<Mark, KafkaError> {
        let topics = topics.to_vec();
        self.look(deadline, move |look| look.mark(&topics)).await
    }

    /// Returns whether the group has finished all records that were there at a mark. A partition that it has passed
    /// is not looked at again.
    ///
    /// # Errors
    /// If the broker does not answer by the deadline; the mark is then unchanged.
    pub async fn has_passed(&self, mark: &mut Mark, deadline: Duration) -> Result<bool, KafkaError> {
        let before = mark.clone();
        *mark = self.look(deadline, move |look| look.pass(before)).await?;
        Ok(mark.ends.is_empty())
    }

    async fn look<T: Send + 'static>(
        &self,
        deadline: Duration,
        look: impl FnOnce(&mut Look<'_>) -> Result<T, Native> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let clients = Arc::clone(&self.clients);
        tokio::task::spawn_blocking(move || {
            let mut own = Look { clients: &clients, pair: clients.take(), until: Instant::now() + deadline };
            let found = look(&mut own);
            let pair = own.pair;
            // A client that got no answer may be lost.
            if found.is_ok() {
                clients.give_back(pair);
            }
            found
        })
        .await
        .map_err(|_| KafkaError::Cancelled)?
        .map_err(|silence| KafkaError::Unreachable {
            servers: self.servers.clone(),
            reason: silence.to_string(),
        })
    }
}

fn config(settings: &Settings, group: &str, ours: &[(&str, &str)]) -> Result<ClientConfig, KafkaError> {
    let mut config = client::config(settings, &[])?;
    config.set("group.id", group);
    for (name, value) in ours {
        config.set(*name, *value);
    }
    config.create::<BaseConsumer>().map_err(client::not_created)?;
    Ok(config)
}

/// Creates clients, and keeps them from one look to the next.
struct Clients {
    onlooker: ClientConfig,
    reader: ClientConfig,
    idle: Mutex<Option<Pair>>,
}

/// The clients of one look, created when they are needed.
#[derive(Default)]
struct Pair {
    /// Asks for offsets.
    onlooker: Option<BaseConsumer>,
    /// Reads the records at those offsets.
    reader: Option<BaseConsumer>,
}

impl Clients {
    fn take(&self) -> Pair {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    fn give_back(&self, pair: Pair) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        client::drop_in_background(self.take());
    }
}

/// One look at the group.
struct Look<'a> {
    clients: &'a Clients,
    pair: Pair,
    until: Instant,
}

impl Look<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    fn mark(&mut self, topics: &[String]) -> Result<Mark, Native> {
        let left = self.left();
        let metadata = self.onlooker()?.fetch_metadata(None, left)?;
        let mut partitions = BTreeSet::new();
        for topic in topics {
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            // A missing topic has no end, which does not mean that no records will arrive.
            let found = found.ok_or(Native::MetadataFetch(Code::UnknownTopicOrPartition))?;
            if let Some(error) = found.error() {
                return Err(Native::MetadataFetch(error.into()));
            }
            partitions.extend(found.partitions().iter().map(|partition| (topic.clone(), partition.id())));
        }
        let left = self.left();
        Ok(Mark { ends: ends(self.onlooker()?, &partitions, left)?, committed: BTreeMap::new() })
    }

    /// Returns the part of a mark that the group has not passed.
    fn pass(&mut self, mark: Mark) -> Result<Mark, Native> {
        let Mark { ends: marked, committed: before } = mark;
        let partitions: BTreeSet<_> = marked.keys().cloned().collect();
        let left = self.left();
        let onlooker = self.onlooker()?;
        let committed = committed(onlooker, &partitions, left)?;
        let ends = ends(onlooker, &partitions, left)?;
        let is_ahead = |partition: &Partition, marked: i64| {
            let finished = committed.get(partition).copied().unwrap_or(0);
            // A partition that ends before its mark was deleted and created again: the records at the mark are gone.
            finished < marked && ends.get(partition).is_some_and(|end| *end >= marked)
        };
        let mut left: BTreeMap<_, _> =
            marked.into_iter().filter(|(partition, marked)| is_ahead(partition, *marked)).collect();
        // A group that has moved since the last look has records to consume. Otherwise, the remaining offsets may
        // hold only markers of transactions and deleted records, past which no group commits.
        let has_not_moved = |partition: &Partition| before.get(partition) == committed.get(partition);
        let unmoved = left.iter().filter(|(partition, _)| has_not_moved(partition));
        let unmoved: BTreeMap<_, _> = unmoved.map(|(it, marked)| (it.clone(), *marked)).collect();
        for partition in self.without_records(&unmoved, &committed)? {
            left.remove(&partition);
        }
        let committed = committed.into_iter().filter(|(partition, _)| left.contains_key(partition)).collect();
        Ok(Mark { ends: left, committed })
    }

    /// Returns the partitions that have no record between the committed offset and the mark.
    fn without_records(
        &mut self,
        marked: &BTreeMap<Partition, i64>,
        committed: &BTreeMap<Partition, i64>,
    ) -> Result<Vec<Partition>, Native> {
        if marked.is_empty() {
            return Ok(Vec::new());
        }
        let left = self.left();
        let partitions: BTreeSet<_> = marked.keys().cloned().collect();
        // Only up to the first open transaction: the records behind it become readable when the transaction ends.
        let readable = ends(self.reader()?, &partitions, left)?;
        let mut without = Vec::new();
        let topics: BTreeSet<_> = marked.keys().map(|(topic, _)| topic).collect();
        // One topic after the other: at the end of a partition, librdkafka's binding reports only the partition's
        // number.
        for topic in topics {
            let of_topic = marked.iter().filter(|((name, partition), marked)| {
                let end = readable.get(&(name.clone(), *partition));
                name == topic && end.is_some_and(|end| end >= *marked)
            });
            let of_topic: BTreeMap<i32, i64> =
                of_topic.map(|((_, partition), marked)| (*partition, *marked)).collect();
            let from = |partition: i32| committed.get(&(topic.clone(), partition)).copied();
            let found = self.read(topic, of_topic, from)?;
            without.extend(found.into_iter().map(|partition| (topic.clone(), partition)));
        }
        Ok(without)
    }

    /// Reads each partition from the committed offset on; returns the partitions that have no record before their
    /// mark.
    fn read(
        &mut self,
        topic: &str,
        mut marked: BTreeMap<i32, i64>,
        from: impl Fn(i32) -> Option<i64>,
    ) -> Result<Vec<i32>, Native> {
        let mut assignment = TopicPartitionList::new();
        for partition in marked.keys() {
            let offset = from(*partition).map_or(Offset::Beginning, Offset::Offset);
            assignment.add_partition_offset(topic, *partition, offset)?;
        }
        let until = self.until;
        let reader = self.reader()?;
        reader.assign(&assignment)?;
        let mut without = Vec::new();
        // A partition that is not decided by the deadline is not passed.
        while !marked.is_empty() && Instant::now() < until {
            let (partition, position) = match reader.poll(READ_POLL) {
                Some(Ok(record)) => (record.partition(), record.offset()),
                // The end of the partition is not before the mark.
                Some(Err(Native::PartitionEOF(partition))) => (partition, i64::MAX),
                Some(Err(error)) => return Err(error),
                None => continue,
            };
            let has_none = marked.remove(&partition).is_some_and(|marked| position >= marked);
            without.extend(has_none.then_some(partition));
        }
        reader.unassign()?;
        Ok(without)
    }

    fn onlooker(&mut self) -> Result<&BaseConsumer, Native> {
        client_of(&mut self.pair.onlooker, &self.clients.onlooker)
    }

    fn reader(&mut self) -> Result<&BaseConsumer, Native> {
        client_of(&mut self.pair.reader, &self.clients.reader)
    }
}

/// Returns the client in the slot, or creates one. An existing client is polled first, so that librdkafka's events do
/// not accumulate.
fn client_of<'a>(
    slot: &'a mut Option<BaseConsumer>,
    config: &ClientConfig,
) -> Result<&'a BaseConsumer, Native> {
    let client = match slot.take() {
        Some(client) => {
            while client.poll(Duration::ZERO).is_some() {}
            client
        }
        None => config.create()?,
    };
    Ok(slot.insert(client))
}

/// Returns the ends of partitions, as far as this client may read: one request to each leader.
pub(crate) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: &BTreeSet<Partition>,
    deadline: Duration,
) -> Result<BTreeMap<Partition, i64>, Native> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in partitions {
        // In place of a time, this requests the end, as in the protocol.
        asked.add_partition_offset(topic, *partition, Offset::End)?;
    }
    let answered = client.offsets_for_times(asked, deadline)?;
    answered
        .elements()
        .iter()
        .map(|found| {
            found.error()?;
            let Offset::Offset(end) = found.offset() else {
                return Err(Native::MetadataFetch(Code::OperationTimedOut));
            };
            Ok(((found.topic().to_owned(), found.partition()), end))
        })
        .collect()
}

/// Returns the committed offsets of the client's group, without the partitions for which none is committed. One
/// request to the group's coordinator.
fn committed<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    partitions: &BTreeSet<Partition>,
    deadline: Duration,
) -> Result<BTreeMap<Partition, i64>, Native> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in partitions {
        asked.add_partition(topic, *partition);
    }
    let answered = client.committed_offsets(asked, deadline)?;
    let elements = answered.elements();
    let offsets = elements.iter().filter_map(|found| match found.offset() {
        Offset::Offset(offset) => Some(((found.topic().to_owned(), found.partition()), offset)),
        // The group has committed nothing for this partition.
        _ => None,
    });
    Ok(offsets.collect())
}
