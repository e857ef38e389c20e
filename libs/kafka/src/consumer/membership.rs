//! Which partitions come and go, and what is committed of them.

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
use crate::assignment::Name;
use crate::finished::Finished;
use crate::offsets::Offsets;
use crate::partition::Partition;
use crate::{KafkaError, client};

/// How long to wait until the coordinator is asked again for offsets that it did not tell.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How old a record is that a new group should have consumed long since.
const OLD: TimeDelta = TimeDelta::hours(1);

/// How long the last commit of a partition may take that was held for as long as may be.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// How many events of librdkafka are taken at a time.
const EVENTS: usize = 8;

/// This member of the group, and its partitions.
pub(super) struct Membership {
    clients: Clients,
    subscription: Subscription,
    group: Arc<Group>,
    /// How long partitions that another member is to have are held for records in progress.
    drain: Duration,
    /// Assigned, but not consumed before it is known where to begin.
    fresh: HashSet<Name>,
    /// Whether the coordinator was asked for that.
    is_asked: bool,
    /// Whether one of those it was asked for was taken away since: another owner may have committed more.
    is_outdated: bool,
    /// When that question failed.
    failed: Option<Instant>,
    /// Consumed from their first record, as nothing is committed of them.
    unplaced: HashSet<Name>,
    /// Held for another member.
    handover: Option<Handover>,
    /// Not fetched, since too much of them could not be committed.
    resting: HashSet<Name>,
    commits: Commits,
}

struct Handover {
    partitions: Vec<(Name, Arc<Partition>)>,
    deadline: Instant,
}

impl Membership {
    pub(super) fn join(
        subscription: Subscription,
        group: Arc<Group>,
        drain: Duration,
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
        })
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Does what the group asks for, for so long if it asks for nothing, and sees to commits.
    pub(super) fn serve(&mut self, wait: Duration) -> Result<(), Native> {
        for event in 0..EVENTS {
            // It ends after each event, and does not say whether there was one.
            let wait = if event == 0 { wait } else { Duration::ZERO };
            // Any other was logged by the context, and librdkafka goes on by itself.
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
                        group = self.group.name,
                        partitions = joined(&names),
                        "partitions were lost to other members"
                    );
                    self.take_out(&names);
                }
            }
        }
        while let Some(answer) = self.clients.coordinator.answer() {
            match answer {
                Answer::Committed(said) => self.commits.settle(said),
                Answer::Offsets(said) => self.begin(said),
            }
        }
        self.look();
        self.commit();
        self.hand_over();
        self.wake();
        Ok(())
    }

    /// Asks where the partitions begin that are new.
    fn look(&mut self) {
        let is_early = self.failed.is_some_and(|failed| failed.elapsed() < ASK_AGAIN);
        if self.fresh.is_empty() || self.is_asked || is_early || self.group.closing().is_some() {
            return;
        }
        self.is_asked = true;
        self.clients.coordinator.look(self.fresh.iter().cloned().collect());
    }

    /// Consumes partitions from where their earlier owners have left them.
    fn begin(&mut self, said: Result<Vec<(Name, Option<Entry>)>, Native>) {
        self.is_asked = false;
        if std::mem::take(&mut self.is_outdated) {
            return;
        }
        let found = match said {
            Ok(found) => found,
            Err(error) => {
                self.failed = Some(Instant::now());
                return warn!(group = self.group.name, %error, "what is committed cannot be read; asking again");
            }
        };
        self.failed = None;
        let (mut names, mut list) = (Vec::new(), TopicPartitionList::new());
        for (name, entry) in found {
            // It may have been revoked meanwhile.
            if !self.fresh.remove(&name) {
                continue;
            }
            let from = entry.as_ref().map_or(Offset::Beginning, |entry| Offset::Offset(entry.offset));
            if let Err(error) = list.add_partition_offset(&name.topic, name.number, from) {
                warn!(group = self.group.name, partition = %name, %error, "an offset cannot be used");
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
            warn!(group = self.group.name, %error, "partitions cannot be fetched");
        }
        if self.group.paused.load(Ordering::Relaxed) {
            self.clients.set_paused(&names, true);
        }
        info!(group = self.group.name, partitions = joined(&names), "partitions assigned");
    }

    fn add(&self, name: &Name, offsets: Offsets) -> Arc<Partition> {
        let tally = self.group.consuming.tally(&name.topic);
        let partition = Partition::new(offsets, tally, self.group.clock.now());
        self.group.assignment.add(name, Arc::clone(&partition));
        partition
    }

    /// Tells of a group that is new to records that have been there for a while: it may be one that Kafka has forgotten.
    pub(super) fn note_first(&mut self, topic: &str, number: i32, time: Option<DateTime<Utc>>) {
        let name = Name { topic: topic.to_owned(), number };
        if !self.unplaced.remove(&name) || time.is_none_or(|time| self.group.clock.now() - time < OLD) {
            return;
        }
        warn!(
            event = "offsets_missing",
            group = self.group.name, partition = %name, others = self.unplaced.len(),
            "nothing is committed of a partition that holds old records: the group is new, or Kafka has forgotten its \
             offsets (offsets.retention.minutes of the broker); it begins at the first record"
        );
        self.unplaced.clear();
    }

    /// Whether there are partitions of which no first record has come.
    pub(super) fn has_unplaced(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// A partition's log has been replaced: nothing that is known of it holds for the new one.
    pub(super) fn begin_again(&self, name: &Name) -> Arc<Partition> {
        warn!(group = self.group.name, partition = %name, "the log begins again; consuming it from there");
        self.group.assignment.remove(name);
        self.add(name, Offsets::default())
    }

    /// Takes partitions out, so that none of their records is started any more, and fetches them no more.
    fn take_out(&mut self, names: &[Name]) -> Vec<(Name, Arc<Partition>)> {
        for name in names {
            self.is_outdated |= self.fresh.remove(name) && self.is_asked;
        }
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

    /// Partitions are to go to another member. Records that were not started are left to it.
    fn revoked(&mut self, names: &[Name]) {
        let mut partitions = self.take_out(names);
        partitions.extend(self.handover.take().into_iter().flat_map(|handover| handover.partitions));
        self.commits.rebalanced();
        self.handover = Some(Handover { partitions, deadline: Instant::now() + self.drain });
    }

    /// Lets partitions go once their records in progress are finished and that is committed, or it takes too long.
    fn hand_over(&mut self) {
        let Some(handover) = &self.handover else { return };
        let in_progress: usize = handover.partitions.iter().map(|(_, partition)| partition.in_work()).sum();
        let is_clean =
            in_progress == 0 && handover.partitions.iter().all(|(_, partition)| partition.is_committed());
        let late_by = Instant::now().checked_duration_since(handover.deadline);
        // A commit that is under way must not come after one of the next owner.
        let is_late = late_by.is_some_and(|by| self.commits.are_settled() || by >= LAST_COMMIT);
        if !(is_clean || is_late || self.commits.is_fenced()) {
            return;
        }
        let names: Vec<_> = handover.partitions.iter().map(|(name, _)| name.clone()).collect();
        let (group, partitions) = (&self.group.name, joined(&names));
        if is_clean {
            info!(group, partitions, "partitions revoked");
        } else {
            let reason =
                if is_late { "it takes too long" } else { "this is no member of the group any more" };
            warn!(
                group,
                partitions,
                records = in_progress,
                reason,
                "partitions change hands with records in progress, which their next owner processes again"
            );
        }
        self.handover = None;
        give_away(&self.clients.member);
    }

    /// How many records of partitions that are handed over are in progress.
    fn in_progress(&self) -> usize {
        self.handover.iter().flat_map(|handover| &handover.partitions).map(|(_, one)| one.in_work()).sum()
    }

    fn commit(&mut self) {
        let is_awaited = (self.handover.is_some() && self.in_progress() == 0)
            || (self.group.closing().is_some() && self.in_work() == 0);
        let handed_over = self.handover.iter().flat_map(|handover| handover.partitions.iter().cloned());
        let partitions = self.group.assignment.all().into_iter().chain(handed_over);
        if let Some(entries) = self.commits.next(partitions, is_awaited) {
            self.clients.coordinator.commit(entries);
        }
    }

    /// Fetches nothing of a partition until records that it has taken are finished: what finishes beyond them could
    /// not be committed.
    pub(super) fn rest(&mut self, name: Name) {
        if self.resting.contains(&name) {
            return;
        }
        debug!(group = self.group.name, partition = %name, "a partition waits for its oldest records");
        self.clients.set_paused(std::slice::from_ref(&name), true);
        self.resting.insert(name);
    }

    /// Fetches partitions again of which enough is finished.
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

    /// Fetches nothing at all, or again what does not rest.
    pub(super) fn set_paused(&self, pause: bool) {
        let all = self.group.assignment.all().into_iter().map(|(name, _)| name);
        let names: Vec<_> = all.filter(|name| !self.resting.contains(name)).collect();
        self.clients.set_paused(&names, pause);
        self.group.paused.store(pause, Ordering::Relaxed);
    }

    /// A topic was deleted, and maybe created again. librdkafka keeps waiting for the partitions of the old one;
    /// as a new member it looks at what there is.
    pub(super) fn join_again_if_stale(&self, stale: &AtomicBool) -> Result<(), Native> {
        // Not while an answer is owed, which that would forestall.
        if self.handover.is_some() || !stale.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        warn!(group = self.group.name, "a topic was deleted; joining the group again");
        self.clients.member.unsubscribe();
        self.subscription.subscribe(&self.clients.member)
    }

    /// A client of it will never reach a broker again, so new ones become a member. The partitions are lost, as they
    /// are when a session ends: what was not committed comes again.
    pub(super) fn replace(&mut self) -> Result<(), KafkaError> {
        warn!(group = self.group.name, "the consumer knows no broker any more; a new one takes its place");
        self.group.forget();
        self.fresh.clear();
        self.resting.clear();
        self.unplaced.clear();
        (self.is_asked, self.is_outdated) = (false, false);
        (self.failed, self.handover) = (None, None);
        self.commits = Commits::new();
        self.group.paused.store(false, Ordering::Relaxed);
        let lost = std::mem::replace(&mut self.clients, self.subscription.join(&self.group)?);
        client::let_go(lost);
        Ok(())
    }

    /// How many records are in work, of all partitions.
    pub(super) fn in_work(&self) -> usize {
        let assigned: usize =
            self.group.assignment.all().iter().map(|(_, partition)| partition.in_work()).sum();
        assigned + self.in_progress()
    }

    /// Whether the broker has all that is to be committed.
    pub(super) fn is_committed(&self) -> bool {
        let handed_over = self.handover.iter().flat_map(|handover| &handover.partitions);
        self.group.assignment.all().iter().chain(handed_over).all(|(_, partition)| partition.is_committed())
    }
}

/// Where a partition goes on.
fn resume(Entry { name, offset, metadata }: Entry) -> Offsets {
    let finished = Finished::decode(offset, &metadata).unwrap_or_else(|| {
        info!(partition = %name, offset, "metadata of a committed offset is not ours, and ignored");
        Finished::default()
    });
    Offsets::resume(offset, finished)
}
