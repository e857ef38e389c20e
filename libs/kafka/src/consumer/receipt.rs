use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pump::Buffered;
use super::room::Held;
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
    pub(crate) fn start(Buffered { record, partition, held }: Buffered) -> Option<Self> {
        partition.start(record.offset).then(|| {
            let started = Instant::now();
            let receipt = Receipt { offset: record.offset, partition, started, done: false, _held: held };
            Self { record, receipt }
        })
    }
}

/// Says that a record is finished.
///
/// Dropped without [`Receipt::done`], the record stays unfinished, and the next owner of its partition consumes it again.
/// After its partition went to another member, a receipt does nothing. The record counts among the bytes that the
/// consumer holds as long as its receipt is there.
#[must_use = "a record without its receipt is consumed again"]
#[derive(Debug)]
pub struct Receipt {
    partition: Arc<Partition>,
    offset: i64,
    started: Instant,
    done: bool,
    _held: Held,
}

impl Receipt {
    /// The record is finished and need not come again.
    pub fn done(mut self) {
        self.done = true;
    }

    /// The claim to the record that this is the receipt of, until `leaving`.
    #[must_use]
    pub fn claim(&self, leaving: &CancellationToken) -> Claim {
        Claim { partition: Arc::clone(&self.partition), leaving: leaving.clone() }
    }

    /// Whether the record's partition has gone, or is going, to another member.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.partition.is_revoked()
    }
}

/// A member's claim to a record, which ends when its partition goes to another member, or when this one leaves.
///
/// The partition is held for a while then, so that what is in progress can end. Work that has not begun is left to the
/// next owner, which begins it at once; so are repetitions and waits.
#[derive(Debug, Clone)]
pub struct Claim {
    partition: Arc<Partition>,
    leaving: CancellationToken,
}

impl Claim {
    /// Whether it has ended: nothing may begin then that can be left to the next owner.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.partition.is_revoked() || self.leaving.is_cancelled()
    }

    /// Waits until it ends.
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
