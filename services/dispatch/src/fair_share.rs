//! Limits on deliveries and bytes, and how the destinations share them.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The maximum number of deliveries of all destinations, or of their bytes.
///
/// A destination may take as much as is left of the budget, and always at least one delivery. So one slow destination
/// takes half of the budget, two take a third each, and however many they are, as much as each of them takes is left
/// for the others. (Switches share their buffers this way: Choudhury and Hahne, "Dynamic queue length thresholds".)
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    taken: Mutex<usize>,
    /// One notifier for each destination; it wakes one waiting delivery when a share is released.
    freed: Mutex<Vec<Arc<Notify>>>,
}

/// The budgets that all destinations share.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// For the deliveries in work.
    pub(crate) work: Arc<Budget>,
    /// For the deliveries that wait: in key queues, and for a share of `work`.
    pub(crate) waiting: Arc<Budget>,
    /// For the bytes of all these deliveries.
    pub(crate) bytes: Arc<Budget>,
}

/// The shares of the budgets that one destination takes.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) work: Arc<Share>,
    pub(crate) waiting: Arc<Share>,
    pub(crate) bytes: Arc<Share>,
}

/// The share of a budget that one destination takes.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    taken: Mutex<usize>,
    freed: Arc<Notify>,
}

/// The part of a share that one delivery takes, until it is dropped.
#[derive(Debug)]
pub(crate) struct SharePermit {
    share: Arc<Share>,
    size: usize,
    is_within: bool,
}

impl Budget {
    /// Creates a budget of `most` deliveries, or bytes, at a time.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), freed: Mutex::default() })
    }
}

impl Budgets {
    /// Returns the shares of one destination.
    pub(crate) fn share(&self) -> Shares {
        let work = Share::of(&self.work);
        // No delivery waits for the other budgets.
        lock(&self.work.freed).push(Arc::clone(&work.freed));
        Shares { work, waiting: Share::of(&self.waiting), bytes: Share::of(&self.bytes) }
    }
}

impl Share {
    pub(crate) fn of(budget: &Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget: Arc::clone(budget), taken: Mutex::default(), freed: Arc::default() })
    }

    /// Returns how much the destination may take while no other destination takes any.
    pub(crate) fn alone(&self) -> usize {
        self.budget.most.div_ceil(2).max(1)
    }

    /// Returns how much the destination takes now.
    pub(crate) fn taken(&self) -> usize {
        *lock(&self.taken)
    }

    /// Takes a permit, even beyond the budget; see [`SharePermit::is_within`].
    pub(crate) fn take_anyway(self: &Arc<Self>, size: usize) -> SharePermit {
        let is_within = self.grow(size, true);
        SharePermit { share: Arc::clone(self), size, is_within }
    }

    /// Takes a permit for a delivery if the budget has one left now.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<SharePermit> {
        self.grow(1, false).then(|| SharePermit { share: Arc::clone(self), size: 1, is_within: true })
    }

    /// Takes a permit for a delivery; waits until the budget has one left.
    pub(crate) async fn take(self: &Arc<Self>) -> SharePermit {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Listens before it tries, so that it misses no permit that is released in between.
            freed.as_mut().enable();
            if let Some(permit) = self.try_take() {
                return permit;
            }
            freed.await;
        }
    }

    /// Returns whether the budget has this much left; takes it if so, or `anyway`.
    fn grow(&self, size: usize, anyway: bool) -> bool {
        let (mut all, mut ours) = (lock(&self.budget.taken), lock(&self.taken));
        let is_within = *ours == 0 || *ours + size <= self.budget.most.saturating_sub(*all);
        if is_within || anyway {
            *all += size;
            *ours += size;
        }
        is_within
    }
}

impl SharePermit {
    /// Returns whether the budget had this much left.
    pub(crate) fn is_within(&self) -> bool {
        self.is_within
    }
}

impl Drop for SharePermit {
    fn drop(&mut self) {
        let Self { share, size, .. } = self;
        *lock(&share.budget.taken) -= *size;
        *lock(&share.taken) -= *size;
        // Each destination may now take one more delivery.
        lock(&share.budget.freed).iter().for_each(|freed| freed.notify_one());
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete in itself: a panic leaves nothing half done.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Budgets, of which only the one for work is small.
    pub(crate) fn budgets(work: usize) -> Budgets {
        Budgets { work: Budget::new(work), waiting: Budget::new(10_000), bytes: Budget::new(1 << 30) }
    }

    #[test]
    fn a_destination_leaves_as_much_of_the_budget_as_it_takes() {
        for (destinations, each) in [(1, 50), (2, 33), (4, 20), (9, 10)] {
            let budget = Budget::new(100);
            let shares: Vec<_> = (0..destinations).map(|_| Share::of(&budget)).collect();
            let mut taken = Vec::new();
            loop {
                let more: Vec<_> = shares.iter().filter_map(|share| share.take().now_or_never()).collect();
                if more.is_empty() {
                    break;
                }
                taken.extend(more);
            }
            for share in &shares {
                let taken = share.taken();
                assert!(taken.abs_diff(each) <= 1, "{taken} of {destinations}");
            }
            let other = Share::of(&budget);
            let left: Vec<_> = std::iter::from_fn(|| other.take().now_or_never()).collect();
            assert!(left.len() >= each / 2, "{} are left", left.len());
        }
    }

    #[test]
    fn large_and_small_deliveries_share_their_bytes() {
        let budget = Budget::new(64);
        let (large, small) = (Share::of(&budget), Share::of(&budget));
        let within = |share: &Arc<Share>, size: usize| {
            let permit = share.take_anyway(size);
            permit.is_within().then_some(permit)
        };
        let taken: Vec<_> = (0..20).filter_map(|_| within(&large, 8)).collect();
        assert_eq!((taken.len(), large.taken()), (4, 32), "half of the budget at most");
        assert!(within(&small, 16).is_some());
        assert!(within(&small, 33).is_some(), "one delivery is always possible");
        drop(taken);
        assert_eq!((large.taken(), *lock(&budget.taken)), (0, 0));
    }

    #[tokio::test]
    async fn a_waiting_delivery_takes_a_released_permit() {
        let budgets = budgets(2);
        let (one, other) = (budgets.share().work, budgets.share().work);
        let first = one.take().await;
        let second = other.take().await;
        let mut third = Box::pin(one.take());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!((&mut third).now_or_never().is_none(), "one is half of the budget");
        drop(first);
        assert!(third.now_or_never().is_some());
    }

    #[tokio::test]
    async fn an_idle_destination_always_has_a_permit_for_one_delivery() {
        let budget = Budget::new(1);
        let shares = [(); 3].map(|()| Share::of(&budget));
        let taken: Vec<_> = shares.iter().map(|share| share.take().now_or_never()).collect();
        assert!(taken.iter().all(Option::is_some));
    }
}
