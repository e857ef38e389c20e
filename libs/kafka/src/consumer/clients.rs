//! The two clients of a member: one is in the group, the other one fetches.
//!
//! From when librdkafka tells a client to give partitions away until the application has answered, it fetches nothing
//! for that client, from no partition. The answer waits for records in progress, which may take as long as the longest
//! call. So the client that is in the group has no partitions itself, as far as its librdkafka knows: the one that
//! fetches is assigned them by hand, and goes on with all others meanwhile.

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

/// What it takes to become a member.
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
        // It never joins; brokers that control access look for the name of its group.
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
    /// Whether one of them knows no broker any more.
    pub(super) fn are_lost(&self) -> bool {
        self.member.context().is_lost() || self.fetcher.context().is_lost()
    }

    /// Fetches these no more.
    pub(super) fn stop_fetching(&self, names: &[Name]) {
        if !names.is_empty()
            && let Err(error) = self.fetcher.incremental_unassign(&list(names))
        {
            warn!(%error, partitions = %joined(names), "partitions that were given away are still fetched");
        }
    }

    /// Switches fetching of these off, or on again.
    pub(super) fn set_paused(&self, names: &[Name], pause: bool) {
        let list = list(names);
        let switched = if pause { self.fetcher.pause(&list) } else { self.fetcher.resume(&list) };
        if let Err(error) = switched {
            warn!(pause, %error, partitions = %joined(names), "fetching cannot be switched");
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.member.context().retire();
        self.fetcher.context().retire();
        // Closing waits for an answer, also for one that is owed already.
        give_away(&self.member);
    }
}

/// Answers a revocation. As far as its librdkafka knows, the client has no partitions, so there are none to name.
pub(super) fn give_away(member: &BaseConsumer<Context>) {
    if let Err(error) = member.incremental_unassign(&TopicPartitionList::new()) {
        warn!(%error, "a revocation cannot be answered");
    }
}

pub(super) fn list(names: &[Name]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(names.len());
    for name in names {
        list.add_partition(&name.topic, name.number);
    }
    list
}

/// For a log line.
pub(super) fn joined(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
