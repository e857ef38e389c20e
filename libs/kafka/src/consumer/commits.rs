//! Commits offsets: one commit at a time, of all partitions that have more to commit.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::coordinator::Entry;
use crate::assignment::Name;
use crate::finished::MOST;
use crate::partition::Partition;

/// How long a finished record waits for others, so that they are committed together. A record that finishes within
/// this time and the commit's round trip before a crash is redelivered.
const INTERVAL: Duration = Duration::from_millis(100);

/// The commits of one member.
pub(super) struct Commits {
    /// The commit in flight, with the number of changes it covers in each partition.
    under_way: Option<UnderWay>,
    last: Instant,
    /// The maximum length of the metadata to write.
    most: usize,
    /// The length of the longest metadata that the broker has accepted.
    proven: usize,
    /// The number of rebalances so far: a commit from before the last one may be refused for that alone.
    rebalances: u64,
    is_fenced: bool,
}

struct UnderWay {
    partitions: Vec<(Arc<Partition>, u64)>,
    metadata: usize,
    rebalances: u64,
}

impl Commits {
    pub(super) fn new() -> Self {
        Self { under_way: None, last: Instant::now(), most: MOST, proven: 0, rebalances: 0, is_fenced: false }
    }

    /// Returns the entries to commit now: if the interval has passed, or if the commit is `urgent`.
    ///
    /// The broker may accept less metadata than usual, and reports that only by refusing a whole commit. So an entry
    /// with longer metadata than any before is committed alone.
    pub(super) fn next(
        &mut self,
        partitions: impl Iterator<Item = (Name, Arc<Partition>)>,
        urgent: bool,
    ) -> Option<Vec<Entry>> {
        if self.under_way.is_some() || !(urgent || self.last.elapsed() >= INTERVAL) {
            return None;
        }
        self.last = Instant::now();
        let mut entries = Vec::new();
        let mut under_way = UnderWay { partitions: Vec::new(), metadata: 0, rebalances: self.rebalances };
        for (name, partition) in partitions {
            let Some(commit) = partition.to_commit() else { continue };
            let metadata = commit.finished.encode(commit.offset, self.most);
            let longest = metadata.len();
            if longest > self.proven {
                entries.clear();
                under_way.partitions.clear();
            }
            entries.push(Entry { name, offset: commit.offset, metadata });
            under_way.partitions.push((partition, commit.changes));
            if longest > self.proven {
                under_way.metadata = longest;
                break;
            }
        }
        (!entries.is_empty()).then(|| {
            self.under_way = Some(under_way);
            entries
        })
    }

    /// Returns whether no commit is in flight.
    pub(super) fn are_settled(&self) -> bool {
        self.under_way.is_none()
    }

    /// Handles the broker's answer to the commit in flight.
    pub(super) fn settle(&mut self, said: Result<(), Code>) {
        let Some(UnderWay { partitions, metadata, rebalances }) = self.under_way.take() else { return };
        self.is_fenced = false;
        match said {
            Ok(()) => self.proven = self.proven.max(metadata),
            // The topic was deleted: there is nothing left to commit.
            Err(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {}
            Err(error) => {
                match error {
                    Code::OffsetMetadataTooLarge => self.shorten(metadata),
                    Code::UnknownMemberId | Code::IllegalGeneration | Code::FencedInstanceId => {
                        self.is_fenced = rebalances == self.rebalances;
                    }
                    _ => {}
                }
                // The next commit covers these records as well.
                debug!(%error, "a commit failed and will be repeated");
                return;
            }
        }
        for (partition, changes) in partitions {
            partition.committed(changes);
        }
    }

    fn shorten(&mut self, refused: usize) {
        self.most = refused / 2;
        warn!(
            event = "offsets.metadata_refused",
            characters = self.most,
            "the broker rejected the metadata of a committed offset as too long: after a crash, more finished records \
             are redelivered; raise offset.metadata.max.bytes of the broker to 4096"
        );
    }

    /// Notes that the group has assigned partitions again, with this client as a member.
    pub(super) fn rebalanced(&mut self) {
        self.rebalances += 1;
        self.is_fenced = false;
    }

    /// Returns whether the group has refused the last commit because this client is not a member.
    pub(super) fn is_fenced(&self) -> bool {
        self.is_fenced
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use throughline_testkit::unmeasured;

    use super::*;
    use crate::metrics::Consuming;
    use crate::offsets::Offsets;

    fn partition() -> Arc<Partition> {
        let metrics = Consuming::new(&unmeasured(), "group").topic("topic");
        let partition = Partition::new(Offsets::default(), metrics, DateTime::UNIX_EPOCH);
        (0..10).for_each(|offset| {
            partition.read(offset, None);
            assert!(partition.start(offset));
        });
        partition
    }

    fn finish(partition: &Partition, offset: i64) {
        partition.finish(offset, Duration::ZERO);
    }

    fn next(commits: &mut Commits, partitions: &[&Arc<Partition>]) -> Vec<(i32, i64, usize)> {
        let named = partitions
            .iter()
            .zip(0..)
            .map(|(partition, number)| (Name { topic: "topic".to_owned(), number }, Arc::clone(partition)));
        let entries = commits.next(named, true).unwrap_or_default();
        entries.into_iter().map(|entry| (entry.name.number, entry.offset, entry.metadata.len())).collect()
    }

    #[test]
    fn a_rejected_commit_is_repeated() {
        for (said, comes_again, is_fenced) in [
            (Ok(()), false, false),
            (Err(Code::RebalanceInProgress), true, false),
            (Err(Code::UnknownMemberId), true, true),
            (Err(Code::UnknownTopicOrPartition), false, false),
        ] {
            let (mut commits, partition) = (Commits::new(), partition());
            finish(&partition, 0);
            assert_eq!(next(&mut commits, &[&partition]), [(0, 1, 0)]);
            assert_eq!(next(&mut commits, &[&partition]), [], "one at a time");
            commits.settle(said);
            assert_eq!(commits.is_fenced(), is_fenced, "{said:?}");
            assert_eq!(!next(&mut commits, &[&partition]).is_empty(), comes_again, "{said:?}");
        }
    }

    #[test]
    fn a_commit_from_before_a_rebalance_does_not_affect_the_membership_after_it() {
        let (mut commits, partition) = (Commits::new(), partition());
        finish(&partition, 0);
        next(&mut commits, &[&partition]);
        commits.rebalanced();
        commits.settle(Err(Code::IllegalGeneration));
        assert!(!commits.is_fenced());
        next(&mut commits, &[&partition]);
        commits.settle(Err(Code::IllegalGeneration));
        assert!(commits.is_fenced());
        commits.rebalanced();
        assert!(!commits.is_fenced());
    }

    #[test]
    fn records_that_finish_during_a_commit_are_in_the_next_one() {
        let (mut commits, partition) = (Commits::new(), partition());
        finish(&partition, 0);
        next(&mut commits, &[&partition]);
        finish(&partition, 1);
        commits.settle(Ok(()));
        assert_eq!(next(&mut commits, &[&partition]), [(0, 2, 0)]);
    }

    #[test]
    fn metadata_is_shortened_until_the_broker_accepts_it() {
        let (mut commits, partitions) = (Commits::new(), [partition(), partition()]);
        let [first, second] = &partitions;
        finish(first, 0);
        for offset in [3, 5, 7] {
            finish(second, offset);
        }
        assert_eq!(next(&mut commits, &[first, second]), [(1, 0, 10)], "the longest one alone");
        commits.settle(Err(Code::OffsetMetadataTooLarge));
        assert_eq!(next(&mut commits, &[first, second]), [(0, 1, 0), (1, 0, 0)]);
        commits.settle(Ok(()));
        assert_eq!(next(&mut commits, &[first, second]), []);
    }
}
