//! The partitions that this member gains and loses, and their commits.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError as Native;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::clients::{Clients, Subscription, give_away, joined};
use super::commits::Commits;
use super::coordinator::{Answer, Entry};
use super::group::{Change, Group};
use super::handover::{Drain, Handover};
use crate::assignment::Name;
use crate::finished::Finished;
use crate::offsets::Offsets;
use crate::partition::Partition;
use crate::stalled::Stalled;
use crate::{KafkaError, client};

/// How long to wait before the coordinator is asked again for offsets that it did not return.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Minimum age of a suspicious record: a group that starts at it should have consumed it long ago.
const OLD: TimeDelta = TimeDelta::hours(1);

/// How long the last commit of a partition may take after the deadline until which it was held.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// How many of librdkafka's events are handled at a time.
const EVENTS: usize = 8;

/// This member of the group, and its partitions.
pub(super) struct Membership {
    clients: Clients,
    subscription: Subscription,
    group: Arc<Group>,
    drain: Drain,
    /// Assigned, but not consumed until the offsets to start from are known.
    fresh: HashSet<Name>,
    /// Whether the coordinator was asked for these offsets.
    is_asked: bool,
    /// Whether one of the partitions in that request was revoked since: another owner may have committed more.
    is_outdated: bool,
    /// When that request failed.
    failed: Option<Instant>,
    /// Consumed from their first record, because no offset is committed for them.
    unplaced: HashSet<Name>,
    /// The partitions that go to other members.
    handover: Option<Handover>,
    /// Not fetched, because too many of their finished records could not be committed.
    resting: HashSet<Name>,
    commits: Commits,
    stalled: Stalled,
}

impl Membership {
    pub(super) fn join(
        subscription: Subscription,
        group: Arc<Group>,
        drain: Drain,
    ) -> Result<Self, KafkaError> {
        Ok(Self {
            clients: subscription.join(&group)?,
            subscription,
            group,
            drain,
            fresh: HashSet::new(),
            is_asked: false,
            is_outdated: false,
            failed: None,
            unplaced: HashSet::new(),
            handover: None,
            resting: HashSet::new(),
            commits: Commits::new(),
            stalled: Stalled::new(Instant::now()),
        })
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Carries out the group's decisions, waiting up to `wait` for the first event, and takes care of commits.
    pub(super) fn serve(&mut self, wait: Duration) -> Result<(), Native> {
        for event in 0..EVENTS {
            // `poll` returns after each event, and does not report whether there was one.
            let wait = if event == 0 { wait } else { Duration::ZERO };
            // The context has logged any other error, and librdkafka recovers by itself.
            if let Some(Err(error @ Native::MessageConsumptionFatal(_))) = self.clients.member.poll(wait) {
                return Err(error);
            }
        }
        while let Some(change) = self.group.change() {
            match change {
                Change::Assigned(names) => self.fresh.extend(names),
                Change::Revoked(names) => self.revoked(&names),
                Change::Lost(names) => {
                    warn!(
                        event = "partitions.lost",
                        group = self.group.name,
                        partitions = joined(&names),
                        "partitions were lost to other members of the group"
                    );
                    self.take_out(&names);
                }
            }
        }
        while let Some(answer) = self.clients.coordinator.answer() {
            match answer {
                Answer::Committed(said) => self.commits.settle(said),
                Answer::Offsets(said) => self.begin(said),
                Answer::Ends(said) => self.compare(said),
            }
        }
        self.look();
        self.commit();
        self.hand_over();
        self.wake();
        self.look_for_a_stall();
        Ok(())
    }

    /// Returns whether the clients must be replaced: one of them will never reach a broker or fetch again.
    pub(super) fn is_stuck(&self) -> bool {
        self.stalled.is_so() || self.clients.are_lost()
    }

    /// Asks the brokers for the ends of the partitions, at intervals.
    fn look_for_a_stall(&mut self) {
        if self.group.paused.load(Ordering::Relaxed) {
            self.stalled.clear();
        } else if self.group.closing().is_none() && self.stalled.begin(Instant::now()) {
            let assigned = self.group.assignment.all().into_iter().map(|(name, _)| name);
            self.clients.coordinator.ends(assigned.filter(|name| !self.resting.contains(name)).collect());
        }
    }

    /// Finds partitions with records that are not fetched.
    fn compare(&mut self, said: Result<Vec<(Name, i64)>, Native>) {
        // Brokers that do not answer have no records to fetch.
        let ends = said.unwrap_or_default();
        let assignment = &self.group.assignment;
        let reached = |name: &Name| {
            let partition = assignment.find(&name.topic, name.number)?;
            (!self.resting.contains(name)).then(|| partition.reached())
        };
        let stalled = self.stalled.check(ends, reached, Instant::now());
        if let Some((partition, offset)) = stalled.first() {
            warn!(
                event = "fetching.stalled",
                group = self.group.name, %partition, offset, partitions = stalled.len(),
                "partitions are no longer fetched although their brokers have more records"
            );
        }
    }

    /// Asks for the committed offsets of the new partitions.
    fn look(&mut self) {
        let is_early = self.failed.is_some_and(|failed| failed.elapsed() < ASK_AGAIN);
        if self.fresh.is_empty() || self.is_asked || is_early || self.group.closing().is_some() {
            return;
        }
        self.is_asked = true;
        self.clients.coordinator.look(self.fresh.iter().cloned().collect());
    }

    /// Consumes partitions from where their previous owners left off.
    fn begin(&mut self, said: Result<Vec<(Name, Option<Entry>)>, Native>) {
        self.is_asked = false;
        if std::mem::take(&mut self.is_outdated) {
            return;
        }
        let found = match said {
            Ok(found) => found,
            Err(error) => {
                self.failed = Some(Instant::now());
                return warn!(
                    event = "offsets.read_failed", group = self.group.name, %error,
                    "cannot read the committed offsets; retrying"
                );
            }
        };
        self.failed = None;
        let (mut names, mut list) = (Vec::new(), TopicPartitionList::new());
        for (name, entry) in found {
            // The partition may have been revoked meanwhile.
            if !self.fresh.remove(&name) {
                continue;
            }
            let from = entry.as_ref().map_or(Offset::Beginning, |entry| Offset::Offset(entry.offset));
            if let Err(error) = list.add_partition_offset(&name.topic, name.number, from) {
                warn!(
                    event = "offsets.rejected", group = self.group.name, partition = %name, %error,
                    "cannot start at an invalid committed offset"
                );
            }
            if entry.is_none() {
                self.unplaced.insert(name.clone());
            }
            let offsets = entry.map_or_else(Offsets::default, resume);
            self.add(&name, offsets);
            names.push(name);
        }
        if names.is_empty() {
            return;
        }
        if let Err(error) = self.clients.fetcher.incremental_assign(&list) {
            warn!(
                event = "partitions.assign_failed", group = self.group.name, %error,
                "cannot start fetching the assigned partitions"
            );
        }
        if self.group.paused.load(Ordering::Relaxed) {
            self.clients.set_paused(&names, true);
        }
        info!(
            event = "partitions.assigned",
            group = self.group.name,
            partitions = joined(&names),
            "partitions assigned"
        );
    }

    fn add(&self, name: &Name, offsets: Offsets) -> Arc<Partition> {
        let metrics = self.group.consuming.topic(&name.topic);
        let partition = Partition::new(offsets, metrics, self.group.clock.now());
        self.group.assignment.add(name, Arc::clone(&partition));
        partition
    }

    /// Warns if a group without committed offsets starts at old records: Kafka may have forgotten its offsets.
    pub(super) fn note_first(&mut self, topic: &str, number: i32, time: Option<DateTime<Utc>>) {
        let name = Name { topic: topic.to_owned(), number };
        if !self.unplaced.remove(&name) || time.is_none_or(|time| self.group.clock.now() - time < OLD) {
            return;
        }
        warn!(
            event = "offsets.missing", group = self.group.name, partition = %name,
            others = self.unplaced.len(),
            "no offset is committed for a partition with old records, so it starts at the first record: the group is \
             new, or the broker has deleted its offsets (offsets.retention.minutes of the broker)"
        );
        self.unplaced.clear();
    }

    /// Returns whether a partition without a committed offset has not returned its first record yet.
    pub(super) fn has_unplaced(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// Starts over with a partition that has a new log: nothing known of the old log holds for it.
    pub(super) fn begin_again(&self, name: &Name) -> Arc<Partition> {
        warn!(
            event = "partitions.restarted", group = self.group.name, partition = %name,
            "the partition has a new log; consuming it from its first record"
        );
        self.group.assignment.remove(name);
        self.add(name, Offsets::default())
    }

    /// Removes partitions: none of their records is started any more, and they are no longer fetched.
    fn take_out(&mut self, names: &[Name]) -> Vec<(Name, Arc<Partition>)> {
        self.forget_fresh(names);
        self.resting.retain(|name| !names.contains(name));
        self.unplaced.retain(|name| !names.contains(name));
        let taken: Vec<_> = names
            .iter()
            .filter_map(|name| Some((name.clone(), self.group.assignment.remove(name)?)))
            .collect();
        let fetched: Vec<_> = taken.iter().map(|(name, _)| name.clone()).collect();
        self.clients.stop_fetching(&fetched);
        taken
    }

    /// Forgets those of the partitions that are not consumed yet.
    fn forget_fresh(&mut self, names: &[Name]) {
        for name in names {
            self.is_outdated |= self.fresh.remove(name) && self.is_asked;
        }
    }

    /// Prepares to give partitions to other members, which also get the records that were not started.
    fn revoked(&mut self, names: &[Name]) {
        self.forget_fresh(names);
        self.commits.rebalanced();
        let handover = self.handover.get_or_insert_with(|| Handover::new(self.drain, Instant::now()));
        handover.add(names, &self.group.assignment);
    }

    /// Gives partitions away once their records in progress are finished and committed, or when that takes too long.
    fn hand_over(&mut self) {
        let Some(mut handover) = self.handover.take() else { return };
        let (now, is_fenced) = (Instant::now(), self.commits.is_fenced());
        let names = if is_fenced {
            handover.all_to_stop()
        } else {
            handover.due_to_stop(&self.group.assignment, now)
        };
        handover.stop(self.take_out(&names), now);
        let is_clean = handover.is_committed();
        let late_by = handover.late_by(now);
        // A commit in flight must not arrive after one of the next owner.
        let is_late = late_by.is_some_and(|by| self.commits.are_settled() || by >= LAST_COMMIT);
        if !(is_clean || is_late || is_fenced) {
            self.handover = Some(handover);
            return;
        }
        let names: Vec<_> = handover.stopped().iter().map(|(name, _)| name.clone()).collect();
        let (group, partitions) = (&self.group.name, joined(&names));
        if is_clean {
            info!(event = "partitions.revoked", group, partitions, "partitions revoked");
        } else {
            let reason = if is_late {
                "the records took too long"
            } else {
                "this consumer is no longer a member of the group"
            };
            warn!(
                event = "partitions.handed_over",
                group,
                partitions,
                records = handover.in_progress(),
                reason,
                "partitions move with records in progress, which the next owner processes again"
            );
        }
        give_away(&self.clients.member);
    }

    fn commit(&mut self) {
        let is_awaited = self.handover.as_ref().is_some_and(Handover::is_finished)
            || (self.group.closing().is_some() && self.in_work() == 0);
        let stopped = self.handover.iter().flat_map(Handover::stopped).cloned();
        let partitions = self.group.assignment.all().into_iter().chain(stopped);
        if let Some(entries) = self.commits.next(partitions, is_awaited) {
            self.clients.coordinator.commit(entries);
        }
    }

    /// Stops fetching a partition until older records are finished: records that finish beyond them could not be
    /// committed.
    pub(super) fn rest(&mut self, name: Name) {
        if self.resting.contains(&name) {
            return;
        }
        debug!(group = self.group.name, partition = %name, "a partition waits for its oldest records");
        self.clients.set_paused(std::slice::from_ref(&name), true);
        self.resting.insert(name);
    }

    /// Resumes fetching of resting partitions with enough finished records.
    fn wake(&mut self) {
        if self.resting.is_empty() || self.group.paused.load(Ordering::Relaxed) {
            return;
        }
        let assignment = &self.group.assignment;
        let is_relieved = |name: &Name| {
            assignment.find(&name.topic, name.number).is_none_or(|partition| partition.is_relieved())
        };
        let woken: Vec<_> = self.resting.extract_if(|name| is_relieved(name)).collect();
        if !woken.is_empty() {
            self.clients.set_paused(&woken, false);
        }
    }

    /// Pauses all fetching, or resumes it for all partitions that do not rest.
    pub(super) fn set_paused(&self, pause: bool) {
        let all = self.group.assignment.all().into_iter().map(|(name, _)| name);
        let names: Vec<_> = all.filter(|name| !self.resting.contains(name)).collect();
        self.clients.set_paused(&names, pause);
        self.group.paused.store(pause, Ordering::Relaxed);
    }

    /// Joins the group again after a topic was deleted, and maybe created again. librdkafka keeps waiting for the
    /// partitions of the old topic; a new member looks at the existing ones.
    pub(super) fn join_again_if_stale(&self, stale: &AtomicBool) -> Result<(), Native> {
        // Not while a revocation awaits its answer: leaving the group would preempt the answer.
        if self.handover.is_some() || !stale.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        warn!(event = "topic.deleted", group = self.group.name, "a topic was deleted; rejoining the group");
        self.clients.member.unsubscribe();
        self.subscription.subscribe(&self.clients.member)
    }

    /// Replaces the clients, one of which will never reach a broker or fetch again, with new ones that join the group.
    /// The partitions are lost, as they are when a session ends: records that were not committed are redelivered.
    pub(super) fn replace(&mut self) -> Result<(), KafkaError> {
        warn!(
            event = "consumer.replaced",
            group = self.group.name,
            "the consumer has lost all brokers or stopped fetching; replacing its clients"
        );
        self.group.forget();
        self.fresh.clear();
        self.resting.clear();
        self.unplaced.clear();
        (self.is_asked, self.is_outdated) = (false, false);
        (self.failed, self.handover) = (None, None);
        self.commits = Commits::new();
        self.stalled = Stalled::new(Instant::now());
        self.group.paused.store(false, Ordering::Relaxed);
        let lost = std::mem::replace(&mut self.clients, self.subscription.join(&self.group)?);
        client::drop_in_background(lost);
        Ok(())
    }

    /// The partitions that are no longer consumed, and not given away yet.
    fn stopped(&self) -> impl Iterator<Item = &(Name, Arc<Partition>)> {
        self.handover.iter().flat_map(Handover::stopped)
    }

    /// Returns how many records are in work, over all partitions.
    pub(super) fn in_work(&self) -> usize {
        let assigned = self.group.assignment.all();
        assigned.iter().chain(self.stopped()).map(|(_, partition)| partition.in_work()).sum()
    }

    /// Returns whether the broker has everything to commit.
    pub(super) fn is_committed(&self) -> bool {
        let assigned = self.group.assignment.all();
        assigned.iter().chain(self.stopped()).all(|(_, partition)| partition.is_committed())
    }
}

/// Returns the offsets from which a partition continues.
fn resume(Entry { name, offset, metadata }: Entry) -> Offsets {
    let finished = Finished::decode(offset, &metadata).unwrap_or_else(|| {
        info!(
            event = "offsets.metadata_ignored", partition = %name, offset,
            "ignoring the metadata of a committed offset: another program wrote it"
        );
        Finished::default()
    });
    Offsets::resume(offset, finished)
}

#[cfg(test)]
mod tests {
    use crate::Settings;
    use throughline_testkit::unmeasured;

    use super::*;
    use crate::{EmbeddedBroker, Outgoing, Producer};

    /// How long to serve the group at a time, on a real clock, and how often at most.
    const TURN: Duration = Duration::from_millis(20);
    const TURNS: u32 = 3_000;

    /// A member of a group of its own, and the broker.
    struct Scene {
        broker: EmbeddedBroker,
        settings: Settings,
        membership: Membership,
    }

    impl Scene {
        fn new() -> Self {
            let broker = EmbeddedBroker::start(1).unwrap();
            broker.create_topics(&["topic"]).unwrap();
            let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "500")];
            let properties = properties.map(|(name, value)| (name.to_owned(), value.into()));
            let settings = Settings {
                bootstrap_servers: broker.bootstrap_servers().clone(),
                properties: properties.into(),
                ..Settings::default()
            };
            let config = crate::consumer::config(&settings, "group").unwrap();
            let subscription = Subscription { config, topics: vec!["topic".to_owned()] };
            let group = Group::new("group", &unmeasured());
            let drain = Drain::new(Duration::from_secs(1), Duration::from_mins(1));
            Self { broker, settings, membership: Membership::join(subscription, group, drain).unwrap() }
        }

        /// Serves the group until something is so; each time, a second passes on the paused clock.
        async fn until(&mut self, what: &str, is_so: impl Fn(&mut Membership) -> bool) {
            for _ in 0..TURNS {
                if is_so(&mut self.membership) {
                    return;
                }
                self.membership.serve(TURN).unwrap();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            panic!("{what}");
        }

        async fn until_assigned(&mut self) -> Vec<Name> {
            self.until("the partition is assigned", |member| !member.group.assignment.all().is_empty()).await;
            self.membership.group.assignment.all().into_iter().map(|(name, _)| name).collect()
        }

        async fn produce(&self) {
            let producer = Producer::new(&self.settings, "test", &unmeasured()).unwrap();
            let record =
                Outgoing { topic: "topic".to_owned(), key: None, headers: Vec::new(), payload: "1".into() };
            producer.enqueue(&record).unwrap().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_no_longer_fetch_a_partition_are_replaced() {
        let mut scene = Scene::new();
        let names = scene.until_assigned().await;
        // Paused without the member's knowledge: to the member, librdkafka has stopped fetching.
        scene.membership.clients.set_paused(&names, true);
        scene.produce().await;
        scene.until("the stall is noticed", |member| member.is_stuck()).await;
        scene.membership.replace().unwrap();
        assert!(!scene.membership.is_stuck());
        scene.until_assigned().await;
        scene
            .until("the record is fetched", |member| {
                member.clients.fetcher.poll(TURN).is_some_and(|fetched| fetched.is_ok())
            })
            .await;
        drop(scene.broker);
    }
}
