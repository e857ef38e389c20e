//! Time as a parameter: the system clock, or one that a test sets.
//!
//! Whatever stamps or compares instants takes a [`Clock`]; nothing else in the project asks the
//! system what time it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Says what time it is. Clones of a manual clock show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Microseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of the operating system. It may step back.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until it is told otherwise.
    #[must_use]
    pub fn manual(at: DateTime<Utc>) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(at.timestamp_micros()))))
    }

    /// The current time; of a manual clock to the microsecond.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.0 {
            Source::System => Utc::now(),
            Source::Manual(micros) => {
                DateTime::from_timestamp_micros(micros.load(Ordering::SeqCst)).unwrap_or(DateTime::UNIX_EPOCH)
            }
        }
    }

    /// Moves a manual clock by `delta`, back if it is negative. The system clock stays as it is.
    pub fn advance(&self, delta: TimeDelta) {
        if let Source::Manual(micros) = &self.0 {
            micros.fetch_add(delta.num_microseconds().unwrap_or(0), Ordering::SeqCst);
        }
    }
}

/// How long the machine has been on, with the time for which it was suspended. Nobody sets this clock.
///
/// [`Instant`](std::time::Instant) leaves out suspensions on Linux. On other systems this is always zero.
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

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let start = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let clock = Clock::manual(start);
        let clone = clock.clone();
        assert_eq!(clock.now(), start);
        clock.advance(TimeDelta::milliseconds(-5));
        assert_eq!(clone.now(), start - TimeDelta::milliseconds(5));
    }
}
