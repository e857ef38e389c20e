//! An assigned partition: what is in work of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use crate::finished::Finished;
use crate::lag::{Lag, Watermarks};
use crate::metrics::Tally;
use crate::offsets::{Offsets, Read};

/// A partition for as long as it is assigned once. When it comes back later, it is another one: the
/// receipts of this one then count for nothing.
#[derive(Debug)]
pub(crate) struct Partition {
    work: Mutex<Work>,
    tally: Tally,
    /// Its records are left to the next owner, but for those in progress.
    revoked: CancellationToken,
}

#[derive(Debug)]
struct Work {
    offsets: Offsets,
    lag: Lag,
    /// Of the changes of the offsets, how many the broker has.
    committed: u64,
    /// Records the application has and has not finished or dropped.
    started: usize,
    /// One after the last record that the application has started on.
    start: i64,
}

/// An offset to commit.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) offset: i64,
    pub(crate) finished: Finished,
    /// How many changes it stands for.
    pub(crate) changes: u64,
}

impl Partition {
    /// One that is assigned `now`, goes on where `offsets` say, and whose records `tally` counts.
    pub(crate) fn new(offsets: Offsets, tally: Tally, now: DateTime<Utc>) -> Arc<Self> {
        let work = Work { offsets, lag: Lag::new(now), committed: 0, started: 0, start: i64::MIN };
        let revoked = CancellationToken::new();
        Arc::new(Self { work: Mutex::new(work), tally, revoked })
    }

    /// A record of this time was polled, for the application to start some day.
    pub(crate) fn read(&self, offset: i64, time: Option<DateTime<Utc>>) -> Read {
        self.work().offsets.read(offset, time)
    }

    /// Whether another record may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.work().offsets.has_room()
    }

    /// Whether many more records may be taken.
    pub(crate) fn is_relieved(&self) -> bool {
        self.work().offsets.is_relieved()
    }

    /// The application starts on a record; not once the partition is revoked.
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
            self.tally.handed_out();
        }
        starts
    }

    /// The application has finished a record, so long after it was started.
    pub(crate) fn finish(&self, offset: i64, took: Duration) {
        self.tally.finished(took);
        let mut work = self.work();
        work.offsets.finish(offset);
        work.started -= 1;
    }

    /// The application dropped a record unfinished: nothing waits for it.
    pub(crate) fn abandon(&self) {
        self.work().started -= 1;
    }

    /// No record of it is started any more.
    pub(crate) fn revoke(&self) {
        // Under the lock: a record that is started at the same time is either counted or not started.
        let _work = self.work();
        self.revoked.cancel();
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Cancelled when it is revoked.
    pub(crate) fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// How many records are in work.
    pub(crate) fn in_work(&self) -> usize {
        self.work().started
    }

    /// What the broker does not have yet.
    pub(crate) fn to_commit(&self) -> Option<Commit> {
        let work = self.work();
        let changes = work.offsets.changes();
        if changes == work.committed {
            return None;
        }
        let (offset, finished) = work.offsets.to_commit()?;
        Some(Commit { offset, finished, changes })
    }

    /// Whether the broker has all that is to be committed.
    pub(crate) fn is_committed(&self) -> bool {
        let work = self.work();
        work.offsets.changes() == work.committed
    }

    /// The broker has so many changes.
    pub(crate) fn committed(&self, changes: u64) {
        let mut work = self.work();
        work.committed = work.committed.max(changes);
    }

    /// Takes what librdkafka knows.
    pub(crate) fn note(&self, watermarks: Watermarks, now: DateTime<Utc>) {
        let mut work = self.work();
        let Work { lag, offsets, .. } = &mut *work;
        lag.note(watermarks, offsets, now);
    }

    /// How many records are not finished, if that is known.
    pub(crate) fn lag(&self) -> Option<u64> {
        let work = self.work();
        work.lag.records(&work.offsets)
    }

    /// How old the oldest record is that is not finished, if anything is known of it.
    pub(crate) fn age(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        self.work().age(i64::MIN, now)
    }

    /// How old the oldest record is on which work has not started, if anything is known of it.
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
            // The clock of the producer may be ahead.
            Some(since) => Some((now - since).max(TimeDelta::zero())),
            None => self.lag.records(&self.offsets).map(|_| TimeDelta::zero()),
        }
    }
}
