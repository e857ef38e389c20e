//! Limits how many requests a route takes from each client in a period.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use throughline_config::Rate;
use throughline_settings::Settings;

/// No clock is finer.
const FINEST: Duration = Duration::from_nanos(1);

/// The limits of one route: one for each client, so that no client uses up the rate of another.
#[derive(Debug)]
pub(super) struct Limits {
    of_clients: BTreeMap<String, Limiter>,
    /// For all callers together, if no clients are configured.
    open: Limiter,
}

impl Limits {
    pub(super) fn new(rate: Rate, settings: &Settings) -> Self {
        let of_client = |name: &String| (name.clone(), Limiter::new(rate));
        Self { of_clients: settings.clients.keys().map(of_client).collect(), open: Limiter::new(rate) }
    }

    /// Takes a permit for one request of this client.
    ///
    /// # Errors
    /// The number of whole seconds until a permit is free, if none is free now.
    pub(super) fn take(&self, client: Option<&str>) -> Result<(), u64> {
        client.and_then(|name| self.of_clients.get(name)).unwrap_or(&self.open).take()
    }
}

/// Permits the requests of its rate: all of a period at once, or one after the other at that pace.
#[derive(Debug)]
struct Limiter<C: Clock = DefaultClock>(RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>);

impl Limiter {
    fn new(rate: Rate) -> Self {
        Self::with_clock(rate, DefaultClock::default())
    }
}

impl<C: Clock> Limiter<C> {
    fn with_clock(rate: Rate, clock: C) -> Self {
        let pace = (rate.per / rate.count.get()).max(FINEST);
        let quota = Quota::with_period(pace).unwrap_or(Quota::per_second(NonZeroU32::MAX));
        Self(RateLimiter::direct_with_clock(quota.allow_burst(rate.count), clock))
    }

    /// Takes a permit for one request.
    ///
    /// # Errors
    /// The number of whole seconds until a permit is free, if none is free now.
    fn take(&self) -> Result<(), u64> {
        self.0.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(self.0.clock().now());
            wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limiter(rate: &str) -> (Limiter<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Limiter::with_clock(rate.parse().unwrap(), clock.clone()), clock)
    }

    #[test]
    fn a_burst_takes_all_permits_which_return_one_by_one() {
        let (limiter, clock) = limiter("2/3s");
        assert_eq!([limiter.take(), limiter.take()], [Ok(()), Ok(())]);
        assert_eq!(limiter.take(), Err(2), "1.5 s, rounded up");
        clock.advance(Duration::from_millis(1499));
        assert_eq!(limiter.take(), Err(1));
        clock.advance(Duration::from_millis(1));
        assert_eq!([limiter.take(), limiter.take()], [Ok(()), Err(2)]);
        clock.advance(Duration::from_hours(1));
        assert_eq!([limiter.take(), limiter.take(), limiter.take()], [Ok(()), Ok(()), Err(2)]);
    }

    #[test]
    fn a_refused_request_takes_no_permit() {
        let (limiter, clock) = limiter("1/s");
        assert_eq!(limiter.take(), Ok(()));
        assert!((0..100).all(|_| limiter.take() == Err(1)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(limiter.take(), Ok(()));
    }

    #[test]
    fn a_rate_finer_than_any_clock_still_permits_requests() {
        let (limiter, _) = limiter("4000000000/s");
        assert!((0..10_000).all(|_| limiter.take() == Ok(())));
    }
}
