use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::Held;
use super::poll_thread::Buffered;
use crate::Record;
use crate::partition::Partition;

/// A record with its receipt.
#[derive(Debug)]
pub struct Received {
    /// The record.
    pub record: Record,
    /// The receipt to give when the record is finished.
    pub receipt: Receipt,
}

impl Received {
    /// Starts a record, unless its partition has gone to another member meanwhile.
    pub(crate) fn start(Buffered { record, partition, held }: Buffered) -> Option<Self> {
        partition.start(record.offset).then(|| {
            let started = Instant::now();
            let receipt = Receipt { offset: record.offset, partition, started, done: false, _held: held };
            Self { record, receipt }
        })
    }
}

/// Marks a record as finished.
///
/// If it is dropped without [`Receipt::done`], the record stays unfinished, and the next owner of its partition
/// consumes it again. A receipt has no effect after its partition went to another member. Until its receipt is
/// dropped, a record counts towards the bytes that the consumer holds.
#[must_use = "a record without its receipt is redelivered"]
#[derive(Debug)]
pub struct Receipt {
    partition: Arc<Partition>,
    offset: i64,
    started: Instant,
    done: bool,
    _held: Held,
}

impl Receipt {
    /// Marks the record as finished, so that it is not redelivered.
    pub fn done(mut self) {
        self.done = true;
    }

    /// Returns the claim to this receipt's record, which ends at `leaving` at the latest.
    #[must_use]
    pub fn claim(&self, leaving: &CancellationToken) -> Claim {
        Claim { partition: Arc::clone(&self.partition), leaving: leaving.clone() }
    }

    /// Returns whether the record's partition has gone, or is going, to another member.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.partition.is_revoked()
    }
}

/// A member's claim to a record, which ends when its partition goes to another member, or when this member leaves.
///
/// The partition is then held for a while, so that work in progress can end. Work that has not begun is left to the
/// next owner, which begins it at once; so are repetitions and waits.
#[derive(Debug, Clone)]
pub struct Claim {
    partition: Arc<Partition>,
    leaving: CancellationToken,
}

impl Claim {
    /// Returns whether the claim has ended: work that can be left to the next owner must not begin any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.partition.is_revoked() || self.leaving.is_cancelled()
    }

    /// Waits until the claim ends.
    ///
    /// Cancel safe.
    pub async fn ended(&self) {
        tokio::select! {
            () = self.partition.revoked().cancelled() => {}
            () = self.leaving.cancelled() => {}
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.done {
            self.partition.finish(self.offset, self.started.elapsed());
        } else {
            self.partition.abandon();
        }
    }
}
