//! Membership in a group: what happens when partitions change hands.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::metrics::Meter;
use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError as Native, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;
use throughline_clock::Clock;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::lag;
use crate::lag::Bounds;
use crate::log;
use crate::lost::Lost;
use crate::metrics::{Consuming, Vitals};
use crate::partition::Assignment;

/// How long a partition that another member is to have is held for records in work. A member that
/// waits holds up the whole group; a record that takes longer is worked on twice.
const DRAIN: Duration = Duration::from_secs(10);

/// What the consumer's thread, librdkafka's callbacks and the application share.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) assignment: Assignment,
    /// Whether the application does not keep up, so that nothing is fetched.
    pub(super) paused: AtomicBool,
    /// Whether a partition is assigned that is not there any more.
    pub(super) stale: AtomicBool,
    /// Set once, when the consumer closes: until when records in work are waited for.
    closing: OnceLock<Instant>,
    consuming: Consuming,
    vitals: Arc<Vitals>,
    /// Records bear the time of those who produced them, and are compared with ours.
    pub(super) clock: Clock,
}

impl Group {
    pub(super) fn new(name: &str, meter: &Meter) -> Arc<Self> {
        let group = Arc::new(Self {
            name: name.to_owned(),
            assignment: Assignment::default(),
            paused: AtomicBool::default(),
            stale: AtomicBool::default(),
            closing: OnceLock::new(),
            consuming: Consuming::new(meter, name),
            vitals: Vitals::observed(meter),
            clock: Clock::system(),
        });
        lag::observe(meter, &group);
        group
    }

    /// Takes what librdkafka says of itself.
    fn note(&self, statistics: &Statistics) {
        self.vitals.note(statistics);
        let now = self.clock.now();
        // What was fetched ahead is thrown away by a pause, though librdkafka has read it.
        let is_fetching = !self.paused.load(Ordering::Relaxed);
        for (topic, known) in &statistics.topics {
            for (number, partition) in &known.partitions {
                let bounds = Bounds {
                    low: partition.lo_offset,
                    committed: partition.committed_offset,
                    high: partition.hi_offset,
                    is_read: is_fetching
                        && partition.next_offset >= partition.hi_offset
                        && partition.fetchq_cnt == 0,
                };
                self.assignment.note(topic, *number, bounds, now);
            }
        }
    }

    pub(super) fn close_by(&self, deadline: Instant) {
        self.closing.get_or_init(|| deadline);
    }

    pub(super) fn closing(&self) -> Option<Instant> {
        self.closing.get().copied()
    }

    /// Partitions go to another member: finishes what is in work of them, and commits it, first.
    /// Records that wait in the buffer were not started; they are skipped, and consumed by the other.
    fn hand_over(&self, client: &BaseConsumer<Context>, list: &TopicPartitionList) {
        let revoked = self.assignment.remove(list);
        if client.assignment_lost() {
            warn!(group = self.name, partitions = ?names(list), "partitions were lost to other members");
            return;
        }
        let drained = Instant::now() + DRAIN;
        let left = revoked.wait_idle(self.closing().map_or(drained, |closing| drained.min(closing)));
        if left > 0 {
            warn!(group = self.name, records = left, "partitions change hands with records in work");
        }
        let offsets = revoked.to_commit();
        if offsets.count() > 0 {
            let committed =
                client.store_offsets(&offsets).and_then(|()| client.commit(&offsets, CommitMode::Sync));
            if let Err(error) = committed {
                warn!(group = self.name, %error, "offsets of revoked partitions were not committed");
            }
        }
        info!(group = self.name, partitions = ?names(list), "partitions revoked");
    }
}

/// The callbacks of librdkafka.
pub(super) struct Context {
    group: Arc<Group>,
    lost: Lost,
    /// Another member has taken its place: what happens to it is nobody's concern.
    retired: AtomicBool,
}

impl Context {
    pub(super) fn new(group: Arc<Group>) -> Self {
        Self { group, lost: Lost::default(), retired: AtomicBool::default() }
    }

    /// Whether its client knows no broker any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_so()
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log::line(level, facility, text);
    }

    fn error(&self, error: Native, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::UnknownPartition) {
            self.group.stale.store(true, Ordering::Relaxed);
        }
        log::error_event(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        if !self.is_retired() {
            self.group.note(&statistics);
            self.lost.note(&statistics);
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let group = &self.group;
        match rebalance {
            _ if self.is_retired() => {}
            Rebalance::Assign(list) => group.assignment.add(list, &group.consuming, group.clock.now()),
            Rebalance::Revoke(list) => group.hand_over(client, list),
            Rebalance::Error(error) => warn!(group = group.name, %error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        info!(group = self.group.name, partitions = ?names(list), "partitions assigned");
        if self.group.paused.load(Ordering::Relaxed)
            && let Err(error) = client.pause(list)
        {
            warn!(group = self.group.name, %error, "new partitions could not be paused");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) | Err(Native::ConsumerCommit(Code::NoOffset)) => {}
            // What is finished goes into the next commit as well.
            Err(error) => debug!(group = self.group.name, %error, "a commit failed and will be repeated"),
        }
    }
}

fn names(list: &TopicPartitionList) -> Vec<String> {
    list.elements().iter().map(|element| format!("{}/{}", element.topic(), element.partition())).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Partition, Topic};
    use throughline_testkit::{Measured, Number};

    use super::*;

    fn list(partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition("topic", partition);
        }
        list
    }

    /// All 20 records of partition 0 were fetched.
    fn fetched() -> Statistics {
        let partition = Partition { hi_offset: 20, next_offset: 20, ..Partition::default() };
        let topic = Topic { partitions: [(0, partition)].into(), ..Topic::default() };
        Statistics { topics: [("topic".to_owned(), topic)].into(), ..Statistics::default() }
    }

    #[test]
    fn what_a_pause_has_thrown_away_is_still_to_come() {
        let measured = Measured::new();
        let group = Group::new("group", &measured.meter());
        let lag = || measured.value("throughline.consumer.lag", &[]).unwrap();
        group.assignment.add(&list(&[0, 1]), &group.consuming, group.clock.now());
        group.note(&fetched());
        assert_eq!(lag(), 0);
        group.paused.store(true, Ordering::Relaxed);
        group.note(&fetched());
        assert_eq!(lag(), 20);
        assert!(measured.value("throughline.consumer.lag.age", &[]).unwrap() > Number(0.0));
        group.assignment.remove(&list(&[0]));
        group.note(&fetched());
        assert_eq!(measured.points("throughline.consumer.lag").unwrap(), [], "of the other nothing is known");
    }

    #[test]
    fn a_topic_is_as_old_as_its_oldest_partition() {
        let measured = Measured::new();
        let group = Group::new("group", &measured.meter());
        let now = group.clock.now();
        group.assignment.add(&list(&[0, 1]), &group.consuming, now);
        for (partition, hours) in [(0, 1), (1, 2)] {
            let time = now - chrono::TimeDelta::hours(hours);
            group.assignment.find("topic", partition).unwrap().take(7, Some(time));
        }
        let age = measured.value("throughline.consumer.lag.age", &[("messaging.destination.name", "topic")]);
        assert!((7200.0..7300.0).contains(&age.unwrap().0));
        drop(group);
        assert_eq!(measured.points("throughline.consumer.lag.age").unwrap(), []);
    }
}
