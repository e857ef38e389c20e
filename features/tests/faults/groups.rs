//! Who has which partitions, as the broker tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::groups::GroupMemberInfo;
use throughline_testkit::{Service, eventually};
use tokio::task::spawn_blocking;

/// For the broker to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// For a group to have shared out its partitions: a member that was killed is missed after 6 s, and each is told by its
/// next heartbeat.
pub(crate) const SHARED_OUT: Duration = Duration::from_mins(1);

/// What each member of a group has, by its id.
pub(crate) type Shares = BTreeMap<String, BTreeSet<(String, i32)>>;

/// Asks the broker about groups.
pub(crate) struct Groups(Arc<BaseConsumer>);

/// The groups in which the replicas of a service share their work.
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

    /// Waits until a group of so many members has all its partitions, shared out evenly.
    pub(crate) async fn shared_out(&self, group: &'static str, members: usize) -> anyhow::Result<Shares> {
        eventually(&format!("{group} to share out its partitions"), SHARED_OUT, async || {
            let client = Arc::clone(&self.0);
            // The client blocks, and others have their time taken meanwhile.
            spawn_blocking(move || look(&client, group, members)).await?
        })
        .await
    }
}

/// How many are gone of those who were `before`.
pub(crate) fn gone(before: &Shares, after: &Shares) -> usize {
    before.keys().filter(|member| !after.contains_key(*member)).count()
}

/// How many partitions have somebody else.
pub(crate) fn moved(before: &Shares, after: &Shares) -> usize {
    let has_moved = |(member, share): (&String, &BTreeSet<_>)| {
        before.get(member).map_or(share.len(), |before| share.difference(before).count())
    };
    after.iter().map(has_moved).sum()
}

/// What has gone from those who stay, though nobody else needed it: from each who was `before` and is `after`.
pub(crate) fn taken_in_vain(before: &Shares, after: &Shares) -> Vec<(String, i32)> {
    let newcomers = after.iter().filter(|(member, _)| !before.contains_key(*member));
    let needed: BTreeSet<_> = newcomers.flat_map(|(_, share)| share).collect();
    let stay = before.iter().filter_map(|(member, share)| Some((share, after.get(member)?)));
    let taken = stay.flat_map(|(before, after)| before.difference(after));
    taken.filter(|partition| !needed.contains(partition)).cloned().collect()
}

/// What each member has, if they are so many and have shared out all evenly.
fn look(client: &BaseConsumer, group: &str, members: usize) -> anyhow::Result<Shares> {
    let shares = shares(client, group)?;
    ensure!(shares.len() == members, "{} members", shares.len());
    let sizes: Vec<_> = shares.values().map(BTreeSet::len).collect();
    let all: BTreeSet<_> = shares.values().flatten().collect();
    let topics: BTreeSet<_> = all.iter().map(|(topic, _)| topic).collect();
    ensure!(all.len() == sizes.iter().sum::<usize>(), "some have the same: {shares:?}");
    ensure!(all.len() == partitions(client, &topics)?, "some are nobody's: {shares:?}");
    let (least, most) = (sizes.iter().min(), sizes.iter().max());
    ensure!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "unevenly: {sizes:?}");
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
    let group = groups.groups().first().context("no such group")?;
    ensure!(group.state() == "Stable", "it is {}", group.state());
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
        let (topic, behind) = rest.split_at_checked(length).context("it is cut off")?;
        let topic = str::from_utf8(topic)?;
        rest = behind;
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            share.insert((topic.to_owned(), i32::from_be_bytes(take(&mut rest)?)));
        }
    }
    Ok(share)
}

fn take<const BYTES: usize>(rest: &mut &[u8]) -> anyhow::Result<[u8; BYTES]> {
    let (taken, behind) = rest.split_first_chunk().context("it is cut off")?;
    *rest = behind;
    Ok(*taken)
}
