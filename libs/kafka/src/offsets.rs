//! Tracks which offset may be committed, and which records beyond it are finished.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::finished::{self, Finished};

/// The records of one partition that are in progress.
///
/// Offsets arrive in ascending order, with gaps where compaction or transactions left them; records finish in any
/// order. The offset to commit is the lowest unfinished one or, when all are finished, the one after the highest:
/// everything below it is finished. The records that are finished beyond it, here or by earlier owners, are committed
/// along with it.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// The unfinished records, with their times.
    unfinished: BTreeMap<i64, Option<DateTime<Utc>>>,
    /// The time of the last record that was read and has one.
    newest: Option<DateTime<Utc>>,
    /// Where consumption began: at the committed offset, or else at the first record that was read.
    start: Option<i64>,
    /// One after the highest offset that was read.
    end: i64,
    /// The records that earlier owners finished and that were not read yet.
    inherited: Finished,
    /// How often the state to commit has changed.
    changes: u64,
}

/// How to treat a record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// The record is new.
    Take,
    /// An earlier owner has finished the record.
    Skip,
    /// The record lies before others that were read: the log was replaced, and nothing known of it holds.
    BeginsAgain,
}

impl Offsets {
    /// Continues from a committed offset.
    pub(crate) fn resume(committed: i64, inherited: Finished) -> Self {
        Self { start: Some(committed), end: committed, inherited, ..Self::default() }
    }

    /// Notes that a record was read from the partition, and returns how to treat it.
    pub(crate) fn read(&mut self, offset: i64, time: Option<DateTime<Utc>>) -> Read {
        if self.start.is_some() && offset < self.end {
            return Read::BeginsAgain;
        }
        self.start.get_or_insert(offset);
        self.newest = time.or(self.newest);
        self.end = offset + 1;
        if self.inherited.advance_to(offset) {
            self.changes += 1;
            return Read::Skip;
        }
        self.unfinished.insert(offset, time);
        Read::Take
    }

    /// Marks a record that was taken as finished.
    pub(crate) fn finish(&mut self, offset: i64) {
        if self.unfinished.remove(&offset).is_some() {
            self.changes += 1;
        }
    }

    /// Returns one after the highest offset that was read.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// Returns how often the state to commit has changed so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns the offset to commit, with the records finished beyond it; `None` if nothing is finished.
    pub(crate) fn to_commit(&self) -> Option<(i64, Finished)> {
        let next = self.next()?;
        let finished = self.finished();
        (self.start < Some(next) || !finished.is_empty()).then_some((next, finished))
    }

    /// Returns the records that are finished beyond the offset to commit.
    fn finished(&self) -> Finished {
        let mut finished = Finished::default();
        let mut at = self.next().unwrap_or(self.end);
        for &offset in self.unfinished.keys() {
            finished.push(at..offset);
            at = offset + 1;
        }
        finished.push(at..self.end);
        finished.extend_from(self.end, &self.inherited);
        finished
    }

    /// Returns whether another record may be taken: in whatever order records then finish, they can be committed.
    pub(crate) fn has_room(&self) -> bool {
        // The records that earlier owners finished fitted into the metadata.
        !self.inherited.is_empty() || finished::fits(self.span() + 1, self.unfinished.len() + 1)
    }

    /// Returns whether about as many more records may be taken as were taken before.
    pub(crate) fn is_relieved(&self) -> bool {
        finished::fits(self.span() * 2, self.unfinished.len() * 2)
    }

    /// Returns the distance from the offset to commit to the newest record.
    fn span(&self) -> i64 {
        self.end - self.next().unwrap_or(self.end)
    }

    /// Returns the lowest unfinished offset, whether its record was taken or not; `None` until the start is known.
    pub(crate) fn next(&self) -> Option<i64> {
        self.start?;
        Some(self.unfinished.first_key_value().map_or(self.end, |(offset, _)| *offset))
    }

    /// Returns how many records before `high` are not finished; `None` until the start is known.
    pub(crate) fn left(&self, high: i64) -> Option<u64> {
        self.start?;
        let not_read = u64::try_from(high - self.end).unwrap_or(0);
        let not_read = not_read.saturating_sub(self.inherited.count_from(self.end));
        Some(not_read + self.in_hand())
    }

    /// Returns how many records were taken and are not finished.
    pub(crate) fn in_hand(&self) -> u64 {
        self.unfinished.len() as u64
    }

    /// Returns whether all records that were taken are finished.
    pub(crate) fn are_finished(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// Returns the lowest offset, from this one on, that was taken and is not finished, with the record's time.
    pub(crate) fn unfinished_from(&self, offset: i64) -> Option<(i64, Option<DateTime<Utc>>)> {
        self.unfinished.range(offset..).next().map(|(offset, time)| (*offset, *time))
    }

    /// Returns the time of the last record that was read.
    pub(crate) fn newest_time(&self) -> Option<DateTime<Utc>> {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::finished::MOST;

    fn taken(offsets: &[i64]) -> Offsets {
        let mut tracker = Offsets::default();
        for &offset in offsets {
            assert_eq!(tracker.read(offset, None), Read::Take);
        }
        tracker
    }

    fn prefix(tracker: &Offsets) -> Option<i64> {
        tracker.to_commit().map(|(offset, _)| offset)
    }

    /// The next owner of the partition, which continues at the commit.
    fn next_owner(tracker: &Offsets) -> Offsets {
        let Some((offset, finished)) = tracker.to_commit() else { return Offsets::default() };
        Offsets::resume(offset, Finished::decode(offset, &finished.encode(offset, MOST)).unwrap())
    }

    #[test]
    fn the_committed_offset_stays_at_the_first_record_until_that_is_finished() {
        let mut tracker = taken(&[7, 8]);
        assert_eq!(tracker.to_commit(), None);
        tracker.finish(8);
        assert_eq!(prefix(&tracker), Some(7));
        tracker.finish(7);
        assert_eq!(prefix(&tracker), Some(9));
    }

    #[test]
    fn a_gap_is_stepped_over() {
        let mut tracker = taken(&[3, 10]);
        tracker.finish(3);
        assert_eq!(prefix(&tracker), Some(10));
    }

    #[test]
    fn a_new_log_is_detected() {
        let mut tracker = next_owner(&{
            let mut tracker = taken(&[1000, 1001]);
            tracker.finish(1001);
            tracker
        });
        assert_eq!(tracker.read(0, None), Read::BeginsAgain);
        assert_eq!(tracker.read(1000, None), Read::Take);
        assert_eq!(tracker.read(1000, None), Read::BeginsAgain);
    }

    #[test]
    fn records_that_an_earlier_owner_finished_are_no_lag() {
        let mut tracker = taken(&[0, 1, 2, 3, 4, 5]);
        for offset in [1, 2, 4] {
            tracker.finish(offset);
        }
        assert_eq!(tracker.left(8), Some(5));
        let mut next = next_owner(&tracker);
        assert_eq!(next.left(8), Some(5));
        assert_eq!(next.read(0, None), Read::Take);
        assert_eq!(next.left(8), Some(5));
        next.finish(0);
        assert_eq!(next.left(8), Some(4));
    }

    #[test]
    fn records_wait_until_all_records_in_progress_fit_into_a_commit() {
        let mut tracker = taken(&[0]);
        let mut end = 1;
        while tracker.has_room() {
            tracker.read(end, None);
            tracker.finish(end);
            end += 1;
        }
        assert_eq!(end, 1 << 20, "behind one slow record, many may be taken");
        tracker.finish(0);
        assert!(tracker.has_room());
        let mut tracker = taken(&(0..10_000).collect::<Vec<_>>());
        assert!(tracker.has_room(), "behind many unfinished records, another one may be taken");
        while tracker.has_room() {
            tracker.read(tracker.end, None);
        }
        (1..tracker.end).step_by(2).for_each(|offset| tracker.finish(offset));
        let (offset, finished) = tracker.to_commit().unwrap();
        assert_eq!(Finished::decode(offset, &finished.encode(offset, MOST)), Some(finished));
    }

    /// Ascending offsets with gaps, and what happens, by dice.
    fn histories() -> impl Strategy<Value = (Vec<i64>, Vec<(u8, usize)>)> {
        let offsets = prop::collection::btree_set(0_i64..300, 1..80).prop_map(Vec::from_iter);
        (offsets, prop::collection::vec((0_u8..10, any::<usize>()), 0..400))
    }

    proptest! {
        /// Records are read in order and finish in any; now and then the partition has another owner, which knows
        /// what was committed last, while the former one may have finished more.
        #[test]
        fn unfinished_records_are_not_skipped_and_committed_records_not_redelivered(
            (offsets, happenings) in histories(),
        ) {
            let mut owner = Offsets::default();
            let (mut at, mut in_hand) = (0, BTreeSet::new());
            // The finished records that the present owner knows, and the committed ones.
            let (mut finished, mut known) = (BTreeSet::new(), BTreeSet::new());
            let mut committed = (None, BTreeSet::new());
            let read = |owner: &mut Offsets, offset: i64, finished: &BTreeSet<i64>, committed: &BTreeSet<i64>| {
                let taken = owner.read(offset, None) == Read::Take;
                prop_assert!(taken || finished.contains(&offset), "{offset} was skipped and is not finished");
                prop_assert!(!taken || !committed.contains(&offset), "{offset} was committed as finished");
                Ok(taken)
            };
            for (what, which) in happenings {
                match what {
                    // Most often records are taken and finished.
                    0..4 if at < offsets.len() => {
                        if read(&mut owner, offsets[at], &finished, &committed.1)? {
                            in_hand.insert(offsets[at]);
                        }
                        at += 1;
                    }
                    0..7 => {
                        let chosen = in_hand.iter().nth(which % in_hand.len().max(1)).copied();
                        if let Some(offset) = chosen {
                            in_hand.remove(&offset);
                            owner.finish(offset);
                            finished.insert(offset);
                            known.insert(offset);
                        }
                    }
                    7..9 => {
                        if let Some((offset, beyond)) = owner.to_commit() {
                            let text = beyond.encode(offset, MOST);
                            prop_assert!(committed.0.is_none_or(|(before, _)| before <= offset), "went back");
                            committed = (Some((offset, text)), known.clone());
                        }
                    }
                    _ => {
                        owner = committed.0.as_ref().map_or_else(Offsets::default, |(offset, text): &(i64, String)| {
                            Offsets::resume(*offset, Finished::decode(*offset, text).unwrap())
                        });
                        let start = owner.start.unwrap_or(0);
                        at = offsets.partition_point(|offset| *offset < start);
                        in_hand.clear();
                        known.clone_from(&committed.1);
                    }
                }
            }
            for &offset in &offsets[at..] {
                if read(&mut owner, offset, &finished, &committed.1)? {
                    in_hand.insert(offset);
                }
            }
            for offset in in_hand {
                owner.finish(offset);
            }
            if owner.start.is_some() {
                prop_assert_eq!(owner.next(), Some(offsets.last().unwrap() + 1));
            }
        }
    }
}
