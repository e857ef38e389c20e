//! Which offset may be committed.

use std::collections::BTreeSet;

/// The records of one partition that are under way, as the contiguous prefix of finished ones.
///
/// Offsets come in ascending order, with gaps where compaction or transactions left them; records
/// finish in any order. What may be committed is the lowest unfinished offset, or, when all are
/// finished, the one after the highest: everything below it is finished.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    unfinished: BTreeSet<i64>,
    /// The offset of the first record that was taken.
    start: Option<i64>,
    /// One after the highest offset that was taken.
    end: i64,
}

impl Offsets {
    /// A record was taken from the partition.
    pub(crate) fn take(&mut self, offset: i64) {
        self.unfinished.insert(offset);
        self.end = self.end.max(offset + 1);
        self.start.get_or_insert(offset);
    }

    /// A record that was taken is finished.
    pub(crate) fn finish(&mut self, offset: i64) {
        self.unfinished.remove(&offset);
    }

    /// The offset to commit, if anything is finished that has nothing unfinished before it.
    pub(crate) fn prefix(&self) -> Option<i64> {
        let prefix = self.unfinished.first().copied().unwrap_or(self.end);
        self.start.is_some_and(|start| prefix > start).then_some(prefix)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(offsets: &[i64]) -> Offsets {
        let mut tracker = Offsets::default();
        for &offset in offsets {
            tracker.take(offset);
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
                    tracker.take(offset);
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
