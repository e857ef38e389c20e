//! The assignments of consumer groups, from the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::groups::GroupMemberInfo;
use throughline_testkit::{Service, eventually};
use tokio::task::spawn_blocking;

/// Deadline for the broker to respond.
const ANSWER: Duration = Duration::from_secs(5);
/// Deadline for a group to have assigned its partitions: the group removes a killed member after 6 s, and each member
/// learns its assignment with its next heartbeat.
pub(crate) const SHARED_OUT: Duration = Duration::from_mins(1);

/// The partitions of each member of a group, by member id.
pub(crate) type Shares = BTreeMap<String, BTreeSet<(String, i32)>>;

/// A client that queries the broker for consumer groups.
pub(crate) struct Groups(Arc<BaseConsumer>);

/// The consumer groups of a service.
pub(crate) fn of(service: Service) -> &'static [&'static str] {
    match service {
        Service::Ingest => &["throughline-recorder", "throughline-adopter"],
        Service::Dispatch => &["throughline-dispatch"],
    }
}

impl Groups {
    pub(crate) fn of(broker: &str) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(ClientConfig::new().set("bootstrap.servers", broker).create()?)))
    }

    /// Waits until a group of `members` members has all partitions assigned evenly.
    pub(crate) async fn shared_out(&self, group: &'static str, members: usize) -> anyhow::Result<Shares> {
        eventually(&format!("{group} to assign its partitions"), SHARED_OUT, async || {
            let client = Arc::clone(&self.0);
            // The client blocks its thread, while other tasks measure times.
            spawn_blocking(move || look(&client, group, members)).await?
        })
        .await
    }
}

/// Number of members in `before` that are not in `after`.
pub(crate) fn gone(before: &Shares, after: &Shares) -> usize {
    before.keys().filter(|member| !after.contains_key(*member)).count()
}

/// The partitions that have moved to another member.
pub(crate) fn moved(before: &Shares, after: &Shares) -> BTreeSet<(String, i32)> {
    let none = BTreeSet::new();
    let gained = |(member, share): (&String, &BTreeSet<_>)| {
        share.difference(before.get(member).unwrap_or(&none)).cloned().collect::<Vec<_>>()
    };
    after.iter().flat_map(gained).collect()
}

/// The partitions that remaining members lost, although no new member received them.
pub(crate) fn taken_in_vain(before: &Shares, after: &Shares) -> Vec<(String, i32)> {
    let newcomers = after.iter().filter(|(member, _)| !before.contains_key(*member));
    let needed: BTreeSet<_> = newcomers.flat_map(|(_, share)| share).collect();
    let stay = before.iter().filter_map(|(member, share)| Some((share, after.get(member)?)));
    let taken = stay.flat_map(|(before, after)| before.difference(after));
    taken.filter(|partition| !needed.contains(partition)).cloned().collect()
}

/// The partitions of each member, if the group has `members` members and all partitions are assigned evenly.
fn look(client: &BaseConsumer, group: &str, members: usize) -> anyhow::Result<Shares> {
    let shares = shares(client, group)?;
    ensure!(shares.len() == members, "{} members", shares.len());
    let sizes: Vec<_> = shares.values().map(BTreeSet::len).collect();
    let all: BTreeSet<_> = shares.values().flatten().collect();
    let topics: BTreeSet<_> = all.iter().map(|(topic, _)| topic).collect();
    ensure!(all.len() == sizes.iter().sum::<usize>(), "partitions with several members: {shares:?}");
    ensure!(all.len() == partitions(client, &topics)?, "partitions without a member: {shares:?}");
    let (least, most) = (sizes.iter().min(), sizes.iter().max());
    ensure!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "uneven assignment: {sizes:?}");
    Ok(shares)
}

fn partitions(client: &BaseConsumer, topics: &BTreeSet<&String>) -> anyhow::Result<usize> {
    let mut count = 0;
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic), ANSWER)?;
        count += metadata.topics().iter().map(|topic| topic.partitions().len()).sum::<usize>();
    }
    Ok(count)
}

fn shares(client: &BaseConsumer, group: &str) -> anyhow::Result<Shares> {
    let groups = client.fetch_group_list(Some(group), ANSWER)?;
    let group = groups.groups().first().context("the broker does not know the group")?;
    ensure!(group.state() == "Stable", "the group is {}", group.state());
    group.members().iter().map(|member| Ok((member.id().to_owned(), share(member)?))).collect()
}

/// Reads a member's assignment (Kafka's `ConsumerProtocolAssignment`): a version, then topics with their partitions.
fn share(member: &GroupMemberInfo) -> anyhow::Result<BTreeSet<(String, i32)>> {
    let mut rest = member.assignment().unwrap_or_default();
    let mut share = BTreeSet::new();
    if rest.is_empty() {
        return Ok(share);
    }
    take::<2>(&mut rest)?;
    for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
        let length = usize::try_from(i16::from_be_bytes(take(&mut rest)?))?;
        let (topic, behind) = rest.split_at_checked(length).context("truncated assignment")?;
        let topic = str::from_utf8(topic)?;
        rest = behind;
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            share.insert((topic.to_owned(), i32::from_be_bytes(take(&mut rest)?)));
        }
    }
    Ok(share)
}

fn take<const BYTES: usize>(rest: &mut &[u8]) -> anyhow::Result<[u8; BYTES]> {
    let (taken, behind) = rest.split_first_chunk().context("truncated assignment")?;
    *rest = behind;
    Ok(*taken)
}
