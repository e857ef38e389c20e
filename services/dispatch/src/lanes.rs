//! Lanes: at one destination, deliveries with the same ordering key are made one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use throughline_resilience::Line;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::room::{Share, Taken};

/// Whose deliveries keep their order: those of one ordering key of one route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) route: String,
    pub(crate) key: Bytes,
}

/// The longest that anybody waits in a lane: a burst of one key is worked off in order, but what a third party
/// cannot take for long does not wait here. A shut-down has to wait as long, too.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lanes of one destination.
///
/// There is one for each key that has a delivery in hand. Who would wait in it for too long is sent away, and who
/// finds no room to wait: keys with long lines of requests, and slow destinations with many keys, leave room to others.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Of those who wait, for all destinations together.
    share: Arc<Share>,
    lanes: Mutex<HashMap<Key, Lane>>,
}

#[derive(Debug)]
struct Lane {
    /// Who is there; the first one has its turn.
    queue: VecDeque<Arc<Notify>>,
    line: Line,
}

/// A place in a lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    lanes: Arc<Lanes>,
    key: Key,
    turn: Arc<Notify>,
    /// Room to wait, until it has its turn.
    waiting: Option<Taken>,
    /// Since when it is the first.
    since: Option<Instant>,
}

/// Where a delivery stands: in a lane, or nowhere as no order is kept. Or there is no place for it: how long to stay
/// away.
pub(crate) type Spot = Result<Option<Place>, Duration>;

/// Waits until its turn has come.
pub(crate) async fn turn(spot: Spot) -> Spot {
    let Some(mut place) = spot? else { return Ok(None) };
    place.turn().await?;
    Ok(Some(place))
}

impl Lanes {
    /// As many may wait as there is room in their `share`.
    pub(crate) fn new(share: Arc<Share>) -> Arc<Self> {
        Arc::new(Self { share, lanes: Mutex::default() })
    }

    /// Takes the last place in the lane of a key. A new one is told how long a call took lately.
    ///
    /// # Errors
    /// If it would be in vain to wait: how long to stay away.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: Key,
        call: impl FnOnce() -> Duration,
    ) -> Result<Place, Duration> {
        let now = Instant::now();
        let turn = Arc::new(Notify::new());
        let mut lanes = self.lanes();
        let lane = lanes.entry(key.clone()).or_insert_with(|| Lane::new(call(), now));
        let is_first = lane.queue.is_empty();
        let waiting = if is_first {
            lane.line.began(now.into_std());
            None
        } else {
            Some(lane.wait(&self.share, now).map_err(|until_turn| until_turn.max(PATIENCE))?)
        };
        lane.queue.push_back(Arc::clone(&turn));
        drop(lanes);
        Ok(Place { lanes: Arc::clone(self), key, turn, waiting, since: is_first.then_some(now) })
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Key, Lane>> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new(call: Duration, now: Instant) -> Self {
        let mut line = Line::new(1, Duration::ZERO, PATIENCE);
        line.ended(call, now.into_std());
        Self { queue: VecDeque::new(), line }
    }

    fn wait(&mut self, share: &Arc<Share>, now: Instant) -> Result<Taken, Duration> {
        let now = now.into_std();
        let room = share.try_take().ok_or_else(|| self.line.send_away(now))?;
        self.line.wait(now).map(|()| room)
    }
}

impl Place {
    /// Waits until nobody is before it, as long as patience lasts.
    ///
    /// # Errors
    /// How long to stay away.
    async fn turn(&mut self) -> Result<(), Duration> {
        if self.since.is_some() {
            return Ok(());
        }
        let came = timeout(PATIENCE, self.turn.notified()).await;
        let now = Instant::now();
        let mut lanes = self.lanes.lanes();
        let Some(lane) = lanes.get_mut(&self.key) else { return Ok(()) };
        match came {
            Ok(()) => {
                lane.line.leave();
                lane.line.began(now.into_std());
                (self.since, self.waiting) = (Some(now), None);
                Ok(())
            }
            Err(_) => Err(lane.line.send_away(now.into_std()).max(PATIENCE)),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lanes();
        let Some(lane) = lanes.get_mut(&self.key) else { return };
        match self.since {
            Some(since) => lane.line.ended(since.elapsed(), Instant::now().into_std()),
            None => lane.line.leave(),
        }
        lane.queue.retain(|turn| !Arc::ptr_eq(turn, &self.turn));
        match lane.queue.front() {
            // To be told twice is to be told.
            Some(next) => next.notify_one(),
            None => drop(lanes.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(key: &'static str) -> Key {
        Key { route: "one".to_owned(), key: Bytes::from_static(key.as_bytes()) }
    }

    /// Lanes in a room for so many, of which those of one destination may have half.
    fn lanes(room: u32) -> Arc<Lanes> {
        Lanes::new(Share::of(&Room::new(room)))
    }

    fn enter(lanes: &Arc<Lanes>, name: &'static str, call: Duration) -> Result<Place, Duration> {
        lanes.enter(key(name), || call)
    }

    #[tokio::test(start_paused = true)]
    async fn places_of_a_key_have_their_turn_in_the_order_in_which_they_were_taken() {
        let lanes = lanes(20);
        let places = ["a", "a", "a", "b"].map(|name| enter(&lanes, name, SECOND).unwrap());
        let turns = Mutex::new(Vec::new());
        let wait = async |index: usize, mut place: Place| {
            place.turn().await.unwrap();
            turns.lock().unwrap().push(index);
            tokio::time::sleep(SECOND).await;
        };
        let [first, second, third, other] = places;
        // Whoever waits first.
        tokio::join!(wait(2, third), wait(1, second), wait(0, first), wait(9, other));
        assert_eq!(*turns.lock().unwrap(), [0, 9, 1, 2]);
        assert!(lanes.lanes().is_empty(), "a lane was left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_in_vain_is_sent_away_at_once_and_the_others_when_patience_ends() {
        let lanes = lanes(20);
        let mut places: Vec<_> = (0..4).map(|_| enter(&lanes, "a", PATIENCE / 3).unwrap()).collect();
        assert!(enter(&lanes, "a", PATIENCE / 3).is_err_and(|away| away >= PATIENCE));
        assert!(enter(&lanes, "b", PATIENCE / 3).is_ok());
        let started = Instant::now();
        assert!(places[1].turn().await.is_err_and(|away| away >= PATIENCE));
        assert_eq!(started.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn not_more_wait_than_there_is_room_for_however_fast_they_are() {
        let lanes = lanes(20);
        let enter = |name| enter(&lanes, name, Duration::ZERO).ok();
        let mut places: Vec<_> = (0..20).filter_map(|_| enter("a")).collect();
        assert_eq!(places.len(), 11);
        let first = enter("b").expect("who need not wait needs no room");
        assert!(enter("b").is_none());
        // One has its turn, and waits no more.
        places.remove(0);
        places[0].turn().await.unwrap();
        assert!(enter("b").is_some());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_from_the_middle_lets_nobody_overtake_the_first() {
        let lanes = lanes(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&lanes, "a", SECOND).unwrap());
        drop(second);
        assert!(timeout(SECOND, third.turn()).await.is_err(), "the first is still there");
        drop(first);
        assert_eq!(third.turn().await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_takes_up_goes_to_the_next() {
        let lanes = lanes(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&lanes, "a", SECOND).unwrap());
        drop(first);
        drop(second);
        assert_eq!(third.turn().await, Ok(()));
    }
}
