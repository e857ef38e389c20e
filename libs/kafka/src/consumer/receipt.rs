use std::sync::Arc;

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
            let receipt = Receipt { offset: record.offset, partition, done: false };
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
    done: bool,
}

impl Receipt {
    /// The record is finished and need not come again.
    pub fn done(mut self) {
        self.done = true;
    }

    /// Whether the record's partition has gone, or is going, to another member, who will consume the
    /// record too if it is not finished at once. What has not begun had better not.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.partition.is_revoked()
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.done {
            self.partition.finish(self.offset);
        } else {
            self.partition.abandon();
        }
    }
}
