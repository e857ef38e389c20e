//! Membership in a group, and the rebalances that move partitions between members.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use opentelemetry::metrics::Meter;
use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use throughline_clock::Clock;
use tokio::time::Instant;
use tracing::warn;

use super::clients::give_away;
use super::lag;
use crate::assignment::{Assignment, Name};
use crate::lag::Watermarks;
use crate::log;
use crate::metrics::{ClientStats, Consuming};
use crate::stuck_client::StuckClient;

/// The state that the consumer's thread, librdkafka's callbacks and the application share.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) assignment: Assignment,
    /// Whether fetching is paused because the application does not keep up.
    pub(super) paused: AtomicBool,
    /// Whether a partition is assigned that no longer exists.
    pub(super) stale: AtomicBool,
    /// The decisions of the group that the consumer's thread has not carried out yet.
    changes: Mutex<VecDeque<Change>>,
    /// The deadline for records in work. Set once, when the consumer closes.
    closing: OnceLock<Instant>,
    pub(super) consuming: Consuming,
    client_stats: Arc<ClientStats>,
    /// The clock to compare with the times of records, which their producers or brokers set.
    pub(super) clock: Clock,
}

/// A decision of the group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// These partitions belong to this member.
    Assigned(Vec<Name>),
    /// These partitions go to another member once this one has answered.
    Revoked(Vec<Name>),
    /// These partitions already belong to other members.
    Lost(Vec<Name>),
}

impl Group {
    pub(super) fn new(name: &str, meter: &Meter) -> Arc<Self> {
        let group = Arc::new(Self {
            name: name.to_owned(),
            assignment: Assignment::default(),
            paused: AtomicBool::default(),
            stale: AtomicBool::default(),
            changes: Mutex::default(),
            closing: OnceLock::new(),
            consuming: Consuming::new(meter, name),
            client_stats: ClientStats::observed(meter),
            clock: Clock::system(),
        });
        lag::observe(meter, &group);
        group
    }

    /// Handles librdkafka's statistics.
    fn note(&self, statistics: &Statistics) {
        self.client_stats.note(statistics);
        let now = self.clock.now();
        // A pause discards the records fetched ahead, although librdkafka counts them as read.
        let is_fetching = !self.paused.load(Ordering::Relaxed);
        for (topic, known) in &statistics.topics {
            for (number, partition) in &known.partitions {
                let watermarks = Watermarks {
                    low: partition.lo_offset,
                    high: partition.hi_offset,
                    next: (partition.fetchq_cnt == 0).then_some(partition.next_offset),
                    is_read: is_fetching
                        && partition.next_offset >= partition.hi_offset
                        && partition.fetchq_cnt == 0,
                };
                self.assignment.note(topic, *number, watermarks, now);
            }
        }
    }

    pub(super) fn close_by(&self, deadline: Instant) {
        self.closing.get_or_init(|| deadline);
    }

    pub(super) fn closing(&self) -> Option<Instant> {
        self.closing.get().copied()
    }

    fn decided(&self, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
    }

    /// Returns the next decision to carry out.
    pub(super) fn change(&self) -> Option<Change> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Forgets the partitions and all decisions about them.
    pub(super) fn forget(&self) {
        self.assignment.clear();
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// The callbacks of librdkafka.
pub(super) struct Context {
    group: Arc<Group>,
    /// Whether it belongs to the client that fetches, and not to the one in the group.
    is_fetching: bool,
    lost: StuckClient,
    /// Whether its client is closing or was replaced, so that events of the client no longer count.
    retired: AtomicBool,
}

impl Context {
    pub(super) fn member(group: Arc<Group>) -> Self {
        Self { group, is_fetching: false, lost: StuckClient::default(), retired: AtomicBool::default() }
    }

    pub(super) fn fetching(group: Arc<Group>) -> Self {
        Self { is_fetching: true, ..Self::member(group) }
    }

    /// Returns whether its client no longer knows any broker.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_so()
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Handles a revocation. The partitions go to other members when it is answered: at once if nothing can be
    /// finished or committed for them any more, otherwise by the consumer's thread.
    fn revoked(&self, member: &BaseConsumer<Self>, partitions: Vec<Name>) {
        if self.is_retired() {
            give_away(member);
        } else if member.assignment_lost() {
            self.group.decided(Change::Lost(partitions));
            give_away(member);
        } else {
            self.group.decided(Change::Revoked(partitions));
        }
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
        if self.is_retired() {
            return;
        }
        self.lost.note(&statistics);
        if self.is_fetching {
            self.group.note(&statistics);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let names = names(partitions);
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                if !self.is_retired() {
                    self.group.decided(Change::Assigned(names));
                }
                // As far as librdkafka knows, no partition is assigned to this client.
                if let Err(error) = member.incremental_assign(&TopicPartitionList::new()) {
                    warn!(
                        event = "rebalance.answer_failed", group = self.group.name, %error,
                        "cannot acknowledge an assignment to the group"
                    );
                }
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => self.revoked(member, names),
            _ => {
                let error = Native::Rebalance(error.into());
                warn!(event = "rebalance.failed", group = self.group.name, %error, "rebalance failed");
                give_away(member);
            }
        }
    }
}

fn names(list: &TopicPartitionList) -> Vec<Name> {
    let name = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| Name {
        topic: element.topic().to_owned(),
        number: element.partition(),
    };
    list.elements().iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::{Partition as Statistic, Topic};
    use throughline_testkit::{Measured, Number};

    use super::*;
    use crate::offsets::Offsets;
    use crate::partition::Partition;

    fn name(number: i32) -> Name {
        Name { topic: "topic".to_owned(), number }
    }

    /// A group of which this member has partitions 0 and 1.
    fn group(measured: &Measured) -> Arc<Group> {
        let group = Group::new("group", &measured.meter());
        for number in [0, 1] {
            let metrics = group.consuming.topic("topic");
            group
                .assignment
                .add(&name(number), Partition::new(Offsets::default(), metrics, group.clock.now()));
        }
        group
    }

    /// All 20 records of partition 0 were fetched.
    fn fetched() -> Statistics {
        let partition = Statistic { hi_offset: 20, next_offset: 20, ..Statistic::default() };
        let topic = Topic { partitions: [(0, partition)].into(), ..Topic::default() };
        Statistics { topics: [("topic".to_owned(), topic)].into(), ..Statistics::default() }
    }

    #[test]
    fn records_discarded_by_a_pause_still_count_as_lag() {
        let measured = Measured::new();
        let group = group(&measured);
        let lag = || measured.value("throughline.consumer.lag", &[]).unwrap();
        group.note(&fetched());
        assert_eq!(lag(), 0);
        group.paused.store(true, Ordering::Relaxed);
        group.note(&fetched());
        assert_eq!(lag(), 20);
        assert!(measured.value("throughline.consumer.lag.age", &[]).unwrap() > Number(0.0));
        group.assignment.remove(&name(0));
        group.note(&fetched());
        assert_eq!(measured.points("throughline.consumer.lag").unwrap(), [], "of the other nothing is known");
    }

    #[test]
    fn a_topic_is_as_old_as_its_oldest_partition() {
        let measured = Measured::new();
        let group = group(&measured);
        let now = group.clock.now();
        for (partition, hours) in [(0, 1), (1, 2)] {
            let time = now - chrono::TimeDelta::hours(hours);
            group.assignment.find("topic", partition).unwrap().read(7, Some(time));
        }
        let age = measured.value("throughline.consumer.lag.age", &[("messaging.destination.name", "topic")]);
        let age = age.unwrap();
        assert!((7200.0..7300.0).contains(&age.0));
        let waiting = measured.value("throughline.consumer.waiting.age", &[]).unwrap();
        assert!(waiting.0 >= age.0, "no record has started: {waiting:?}");
        let partition = group.assignment.find("topic", 1).unwrap();
        assert!(partition.start(7));
        let waiting = measured.value("throughline.consumer.waiting.age", &[]).unwrap();
        assert!((3600.0..3700.0).contains(&waiting.0), "{waiting:?}");
        drop((partition, group));
        assert_eq!(measured.points("throughline.consumer.lag.age").unwrap(), []);
    }
}
