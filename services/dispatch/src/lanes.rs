//! Lanes: at one destination, deliveries with the same ordering key are made one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use throughline_resilience::{Line, Moment, Spent};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::limits::SOON;
use crate::pulse::{Pulse, Watch};
use crate::room::{Share, Taken};

/// Whose deliveries keep their order: those of one ordering key of one route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) route: String,
    pub(crate) key: Bytes,
}

/// How long a delivery waits in a lane for what is before it at the destination: a burst of one key is worked off in
/// order, but what a third party cannot take for long does not wait here.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lanes of one destination.
///
/// There is one for each key that has a delivery in hand. A delivery that would wait in it for too long is sent away,
/// and so is one that finds no room to wait: keys with long lines of requests, and slow destinations with many keys,
/// leave room to others. While dispatch itself is the slower, none is sent away (see `limits`).
#[derive(Debug)]
pub(crate) struct Lanes {
    /// Of the room to wait, which all destinations have together.
    share: Arc<Share>,
    pulse: Arc<Pulse>,
    by_key: Mutex<HashMap<Key, Lane>>,
}

#[derive(Debug)]
struct Lane {
    /// The deliveries in it; the first one has its turn.
    queue: VecDeque<Arc<Notify>>,
    line: Line,
}

/// A place in a lane, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    lanes: Arc<Lanes>,
    key: Key,
    turn: Arc<Notify>,
    stage: Stage,
}

/// How far the delivery in a place has come.
#[derive(Debug)]
enum Stage {
    /// Others are before it; it has room to wait.
    Waiting(Taken),
    /// It is the first.
    First,
    /// Work on it has begun.
    InWork(Watch),
}

impl Lanes {
    /// Deliveries wait in the room of their `share`.
    pub(crate) fn new(share: Arc<Share>, pulse: Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self { share, pulse, by_key: Mutex::default() })
    }

    /// Takes the last place in the lane of a key. A new one is told how long a call took lately.
    ///
    /// # Errors
    /// If it would wait for too long: how long to stay away.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: Key,
        call: impl FnOnce() -> Duration,
    ) -> Result<Place, Duration> {
        let now = self.pulse.now();
        let turn = Arc::new(Notify::new());
        let mut lanes = self.lanes();
        let lane = lanes.entry(key.clone()).or_insert_with(|| Lane::new(call(), now));
        let stage = if lane.queue.is_empty() {
            Stage::First
        } else {
            let room = self.share.take_anyway(1);
            Stage::Waiting(lane.wait(room, &now).map_err(|until_turn| until_turn.max(PATIENCE))?)
        };
        lane.queue.push_back(Arc::clone(&turn));
        drop(lanes);
        Ok(Place { lanes: Arc::clone(self), key, turn, stage })
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Key, Lane>> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new(call: Duration, now: Moment) -> Self {
        let mut line = Line::new(1, Duration::ZERO, PATIENCE);
        line.ended(Spent { theirs: call, ours: Duration::ZERO }, now);
        Self { queue: VecDeque::new(), line }
    }

    fn wait(&mut self, room: Taken, now: &Moment) -> Result<Taken, Duration> {
        if !room.is_within() && self.line.is_slow(now, SOON) {
            return Err(self.line.send_away(now));
        }
        self.line.wait(now).map(|()| room)
    }
}

impl Place {
    /// Waits until none is before it, as long as patience lasts: what is before it takes that long, or its destination
    /// `is_slow`.
    ///
    /// # Errors
    /// How long to stay away.
    pub(crate) async fn turn(&mut self, is_slow: impl Fn() -> bool) -> Result<(), Duration> {
        let Stage::Waiting(room) = &self.stage else { return Ok(()) };
        // Without room, it is in the way of others as soon as its lane is slow.
        let patience = if room.is_within() { PATIENCE } else { SOON };
        let pulse = &self.lanes.pulse;
        let mut watch = pulse.watch();
        loop {
            let left = patience.saturating_sub(watch.spent().theirs);
            let came = timeout(left, self.turn.notified()).await.is_ok();
            let now = pulse.now();
            let mut lanes = self.lanes.lanes();
            let Some(lane) = lanes.get_mut(&self.key) else { return Ok(()) };
            if came {
                lane.line.leave();
                self.stage = Stage::First;
                return Ok(());
            }
            if watch.spent().theirs >= patience {
                if lane.line.is_slow(&now, SOON) || is_slow() {
                    return Err(lane.line.send_away(&now).max(PATIENCE));
                }
                watch = pulse.watch();
            }
        }
    }

    /// Work on its delivery begins.
    pub(crate) fn begin(&mut self) {
        let watch = self.lanes.pulse.watch();
        if let Some(lane) = self.lanes.lanes().get_mut(&self.key) {
            lane.line.began(watch.since());
        }
        self.stage = Stage::InWork(watch);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lanes();
        let Some(lane) = lanes.get_mut(&self.key) else { return };
        match &self.stage {
            Stage::Waiting(_) => lane.line.leave(),
            Stage::First => {}
            Stage::InWork(watch) => lane.line.ended(watch.spent(), self.lanes.pulse.now()),
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
    use tokio::time::Instant;

    use super::*;
    use crate::pulse::tests::{beating, starve};
    use crate::room::Room;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(key: &'static str) -> Key {
        Key { route: "one".to_owned(), key: Bytes::from_static(key.as_bytes()) }
    }

    /// Lanes in a room for so many, of which those of one destination may have half.
    fn lanes(room: usize) -> Arc<Lanes> {
        Lanes::new(Share::of(&Room::new(room)), beating())
    }

    fn enter(lanes: &Arc<Lanes>, name: &'static str, call: Duration) -> Result<Place, Duration> {
        lanes.enter(key(name), || call)
    }

    async fn turn(place: &mut Place) -> Result<(), Duration> {
        place.turn(|| false).await
    }

    #[tokio::test(start_paused = true)]
    async fn places_of_a_key_have_their_turn_in_the_order_in_which_they_were_taken() {
        let lanes = lanes(20);
        let places = ["a", "a", "a", "b"].map(|name| enter(&lanes, name, SECOND).unwrap());
        let turns = Mutex::new(Vec::new());
        let wait = async |index: usize, mut place: Place| {
            turn(&mut place).await.unwrap();
            place.begin();
            turns.lock().unwrap().push(index);
            tokio::time::sleep(SECOND).await;
        };
        let [first, second, third, other] = places;
        // In whatever order they begin to wait.
        tokio::join!(wait(2, third), wait(1, second), wait(0, first), wait(9, other));
        assert_eq!(*turns.lock().unwrap(), [0, 9, 1, 2]);
        assert!(lanes.lanes().is_empty(), "a lane was left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_would_wait_too_long_is_sent_away_at_once_and_the_others_when_patience_ends() {
        let lanes = lanes(20);
        let mut places: Vec<_> = (0..4).map(|_| enter(&lanes, "a", PATIENCE / 3).unwrap()).collect();
        assert!(enter(&lanes, "a", PATIENCE / 3).is_err_and(|away| away >= PATIENCE));
        assert!(enter(&lanes, "b", PATIENCE / 3).is_ok());
        let started = Instant::now();
        assert!(turn(&mut places[1]).await.is_err_and(|away| away >= PATIENCE));
        assert_eq!(started.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn not_more_wait_than_there_is_room_for_if_their_calls_last() {
        let lanes = lanes(20);
        let enter = |name| enter(&lanes, name, SOON + SOON / 10).ok();
        let mut places: Vec<_> = (0..20).filter_map(|_| enter("a")).collect();
        assert_eq!(places.len(), 11);
        let first = enter("b").expect("without a wait there is no need of room");
        assert!(enter("b").is_none());
        // One has its turn, and waits no more.
        places.remove(0);
        turn(&mut places[0]).await.unwrap();
        assert!(enter("b").is_some());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_left_in_the_middle_lets_none_overtake_the_first() {
        let lanes = lanes(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&lanes, "a", SECOND).unwrap());
        drop(second);
        assert!(timeout(SECOND, turn(&mut third)).await.is_err(), "the first is still there");
        drop(first);
        assert_eq!(turn(&mut third).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_not_taken_up_goes_to_the_next() {
        let lanes = lanes(20);
        let [first, second, mut third] = [(); 3].map(|()| enter(&lanes, "a", SECOND).unwrap());
        drop(first);
        drop(second);
        assert_eq!(turn(&mut third).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_starving_dispatch_sends_none_away_from_a_lane_with_fast_calls() {
        let lanes = Lanes::new(Share::of(&Room::new(20)), beating());
        let starving = starve(SECOND / 20);
        let started = Instant::now();
        let delivery = async || {
            let mut place = lanes.enter(key("a"), || Duration::ZERO)?;
            turn(&mut place).await?;
            place.begin();
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            Ok::<_, Duration>(())
        };
        let all = futures_util::future::join_all((0..300).map(|_| delivery())).await;
        assert!(all.iter().all(Result::is_ok));
        assert!(started.elapsed() > 2 * PATIENCE, "it does not starve: {:?}", started.elapsed());
        starving.abort();
    }
}
