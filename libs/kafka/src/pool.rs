#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::consumer::Intake;
use crate::{Claim, Consumer, KafkaError, Receipt, Received, Record};

/// How long the last commit may wait for a rebalance to end, unless the shutdown is hard.
const COMMIT: Duration = Duration::from_secs(5);

/// The result of handling a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// The record is finished and is not redelivered.
    Done,
    /// The record is not finished, because the [claim](Claim) to it had ended: the next owner of its partition
    /// consumes it.
    Abandoned,
}

/// Processes many records at once.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    records: usize,
}

impl Pool {
    /// Permits up to `records` records in work at once, and at least one. The [consumer](crate::Bounds) limits how
    /// many bytes they have together.
    #[must_use]
    pub fn new(records: usize) -> Self {
        Self { records }
    }

    /// Hands records to `handler` until a shutdown begins, then leaves the group.
    ///
    /// `handler` is called for one record after the other, in the order of each partition; the futures that it
    /// returns run concurrently. A handler that needs an order among them must line them up before it returns.
    ///
    /// `soft` takes no new records, ends the claims and finishes records in work; `hard` abandons these too.
    ///
    /// # Errors
    /// If a handler panicked, or abandoned a record without a reason, or if the consumer stopped. All records that
    /// were not finished are consumed again.
    pub async fn run<Handler, Work>(
        self,
        mut consumer: Consumer,
        handler: Handler,
        soft: &CancellationToken,
        hard: &CancellationToken,
    ) -> Result<(), KafkaError>
    where
        Handler: Fn(Record, Claim) -> Work + Send,
        Work: Future<Output = Handled> + Send + 'static,
    {
        let mut floor = Floor { bounds: self, work: JoinSet::new(), handler };
        let ended = floor.serve(consumer.intake(), soft, hard).await;
        floor.work.shutdown().await;
        // Nothing is in work any more; only the commit may have to wait for the group.
        let closed = consumer.close(if hard.is_cancelled() { Duration::ZERO } else { COMMIT }).await;
        ended.and(closed)
    }
}

/// The records in work.
struct Floor<Handler> {
    bounds: Pool,
    work: JoinSet<Ended>,
    handler: Handler,
}

/// A record that is no longer in work.
struct Ended {
    receipt: Receipt,
    handled: Handled,
}

impl<Handler, Work> Floor<Handler>
where
    Handler: Fn(Record, Claim) -> Work,
    Work: Future<Output = Handled> + Send + 'static,
{
    async fn serve(
        &mut self,
        intake: &mut Intake,
        soft: &CancellationToken,
        hard: &CancellationToken,
    ) -> Result<(), KafkaError> {
        let mut taking = true;
        while taking || !self.work.is_empty() {
            tokio::select! {
                biased;
                () = hard.cancelled() => return Ok(()),
                () = soft.cancelled(), if taking => taking = false,
                Some(ended) = self.work.join_next(), if !self.work.is_empty() => {
                    Self::finish(ended.map_err(KafkaError::HandlerPanicked)?, taking)?;
                }
                received = intake.recv(), if taking && self.has_room() => match received {
                    Some(received) => self.start(received, soft),
                    // The consumer has stopped; closing it returns the reason.
                    None => taking = false,
                },
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.work.is_empty() || self.work.len() < self.bounds.records
    }

    fn start(&mut self, Received { record, receipt }: Received, leaving: &CancellationToken) {
        let work = (self.handler)(record, receipt.claim(leaving));
        self.work.spawn(async move { Ended { receipt, handled: work.await } });
    }

    fn finish(ended: Ended, taking: bool) -> Result<(), KafkaError> {
        let Ended { receipt, handled } = ended;
        match handled {
            Handled::Done => receipt.done(),
            // Nothing would ever finish the record, and no committed offset could pass it.
            Handled::Abandoned if taking && !receipt.is_revoked() => {
                return Err(KafkaError::RecordAbandoned);
            }
            Handled::Abandoned => drop(receipt),
        }
        Ok(())
    }
}
