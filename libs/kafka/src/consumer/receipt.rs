use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pump::Buffered;
use crate::Record;
use crate::partition::Partition;

/// A record, and the receipt to give for it.
#[derive(Debug)]
pub struct Received {
    /// The record.
    pub record: Record,
    /// To be given when the record is finished.
    pub receipt: Receipt,
}

impl Received {
    /// Starts on a record, unless its partition has gone to another member meanwhile.
    pub(crate) fn start(Buffered { record, partition }: Buffered) -> Option<Self> {
        partition.start().then(|| {
            let started = Instant::now();
            let receipt = Receipt { offset: record.offset, partition, started, done: false };
            Self { record, receipt }
        })
    }
}

/// Says that a record is finished.
///
/// Dropped without [`Receipt::done`], the record stays unfinished: no offset is committed past it, and
/// it is consumed again by whoever has its partition next. After its partition went to another member,
/// a receipt does nothing.
#[must_use = "a record without its receipt is consumed again"]
#[derive(Debug)]
pub struct Receipt {
    partition: Arc<Partition>,
    offset: i64,
    started: Instant,
    done: bool,
}

impl Receipt {
    /// The record is finished and need not come again.
    pub fn done(mut self) {
        self.done = true;
    }

    /// The claim to the record that this is the receipt of, until `leaving`.
    #[must_use]
    pub fn claim(&self, leaving: &CancellationToken) -> Claim {
        Claim { partition: Arc::clone(&self.partition), offset: self.offset, leaving: leaving.clone() }
    }

    /// Whether the record's partition has gone, or is going, to another member, who will consume the
    /// record too if it is not finished at once.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.partition.is_revoked()
    }
}

/// A member's claim to a record, which ends when its partition goes to another member, or when this one leaves.
#[derive(Debug, Clone)]
pub struct Claim {
    partition: Arc<Partition>,
    offset: i64,
    leaving: CancellationToken,
}

impl Claim {
    /// Says that work on the record is about to begin, and answers whether it is to.
    ///
    /// Once the claim has ended it is not: the next owner need not wait for it then. But it is if work on a later
    /// record of the same partition has begun, since the next owner consumes again from the first one that is not
    /// finished.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.partition.begin(self.offset, || self.leaving.is_cancelled())
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
