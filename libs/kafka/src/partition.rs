//! An assigned partition, and its records in work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use crate::finished::Finished;
use crate::lag::{Lag, Watermarks};
use crate::metrics::TopicMetrics;
use crate::offsets::{Offsets, Read};

/// One assignment of a partition. When the partition is assigned again later, that is another value, and receipts of
/// this one have no effect.
#[derive(Debug)]
pub(crate) struct Partition {
    work: Mutex<Work>,
    metrics: TopicMetrics,
    /// Cancelled when the partition is revoked: its records are left to the next owner, except those in progress.
    revoked: CancellationToken,
}

#[derive(Debug)]
struct Work {
    offsets: Offsets,
    lag: Lag,
    /// How many changes of the offsets the broker has.
    committed: u64,
    /// The records that the application has received, and has neither finished nor dropped.
    started: usize,
    /// One after the last record that the application has started.
    start: i64,
}

/// An offset to commit.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) offset: i64,
    pub(crate) finished: Finished,
    /// How many changes the commit covers.
    pub(crate) changes: u64,
}

impl Partition {
    /// Creates a partition that is assigned `now` and continues where `offsets` say; `metrics` counts its records.
    pub(crate) fn new(offsets: Offsets, metrics: TopicMetrics, now: DateTime<Utc>) -> Arc<Self> {
        let work = Work { offsets, lag: Lag::new(now), committed: 0, started: 0, start: i64::MIN };
        let revoked = CancellationToken::new();
        Arc::new(Self { work: Mutex::new(work), metrics, revoked })
    }

    /// Notes that a record of this time was polled, for the application to start later.
    pub(crate) fn read(&self, offset: i64, time: Option<DateTime<Utc>>) -> Read {
        self.work().offsets.read(offset, time)
    }

    /// Returns whether another record may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.work().offsets.has_room()
    }

    /// Returns whether many more records may be taken.
    pub(crate) fn is_relieved(&self) -> bool {
        self.work().offsets.is_relieved()
    }

    /// Notes that the application starts a record. Returns false, and starts nothing, once the partition is revoked.
    pub(crate) fn start(&self, offset: i64) -> bool {
        let starts = {
            let mut work = self.work();
            let starts = !self.is_revoked();
            if starts {
                work.started += 1;
                work.start = offset + 1;
            }
            starts
        };
        if starts {
            self.metrics.handed_out();
        }
        starts
    }

    /// Notes that the application has finished a record, `took` after it was started.
    pub(crate) fn finish(&self, offset: i64, took: Duration) {
        self.metrics.finished(took);
        let mut work = self.work();
        work.offsets.finish(offset);
        work.started -= 1;
    }

    /// Notes that the application dropped a record unfinished: nothing waits for it.
    pub(crate) fn abandon(&self) {
        self.work().started -= 1;
    }

    /// Revokes the partition: no record of it is started any more.
    pub(crate) fn revoke(&self) {
        // Under the lock: a record that is started at the same time is either counted or not started.
        let _work = self.work();
        self.revoked.cancel();
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Returns the token that is cancelled when the partition is revoked.
    pub(crate) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// Returns one after the last record that was started.
    pub(crate) fn next_start(&self) -> i64 {
        self.work().start
    }

    /// Returns whether all records before this offset are finished.
    pub(crate) fn is_finished_before(&self, offset: i64) -> bool {
        self.work().offsets.unfinished_from(i64::MIN).is_none_or(|(lowest, _)| lowest >= offset)
    }

    /// Returns the offset before which all records have been read. Markers of transactions are not read, but passed.
    pub(crate) fn reached(&self) -> i64 {
        let work = self.work();
        work.lag.reached().map_or(work.offsets.end(), |reached| reached.max(work.offsets.end()))
    }

    /// Returns how many records are in work.
    pub(crate) fn in_work(&self) -> usize {
        self.work().started
    }

    /// Returns the commit to make, if the broker does not have everything yet.
    pub(crate) fn to_commit(&self) -> Option<Commit> {
        let work = self.work();
        let changes = work.offsets.changes();
        if changes == work.committed {
            return None;
        }
        let (offset, finished) = work.offsets.to_commit()?;
        Some(Commit { offset, finished, changes })
    }

    /// Returns whether the broker has everything to commit.
    pub(crate) fn is_committed(&self) -> bool {
        let work = self.work();
        work.offsets.changes() == work.committed
    }

    /// Notes that the broker has the first `changes` changes.
    pub(crate) fn committed(&self, changes: u64) {
        let mut work = self.work();
        work.committed = work.committed.max(changes);
    }

    /// Stores the watermarks that librdkafka reports.
    pub(crate) fn note(&self, watermarks: Watermarks, now: DateTime<Utc>) {
        let mut work = self.work();
        let Work { lag, offsets, .. } = &mut *work;
        lag.note(watermarks, offsets, now);
    }

    /// Returns how many records are not finished, if that is known.
    pub(crate) fn lag(&self) -> Option<u64> {
        let work = self.work();
        work.lag.records(&work.offsets)
    }

    /// Returns the age of the oldest record that is not finished, if it is known.
    pub(crate) fn age(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        self.work().age(i64::MIN, now)
    }

    /// Returns the age of the oldest record that is not started, if it is known.
    pub(crate) fn waiting(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let work = self.work();
        work.age(work.start, now)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn age(&self, from: i64, now: DateTime<Utc>) -> Option<TimeDelta> {
        match self.lag.since(&self.offsets, from) {
            // The clock of the producer, or of the broker, may be ahead.
            Some(since) => Some((now - since).max(TimeDelta::zero())),
            None => self.lag.records(&self.offsets).map(|_| TimeDelta::zero()),
        }
    }
}
