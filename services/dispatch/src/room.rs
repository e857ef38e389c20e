//! How much there may be of something at once, and how the destinations share it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Room for deliveries, or for their bytes, of all destinations.
///
/// A destination may have as much as there is room left, and always one delivery. So one that is slow takes half of
/// the room, two a third each, and however many they are, as much is left for the others.
/// (It is how switches share their buffers: Choudhury and Hahne, "Dynamic queue length thresholds".)
#[derive(Debug)]
pub(crate) struct Room {
    most: usize,
    taken: Mutex<usize>,
    /// Of each destination whose deliveries wait for room, to wake one of them when there is more.
    freed: Mutex<Vec<Arc<Notify>>>,
}

/// The rooms that all destinations share.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// For the deliveries in work.
    pub(crate) work: Arc<Room>,
    /// For the deliveries that wait: in lanes, and for room to be worked on.
    pub(crate) waiting: Arc<Room>,
    /// For the bytes of all of them.
    pub(crate) bytes: Arc<Room>,
}

/// The part of the rooms that one destination takes.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) work: Arc<Share>,
    pub(crate) waiting: Arc<Share>,
    pub(crate) bytes: Arc<Share>,
}

/// The part of a room that one destination takes.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    taken: Mutex<usize>,
    freed: Arc<Notify>,
}

/// Room for one delivery, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    share: Arc<Share>,
    size: usize,
    is_within: bool,
}

impl Room {
    /// For `most` deliveries, or bytes, at once.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), freed: Mutex::default() })
    }
}

impl Rooms {
    /// One destination's part of them.
    pub(crate) fn share(&self) -> Shares {
        let work = Share::of(&self.work);
        // For the other rooms, nothing waits.
        lock(&self.work.freed).push(Arc::clone(&work.freed));
        Shares { work, waiting: Share::of(&self.waiting), bytes: Share::of(&self.bytes) }
    }
}

impl Share {
    pub(crate) fn of(room: &Arc<Room>) -> Arc<Self> {
        Arc::new(Self { room: Arc::clone(room), taken: Mutex::default(), freed: Arc::default() })
    }

    /// How much it has while no other destination has any.
    pub(crate) fn alone(&self) -> usize {
        self.room.most.div_ceil(2).max(1)
    }

    /// How much it has now.
    pub(crate) fn taken(&self) -> usize {
        *lock(&self.taken)
    }

    /// Takes room, whether there is some or not; [`Taken::is_within`] tells.
    pub(crate) fn take_anyway(self: &Arc<Self>, size: usize) -> Taken {
        let is_within = self.grow(size, true);
        Taken { share: Arc::clone(self), size, is_within }
    }

    /// Takes room for a delivery, if there is some now.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Taken> {
        self.grow(1, false).then(|| Taken { share: Arc::clone(self), size: 1, is_within: true })
    }

    /// Takes room for a delivery; waits until there is some.
    pub(crate) async fn take(self: &Arc<Self>) -> Taken {
        loop {
            let mut freed = pin!(self.freed.notified());
            // From here on, so that nothing is missed between the look and the wait.
            freed.as_mut().enable();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            freed.await;
        }
    }

    /// Whether there is room; takes it if so, or `anyway`.
    fn grow(&self, size: usize, anyway: bool) -> bool {
        let (mut all, mut ours) = (lock(&self.room.taken), lock(&self.taken));
        let has_room = *ours == 0 || *ours + size <= self.room.most.saturating_sub(*all);
        if has_room || anyway {
            *all += size;
            *ours += size;
        }
        has_room
    }
}

impl Taken {
    /// Whether there was room for it.
    pub(crate) fn is_within(&self) -> bool {
        self.is_within
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Self { share, size, .. } = self;
        *lock(&share.room.taken) -= *size;
        *lock(&share.taken) -= *size;
        // There is room for one more, at each of them.
        lock(&share.room.freed).iter().for_each(|freed| freed.notify_one());
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

    /// Rooms of which nothing but that for work is small.
    pub(crate) fn rooms(work: usize) -> Rooms {
        Rooms { work: Room::new(work), waiting: Room::new(10_000), bytes: Room::new(1 << 30) }
    }

    #[test]
    fn as_much_is_left_to_others_as_one_destination_takes() {
        for (destinations, each) in [(1, 50), (2, 33), (4, 20), (9, 10)] {
            let room = Room::new(100);
            let shares: Vec<_> = (0..destinations).map(|_| Share::of(&room)).collect();
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
            let other = Share::of(&room);
            let left: Vec<_> = std::iter::from_fn(|| other.take().now_or_never()).collect();
            assert!(left.len() >= each / 2, "{} are left", left.len());
        }
    }

    #[test]
    fn large_and_small_deliveries_share_their_bytes() {
        let room = Room::new(64);
        let (large, small) = (Share::of(&room), Share::of(&room));
        let within = |share: &Arc<Share>, size: usize| {
            let taken = share.take_anyway(size);
            taken.is_within().then_some(taken)
        };
        let taken: Vec<_> = (0..20).filter_map(|_| within(&large, 8)).collect();
        assert_eq!((taken.len(), large.taken()), (4, 32), "half of the room, whatever was asked for");
        assert!(within(&small, 16).is_some());
        assert!(within(&small, 33).is_some(), "one delivery there is always room for");
        drop(taken);
        assert_eq!((large.taken(), *lock(&room.taken)), (0, 0));
    }

    #[tokio::test]
    async fn a_delivery_that_found_no_room_takes_what_is_freed() {
        let rooms = rooms(2);
        let (one, other) = (rooms.share().work, rooms.share().work);
        let first = one.take().await;
        let second = other.take().await;
        let mut third = Box::pin(one.take());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!((&mut third).now_or_never().is_none(), "one is half of the room");
        drop(first);
        assert!(third.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_destination_with_nothing_in_work_always_has_room_for_one() {
        let room = Room::new(1);
        let shares = [(); 3].map(|()| Share::of(&room));
        let taken: Vec<_> = shares.iter().map(|share| share.take().now_or_never()).collect();
        assert!(taken.iter().all(Option::is_some));
    }
}
