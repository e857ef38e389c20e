//! Membership in a group: what happens when partitions change hands.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError as Native, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::log;
use crate::partition::Assignment;

/// How long a partition that another member is to have is held for records in work. A member that
/// waits holds up the whole group; a record that takes longer is worked on twice.
const DRAIN: Duration = Duration::from_secs(10);

/// What the consumer's thread, librdkafka's callbacks and the application share.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) assignment: Assignment,
    /// Whether the application does not keep up, so that nothing is fetched.
    pub(super) paused: AtomicBool,
    /// Whether a partition is assigned that is not there any more.
    pub(super) stale: AtomicBool,
    /// Set once, when the consumer closes: until when records in work are waited for.
    closing: OnceLock<Instant>,
}

impl Group {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
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
pub(super) struct Context(pub(super) Arc<Group>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log::line(level, facility, text);
    }

    fn error(&self, error: Native, reason: &str) {
        if error.rdkafka_error_code() == Some(Code::UnknownPartition) {
            self.0.stale.store(true, Ordering::Relaxed);
        }
        log::error_event(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => self.0.assignment.add(list),
            Rebalance::Revoke(list) => self.0.hand_over(client, list),
            Rebalance::Error(error) => warn!(group = self.0.name, %error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, client: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        info!(group = self.0.name, partitions = ?names(list), "partitions assigned");
        if self.0.paused.load(Ordering::Relaxed)
            && let Err(error) = client.pause(list)
        {
            warn!(group = self.0.name, %error, "new partitions could not be paused");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) | Err(Native::ConsumerCommit(Code::NoOffset)) => {}
            // What is finished goes into the next commit as well.
            Err(error) => debug!(group = self.0.name, %error, "a commit failed and will be repeated"),
        }
    }
}

fn names(list: &TopicPartitionList) -> Vec<String> {
    list.elements().iter().map(|element| format!("{}/{}", element.topic(), element.partition())).collect()
}
