//! How much a third party is asked at once, and how often.

use std::future::ready;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use throughline_config as config;
use throughline_resilience::Line;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use crate::room::Room;

/// What comes within this time may come at once: no timer here is finer by much.
const BURST: Duration = Duration::from_millis(10);

/// The limits of one destination.
pub(crate) struct Limits {
    most: u32,
    places: Semaphore,
    rate: Option<Rate>,
    patience: Duration,
    line: Mutex<Line>,
}

type Rate = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<std::time::Instant>>;

/// Leave to call, which ends when it is dropped.
pub(crate) struct Turn<'a> {
    limits: &'a Limits,
    since: Instant,
    _place: SemaphorePermit<'a>,
}

/// Leave to wait for a turn.
struct Seat<'a>(&'a Limits);

impl Limits {
    /// Whatever its own limit, a destination never has more than its share of the `room`.
    pub(crate) fn new(limits: &config::Limits, room: &Room) -> Self {
        let most = limits.concurrency.get().min(room.share_of_one());
        let gap = limits.rate.map_or(Duration::ZERO, |rate| rate.per / rate.count.get());
        Self {
            most,
            places: semaphore(most),
            rate: limits.rate.map(|rate| RateLimiter::direct_with_clock(quota(rate), Ticks)),
            patience: limits.patience,
            line: Mutex::new(Line::new(most, gap, limits.patience)),
        }
    }

    /// Waits for its turn, as long as its patience lasts; not at all if that is likely to be in vain.
    ///
    /// # Errors
    /// How long to stay away.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Duration> {
        let mut turn = pin!(self.take_turn());
        tokio::select! {
            biased;
            turn = &mut turn => return Ok(turn),
            () = ready(()) => {}
        }
        self.wait_for(turn).await
    }

    /// Waits for something that stands before a turn, as it would for the turn.
    ///
    /// # Errors
    /// How long to stay away.
    pub(crate) async fn wait_for<T>(&self, what: impl Future<Output = T>) -> Result<T, Duration> {
        let _seat = self.seat().map_err(|until_turn| until_turn.max(self.patience))?;
        timeout(self.patience, what).await.map_err(|_| self.send_away())
    }

    /// How long to stay away, for one who does not wait.
    pub(crate) fn send_away(&self) -> Duration {
        self.line().send_away(now()).max(self.patience)
    }

    #[expect(clippy::expect_used, reason = "nobody closes the semaphore")]
    async fn take_turn(&self) -> Turn<'_> {
        let place = self.places.acquire().await.expect("the semaphore is open");
        if let Some(rate) = &self.rate {
            while let Err(not_yet) = rate.check() {
                sleep(not_yet.wait_time_from(now())).await;
            }
        }
        self.line().began(now());
        Turn { limits: self, since: Instant::now(), _place: place }
    }

    /// The most calls at once.
    pub(crate) fn most_calls(&self) -> u32 {
        self.most
    }

    /// How long a call takes on average; zero as long as nobody knows.
    pub(crate) fn call(&self) -> Duration {
        self.line().call()
    }

    fn seat(&self) -> Result<Seat<'_>, Duration> {
        self.line().wait(now()).map(|()| Seat(self))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.limits.line().ended(self.since.elapsed(), now());
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

fn semaphore(permits: u32) -> Semaphore {
    Semaphore::new(usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))
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

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(concurrency: u32, rate: Option<&str>, patience: Duration, in_work: u32) -> Limits {
        let concurrency = NonZeroU32::new(concurrency).unwrap();
        let rate = rate.map(|rate| rate.parse().unwrap());
        Limits::new(&config::Limits { concurrency, rate, patience }, &Room::new(in_work))
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
    async fn nobody_waits_in_vain_and_half_of_all_places_are_left_to_others() {
        let limits = limits(64, None, SECOND, 100);
        let turns = join_all((0..50).map(|_| limits.turn())).await;
        assert!(turns.iter().all(Result::is_ok));
        // They hang for a while.
        sleep(10 * SECOND).await;
        let at_once = join_all((0..100).map(|_| is_denied_at_once(&limits))).await;
        assert_eq!(at_once.into_iter().filter(|at_once| !at_once).count(), 5, "who may have a turn waits");
        drop(turns);
        assert!(limits.turn().await.is_ok());
    }

    async fn is_denied_at_once(limits: &Limits) -> bool {
        let started = Instant::now();
        limits.turn().await.is_err() && started.elapsed().is_zero()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_are_sent_away_come_again_one_after_the_other() {
        let limits = limits(1, Some("1/2s"), SECOND, 4);
        let _turn = limits.turn().await.unwrap();
        let away = join_all((0..4).map(|_| async { limits.turn().await.err().unwrap().as_secs() })).await;
        assert_eq!(away, [2, 4, 6, 8]);
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
