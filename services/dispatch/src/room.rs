//! How many deliveries there may be at once, and how the destinations share them.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Room for the deliveries of all destinations.
///
/// A destination may have as many as there is room left, and always one. So one that is slow takes half of
/// the room, two a third each, and however many they are, as much is left for the others.
/// (It is how switches share their buffers: Choudhury and Hahne, "Dynamic queue length thresholds".)
#[derive(Debug)]
pub(crate) struct Room {
    most: u32,
    taken: Mutex<u32>,
    /// Of each destination, to tell one of those who wait there that there is more room.
    freed: Mutex<Vec<Arc<Notify>>>,
}

/// The rooms that all destinations share.
#[derive(Debug)]
pub(crate) struct Rooms {
    /// For what is in work.
    pub(crate) work: Arc<Room>,
    /// For what waits: in lanes, and for room to be worked on.
    pub(crate) waiting: Arc<Room>,
}

/// What one destination takes of the room.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    taken: Mutex<u32>,
    freed: Arc<Notify>,
}

/// Room for one delivery, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Share>);

impl Room {
    /// `most` deliveries at once.
    pub(crate) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), freed: Mutex::default() })
    }

    /// How many a destination may have while no other has any.
    pub(crate) fn share_of_one(&self) -> u32 {
        self.most.div_ceil(2).max(1)
    }
}

impl Share {
    pub(crate) fn of(room: &Arc<Room>) -> Arc<Self> {
        let freed = Arc::<Notify>::default();
        lock(&room.freed).push(Arc::clone(&freed));
        Arc::new(Self { room: Arc::clone(room), taken: Mutex::default(), freed })
    }

    /// Takes room for a delivery, if there is some now.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Taken> {
        self.has_room().then(|| Taken(Arc::clone(self)))
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

    fn has_room(&self) -> bool {
        let (mut all, mut ours) = (lock(&self.room.taken), lock(&self.taken));
        let has_room = *ours == 0 || *ours < self.room.most.saturating_sub(*all);
        if has_room {
            *all += 1;
            *ours += 1;
        }
        has_room
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Self(share) = self;
        *lock(&share.room.taken) -= 1;
        *lock(&share.taken) -= 1;
        // There is room for one more, at each of them.
        lock(&share.room.freed).iter().for_each(|freed| freed.notify_one());
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete in itself: a panic leaves nothing half done.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

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
                let taken = *lock(&share.taken);
                assert!(taken.abs_diff(each) <= 1, "{taken} of {destinations}");
            }
            let other = Share::of(&room);
            let left: Vec<_> = std::iter::from_fn(|| other.take().now_or_never()).collect();
            assert!(left.len() >= usize::try_from(each / 2).unwrap(), "{} are left", left.len());
        }
    }

    #[tokio::test]
    async fn who_found_no_room_takes_what_is_freed() {
        let room = Room::new(2);
        let (one, other) = (Share::of(&room), Share::of(&room));
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
