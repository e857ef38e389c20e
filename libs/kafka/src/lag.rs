//! How far a consumer is behind the end of a partition.

use chrono::{DateTime, Utc};

use crate::offsets::Offsets;

/// What librdkafka last knew of a partition. An offset that is negative is not known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The first offset there is.
    pub(crate) low: i64,
    /// The offset that the group has committed.
    pub(crate) committed: i64,
    /// The one after the last offset there is; while fetching is paused, what it was before.
    pub(crate) high: i64,
    /// Whether everything there is was handed to us. What is left may be no record, but a transaction's mark.
    pub(crate) is_read: bool,
}

/// What it takes to say how far behind we are, beside the records in hand.
#[derive(Debug)]
pub(crate) struct Lag {
    assigned: DateTime<Utc>,
    bounds: Option<Bounds>,
    /// When nothing was left to do, as of late.
    caught_up: Option<DateTime<Utc>>,
}

impl Lag {
    pub(crate) fn new(assigned: DateTime<Utc>) -> Self {
        Self { assigned, bounds: None, caught_up: None }
    }

    pub(crate) fn note(&mut self, bounds: Bounds, offsets: &Offsets, now: DateTime<Utc>) {
        self.bounds = Some(bounds);
        if self.records(offsets) == Some(0) {
            self.caught_up = Some(now);
        }
    }

    /// How many records there are that are not finished, or were not before the lowest one that is not.
    /// None before the broker has said where the end is.
    pub(crate) fn records(&self, offsets: &Offsets) -> Option<u64> {
        let bounds = self.bounds.filter(|bounds| bounds.high >= 0)?;
        if bounds.is_read && offsets.are_finished() {
            return Some(0);
        }
        let next = offsets.next().or(Some(bounds.low.max(bounds.committed)).filter(|next| *next >= 0))?;
        Some(u64::try_from(offsets.end().max(bounds.high) - next).unwrap_or(0))
    }

    /// Since when the oldest record that is not finished has been there; none if there is no such record, as far as
    /// is known.
    ///
    /// Of a record that is not in hand it is only known that it came later than the one before it, and later than
    /// when there was none.
    pub(crate) fn since(&self, offsets: &Offsets) -> Option<DateTime<Utc>> {
        let earliest = || offsets.newest_time().max(self.caught_up).unwrap_or(self.assigned);
        if offsets.are_finished() {
            self.records(offsets).filter(|records| *records > 0).map(|_| earliest())
        } else {
            Some(offsets.oldest_time().unwrap_or_else(earliest))
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn ends_at(high: i64) -> Bounds {
        Bounds { low: 0, committed: -1001, high, is_read: false }
    }

    /// A partition that was assigned at 1000 s, of which these were taken.
    fn taken(records: &[(i64, i64)]) -> (Lag, Offsets) {
        let mut offsets = Offsets::default();
        for &(offset, seconds) in records {
            offsets.take(offset, Some(at(seconds)));
        }
        (Lag::new(at(1000)), offsets)
    }

    #[test]
    fn nothing_is_said_before_the_end_is_known() {
        let (mut lag, offsets) = taken(&[]);
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (None, None));
        lag.note(ends_at(-1001), &offsets, at(1001));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (None, None));
    }

    #[test]
    fn what_is_in_hand_is_as_old_as_its_oldest_record() {
        let (mut lag, mut offsets) = taken(&[(7, 400), (8, 300), (9, 500)]);
        assert_eq!(lag.since(&offsets), Some(at(400)), "known before the end is");
        lag.note(ends_at(20), &offsets, at(1001));
        assert_eq!(lag.records(&offsets), Some(13));
        offsets.finish(8);
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(13), Some(at(400))));
        offsets.finish(7);
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(11), Some(at(500))));
    }

    #[test]
    fn with_nothing_in_hand_the_age_goes_on_from_the_last_record() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(ends_at(20), &offsets, at(1001));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(12), Some(at(400))));
    }

    #[test]
    fn before_the_first_record_the_age_begins_with_the_assignment() {
        let (mut lag, offsets) = taken(&[]);
        lag.note(Bounds { low: 3, committed: 5, ..ends_at(20) }, &offsets, at(1001));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(15), Some(at(1000))));
        lag.note(Bounds { low: 3, ..ends_at(20) }, &offsets, at(1002));
        assert_eq!(lag.records(&offsets), Some(17), "a new group starts at the beginning");
    }

    #[test]
    fn a_record_after_a_long_silence_is_new() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(ends_at(8), &offsets, at(5000));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(0), None));
        lag.note(ends_at(9), &offsets, at(5005));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(1), Some(at(5000))));
    }

    #[test]
    fn what_is_no_record_is_no_lag() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(Bounds { is_read: true, ..ends_at(9) }, &offsets, at(1001));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(0), None));
        offsets.take(9, Some(at(1002)));
        assert_eq!((lag.records(&offsets), lag.since(&offsets)), (Some(1), Some(at(1002))));
    }
}
