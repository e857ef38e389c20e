//! Key queues: at each destination, deliveries with the same ordering key are made one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use throughline_resilience::{Moment, Spent, WaitEstimator};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::fair_share::{Share, SharePermit};
use crate::limits::SOON;
use crate::pulse::{Pulse, Watch};

/// An ordering key of one route. Deliveries with the same key keep their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct OrderingKey {
    pub(crate) route: String,
    pub(crate) key: Bytes,
}

/// How long a delivery waits in its key queue for the deliveries before it: a burst of one key is worked off in order,
/// but a long backlog of a slow third party does not wait here.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// The key queues of one destination.
///
/// Each ordering key with a delivery in hand has a queue. A delivery that would wait too long in its queue is deferred,
/// and so is one that exceeds the budget for waiting deliveries: keys with long queues, and slow destinations with many
/// keys, leave a part of the budget to others. While dispatch itself is the bottleneck, no delivery is deferred (see
/// `limits`).
#[derive(Debug)]
pub(crate) struct KeyQueues {
    /// The destination's share of the budget for waiting deliveries, which all destinations share.
    share: Arc<Share>,
    pulse: Arc<Pulse>,
    by_key: Mutex<HashMap<OrderingKey, KeyQueue>>,
}

#[derive(Debug)]
struct KeyQueue {
    /// Notifies the waiting deliveries; the first one may be worked on.
    queue: VecDeque<Arc<Notify>>,
    wait_estimator: WaitEstimator,
}

/// A place in a key queue, taken until it is dropped.
#[derive(Debug)]
pub(crate) struct QueueTicket {
    key_queues: Arc<KeyQueues>,
    key: OrderingKey,
    /// Notifies the delivery when it is the first in its queue.
    is_first: Arc<Notify>,
    stage: Stage,
}

/// The progress of the delivery that has a ticket.
#[derive(Debug)]
enum Stage {
    /// Other deliveries are before it; it takes a share of the budget for waiting deliveries.
    Waiting(SharePermit),
    /// It is the first in its queue.
    First,
    /// Work on it has begun.
    InWork(Watch),
}

impl KeyQueues {
    /// Creates the key queues of one destination, with its `share` of the budget for waiting deliveries.
    pub(crate) fn new(share: Arc<Share>, pulse: Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self { share, pulse, by_key: Mutex::default() })
    }

    /// Takes the last place in the queue of a key. `call` returns how long a call took lately, for a new queue.
    ///
    /// # Errors
    /// If the delivery would wait too long; the error is how long to defer it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: OrderingKey,
        call: impl FnOnce() -> Duration,
    ) -> Result<QueueTicket, Duration> {
        let now = self.pulse.now();
        let is_first = Arc::new(Notify::new());
        let mut key_queues = self.key_queues();
        let key_queue = key_queues.entry(key.clone()).or_insert_with(|| KeyQueue::new(call(), now));
        let stage = if key_queue.queue.is_empty() {
            Stage::First
        } else {
            let permit = self.share.take_anyway(1);
            Stage::Waiting(key_queue.wait(permit, &now).map_err(|defer_for| defer_for.max(MAX_WAIT))?)
        };
        key_queue.queue.push_back(Arc::clone(&is_first));
        drop(key_queues);
        Ok(QueueTicket { key_queues: Arc::clone(self), key, is_first, stage })
    }

    fn key_queues(&self) -> MutexGuard<'_, HashMap<OrderingKey, KeyQueue>> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyQueue {
    fn new(call: Duration, now: Moment) -> Self {
        let mut wait_estimator = WaitEstimator::new(1, Duration::ZERO, MAX_WAIT);
        wait_estimator.ended(Spent { theirs: call, ours: Duration::ZERO }, now);
        Self { queue: VecDeque::new(), wait_estimator }
    }

    fn wait(&mut self, permit: SharePermit, now: &Moment) -> Result<SharePermit, Duration> {
        if !permit.is_within() && self.wait_estimator.is_slow(now, SOON) {
            return Err(self.wait_estimator.defer(now));
        }
        self.wait_estimator.wait(now).map(|()| permit)
    }
}

impl QueueTicket {
    /// Waits until the delivery is the first in its queue. It gives up after [`MAX_WAIT`], if the deliveries before it
    /// take that long or if their destination `is_slow`.
    ///
    /// # Errors
    /// If it gives up; the error is how long to defer the delivery.
    pub(crate) async fn wait(&mut self, is_slow: impl Fn() -> bool) -> Result<(), Duration> {
        let Stage::Waiting(permit) = &self.stage else { return Ok(()) };
        // Beyond the budget, the delivery is in the way of others as soon as its queue is slow.
        let max_wait = if permit.is_within() { MAX_WAIT } else { SOON };
        let pulse = &self.key_queues.pulse;
        let mut watch = pulse.watch();
        loop {
            let left = max_wait.saturating_sub(watch.spent().theirs);
            let is_first = timeout(left, self.is_first.notified()).await.is_ok();
            let now = pulse.now();
            let mut key_queues = self.key_queues.key_queues();
            let Some(key_queue) = key_queues.get_mut(&self.key) else { return Ok(()) };
            if is_first {
                key_queue.wait_estimator.leave();
                self.stage = Stage::First;
                return Ok(());
            }
            if watch.spent().theirs >= max_wait {
                if key_queue.wait_estimator.is_slow(&now, SOON) || is_slow() {
                    return Err(key_queue.wait_estimator.defer(&now).max(MAX_WAIT));
                }
                watch = pulse.watch();
            }
        }
    }

    /// Notes that work on the delivery begins.
    pub(crate) fn begin(&mut self) {
        let watch = self.key_queues.pulse.watch();
        if let Some(key_queue) = self.key_queues.key_queues().get_mut(&self.key) {
            key_queue.wait_estimator.began(watch.since());
        }
        self.stage = Stage::InWork(watch);
    }
}

impl Drop for QueueTicket {
    fn drop(&mut self) {
        let mut key_queues = self.key_queues.key_queues();
        let Some(key_queue) = key_queues.get_mut(&self.key) else { return };
        match &self.stage {
            Stage::Waiting(_) => key_queue.wait_estimator.leave(),
            Stage::First => {}
            Stage::InWork(watch) => {
                key_queue.wait_estimator.ended(watch.spent(), self.key_queues.pulse.now());
            }
        }
        key_queue.queue.retain(|waiting| !Arc::ptr_eq(waiting, &self.is_first));
        match key_queue.queue.front() {
            // A second notification is harmless.
            Some(next) => next.notify_one(),
            None => drop(key_queues.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::fair_share::Budget;
    use crate::pulse::tests::{beating, starve};

    const SECOND: Duration = Duration::from_secs(1);

    fn key(key: &'static str) -> OrderingKey {
        OrderingKey { route: "one".to_owned(), key: Bytes::from_static(key.as_bytes()) }
    }

    /// Key queues with a budget of `budget` deliveries, half of which one destination may take.
    fn key_queues(budget: usize) -> Arc<KeyQueues> {
        KeyQueues::new(Share::of(&Budget::new(budget)), beating())
    }

    fn enter(
        key_queues: &Arc<KeyQueues>,
        name: &'static str,
        call: Duration,
    ) -> Result<QueueTicket, Duration> {
        key_queues.enter(key(name), || call)
    }

    async fn wait(ticket: &mut QueueTicket) -> Result<(), Duration> {
        ticket.wait(|| false).await
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_of_a_key_are_worked_on_in_order() {
        let key_queues = key_queues(20);
        let tickets = ["a", "a", "a", "b"].map(|name| enter(&key_queues, name, SECOND).unwrap());
        let order = Mutex::new(Vec::new());
        let deliver = async |index: usize, mut ticket: QueueTicket| {
            wait(&mut ticket).await.unwrap();
            ticket.begin();
            order.lock().unwrap().push(index);
            tokio::time::sleep(SECOND).await;
        };
        let [first, second, third, other] = tickets;
        // In whatever order they begin to wait.
        tokio::join!(deliver(2, third), deliver(1, second), deliver(0, first), deliver(9, other));
        assert_eq!(*order.lock().unwrap(), [0, 9, 1, 2]);
        assert!(key_queues.key_queues().is_empty(), "an empty queue is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_is_deferred_if_its_wait_would_exceed_the_limit_or_exceeds_it() {
        let key_queues = key_queues(20);
        let mut tickets: Vec<_> = (0..4).map(|_| enter(&key_queues, "a", MAX_WAIT / 3).unwrap()).collect();
        assert!(enter(&key_queues, "a", MAX_WAIT / 3).is_err_and(|defer_for| defer_for >= MAX_WAIT));
        assert!(enter(&key_queues, "b", MAX_WAIT / 3).is_ok());
        let started = Instant::now();
        assert!(wait(&mut tickets[1]).await.is_err_and(|defer_for| defer_for >= MAX_WAIT));
        assert_eq!(started.elapsed(), MAX_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_waiting_deliveries_is_limited_if_calls_are_slow() {
        let key_queues = key_queues(20);
        let enter = |name| enter(&key_queues, name, SOON + SOON / 10).ok();
        let mut tickets: Vec<_> = (0..20).filter_map(|_| enter("a")).collect();
        assert_eq!(tickets.len(), 11);
        let first = enter("b").expect("the first in its queue needs no share of the budget");
        assert!(enter("b").is_none());
        // One delivery becomes the first, and waits no more.
        tickets.remove(0);
        wait(&mut tickets[0]).await.unwrap();
        assert!(enter("b").is_some());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_the_middle_of_a_queue_lets_no_delivery_overtake_the_first() {
        let key_queues = key_queues(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&key_queues, "a", SECOND).unwrap());
        drop(second);
        assert!(timeout(SECOND, wait(&mut third)).await.is_err(), "the first is still there");
        drop(first);
        assert_eq!(wait(&mut third).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_dropped_unused_makes_the_next_delivery_the_first() {
        let key_queues = key_queues(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&key_queues, "a", SECOND).unwrap());
        drop(first);
        drop(second);
        assert_eq!(wait(&mut third).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_starved_dispatch_defers_no_delivery_of_a_key_with_fast_calls() {
        let key_queues = KeyQueues::new(Share::of(&Budget::new(20)), beating());
        let starving = starve(SECOND / 20);
        let started = Instant::now();
        let delivery = async || {
            let mut ticket = key_queues.enter(key("a"), || Duration::ZERO)?;
            wait(&mut ticket).await?;
            ticket.begin();
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            Ok::<_, Duration>(())
        };
        let all = futures_util::future::join_all((0..300).map(|_| delivery())).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(started.elapsed() > 2 * MAX_WAIT, "it does not starve: {:?}", started.elapsed());
        starving.abort();
    }
}
