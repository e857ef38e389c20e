//! How far another group has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use throughline_config::Kafka;
use tokio::time::Instant;

use crate::{KafkaError, client};

/// How long a read for records waits each time.
const READ_POLL: Duration = Duration::from_millis(100);

/// Looks at what a consumer group has finished, without being its member.
///
/// It asks for all partitions at once: brokers answer for all that they lead in one response. Its clients live on
/// between two looks, and are replaced after one that fails.
#[derive(Clone)]
pub struct Progress {
    servers: String,
    clients: Arc<Clients>,
}

/// A topic's partition.
type Partition = (String, i32);

/// How far topics had come at some moment: the end of each partition that the group has not passed yet.
///
/// Counted in records and not in time: records that were produced while a clock was wrong are not in the order of
/// their times.
#[derive(Debug, Clone)]
pub struct Mark {
    ends: BTreeMap<Partition, i64>,
    /// What the group had committed at the look before.
    committed: BTreeMap<Partition, i64>,
}

impl Progress {
    /// Of this group.
    ///
    /// # Errors
    /// If the settings are not taken.
    pub fn of(settings: &Kafka, group: &str) -> Result<Self, KafkaError> {
        let onlooker = config(settings, group, &[("isolation.level", "read_uncommitted")])?;
        let reader = config(
            settings,
            group,
            &[
                // As members of the group read.
                ("isolation.level", "read_committed"),
                ("enable.auto.commit", "false"),
                ("enable.partition.eof", "true"),
                ("auto.offset.reset", "earliest"),
                // One record answers the question.
                ("fetch.message.max.bytes", "16384"),
                ("queued.min.messages", "1"),
            ],
        )?;
        let clients = Clients { onlooker, reader, idle: Mutex::default() };
        Ok(Self { servers: settings.bootstrap_servers.clone(), clients: Arc::new(clients) })
    }

    /// Where these topics end now.
    ///
    /// # Errors
    /// If the broker does not say so by the deadline.
    pub async fn mark(&self, topics: &[String], deadline: Duration) -> Result<Mark, KafkaError> {
        let topics = topics.to_vec();
        self.look(deadline, move |look| look.mark(&topics)).await
    }

    /// Whether the group has finished everything that was there at a mark. A partition that it has passed is not
    /// looked at again.
    ///
    /// # Errors
    /// If the broker does not say so by the deadline; then the mark is as it was.
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
            // One that could not be asked may have lost its way.
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

fn config(settings: &Kafka, group: &str, ours: &[(&str, &str)]) -> Result<ClientConfig, KafkaError> {
    let mut config = client::config(settings, &[])?;
    config.set("group.id", group);
    for (name, value) in ours {
        config.set(*name, *value);
    }
    config.create::<BaseConsumer>().map_err(client::not_created)?;
    Ok(config)
}

/// Makes clients, and keeps them from one look to the next.
struct Clients {
    onlooker: ClientConfig,
    reader: ClientConfig,
    idle: Mutex<Option<Pair>>,
}

/// The clients of one look, as far as they are needed.
#[derive(Default)]
struct Pair {
    /// Asks for offsets.
    onlooker: Option<BaseConsumer>,
    /// Reads what is behind them.
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
        client::let_go(self.take());
    }
}

/// One look.
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
            // One that is not there has no end, which is not to say that nothing is to come.
            let found = found.ok_or(Native::MetadataFetch(Code::UnknownTopicOrPartition))?;
            if let Some(error) = found.error() {
                return Err(Native::MetadataFetch(error.into()));
            }
            partitions.extend(found.partitions().iter().map(|partition| (topic.clone(), partition.id())));
        }
        let left = self.left();
        Ok(Mark { ends: ends(self.onlooker()?, &partitions, left)?, committed: BTreeMap::new() })
    }

    /// What of a mark is not passed.
    fn pass(&mut self, mark: Mark) -> Result<Mark, Native> {
        let Mark { ends: marked, committed: before } = mark;
        let partitions: BTreeSet<_> = marked.keys().cloned().collect();
        let left = self.left();
        let onlooker = self.onlooker()?;
        let committed = committed(onlooker, &partitions, left)?;
        let ends = ends(onlooker, &partitions, left)?;
        let is_ahead = |partition: &Partition, marked: i64| {
            let finished = committed.get(partition).copied().unwrap_or(0);
            // It ends before its mark if it was deleted and created again: what was there at the mark is gone.
            finished < marked && ends.get(partition).is_some_and(|end| *end >= marked)
        };
        let mut left: BTreeMap<_, _> =
            marked.into_iter().filter(|(partition, marked)| is_ahead(partition, *marked)).collect();
        // Where the group goes on, there is something to go on with; else there may be nothing but what is left of
        // transactions and of records that were deleted, by which no group commits.
        let stands = |partition: &Partition| before.get(partition) == committed.get(partition);
        let standing = left.iter().filter(|(partition, _)| stands(partition));
        let standing: BTreeMap<_, _> = standing.map(|(it, marked)| (it.clone(), *marked)).collect();
        for partition in self.without_records(&standing, &committed)? {
            left.remove(&partition);
        }
        let committed = committed.into_iter().filter(|(partition, _)| left.contains_key(partition)).collect();
        Ok(Mark { ends: left, committed })
    }

    /// Those of these partitions that have no record between what is committed and the mark.
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
        // No further than the first transaction that is open: what lies behind it comes when that ends.
        let readable = ends(self.reader()?, &partitions, left)?;
        let mut without = Vec::new();
        let topics: BTreeSet<_> = marked.keys().map(|(topic, _)| topic).collect();
        // One topic after the other: of the end of a partition, librdkafka's binding names only its number.
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

    /// Reads each partition from what is committed on; gives those that have no record before their mark.
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
        // What is not known by the deadline is not passed.
        while !marked.is_empty() && Instant::now() < until {
            let (partition, position) = match reader.poll(READ_POLL) {
                Some(Ok(record)) => (record.partition(), record.offset()),
                // It lies behind the mark.
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

/// A client that has been there is polled, so that what librdkafka has to say does not gather.
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

/// The ends of partitions, as far as this client may read: one request to each leader.
fn ends(
    client: &BaseConsumer,
    partitions: &BTreeSet<Partition>,
    deadline: Duration,
) -> Result<BTreeMap<Partition, i64>, Native> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in partitions {
        // In place of a time, as in the protocol: the end.
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

/// What the client's group has committed; of a partition that it has committed nothing of, nothing. One request to
/// the group's coordinator.
fn committed(
    client: &BaseConsumer,
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
        // Nothing was ever finished.
        _ => None,
    });
    Ok(offsets.collect())
}
