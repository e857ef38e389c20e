//! Limits how many calls a third party gets at once, and how often.

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
use throughline_destination as destination;
use throughline_resilience::WaitEstimator;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use crate::fair_share::{SharePermit, Shares};
use crate::pulse::{Pulse, Watch};

/// Calls due within this time may be made at once: timers here are hardly finer.
const BURST: Duration = Duration::from_millis(10);

/// A delay that does not matter. A destination that works off its whole queue here within this time delays no
/// delivery noticeably; deliveries that still wait for it do so because there is much work.
pub(crate) const SOON: Duration = Duration::from_millis(250);

/// The limits of one destination.
///
/// A delivery is deferred only if its destination is the reason: its calls, or its rate, take longer than the max
/// wait. While dispatch itself is the bottleneck, for lack of processor time or because Kafka takes long to
/// acknowledge, deliveries wait here, no more records are taken, and the backlog stays in Kafka.
pub(crate) struct Limits {
    most: usize,
    permits: Semaphore,
    rate: Option<Rate>,
    max_wait: Duration,
    wait_estimator: Mutex<WaitEstimator>,
    pulse: Arc<Pulse>,
    shares: Shares,
}

type Rate = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<std::time::Instant>>;

/// Permission to make a call, until it is dropped.
pub(crate) struct LimitPermit<'a> {
    limits: &'a Limits,
    watch: Watch,
    _permit: SemaphorePermit<'a>,
}

/// A waiting delivery, until it is dropped.
struct WaitSlot<'a>(&'a Limits);

impl Limits {
    /// Creates the limits. Whatever its own limit, a destination never exceeds its share of the deliveries in work.
    pub(crate) fn new(limits: &destination::Limits, shares: Shares, pulse: Arc<Pulse>) -> Self {
        let concurrency = usize::try_from(limits.concurrency.get()).unwrap_or(usize::MAX);
        let most = concurrency.min(shares.work.alone()).min(Semaphore::MAX_PERMITS);
        let gap = limits.rate.map_or(Duration::ZERO, |rate| rate.per / rate.count.get());
        Self {
            most,
            permits: Semaphore::new(most),
            rate: limits.rate.map(|rate| RateLimiter::direct_with_clock(quota(rate), Ticks)),
            max_wait: limits.max_wait,
            wait_estimator: Mutex::new(WaitEstimator::new(
                u32::try_from(most).unwrap_or(u32::MAX),
                gap,
                limits.max_wait,
            )),
            pulse,
            shares,
        }
    }

    /// Takes a share of the budget for the bytes of a delivery.
    ///
    /// # Errors
    /// If the destination has used up its share of the bytes and is slow; the error is how long to defer the
    /// delivery.
    pub(crate) fn take_bytes(&self, bytes: usize) -> Result<SharePermit, Duration> {
        let permit = self.shares.bytes.take_anyway(bytes);
        if permit.is_within() || !self.is_slow() { Ok(permit) } else { Err(self.defer()) }
    }

    /// Takes a share of the budget for work on a delivery; waits until it has one left.
    ///
    /// # Errors
    /// If the wait is too long, or the budget for waiting deliveries is used up, because the destination is slow; the
    /// error is how long to defer the delivery.
    pub(crate) async fn admit(&self) -> Result<SharePermit, Duration> {
        if let Some(permit) = self.shares.work.try_take() {
            return Ok(permit);
        }
        let waiting = self.shares.waiting.take_anyway(1);
        if !waiting.is_within() && self.is_slow() {
            return Err(self.defer());
        }
        // Beyond the budget, the delivery is in the way of others as soon as the destination is slow.
        let max_wait = if waiting.is_within() { self.max_wait } else { self.max_wait.min(SOON) };
        self.wait_for(self.shares.work.take(), max_wait).await
    }

    /// Waits for a permit to call.
    ///
    /// # Errors
    /// If the destination takes too long; the error is how long to defer the delivery.
    pub(crate) async fn permit(&self) -> Result<LimitPermit<'_>, Duration> {
        let mut permit = pin!(self.take_permit());
        tokio::select! {
            biased;
            permit = &mut permit => return Ok(permit),
            () = ready(()) => {}
        }
        self.wait_for(permit, self.max_wait).await
    }

    async fn wait_for<T>(&self, what: impl Future<Output = T>, max_wait: Duration) -> Result<T, Duration> {
        let _wait_slot = self.wait_slot().map_err(|defer_for| defer_for.max(self.max_wait))?;
        let mut what = pin!(what);
        let mut watch = self.pulse.watch();
        loop {
            let left = max_wait.saturating_sub(watch.spent().theirs);
            if let Ok(done) = timeout(left, what.as_mut()).await {
                return Ok(done);
            }
            if watch.spent().theirs >= max_wait {
                if self.is_in_the_way(max_wait.min(SOON)) {
                    return Err(self.defer());
                }
                watch = self.pulse.watch();
            }
        }
    }

    /// Returns whether deliveries wait for the destination rather than for dispatch, and for longer than [`SOON`].
    pub(crate) fn is_slow(&self) -> bool {
        self.is_in_the_way(SOON)
    }

    fn is_in_the_way(&self, longer: Duration) -> bool {
        self.is_most_of_the_work() && self.wait_estimator().is_slow(&self.pulse.now(), longer)
    }

    /// Returns whether at least half of the deliveries in work, or of all permits, are calling. Otherwise deliveries
    /// are delayed in dispatch: by a filter, or by outcomes that Kafka has not acknowledged.
    fn is_most_of_the_work(&self) -> bool {
        let calling = self.most - self.permits.available_permits().min(self.most);
        2 * calling >= self.most.min(self.shares.work.taken()).max(1)
    }

    /// Returns how long to defer a delivery that does not wait here.
    fn defer(&self) -> Duration {
        self.wait_estimator().defer(&self.pulse.now()).max(self.max_wait)
    }

    #[expect(clippy::expect_used, reason = "the semaphore is never closed")]
    async fn take_permit(&self) -> LimitPermit<'_> {
        let permit = self.permits.acquire().await.expect("the semaphore is open");
        if let Some(rate) = &self.rate {
            while let Err(not_yet) = rate.check() {
                sleep(not_yet.wait_time_from(now())).await;
            }
        }
        let watch = self.pulse.watch();
        self.wait_estimator().began(watch.since());
        LimitPermit { limits: self, watch, _permit: permit }
    }

    /// Returns the maximum number of concurrent calls.
    pub(crate) fn most_calls(&self) -> usize {
        self.most
    }

    /// Returns how long a call takes the destination now; zero before the first call.
    pub(crate) fn call(&self) -> Duration {
        self.wait_estimator().call(&self.pulse.now())
    }

    fn wait_slot(&self) -> Result<WaitSlot<'_>, Duration> {
        let now = self.pulse.now();
        let mut wait_estimator = self.wait_estimator();
        if self.is_most_of_the_work() {
            wait_estimator.wait(&now)?;
        } else {
            wait_estimator.join();
        }
        Ok(WaitSlot(self))
    }

    fn wait_estimator(&self) -> MutexGuard<'_, WaitEstimator> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.wait_estimator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LimitPermit<'_> {
    fn drop(&mut self) {
        let spent = self.watch.spent();
        self.limits.wait_estimator().ended(spent, self.limits.pulse.now());
    }
}

impl Drop for WaitSlot<'_> {
    fn drop(&mut self) {
        self.0.wait_estimator().leave();
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Builds a quota that never permits more than `count` calls in any window of the rate's period: the size of a burst
/// reduces the pace.
fn quota(rate: config::Rate) -> Quota {
    let count = rate.count.get();
    let at_once = (f64::from(count) * BURST.as_secs_f64() / rate.per.as_secs_f64()).min(f64::from(count - 1));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from zero to `count`")]
    let burst = NonZeroU32::MIN.saturating_add(at_once as u32);
    let pace = rate.per / (count - burst.get() + 1);
    // A period of zero is not valid; one of 1 ns is faster than any call.
    Quota::with_period(pace.max(Duration::from_nanos(1)))
        .unwrap_or(Quota::per_second(NonZeroU32::MAX))
        .allow_burst(burst)
}

/// The limiter's clock, which tests can pause.
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
    use crate::fair_share::tests::budgets;
    use crate::fair_share::{Budget, Budgets};
    use crate::pulse::tests::{beating, starve};

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(concurrency: u32, rate: Option<&str>, max_wait: Duration, in_work: usize) -> Limits {
        with_budgets(concurrency, rate, max_wait, &budgets(in_work))
    }

    fn with_budgets(concurrency: u32, rate: Option<&str>, max_wait: Duration, budgets: &Budgets) -> Limits {
        let concurrency = NonZeroU32::new(concurrency).unwrap();
        let rate = rate.map(|rate| rate.parse().unwrap());
        Limits::new(&destination::Limits { concurrency, rate, max_wait }, budgets.share(), beating())
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_waits_for_its_permit_within_the_limit() {
        let limits = limits(1, None, SECOND, 100);
        let first = limits.permit().await.unwrap();
        let started = Instant::now();
        assert!(limits.permit().await.is_err_and(|defer_for| defer_for >= SECOND));
        assert_eq!(started.elapsed(), SECOND);
        drop(first);

        let (limits, started) = (self::limits(1, None, SECOND, 100), Instant::now());
        let first = limits.permit().await.unwrap();
        let ends = async {
            sleep(SECOND / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(limits.permit(), ends);
        assert!(second.is_ok());
        assert_eq!(started.elapsed(), SECOND / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_limited_and_half_of_all_permits_are_left_to_other_destinations() {
        let limits = limits(64, None, SECOND, 100);
        let permits = join_all((0..50).map(|_| limits.permit())).await;
        assert!(permits.iter().all(Result::is_ok));
        // They hang for a while.
        sleep(10 * SECOND).await;
        let denied = join_all((0..100).map(|_| is_denied_immediately(&limits))).await;
        assert_eq!(denied.into_iter().filter(|denied| !denied).count(), 5, "the others may get a permit");
        drop(permits);
        assert!(limits.permit().await.is_ok());
    }

    async fn is_denied_immediately(limits: &Limits) -> bool {
        let started = Instant::now();
        limits.permit().await.is_err() && started.elapsed().is_zero()
    }

    #[tokio::test(start_paused = true)]
    async fn deferred_deliveries_return_one_after_another() {
        let limits = limits(1, Some("1/2s"), SECOND, 4);
        let _permit = limits.permit().await.unwrap();
        let deferred =
            join_all((0..4).map(|_| async { limits.permit().await.err().unwrap().as_secs() })).await;
        assert_eq!(deferred, [2, 4, 6, 8]);
    }

    /// Runs this many deliveries concurrently, with calls that are polled a few times and take the third party `call`
    /// each. Returns how many are deferred.
    async fn burst(limits: &Limits, deliveries: usize, call: Duration) -> usize {
        let delivery = async || {
            let _work = limits.admit().await?;
            let _permit = limits.permit().await?;
            for _ in 0..3 {
                yield_now().await;
            }
            sleep(call).await;
            Ok::<_, Duration>(())
        };
        join_all((0..deliveries).map(|_| delivery())).await.into_iter().filter(Result::is_err).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_starved_dispatch_defers_no_delivery_to_a_fast_destination() {
        let budgets =
            Budgets { work: Budget::new(16), waiting: Budget::new(200), bytes: Budget::new(1 << 20) };
        let limits = with_budgets(8, None, SECOND, &budgets);
        let starving = starve(SECOND / 20);
        let started = Instant::now();
        assert_eq!(burst(&limits, 1000, Duration::from_millis(1)).await, 0);
        assert!(started.elapsed() > 10 * SECOND, "it does not starve: {:?}", started.elapsed());
        starving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_starved_dispatch_defers_deliveries_to_a_destination_that_hangs() {
        let budgets =
            Budgets { work: Budget::new(16), waiting: Budget::new(200), bytes: Budget::new(1 << 20) };
        let limits = with_budgets(8, None, SECOND, &budgets);
        let starving = starve(SECOND / 20);
        let hangs = tokio::time::timeout(60 * SECOND, burst(&limits, 8, 600 * SECOND));
        let (hangs, deferred) = tokio::join!(hangs, async {
            sleep(10 * SECOND).await;
            burst(&limits, 1000, Duration::ZERO).await
        });
        assert!(hangs.is_err());
        assert!(deferred > 990, "{deferred} are deferred");
        starving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn no_delivery_is_deferred_after_dispatch_was_frozen() {
        let limits = limits(4, None, SECOND, 16);
        let freeze = async {
            sleep(SECOND / 10).await;
            tokio::time::advance(60 * SECOND).await;
        };
        let (deferred, ()) = tokio::join!(burst(&limits, 50, SECOND / 20), freeze);
        assert_eq!(deferred, 0);
        assert_eq!(burst(&limits, 50, SECOND / 20).await, 0);
    }

    /// A delivery whose outcome Kafka takes long to acknowledge.
    async fn delivery(limits: &Limits, call: Duration, acknowledgement: Duration) -> Result<(), Duration> {
        let _work = limits.admit().await?;
        let permit = limits.permit().await?;
        sleep(call).await;
        drop(permit);
        sleep(acknowledgement).await;
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn no_delivery_is_deferred_while_kafka_is_slow_to_acknowledge() {
        let limits = limits(64, None, SECOND, 16);
        let all = join_all((0..24).map(|_| delivery(&limits, SECOND * 3 / 10, 5 * SECOND))).await;
        assert!(all.iter().all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_acknowledgements_of_kafka_do_not_count_as_a_long_queue_for_calls() {
        let limits = limits(64, None, SECOND, 16);
        let delivery = || delivery(&limits, SECOND * 6 / 10, SECOND * 46 / 10);
        let first = join_all((0..8).map(|_| delivery()));
        // The calls have ended; going by them, the last of these would get its permit after more than a second.
        let more = async {
            sleep(SECOND * 9 / 10).await;
            join_all((0..16).map(|_| delivery())).await
        };
        let (first, more) = tokio::join!(first, more);
        assert!(first.iter().chain(&more).all(Result::is_ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_beyond_the_budget_at_a_destination_that_hangs_is_deferred_immediately() {
        let budgets = Budgets { work: Budget::new(4), waiting: Budget::new(4), bytes: Budget::new(1 << 20) };
        let limits = with_budgets(2, None, SECOND, &budgets);
        let hangs = timeout(60 * SECOND, burst(&limits, 2, 600 * SECOND));
        let (hangs, deferred) = tokio::join!(hangs, async {
            sleep(SECOND / 2).await;
            let began = Instant::now();
            let deferred =
                join_all((0..8).map(async |_| (limits.admit().await.is_err(), began.elapsed()))).await;
            deferred.into_iter().filter(|deferred| *deferred == (true, Duration::ZERO)).count()
        });
        assert!(hangs.is_err());
        assert_eq!(deferred, 6, "two wait");
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_hangs_gets_its_share_of_bytes_and_a_fast_one_all_it_needs() {
        let budgets = Budgets { work: Budget::new(100), waiting: Budget::new(100), bytes: Budget::new(64) };
        let (hanging, fast) =
            (with_budgets(50, None, SECOND, &budgets), with_budgets(50, None, SECOND, &budgets));
        let bytes: Vec<_> = (0..4).map(|_| hanging.take_bytes(8).unwrap()).collect();
        let permits =
            join_all(bytes.iter().map(async |_| (hanging.admit().await.unwrap(), hanging.permit().await)))
                .await;
        assert!(hanging.take_bytes(8).is_ok(), "it may be fast");
        sleep(SECOND).await;
        assert!(hanging.take_bytes(8).is_err_and(|defer_for| defer_for >= SECOND));
        let others: Vec<_> = (0..8).map(|_| fast.take_bytes(8)).collect();
        assert!(others.iter().all(Result::is_ok));
        drop(permits);
        assert!(hanging.take_bytes(8).is_ok(), "none of its deliveries is in work");
    }

    #[tokio::test(start_paused = true)]
    async fn no_period_of_the_rate_has_more_calls_than_the_limit() {
        for text in ["1/s", "5/10s", "100/s", "600/min", "3000/s"] {
            let rate: config::Rate = text.parse().unwrap();
            let limits = limits(4, Some(text), 1000 * SECOND, 100);
            let calls = async {
                let mut at = Vec::new();
                for _ in 0..3 * rate.count.get() {
                    drop(limits.permit().await.unwrap());
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
