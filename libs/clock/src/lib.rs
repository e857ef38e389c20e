//! Time as a parameter: the system clock, a clock bounded by another authority, or a clock that a test sets.
//!
//! All code that stamps or compares instants takes a [`Clock`]; nothing else in the project reads the system time.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// A source of the current time. Clones of a manual clock show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Microseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
    Bounded(Box<Clock>, Arc<dyn Bound>),
}

/// The limit of a [bounded](Clock::bounded) clock.
pub trait Bound: Debug + Send + Sync {
    /// Returns the latest time that the clock may show; `None` if that is beyond every representable time.
    fn latest(&self) -> Option<DateTime<Utc>>;
}

impl Clock {
    /// The clock of the operating system. It may step back.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that does not move except by [`advance`](Self::advance).
    #[must_use]
    pub fn manual(at: DateTime<Utc>) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(at.timestamp_micros()))))
    }

    /// Returns this clock, limited to the bound where it is ahead of it.
    #[must_use]
    pub fn bounded(self, bound: impl Bound + 'static) -> Self {
        Self(Source::Bounded(Box::new(self), Arc::new(bound)))
    }

    /// Returns the current time; a manual clock has a resolution of one microsecond.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the system clock")]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.0 {
            Source::System => Utc::now(),
            Source::Manual(micros) => {
                DateTime::from_timestamp_micros(micros.load(Ordering::SeqCst)).unwrap_or(DateTime::UNIX_EPOCH)
            }
            Source::Bounded(clock, bound) => {
                let now = clock.now();
                bound.latest().map_or(now, |latest| now.min(latest))
            }
        }
    }

    /// Moves a manual clock by `delta`, backwards if it is negative. The system clock does not change.
    pub fn advance(&self, delta: TimeDelta) {
        match &self.0 {
            Source::System => {}
            Source::Manual(micros) => {
                micros.fetch_add(delta.num_microseconds().unwrap_or(0), Ordering::SeqCst);
            }
            Source::Bounded(clock, _) => clock.advance(delta),
        }
    }
}

/// Returns the time since the machine booted, including suspensions. This clock cannot be set.
///
/// [`Instant`](std::time::Instant) excludes suspensions on Linux. On other systems this is always zero.
#[must_use]
pub fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let since_boot =
        rustix::time::clock_gettime(rustix::time::ClockId::Boottime).try_into().unwrap_or_default();
    #[cfg(not(target_os = "linux"))]
    let since_boot = Duration::ZERO;
    since_boot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_boot_does_not_go_back() {
        let first = since_boot();
        assert!(since_boot() >= first);
        assert_eq!(first > Duration::ZERO, cfg!(target_os = "linux"));
    }

    #[derive(Debug)]
    struct Latest(Option<DateTime<Utc>>);

    impl Bound for Latest {
        fn latest(&self) -> Option<DateTime<Utc>> {
            self.0
        }
    }

    #[test]
    fn a_bounded_clock_shows_its_own_time_up_to_the_bound() {
        let start = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let clock = Clock::manual(start);
        let bounded = clock.clone().bounded(Latest(Some(start + TimeDelta::minutes(1))));
        assert_eq!(bounded.now(), start);
        bounded.advance(TimeDelta::hours(1));
        assert_eq!(clock.now(), start + TimeDelta::hours(1));
        assert_eq!(bounded.now(), start + TimeDelta::minutes(1));
        assert_eq!(clock.clone().bounded(Latest(None)).now(), clock.now());
    }

    #[test]
    fn a_manual_clock_moves_only_when_it_is_set() {
        let start = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let clock = Clock::manual(start);
        let clone = clock.clone();
        assert_eq!(clock.now(), start);
        clock.advance(TimeDelta::milliseconds(-5));
        assert_eq!(clone.now(), start - TimeDelta::milliseconds(5));
    }
}
