//! The two clients of a member: one is in the group, the other one fetches.
//!
//! When librdkafka asks a client to give partitions away, it stops fetching for that client, from every partition,
//! until the application has answered. The answer waits for records in progress, which may take as long as the
//! longest call. Therefore the client in the group has no partitions itself, as far as its librdkafka knows: they are
//! assigned by hand to the client that fetches, which continues with all other partitions meanwhile.

use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError as Native;
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::warn;

use super::coordinator::Coordinator;
use super::group::{Context, Group};
use crate::assignment::Name;
use crate::{KafkaError, client};

/// The configuration and the topics with which a member joins its group.
pub(super) struct Subscription {
    pub(super) config: ClientConfig,
    pub(super) topics: Vec<String>,
}

impl Subscription {
    pub(super) fn join(&self, group: &Arc<Group>) -> Result<Clients, KafkaError> {
        let create = |config: &ClientConfig, context| {
            BaseConsumer::from_config_and_context(config, context).map_err(client::not_created)
        };
        let mut fetching = self.config.clone();
        // The fetching client never joins, but keeps `group.id`: brokers that control access check the name of the
        // group.
        fetching.remove("group.instance.id");
        let fetcher = create(&fetching, Context::fetching(Arc::clone(group)))?;
        let member = Arc::new(create(&self.config, Context::member(Arc::clone(group)))?);
        let clients = Clients { coordinator: Coordinator::of(Arc::downgrade(&member))?, member, fetcher };
        self.subscribe(&clients.member).map_err(|error| KafkaError::Subscription(error.into()))?;
        Ok(clients)
    }

    pub(super) fn subscribe(&self, member: &BaseConsumer<Context>) -> Result<(), Native> {
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        member.subscribe(&topics)
    }
}

pub(super) struct Clients {
    pub(super) coordinator: Coordinator,
    pub(super) member: Arc<BaseConsumer<Context>>,
    pub(super) fetcher: BaseConsumer<Context>,
}

impl Clients {
    /// Returns whether one of the clients no longer knows any broker.
    pub(super) fn are_lost(&self) -> bool {
        self.member.context().is_lost() || self.fetcher.context().is_lost()
    }

    /// Stops fetching these partitions.
    pub(super) fn stop_fetching(&self, names: &[Name]) {
        if !names.is_empty()
            && let Err(error) = self.fetcher.incremental_unassign(&list(names))
        {
            warn!(
                event = "partitions.unassign_failed", %error, partitions = %joined(names),
                "cannot stop fetching partitions that other members own now"
            );
        }
    }

    /// Pauses or resumes fetching these partitions.
    pub(super) fn set_paused(&self, names: &[Name], pause: bool) {
        let list = list(names);
        let switched = if pause { self.fetcher.pause(&list) } else { self.fetcher.resume(&list) };
        if let Err(error) = switched {
            warn!(
                event = "fetching.switch_failed", pause, %error, partitions = %joined(names),
                "cannot pause or resume fetching"
            );
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.member.context().retire();
        self.fetcher.context().retire();
        // Closing waits for the answer to a revocation, also to one that has already arrived.
        give_away(&self.member);
    }
}

/// Answers a revocation. It names no partitions: as far as its librdkafka knows, the client has none.
pub(super) fn give_away(member: &BaseConsumer<Context>) {
    if let Err(error) = member.incremental_unassign(&TopicPartitionList::new()) {
        warn!(event = "rebalance.answer_failed", %error, "cannot acknowledge a revocation to the group");
    }
}

pub(super) fn list(names: &[Name]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(names.len());
    for name in names {
        list.add_partition(&name.topic, name.number);
    }
    list
}

/// Joins the names for a log line.
pub(super) fn joined(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
