//! How far a consumer is behind the end of a partition.

use chrono::{DateTime, Utc};

use crate::offsets::Offsets;

/// The latest offsets of a partition that librdkafka knows. A negative offset is unknown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watermarks {
    /// The first available offset.
    pub(crate) low: i64,
    /// The offset after the last available one; while fetching is paused, its value from before the pause.
    pub(crate) high: i64,
    /// The offset to fetch next, if all records fetched before it were handed to us.
    pub(crate) next: Option<i64>,
    /// Whether all available records were handed to us. The remaining offsets may hold no records, but markers of
    /// transactions.
    pub(crate) is_read: bool,
}

/// The data that determines how far behind we are, besides the records in hand.
#[derive(Debug)]
pub(crate) struct Lag {
    assigned: DateTime<Utc>,
    watermarks: Option<Watermarks>,
    /// The last time at which nothing was left to do.
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

    /// Returns the offset that fetching has reached; `None` until librdkafka has reported it.
    pub(crate) fn reached(&self) -> Option<i64> {
        self.watermarks?.next
    }

    /// Returns how many available records are not finished; `None` until the broker has reported the end of the
    /// partition.
    pub(crate) fn records(&self, offsets: &Offsets) -> Option<u64> {
        let known = self.watermarks.filter(|known| known.high >= 0)?;
        if known.is_read && offsets.are_finished() {
            return Some(0);
        }
        // Without a committed offset, consumption starts at the first record.
        let all = || (known.low >= 0).then(|| u64::try_from(known.high - known.low).unwrap_or(0));
        offsets.left(known.high).or_else(all)
    }

    /// Returns since when the oldest unfinished record from this offset on has been there; `None` if no such record
    /// is known.
    ///
    /// The exact time of a record that is not in hand is unknown: it arrived later than the record before it, and
    /// later than the last moment without such a record.
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
        Watermarks { low: 0, high, next: None, is_read: false }
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
    fn no_lag_is_reported_before_the_end_is_known() {
        let (mut lag, offsets) = taken(&[]);
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (None, None));
        lag.note(ends_at(-1001), &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (None, None));
    }

    #[test]
    fn the_age_is_that_of_the_oldest_buffered_record() {
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
    fn without_buffered_records_the_age_continues_from_the_last_record() {
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
    fn control_records_are_no_lag() {
        let (mut lag, mut offsets) = taken(&[(7, 400)]);
        offsets.finish(7);
        lag.note(Watermarks { is_read: true, ..ends_at(9) }, &offsets, at(1001));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(0), None));
        offsets.read(9, Some(at(1002)));
        assert_eq!((lag.records(&offsets), since(&lag, &offsets)), (Some(1), Some(at(1002))));
    }
}
