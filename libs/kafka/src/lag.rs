//! How far a consumer is behind the end of a partition.

use chrono::{DateTime, Utc};

use crate::offsets::Offsets;

/// What librdkafka last knew of a partition. An offset that is negative is not known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watermarks {
    /// The first offset there is.
    pub(crate) low: i64,
    /// The one after the last offset there is; while fetching is paused, what it was before.
    pub(crate) high: i64,
    /// Whether everything there is was handed to us. What is left may be no record, but a transaction's mark.
    pub(crate) is_read: bool,
}

/// What it takes to say how far behind we are, beside the records in hand.
#[derive(Debug)]
pub(crate) struct Lag {
    assigned: DateTime<Utc>,
    watermarks: Option<Watermarks>,
    /// When nothing was left to do, as of late.
    caught_up: Option<DateTime<Utc>>,
}

impl Lag {
    pub(crate) fn new(assigned: DateTime<Utc>) -> Self {
        Self { assigned, watermarks: None, caught_up: None }
    }

    pub(crate) fn note(&mut self, watermarks: Watermarks, offsets: &Offsets, now: DateTime<Utc>) {
        self.watermarks = Some(watermarks);
        if self.records(offsets) == Some(0) {
            self.caught_up = Some(now);
        }
    }

    /// How many records there are that are not finished. None before the broker has said where the end is.
    pub(crate) fn records(&self, offsets: &Offsets) -> Option<u64> {
        let known = self.watermarks.filter(|known| known.high >= 0)?;
        if known.is_read && offsets.are_finished() {
            return Some(0);
        }
        // Without a committed offset it begins with the first record.
        let all = || (known.low >= 0).then(|| u64::try_from(known.high - known.low).unwrap_or(0));
        offsets.left(known.high).or_else(all)
    }

    /// Since when the oldest record from this offset on that is not finished has been there; none if there is no such
    /// record, as far as is known.
    ///
    /// Of a record that is not in hand it is only known that it came later than the one before it, and later than
    /// when there was none.
    pub(crate) fn since(&self, offsets: &Offsets, from: i64) -> Option<DateTime<Utc>> {
        let earliest = || offsets.newest_time().max(self.caught_up).unwrap_or(self.assigned);
        if let Some((_, time)) = offsets.unfinished_from(from) {
            return Some(time.unwrap_or_else(earliest));
        }
        let not_read = self.records(offsets)? > offsets.in_hand();
        not_read.then(earliest)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::finished::Finished;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn ends_at(high: i64) -> Watermarks {
        Watermarks { low: 0, high, is_read: false }
    }

    fn since(lag: &Lag, offsets: &Offsets) -> Option<DateTime<Utc>> {
        lag.since(offsets, i64::MIN)
    }

    /// A partition that was assigned at 1000 s, of which these were taken.
    fn taken(records: &[(i64, i64)]) -> (Lag, Offsets) {
        let mut offsets = Offsets::default();
        for &(offset, seconds) in records {
            offsets.read(offset, Some(at(seconds)));
        }
        (Lag::new(at(1000)), offsets)
    }

    #[test]
    fn nothing_is_said_before_the_end_is_known() {
        let (mut lag, offsets) = taken(&[]);
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (None, None));
        lag.note(ends_at(-1001), &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (None, None));
    }

    #[test]
    fn what_is_in_hand_is_as_old_as_its_oldest_record() {
        let (mut lag, mut offsets) = taken(&[(7, 400), (8, 300), (9, 500)]);
        assert_eq!(since(&lag, &offsets), Some(at(400)), "known before the end is");
        lag.note(ends_at(20), &offsets, at(1001));
        assert_eq!(lag.records(&offsets), Some(13));
        offsets.finish(8);
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(12), Some(at(400))));
        offsets.finish(7);
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(11), Some(at(500))));
    }

    #[test]
    fn records_in_progress_do_not_count_as_waiting() {
        let (mut lag, mut offsets) = taken(&[(7, 400), (8, 500)]);
        assert_eq!(lag.since(&offsets, 8), Some(at(500)), "the second has not started");
        lag.note(ends_at(9), &offsets, at(1001));
        assert_eq!(lag.since(&offsets, 9), None, "both have, and there is no other");
        lag.note(ends_at(10), &offsets, at(1002));
        assert_eq!(lag.since(&offsets, 9), Some(at(500)), "another one came, later than those");
        offsets.finish(7);
        assert_eq!(lag.since(&offsets, 9), Some(at(500)));
    }

    #[test]
    fn with_nothing_in_hand_the_age_goes_on_from_the_last_record() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(ends_at(20), &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(12), Some(at(400))));
    }

    #[test]
    fn before_the_first_record_the_age_begins_with_the_assignment() {
        let mut lag = Lag::new(at(1000));
        let offsets = Offsets::resume(5, Finished::default());
        lag.note(Watermarks { low: 3, ..ends_at(20) }, &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(15), Some(at(1000))));
        assert_eq!(lag.records(&Offsets::default()), Some(17), "a new group starts at the beginning");
    }

    #[test]
    fn a_record_after_a_long_silence_is_new() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(ends_at(8), &offsets, at(5000));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(0), None));
        lag.note(ends_at(9), &offsets, at(5005));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(1), Some(at(5000))));
    }

    #[test]
    fn what_is_no_record_is_no_lag() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(Watermarks { is_read: true, ..ends_at(9) }, &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(0), None));
        offsets.read(9, Some(at(1002)));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(1), Some(at(1002))));
    }
}
