//! How many calls a third party gets at once, and how often.

use std::future::ready;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use throughline_config as config;
use throughline_resilience::Line;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use crate::pulse::{Pulse, Watch};
use crate::room::{Shares, Taken};

/// What comes within this time may come at once: no timer here is finer by much.
const BURST: Duration = Duration::from_millis(10);

/// A destination that works off all it has here within this time makes none wait long enough to matter, and whatever
/// waits for it does so because there is much to do.
pub(crate) const SOON: Duration = Duration::from_millis(250);

/// The limits of one destination.
///
/// A delivery is sent away only if its destination is the reason: its calls, or its rate, take longer than patience
/// lasts. While dispatch itself is the slower of the two, for want of processor time or since Kafka takes long to
/// acknowledge, deliveries wait here, no more records are taken, and the backlog stays in Kafka.
pub(crate) struct Limits {
    most: usize,
    places: Semaphore,
    rate: Option<Rate>,
    patience: Duration,
    line: Mutex<Line>,
    pulse: Arc<Pulse>,
    shares: Shares,
}

type Rate = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<std::time::Instant>>;

/// Leave to call, which ends when it is dropped.
pub(crate) struct Turn<'a> {
    limits: &'a Limits,
    watch: Watch,
    _place: SemaphorePermit<'a>,
}

/// Leave to wait for a turn.
struct Seat<'a>(&'a Limits);

impl Limits {
    /// Whatever its own limit, a destination never has more than its part of what is in work.
    pub(crate) fn new(limits: &config::Limits, shares: Shares, pulse: Arc<Pulse>) -> Self {
        let concurrency = usize::try_from(limits.concurrency.get()).unwrap_or(usize::MAX);
        let most = concurrency.min(shares.work.alone()).min(Semaphore::MAX_PERMITS);
        let gap = limits.rate.map_or(Duration::ZERO, |rate| rate.per / rate.count.get());
        Self {
            most,
            places: Semaphore::new(most),
            rate: limits.rate.map(|rate| RateLimiter::direct_with_clock(quota(rate), Ticks)),
            patience: limits.patience,
            line: Mutex::new(Line::new(u32::try_from(most).unwrap_or(u32::MAX), gap, limits.patience)),
            pulse,
            shares,
        }
    }

    /// Takes room for the bytes of a delivery.
    ///
    /// # Errors
    /// If the destination has its part of them and is slow: how long to stay away.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Taken, Duration> {
        let taken = self.shares.bytes.take_anyway(bytes);
        if taken.is_within() || !self.is_slow() { Ok(taken) } else { Err(self.send_away()) }
    }

    /// Takes room for a delivery to be worked on; waits until there is some.
    ///
    /// # Errors
    /// If the destination is the reason that it takes too long, or that there is no room to wait: how long to stay away.
    pub(crate) async fn admit(&self) -> Result<Taken, Duration> {
        if let Some(taken) = self.shares.work.try_take() {
            return Ok(taken);
        }
        let waiting = self.shares.waiting.take_anyway(1);
        if !waiting.is_within() && self.is_slow() {
            return Err(self.send_away());
        }
        // Without room, it is in the way of others as soon as the destination is slow.
        let patience = if waiting.is_within() { self.patience } else { self.patience.min(SOON) };
        self.wait_for(self.shares.work.take(), patience).await
    }

    /// Waits for its turn to call.
    ///
    /// # Errors
    /// If the destination takes too long: how long to stay away.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Duration> {
        let mut turn = pin!(self.take_turn());
        tokio::select! {
            biased;
            turn = &mut turn => return Ok(turn),
            () = ready(()) => {}
        }
        self.wait_for(turn, self.patience).await
    }

    async fn wait_for<T>(&self, what: impl Future<Output = T>, patience: Duration) -> Result<T, Duration> {
        let _seat = self.seat().map_err(|until_turn| until_turn.max(self.patience))?;
        let mut what = pin!(what);
        let mut watch = self.pulse.watch();
        loop {
            let left = patience.saturating_sub(watch.spent().theirs);
            if let Ok(done) = timeout(left, what.as_mut()).await {
                return Ok(done);
            }
            if watch.spent().theirs >= patience {
                if self.is_in_the_way(patience.min(SOON)) {
                    return Err(self.send_away());
                }
                watch = self.pulse.watch();
            }
        }
    }

    /// Whether deliveries wait for the destination rather than for dispatch, and not for a moment only.
    pub(crate) fn is_slow(&self) -> bool {
        self.is_in_the_way(SOON)
    }

    fn is_in_the_way(&self, longer: Duration) -> bool {
        self.is_most_of_the_work() && self.line().is_slow(&self.pulse.now(), longer)
    }

    /// Whether most deliveries in work have a place to call, or all places are taken. Else they are held up in
    /// dispatch: by a filter, or by outcomes that Kafka has not acknowledged.
    fn is_most_of_the_work(&self) -> bool {
        let calling = self.most - self.places.available_permits().min(self.most);
        2 * calling >= self.most.min(self.shares.work.taken()).max(1)
    }

    /// How long to stay away, for a delivery that does not wait.
    fn send_away(&self) -> Duration {
        self.line().send_away(&self.pulse.now()).max(self.patience)
    }

    #[expect(clippy::expect_used, reason = "the semaphore is never closed")]
    async fn take_turn(&self) -> Turn<'_> {
        let place = self.places.acquire().await.expect("the semaphore is open");
        if let Some(rate) = &self.rate {
            while let Err(not_yet) = rate.check() {
                sleep(not_yet.wait_time_from(now())).await;
            }
        }
        let watch = self.pulse.watch();
        self.line().began(watch.since());
        Turn { limits: self, watch, _place: place }
    }

    /// The most calls at once.
    pub(crate) fn most_calls(&self) -> usize {
        self.most
    }

    /// How long a call takes the destination now; zero before the first.
    pub(crate) fn call(&self) -> Duration {
        self.line().call(&self.pulse.now())
    }

    fn seat(&self) -> Result<Seat<'_>, Duration> {
        let now = self.pulse.now();
        let mut line = self.line();
        if self.is_most_of_the_work() {
            line.wait(&now)?;
        } else {
            line.join();
        }
        Ok(Seat(self))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let spent = self.watch.spent();
        self.limits.line().ended(spent, self.limits.pulse.now());
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.line().leave();
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Never more than `count` in any stretch of the rate's time: what a burst adds is taken off the pace.
fn quota(rate: config::Rate) -> Quota {
    let count = rate.count.get();
    let at_once = (f64::from(count) * BURST.as_secs_f64() / rate.per.as_secs_f64()).min(f64::from(count - 1));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from zero to `count`")]
    let burst = NonZeroU32::MIN.saturating_add(at_once as u32);
    let pace = rate.per / (count - burst.get() + 1);
    // A pace of nothing is faster than any call.
    Quota::with_period(pace.max(Duration::from_nanos(1)))
        .unwrap_or(Quota::per_second(NonZeroU32::MAX))
        .allow_burst(burst)
}

/// The limiter's clock, which a test can pause.
#[derive(Debug, Clone, Copy)]
struct Ticks;

impl Clock for Ticks {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        now()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::task::yield_now;

    use super::*;
    use crate::pulse::tests::{beating, starve};
    use crate::room::tests::rooms;
    use crate::room::{Room, Rooms};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(concurrency: u32, rate: Option<&str>, patience: Duration, in_work: usize) -> Limits {
        in_rooms(concurrency, rate, patience, &rooms(in_work))
    }

    fn in_rooms(concurrency: u32, rate: Option<&str>, patience: Duration, rooms: &Rooms) -> Limits {
        let concurrency = NonZeroU32::new(concurrency).unwrap();
        let rate = rate.map(|rate| rate.parse().unwrap());
        Limits::new(&config::Limits { concurrency, rate, patience }, rooms.share(), beating())
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_as_long_as_patience_lasts() {
        let limits = limits(1, None, SECOND, 100);
        let first = limits.turn().await.unwrap();
        let started = Instant::now();
        assert!(limits.turn().await.is_err_and(|away| away >= SECOND));
        assert_eq!(started.elapsed(), SECOND);
        drop(first);

        let (limits, started) = (self::limits(1, None, SECOND, 100), Instant::now());
        let first = limits.turn().await.unwrap();
        let ends = async {
            sleep(SECOND / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(limits.turn(), ends);
        assert!(second.is_ok());
        assert_eq!(started.elapsed(), SECOND / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn none_waits_for_too_long_and_half_of_all_places_are_left_to_others() {
        let limits = limits(64, None, SECOND, 100);
        let turns = join_all((0..50).map(|_| limits.turn())).await;
        assert!(turns.iter().all(Result::is_ok));
        // They hang for a while.
        sleep(10 * SECOND).await;
        let at_once = join_all((0..100).map(|_| is_denied_at_once(&limits))).await;
        assert_eq!(at_once.into_iter().filter(|at_once| !at_once).count(), 5, "the others may have a turn");
        drop(turns);
        assert!(limits.turn().await.is_ok());
    }

    async fn is_denied_at_once(limits: &Limits) -> bool {
        let started = Instant::now();
        limits.turn().await.is_err() && started.elapsed().is_zero()
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_that_are_sent_away_come_back_one_after_the_other() {
        let limits = limits(1, Some("1/2s"), SECOND, 4);
        let _turn = limits.turn().await.unwrap();
        let away = join_all((0..4).map(|_| async { limits.turn().await.err().unwrap().as_secs() })).await;
        assert_eq!(away, [2, 4, 6, 8]);
    }

    /// What becomes of so many deliveries that come at once, if each call is polled a few times and takes the third
    /// party so long: how many are sent away.
    async fn burst(limits: &Limits, deliveries: usize, call: Duration) -> usize {
        let delivery = async || {
            let _work = limits.admit().await?;
            let _turn = limits.turn().await?;
            for _ in 0..3 {
                yield_now().await;
            }
            sleep(call).await;
            Ok::<_, Duration>(())
        };
        join_all((0..deliveries).map(|_| delivery())).await.into_iter().filter(Result::is_err).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_starving_dispatch_sends_none_away_from_a_fast_destination() {
        let rooms = Rooms { work: Room::new(16), waiting: Room::new(200), bytes: Room::new(1 << 20) };
        let limits = in_rooms(8, None, SECOND, &rooms);
        let starving = starve(SECOND / 20);
        let started = Instant::now();
        assert_eq!(burst(&limits, 1000, Duration::from_millis(1)).await, 0);
        assert!(started.elapsed() > 10 * SECOND, "it does not starve: {:?}", started.elapsed());
        starving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_starving_dispatch_sends_those_away_that_wait_for_a_destination_that_hangs() {
        let rooms = Rooms { work: Room::new(16), waiting: Room::new(200), bytes: Room::new(1 << 20) };
        let limits = in_rooms(8, None, SECOND, &rooms);
        let starving = starve(SECOND / 20);
        let away = tokio::time::timeout(60 * SECOND, burst(&limits, 8, 600 * SECOND));
        let (hangs, away) = tokio::join!(away, async {
            sleep(10 * SECOND).await;
            burst(&limits, 1000, Duration::ZERO).await
        });
        assert!(hangs.is_err());
        assert!(away > 990, "{away} are sent away");
        starving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_sent_away_after_dispatch_stood_still() {
        let limits = limits(4, None, SECOND, 16);
        let stands_still = async {
            sleep(SECOND / 10).await;
            tokio::time::advance(60 * SECOND).await;
        };
        let (away, ()) = tokio::join!(burst(&limits, 50, SECOND / 20), stands_still);
        assert_eq!(away, 0);
        assert_eq!(burst(&limits, 50, SECOND / 20).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_sent_away_while_kafka_takes_long_to_acknowledge() {
        let limits = limits(64, None, SECOND, 16);
        let delivery = async || {
            let _work = limits.admit().await?;
            let turn = limits.turn().await?;
            sleep(SECOND * 3 / 10).await;
            drop(turn);
            sleep(5 * SECOND).await;
            Ok::<_, Duration>(())
        };
        let all = join_all((0..24).map(|_| delivery())).await;
        assert!(all.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_hangs_has_its_part_of_the_bytes_and_a_fast_one_what_it_asks_for() {
        let rooms = Rooms { work: Room::new(100), waiting: Room::new(100), bytes: Room::new(64) };
        let (hanging, fast) = (in_rooms(50, None, SECOND, &rooms), in_rooms(50, None, SECOND, &rooms));
        let held: Vec<_> = (0..4).map(|_| hanging.hold(8).unwrap()).collect();
        let turns =
            join_all(held.iter().map(async |_| (hanging.admit().await.unwrap(), hanging.turn().await))).await;
        assert!(hanging.hold(8).is_ok(), "it may be fast");
        sleep(SECOND).await;
        assert!(hanging.hold(8).is_err_and(|away| away >= SECOND));
        let others: Vec<_> = (0..8).map(|_| fast.hold(8)).collect();
        assert!(others.iter().all(Result::is_ok));
        drop(turns);
        assert!(hanging.hold(8).is_ok(), "nothing of it is in work");
    }

    #[tokio::test(start_paused = true)]
    async fn no_stretch_of_the_rates_time_has_more_calls_than_it_may() {
        for text in ["1/s", "5/10s", "100/s", "600/min", "3000/s"] {
            let rate: config::Rate = text.parse().unwrap();
            let limits = limits(4, Some(text), 1000 * SECOND, 100);
            let calls = async {
                let mut at = Vec::new();
                for _ in 0..3 * rate.count.get() {
                    drop(limits.turn().await.unwrap());
                    at.push(Instant::now());
                }
                at
            };
            let at = calls.await;
            let count = usize::try_from(rate.count.get()).unwrap();
            for (first, beyond) in at.iter().zip(&at[count..]) {
                assert!(*beyond - *first >= rate.per, "{text}: {:?}", *beyond - *first);
            }
            let took = *at.last().unwrap() - at[0];
            assert!(took <= 3 * rate.per + rate.per / 5, "{text}: too slow, {took:?}");
        }
    }
}
