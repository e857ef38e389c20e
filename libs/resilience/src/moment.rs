use std::time::{Duration, Instant};

/// How many times the tasks of one call and of its connection wait to be polled: to send, to read the head and the
/// body, and to continue.
const POLLS: f64 = 6.0;

/// A point in time, with the accumulated lateness of the program's tasks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The point in time.
    pub at: Instant,
    /// The lateness of the program's tasks, integrated over time, in seconds squared. It only grows.
    pub lateness: f64,
}

/// A duration, divided between a third party and this program.
///
/// While this program is short of processor time or frozen, everything takes long, and a measured duration says
/// nothing about the third party. The part that the program's own lateness explains is therefore subtracted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// The third party's part.
    pub theirs: Duration,
    /// This program's part.
    pub ours: Duration,
}

impl Moment {
    /// Divides the time since an `earlier` moment.
    ///
    /// This program's part is the mean lateness of its tasks in that time, multiplied by the number of times that a
    /// call waits to be polled.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Spent {
        let elapsed = self.at.saturating_duration_since(earlier.at);
        if elapsed.is_zero() {
            return Spent::default();
        }
        let mean = (self.lateness - earlier.lateness).max(0.0) / elapsed.as_secs_f64();
        let ours = Duration::try_from_secs_f64(POLLS * mean).unwrap_or(elapsed).min(elapsed);
        Spent { theirs: elapsed.saturating_sub(ours), ours }
    }
}

impl From<Instant> for Moment {
    /// A moment without accumulated lateness.
    fn from(at: Instant) -> Self {
        Self { at, lateness: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[expect(clippy::disallowed_methods, reason = "all instants of a test are relative to this one")]
    fn start() -> Moment {
        Instant::now().into()
    }

    /// So much later, if tasks were late by a constant time.
    fn later(start: Moment, by: Duration, late: Duration) -> Moment {
        Moment { at: start.at + by, lateness: start.lateness + by.as_secs_f64() * late.as_secs_f64() }
    }

    #[test]
    fn all_time_counts_for_the_third_party_while_this_program_is_in_time() {
        let start = start();
        assert_eq!(
            later(start, 70 * MS, Duration::ZERO).since(&start),
            Spent { theirs: 70 * MS, ours: Duration::ZERO }
        );
        assert_eq!(start.since(&start), Spent::default());
    }

    #[test]
    fn a_call_delayed_by_late_tasks_does_not_count_against_the_third_party() {
        let start = start();
        assert_eq!(later(start, 600 * MS, 100 * MS).since(&start).theirs, Duration::ZERO);
        let slow = later(start, 10_600 * MS, 100 * MS).since(&start).theirs;
        assert!(slow.abs_diff(10_000 * MS) < MS, "{slow:?}");
    }

    #[test]
    fn a_stalled_program_blames_no_third_party() {
        let start = start();
        let before = later(start, 100 * MS, Duration::ZERO);
        let stood = later(before, 60_000 * MS, 60_000 * MS);
        assert_eq!(stood.since(&start).theirs, Duration::ZERO);
        assert_eq!(later(stood, 50 * MS, Duration::ZERO).since(&stood).theirs, 50 * MS);
    }
}
