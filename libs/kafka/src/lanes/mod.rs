#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::consumer::Intake;
use crate::{Consumer, KafkaError, Receipt, Received, Record};

/// How long the last commit may wait for a rebalance to end, when there is no hurry.
const COMMIT: Duration = Duration::from_secs(5);

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// Finished: it need not come again.
    Done,
    /// Not finished, because of a shut-down: it comes again, to whoever consumes its partition next.
    Abandoned,
}

/// Works on many records at once, and on those of one key one after another, in their order.
///
/// Each key that has a record in work is a lane; records without a key are in nobody's way. What
/// waits in a lane counts as in work: memory is bounded, and a key with a long line of records takes
/// room from others.
#[derive(Debug, Clone, Copy)]
pub struct Lanes {
    concurrency: NonZeroUsize,
}

impl Lanes {
    /// At most `concurrency` records are in work at once.
    #[must_use]
    pub fn new(concurrency: NonZeroUsize) -> Self {
        Self { concurrency }
    }

    /// Hands records to `handler` until a shut-down begins, then leaves the group.
    ///
    /// `soft` takes no new records and finishes those in work; `hard` abandons them. Records that
    /// wait in their lane when their partition goes to another member are left to that member.
    ///
    /// # Errors
    /// If a handler panicked, or abandoned a record without a shut-down; if the consumer stopped. All
    /// but what was finished is consumed again.
    pub async fn run<Key, Handler, Work>(
        self,
        mut consumer: Consumer,
        key: impl Fn(&Record) -> Option<Key> + Send,
        handler: Handler,
        soft: &CancellationToken,
        hard: &CancellationToken,
    ) -> Result<(), KafkaError>
    where
        Key: Hash + Eq + Clone + Send + 'static,
        Handler: Fn(Record) -> Work + Send,
        Work: Future<Output = Handled> + Send + 'static,
    {
        let mut floor = Floor { lanes: HashMap::new(), waiting: 0, work: JoinSet::new(), handler };
        let ended = floor.serve(consumer.intake(), self.concurrency, key, soft, hard).await;
        floor.clear().await;
        // Nothing is in work any more; only the commit may have to wait for the group.
        let closed = consumer.close(if hard.is_cancelled() { Duration::ZERO } else { COMMIT }).await;
        ended.and(closed)
    }
}

/// Where the work is done.
struct Floor<Key, Handler> {
    /// The records behind the one in work, for each key that has one in work.
    lanes: HashMap<Key, VecDeque<Received>>,
    /// How many there are in all lanes.
    waiting: usize,
    work: JoinSet<Ended<Key>>,
    handler: Handler,
}

/// A record that is no longer in work.
struct Ended<Key> {
    key: Option<Key>,
    receipt: Receipt,
    handled: Handled,
}

impl<Key, Handler, Work> Floor<Key, Handler>
where
    Key: Hash + Eq + Clone + Send + 'static,
    Handler: Fn(Record) -> Work,
    Work: Future<Output = Handled> + Send + 'static,
{
    async fn serve(
        &mut self,
        intake: &mut Intake,
        concurrency: NonZeroUsize,
        key: impl Fn(&Record) -> Option<Key>,
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
                    self.finish(ended.map_err(KafkaError::HandlerPanicked)?, taking)?;
                }
                received = intake.recv(), if taking && self.in_work() < concurrency.get() => match received {
                    Some(received) => self.admit(key(&received.record), received),
                    // The consumer stopped; closing it will tell why.
                    None => taking = false,
                },
            }
        }
        Ok(())
    }

    fn in_work(&self) -> usize {
        self.waiting + self.work.len()
    }

    fn admit(&mut self, key: Option<Key>, received: Received) {
        if let Some(key) = &key {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.push_back(received);
                self.waiting += 1;
                return;
            }
            self.lanes.insert(key.clone(), VecDeque::new());
        }
        self.start(key, received);
    }

    fn start(&mut self, key: Option<Key>, Received { record, receipt }: Received) {
        let work = (self.handler)(record);
        self.work.spawn(async move { Ended { key, receipt, handled: work.await } });
    }

    /// Gives the receipt, and starts on the next of the lane.
    fn finish(&mut self, ended: Ended<Key>, taking: bool) -> Result<(), KafkaError> {
        let Ended { key, receipt, handled } = ended;
        match handled {
            Handled::Done => receipt.done(),
            // Nobody would ever finish it, and no offset pass it.
            Handled::Abandoned if taking => return Err(KafkaError::RecordAbandoned),
            Handled::Abandoned => drop(receipt),
        }
        if let Some(key) = key {
            match self.next(&key, handled) {
                Some(next) => self.start(Some(key), next),
                None => drop(self.lanes.remove(&key)),
            }
        }
        Ok(())
    }

    /// Who is next in a lane. Behind an abandoned record nobody is: the order would be lost.
    fn next(&mut self, key: &Key, handled: Handled) -> Option<Received> {
        let lane = self.lanes.get_mut(key)?;
        while let Some(next) = lane.pop_front() {
            self.waiting -= 1;
            if handled == Handled::Done && !next.receipt.is_revoked() {
                return Some(next);
            }
        }
        None
    }

    /// Abandons what is left.
    async fn clear(&mut self) {
        self.work.shutdown().await;
        self.lanes.clear();
    }
}
