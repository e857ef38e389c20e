use std::time::{Duration, Instant};

use crate::moment::{Moment, Spent};

/// The longest deferral of a delivery: the end of its wait is an estimate, and estimates become outdated.
const LONGEST: Duration = Duration::from_mins(5);

/// The weight of the last call in the moving average is one divided by this number.
const WEIGHT: u32 = 16;

/// Estimates how long deliveries wait for a full destination.
///
/// A delivery may wait if the estimate is within the max wait. Any other is deferred until the estimated end of its
/// wait, so that deferred deliveries do not all return at the same time.
///
/// Only time that the destination itself needs counts: the duration of its calls and the gap that its rate requires.
/// While this program is the slower of the two, deliveries wait for the program, and none is deferred.
#[derive(Debug)]
pub struct WaitEstimator {
    /// Maximum number of concurrent calls.
    permits: u32,
    /// Minimum time between the starts of two calls; zero without a rate.
    gap: Duration,
    /// The longest time that a delivery waits.
    max_wait: Duration,
    /// Number of waiting deliveries.
    waiting: u32,
    /// Number of calls in flight.
    under_way: u32,
    /// The average duration of a call, divided between the two sides; zero before the first has ended.
    call: Spent,
    /// When a call last started or ended.
    moved: Option<Moment>,
    /// The estimated end of the wait of the delivery that was deferred last.
    end: Option<Instant>,
}

impl WaitEstimator {
    /// Creates an estimator without waiting deliveries.
    #[must_use]
    pub fn new(permits: u32, gap: Duration, max_wait: Duration) -> Self {
        let permits = permits.max(1);
        Self {
            permits,
            gap,
            max_wait,
            waiting: 0,
            under_way: 0,
            call: Spent::default(),
            moved: None,
            end: None,
        }
    }

    /// Returns how long the destination takes for a call: the average, or the time since a call last started or ended
    /// while calls are in flight, if that is longer. So a third party that hangs is noticed before the first timeout.
    /// Zero before the first call.
    #[must_use]
    pub fn call(&self, now: &Moment) -> Duration {
        let under_way =
            self.moved.as_ref().filter(|_| self.under_way > 0).map(|moved| now.since(moved).theirs);
        self.call.theirs.max(under_way.unwrap_or_default())
    }

    /// Whether deliveries wait for the destination rather than for this program, and its calls or its backlog take it
    /// longer than `longer`.
    #[must_use]
    pub fn is_slow(&self, now: &Moment, longer: Duration) -> bool {
        self.is_the_slower(now) && self.call(now).max(self.wait_time(now)) > longer
    }

    /// Starts waiting, until [`WaitEstimator::leave`].
    ///
    /// # Errors
    /// If the destination is likely to take longer than the max wait: how long to defer the delivery.
    pub fn wait(&mut self, now: &Moment) -> Result<(), Duration> {
        if self.is_the_slower(now) && self.wait_time(now) > self.max_wait {
            return Err(self.defer(now));
        }
        self.join();
        Ok(())
    }

    /// Starts waiting regardless of the number of waiting deliveries, until [`WaitEstimator::leave`].
    pub fn join(&mut self) {
        self.waiting += 1;
    }

    /// Stops waiting, for any reason.
    pub fn leave(&mut self) {
        self.waiting -= 1;
    }

    /// Defers a delivery. Returns how long to defer it.
    pub fn defer(&mut self, now: &Moment) -> Duration {
        let end = self.end.filter(|end| *end > now.at).unwrap_or(now.at);
        let end = (end + self.pace(now)).min(now.at + LONGEST);
        self.end = Some(end);
        end.saturating_duration_since(now.at)
    }

    /// Records that a call starts.
    pub fn began(&mut self, now: Moment) {
        self.under_way += 1;
        self.moved = Some(now);
    }

    /// Records that a call ended, and how its time divides.
    pub fn ended(&mut self, call: Spent, now: Moment) {
        self.under_way = self.under_way.saturating_sub(1);
        self.moved = Some(now);
        let is_first = self.call == Spent::default();
        let average =
            |all: Duration, last| if is_first { last } else { (all * (WEIGHT - 1) + last) / WEIGHT };
        let Spent { theirs, ours } = self.call;
        self.call = Spent { theirs: average(theirs, call.theirs), ours: average(ours, call.ours) };
    }

    /// Returns how long the destination takes from the start of one call to the next.
    fn pace(&self, now: &Moment) -> Duration {
        self.gap.max(self.call(now) / self.permits)
    }

    /// Returns how long a delivery that starts waiting now waits for the destination.
    fn wait_time(&self, now: &Moment) -> Duration {
        self.pace(now).saturating_mul(self.waiting + 1)
    }

    fn is_the_slower(&self, now: &Moment) -> bool {
        self.pace(now) >= self.call.ours / self.permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "all instants of a test are relative to this one")]
    fn start() -> Instant {
        Instant::now()
    }

    fn theirs(theirs: Duration) -> Spent {
        Spent { theirs, ours: Duration::ZERO }
    }

    /// Returns how many deliveries may wait.
    fn admitted(estimator: &mut WaitEstimator, now: Instant) -> usize {
        (0..10_000).take_while(|_| estimator.wait(&now.into()).is_ok()).count()
    }

    #[test]
    fn a_delivery_waits_only_if_its_estimate_is_within_the_max_wait() {
        let now = start();
        for (permits, gap, call, expected) in [
            (4, Duration::ZERO, SECOND / 10, 40),
            (64, Duration::ZERO, 10 * SECOND, 6),
            (1, Duration::ZERO, 2 * SECOND, 0),
            (64, SECOND / 5, SECOND / 10, 5),
            (64, 2 * SECOND, SECOND / 10, 0),
        ] {
            let mut estimator = WaitEstimator::new(permits, gap, SECOND);
            estimator.ended(theirs(call), now.into());
            assert_eq!(admitted(&mut estimator, now), expected, "{permits} permits, {gap:?}, {call:?}");
            (0..expected).for_each(|_| estimator.leave());
            assert_eq!(admitted(&mut estimator, now), expected, "and again");
        }
    }

    #[test]
    fn no_delivery_waits_for_calls_that_hang() {
        let (mut estimator, now) = (WaitEstimator::new(4, Duration::ZERO, SECOND), start());
        estimator.ended(theirs(SECOND / 10), now.into());
        // After a long time without a delivery.
        let later = now + 3600 * SECOND;
        estimator.began(later.into());
        assert_eq!(admitted(&mut estimator, later), 40);
        (0..40).for_each(|_| estimator.leave());
        assert_eq!(admitted(&mut estimator, later + SECOND), 4);
        (0..4).for_each(|_| estimator.leave());
        assert_eq!(admitted(&mut estimator, later + 5 * SECOND), 0);
        estimator.ended(theirs(SECOND / 10), (later + 5 * SECOND).into());
        assert_eq!(admitted(&mut estimator, later + 5 * SECOND), 40);
    }

    #[test]
    fn no_delivery_is_deferred_while_this_program_is_the_bottleneck() {
        let (mut estimator, now) = (WaitEstimator::new(4, Duration::ZERO, SECOND), start());
        estimator.ended(Spent { theirs: SECOND / 10, ours: SECOND }, now.into());
        assert_eq!(admitted(&mut estimator, now), 10_000);
        assert!(!estimator.is_slow(&now.into(), Duration::ZERO));
        // This program is fast again, and the third party hangs.
        estimator.began(now.into());
        assert!(!estimator.is_slow(&(now + SECOND / 2).into(), Duration::ZERO));
        assert!(estimator.is_slow(&(now + SECOND).into(), SECOND));
        assert_eq!(admitted(&mut estimator, now + SECOND), 0);
    }

    #[test]
    fn a_rate_delays_calls_even_if_this_program_is_slow() {
        let (mut estimator, now) = (WaitEstimator::new(4, SECOND, SECOND), start());
        estimator.ended(Spent { theirs: Duration::ZERO, ours: 3 * SECOND }, now.into());
        assert_eq!(admitted(&mut estimator, now), 1);
        estimator.ended(Spent { theirs: Duration::ZERO, ours: 600 * SECOND }, now.into());
        assert_eq!(admitted(&mut estimator, now), 10_000);
    }

    #[test]
    fn a_destination_is_slow_if_its_calls_or_its_queue_last() {
        let (mut estimator, now) = (WaitEstimator::new(4, Duration::ZERO, SECOND), start());
        estimator.ended(theirs(SECOND / 10), now.into());
        let is_slow = |estimator: &WaitEstimator| estimator.is_slow(&now.into(), SECOND / 4);
        assert!(!is_slow(&estimator));
        (0..10).for_each(|_| estimator.join());
        assert!(is_slow(&estimator));
        (0..10).for_each(|_| estimator.leave());
        (0..50).for_each(|_| estimator.ended(theirs(SECOND / 2), now.into()));
        assert!(is_slow(&estimator));
    }

    #[test]
    fn deferred_deliveries_return_one_after_another() {
        let (mut estimator, now) = (WaitEstimator::new(64, SECOND / 5, SECOND), start());
        let deferrals: Vec<_> = (0..10).map(|_| estimator.defer(&now.into())).collect();
        assert_eq!(deferrals, (1..=10).map(|place| place * SECOND / 5).collect::<Vec<_>>());
        assert_eq!(estimator.defer(&(now + SECOND).into()), SECOND + SECOND / 5);
        assert_eq!(estimator.defer(&(now + 60 * SECOND).into()), SECOND / 5, "all have returned by then");
    }

    #[test]
    fn deferrals_follow_each_other_as_fast_as_calls_end() {
        let (mut estimator, now) = (WaitEstimator::new(4, Duration::ZERO, SECOND), start());
        let moment = now.into();
        assert_eq!(estimator.defer(&moment), Duration::ZERO);
        estimator.ended(theirs(8 * SECOND), moment);
        assert_eq!((estimator.defer(&moment), estimator.defer(&moment)), (2 * SECOND, 4 * SECOND));
        for _ in 0..200 {
            estimator.ended(theirs(SECOND), moment);
        }
        let deferral = estimator.defer(&moment);
        assert!((4 * SECOND + SECOND / 4..4 * SECOND + SECOND / 3).contains(&deferral), "{deferral:?}");
    }

    #[test]
    fn no_delivery_is_deferred_for_more_than_a_few_minutes() {
        let (mut estimator, now) = (WaitEstimator::new(1, 60 * SECOND, SECOND), start());
        assert_eq!((0..100).map(|_| estimator.defer(&now.into())).max(), Some(LONGEST));
        assert_eq!(
            estimator.defer(&(now + 90 * SECOND).into()),
            270 * SECOND,
            "the estimate never exceeds the longest deferral"
        );
    }
}
