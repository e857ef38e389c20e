//! Which offset may be committed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

/// The records of one partition that are under way, as the contiguous prefix of finished ones.
///
/// Offsets come in ascending order, with gaps where compaction or transactions left them; records
/// finish in any order. What may be committed is the lowest unfinished offset, or, when all are
/// finished, the one after the highest: everything below it is finished.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// With the times of the records.
    unfinished: BTreeMap<i64, Option<DateTime<Utc>>>,
    /// The time of the last record that was taken and has one.
    newest: Option<DateTime<Utc>>,
    /// The offset of the first record that was taken.
    start: Option<i64>,
    /// One after the highest offset that was taken.
    end: i64,
}

impl Offsets {
    /// A record was taken from the partition.
    pub(crate) fn take(&mut self, offset: i64, time: Option<DateTime<Utc>>) {
        self.unfinished.insert(offset, time);
        self.newest = time.or(self.newest);
        self.end = self.end.max(offset + 1);
        self.start.get_or_insert(offset);
    }

    /// A record that was taken is finished.
    pub(crate) fn finish(&mut self, offset: i64) {
        self.unfinished.remove(&offset);
    }

    /// The offset to commit, if anything is finished that has nothing unfinished before it.
    pub(crate) fn prefix(&self) -> Option<i64> {
        self.next().filter(|next| self.start.is_some_and(|start| *next > start))
    }

    /// The lowest offset that is not finished, taken or not; none before a record was taken.
    pub(crate) fn next(&self) -> Option<i64> {
        self.start?;
        Some(self.unfinished.first_key_value().map_or(self.end, |(offset, _)| *offset))
    }

    /// One after the highest offset that was taken.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// Whether all that were taken are finished.
    pub(crate) fn are_finished(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// The time of the lowest record that is not finished, if it has one.
    pub(crate) fn oldest_time(&self) -> Option<DateTime<Utc>> {
        self.unfinished.first_key_value().and_then(|(_, time)| *time)
    }

    /// The time of the last record that was taken.
    pub(crate) fn newest_time(&self) -> Option<DateTime<Utc>> {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn taken(offsets: &[i64]) -> Offsets {
        let mut tracker = Offsets::default();
        for &offset in offsets {
            tracker.take(offset, None);
        }
        tracker
    }

    #[test]
    fn nothing_is_committed_before_the_first_record_is_finished() {
        let mut tracker = taken(&[7, 8]);
        assert_eq!(tracker.prefix(), None);
        tracker.finish(8);
        assert_eq!(tracker.prefix(), None);
        tracker.finish(7);
        assert_eq!(tracker.prefix(), Some(9));
    }

    #[test]
    fn a_gap_is_stepped_over() {
        let mut tracker = taken(&[3, 10]);
        tracker.finish(3);
        assert_eq!(tracker.prefix(), Some(10));
    }

    /// Ascending offsets with gaps, and the order in which they finish.
    fn histories() -> impl Strategy<Value = (Vec<i64>, Vec<i64>)> {
        let offsets = prop::collection::btree_set(0_i64..200, 1..60).prop_map(Vec::from_iter);
        offsets.prop_flat_map(|offsets| (Just(offsets.clone()), Just(offsets).prop_shuffle()))
    }

    proptest! {
        #[test]
        fn whatever_the_order_only_finished_records_lie_below_the_committed_offset(
            (offsets, order) in histories(),
            taken_ahead in 1_usize..20,
        ) {
            let mut tracker = Offsets::default();
            let mut to_take = offsets.iter().copied();
            let mut unfinished = BTreeSet::new();
            let mut committed = i64::MIN;
            for (turn, _) in order.iter().enumerate() {
                // Some are taken only while others finish already.
                for offset in to_take.by_ref().take(if turn == 0 { taken_ahead } else { 1 }) {
                    tracker.take(offset, None);
                    unfinished.insert(offset);
                }
                if let Some(&next) = order.iter().find(|offset| unfinished.contains(offset)) {
                    tracker.finish(next);
                    unfinished.remove(&next);
                }
                if let Some(offset) = tracker.prefix() {
                    prop_assert!(offset >= committed, "went back from {committed} to {offset}");
                    committed = offset;
                }
                let lowest = unfinished.first().copied().unwrap_or(i64::MAX);
                prop_assert!(committed <= lowest, "{committed} skips {lowest}");
            }
            prop_assert!(unfinished.is_empty());
            prop_assert_eq!(committed, offsets.last().unwrap() + 1);
        }
    }
}
