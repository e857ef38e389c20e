use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::{Rng, RngExt as _};

/// How failed attempts are retried.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Maximum number of counted attempts.
    pub attempts: u32,
    /// Maximum number of immediate retries after the first call without a complete response, before it counts.
    pub immediate_retries: u32,
    /// The pauses before all other retries.
    pub pauses: Pauses,
    /// How long a delivery is attempted in total, from the start of its window.
    pub window: Duration,
}

/// The pauses between attempts.
#[derive(Debug, Clone)]
pub enum Pauses {
    /// Exponential backoff with full jitter: each pause is drawn uniformly from zero to its backoff, so that
    /// deliveries that failed together are not retried together.
    Exponential {
        /// The first backoff.
        base: Duration,
        /// The factor by which each backoff is longer than the previous one; at least 1.
        factor: f64,
        /// The longest backoff.
        max: Duration,
    },
    /// These pauses without jitter; the last one repeats when they run out.
    Schedule(Vec<Duration>),
}

/// A failed attempt of a delivery that another attempt may still deliver.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// How many earlier attempts counted.
    pub counted_attempts: u32,
    /// How many immediate retries were made just before this attempt.
    pub repeats: u32,
    /// When the delivery's window began.
    pub window_started_at: DateTime<Utc>,
    /// When the attempt failed.
    pub at: DateTime<Utc>,
    /// Why the attempt failed.
    pub cause: Cause,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It got no complete response. The first such failure may have passed at once.
    NoResponse,
    /// The third party failed the call. It may have named the earliest time for another one.
    Failed {
        /// The earliest time; it may be in the past.
        not_before: Option<DateTime<Utc>>,
    },
    /// The third party is busy, and named the time at which it accepts calls again: the attempt costs time, but does
    /// not count.
    Busy {
        /// The time; it may be in the past.
        until: DateTime<Utc>,
    },
}

/// The decision after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// How many attempts have counted so far.
    pub counted_attempts: u32,
    /// The next step.
    pub next: Next,
}

/// The next step for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Retry immediately.
    Immediately,
    /// Retry at this time.
    At(DateTime<Utc>),
    /// End the delivery: no attempts are left.
    Exhausted,
    /// End the delivery: its window leaves no time for another attempt.
    Expired,
}

impl RetryPolicy {
    /// Returns when a delivery's window ends.
    #[must_use]
    pub fn ends_at(&self, window_started_at: DateTime<Utc>) -> DateTime<Utc> {
        later(window_started_at, self.window)
    }

    /// Decides what follows a failed attempt.
    #[must_use]
    pub fn after(&self, failed: &Failed, rng: &mut impl Rng) -> Decision {
        let ends_at = self.ends_at(failed.window_started_at);
        // Only before the first counted failure: a failure that has lasted a while does not end within an instant.
        let is_at_once = failed.cause == Cause::NoResponse
            && failed.counted_attempts == 0
            && failed.repeats < self.immediate_retries;
        if is_at_once && failed.at < ends_at {
            return Decision { counted_attempts: failed.counted_attempts, next: Next::Immediately };
        }
        let counted_attempts = failed.counted_attempts.saturating_add(failed.counts().into());
        if counted_attempts >= self.attempts {
            return Decision { counted_attempts, next: Next::Exhausted };
        }
        let then = self.pauses.end(failed, rng);
        Decision { counted_attempts, next: if then <= ends_at { Next::At(then) } else { Next::Expired } }
    }
}

impl Failed {
    fn counts(&self) -> bool {
        !matches!(self.cause, Cause::Busy { .. })
    }

    /// Returns the earliest time at which the third party accepts another attempt.
    fn floor(&self) -> DateTime<Utc> {
        match self.cause {
            Cause::Busy { until: time } | Cause::Failed { not_before: Some(time) } => time.max(self.at),
            Cause::Failed { not_before: None } | Cause::NoResponse => self.at,
        }
    }

    /// Returns the index of the pause, from 0. For an attempt that does not count, it is the number of all earlier
    /// attempts, which grows without limit, so that a third party that keeps naming a time in the past is called
    /// less and less often.
    fn pause(&self) -> u32 {
        if self.counts() { self.counted_attempts } else { self.attempt.saturating_sub(1) }
    }
}

impl Pauses {
    fn end(&self, failed: &Failed, rng: &mut impl Rng) -> DateTime<Utc> {
        match self {
            // Added to the floor: deliveries with the same floor would otherwise all be retried at the same time.
            Self::Exponential { base, factor, max } => {
                let length = length(*base, *factor, *max, failed.pause());
                later(failed.floor(), rng.random_range(Duration::ZERO..=length))
            }
            Self::Schedule(pauses) => {
                let last = pauses.len().saturating_sub(1);
                let index = usize::try_from(failed.pause()).unwrap_or(last).min(last);
                let pause = pauses.get(index).copied().unwrap_or_default();
                later(failed.at, pause).max(failed.floor())
            }
        }
    }
}

/// Returns the time that is `pause` after `at`, or the end of the calendar if the sum lies beyond it.
#[must_use]
pub fn later(at: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    let pause = chrono::TimeDelta::from_std(pause).unwrap_or(chrono::TimeDelta::MAX);
    at.checked_add_signed(pause).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn length(base: Duration, factor: f64, max: Duration, pause: u32) -> Duration {
    let times = factor.powi(i32::try_from(pause).unwrap_or(i32::MAX));
    Duration::try_from_secs_f64(base.as_secs_f64() * times).unwrap_or(max).min(max)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> RetryPolicy {
        RetryPolicy {
            attempts: 5,
            immediate_retries: 2,
            pauses: Pauses::Exponential { base: SECOND, factor: 2.0, max: 60 * SECOND },
            window: Duration::from_hours(24),
        }
    }

    fn window_started_at() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        window_started_at() + TimeDelta::seconds(seconds)
    }

    /// The first attempt, a minute after the acceptance.
    fn failed(cause: Cause) -> Failed {
        Failed {
            attempt: 1,
            counted_attempts: 0,
            repeats: 0,
            window_started_at: window_started_at(),
            at: at(60),
            cause,
        }
    }

    const FAILED: Cause = Cause::Failed { not_before: None };

    /// Busy until this number of seconds after the failure.
    fn busy(seconds: i64) -> Cause {
        Cause::Busy { until: at(60 + seconds) }
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(7)
    }

    /// Returns the earliest and the latest of many retries.
    fn spread(policy: &RetryPolicy, failed: &Failed) -> (DateTime<Utc>, DateTime<Utc>) {
        let mut rng = rng();
        let drawn = || match policy.after(failed, &mut rng).next {
            Next::At(then) => then,
            other => panic!("{other:?}"),
        };
        let drawn: Vec<_> = std::iter::repeat_with(drawn).take(1000).collect();
        (*drawn.iter().min().unwrap(), *drawn.iter().max().unwrap())
    }

    fn is_close(a: DateTime<Utc>, b: DateTime<Utc>, length: Duration) -> bool {
        (a - b).abs() <= TimeDelta::from_std(length / 50).unwrap()
    }

    #[test]
    fn pauses_double_and_are_drawn_from_all_of_their_length() {
        for (counted_attempts, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
            let failed = Failed { attempt: counted_attempts + 1, counted_attempts, ..failed(FAILED) };
            let (first, last) = spread(&policy(), &failed);
            assert!(is_close(first, at(60), seconds * SECOND), "{counted_attempts}: {first}");
            assert!(
                is_close(last, at(60 + i64::from(seconds)), seconds * SECOND),
                "{counted_attempts}: {last}"
            );
        }
        let long = RetryPolicy { attempts: u32::MAX, ..policy() };
        for counted_attempts in [6, 100, 10_000, u32::MAX - 2] {
            let failed = Failed { attempt: counted_attempts, counted_attempts, ..failed(FAILED) };
            let (_, last) = spread(&long, &failed);
            assert!(last <= at(120) && is_close(last, at(120), 60 * SECOND), "{counted_attempts}: {last}");
        }
    }

    #[test]
    fn configured_pauses_are_used_unchanged() {
        let pauses = vec![5 * SECOND, 300 * SECOND];
        let policy = RetryPolicy { attempts: 3, pauses: Pauses::Schedule(pauses), ..policy() };
        for (counted_attempts, next) in [(0, Next::At(at(65))), (1, Next::At(at(360))), (2, Next::Exhausted)]
        {
            let failed = Failed { attempt: counted_attempts + 1, counted_attempts, ..failed(FAILED) };
            assert_eq!(
                policy.after(&failed, &mut rng()),
                Decision { counted_attempts: counted_attempts + 1, next }
            );
        }
        // A deferred attempt has no number that could run out; the third party's `Retry-After` is the minimum pause.
        let deferred = Failed { attempt: 9, counted_attempts: 2, ..failed(busy(10)) };
        assert_eq!(policy.after(&deferred, &mut rng()).next, Next::At(at(360)));
        let deferred = failed(busy(10));
        assert_eq!(policy.after(&deferred, &mut rng()).next, Next::At(at(70)));
    }

    #[test]
    fn a_call_without_a_response_is_retried_immediately_before_it_counts() {
        let unanswered = failed(Cause::NoResponse);
        for repeats in [0, 1] {
            let again = Decision { counted_attempts: 0, next: Next::Immediately };
            assert_eq!(policy().after(&Failed { repeats, ..unanswered }, &mut rng()), again);
        }
        let verdict = policy().after(&Failed { repeats: 2, ..unanswered }, &mut rng());
        assert!(matches!(verdict, Decision { counted_attempts: 1, next: Next::At(_) }), "{verdict:?}");
        let refused = policy().after(&failed(FAILED), &mut rng());
        assert!(matches!(refused, Decision { counted_attempts: 1, next: Next::At(_) }), "{refused:?}");
    }

    #[test]
    fn attempts_are_exhausted_when_the_limit_is_counted() {
        let last = Failed { attempt: 9, counted_attempts: 4, ..failed(FAILED) };
        let exhausted = Decision { counted_attempts: 5, next: Next::Exhausted };
        assert_eq!(policy().after(&last, &mut rng()), exhausted);
        let unanswered = Failed { cause: Cause::NoResponse, ..last };
        assert_eq!(
            policy().after(&unanswered, &mut rng()),
            exhausted,
            "only the first is made again at once"
        );
        let one = RetryPolicy { attempts: 1, ..policy() };
        assert_eq!(one.after(&failed(FAILED), &mut rng()).next, Next::Exhausted);
    }

    #[test]
    fn a_named_time_delays_the_retry_and_only_a_busy_third_party_counts_no_attempt() {
        for (seconds, floor) in [(30, 90), (60, 120), (0, 60), (-60, 60)] {
            let not_before = Some(at(60 + seconds));
            for (cause, counted_attempts) in [(busy(seconds), 0), (Cause::Failed { not_before }, 1)] {
                let failed = failed(cause);
                let (first, last) = spread(&policy(), &failed);
                assert!(first >= at(floor) && last <= at(floor + 1), "{cause:?}: {first} to {last}");
                assert!(last - first > TimeDelta::milliseconds(900), "all come at once");
                assert_eq!(
                    policy().after(&failed, &mut rng()).counted_attempts,
                    counted_attempts,
                    "{cause:?}"
                );
            }
        }
        // An attempt that counts although it was deferred ends the delivery if it was the last one.
        let last = Failed { attempt: 5, counted_attempts: 4, ..failed(busy(30)) };
        assert!(matches!(
            policy().after(&last, &mut rng()),
            Decision { counted_attempts: 4, next: Next::At(_) }
        ));
        let counts = Failed { cause: Cause::Failed { not_before: Some(at(90)) }, ..last };
        assert_eq!(
            policy().after(&counts, &mut rng()),
            Decision { counted_attempts: 5, next: Next::Exhausted }
        );
    }

    #[test]
    fn a_third_party_that_keeps_being_busy_is_called_less_and_less_often() {
        let deferred = |attempt| Failed { attempt, ..failed(busy(0)) };
        assert!(spread(&policy(), &deferred(20)).1 > at(60 + 50));
    }

    #[test]
    fn there_is_no_attempt_after_the_window() {
        let hour = RetryPolicy { window: 3600 * SECOND, ..policy() };
        let expired = |failed: &Failed| hour.after(failed, &mut rng()).next == Next::Expired;
        assert_eq!(hour.ends_at(window_started_at()), at(3600));
        assert!(expired(&failed(busy(3541))));
        assert!(expired(&failed(Cause::Busy { until: DateTime::<Utc>::MAX_UTC })));
        assert!(!expired(&failed(busy(3538))));
        let late = Failed { at: at(3601), ..failed(Cause::NoResponse) };
        assert!(expired(&late), "not at once either");
        assert!(expired(&Failed { repeats: 2, ..late }));
    }

    /// Any number, and often one of the two ends, where sums overflow.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)]
    }

    proptest! {
        /// From any instant, with any numbers.
        #[test]
        fn no_sum_overflows(
            seed: u64,
            window_started_at in i64::MIN..=i64::MAX,
            at in i64::MIN..=i64::MAX,
            window: Duration,
            pause: Duration,
            numbers in (number(), number(), number()),
            until in i64::MIN..=i64::MAX,
        ) {
            // A time beyond the calendar becomes one of its ends.
            let (attempt, counted_attempts, repeats) = numbers;
            let instant = |micros| DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC);
            let (window_started_at, at, until) = (instant(window_started_at), instant(at), instant(until));
            for cause in [Cause::NoResponse, Cause::Busy { until }, Cause::Failed { not_before: Some(until) }] {
                let failed = Failed { attempt, counted_attempts, repeats, window_started_at, at, cause };
                for pauses in [Pauses::Schedule(vec![pause]), policy().pauses] {
                    let policy = RetryPolicy { attempts: u32::MAX, pauses, window, ..policy() };
                    let _ = policy.after(&failed, &mut SmallRng::seed_from_u64(seed));
                    prop_assert!(policy.ends_at(window_started_at) >= window_started_at);
                }
            }
        }

        #[test]
        fn a_delivery_ends_in_its_window_and_never_restarts(
            seed: u64,
            attempts in 1_u32..8,
            failures in proptest::collection::vec((0_u8..5, 0_i64..200), 1..400),
        ) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let policy = RetryPolicy { attempts, window: 3600 * SECOND, ..policy() };
            let mut failed = failed(FAILED);
            for (kind, seconds) in failures {
                failed.cause = match kind {
                    0 => FAILED,
                    1 | 2 => Cause::NoResponse,
                    _ => busy(40),
                };
                failed.at += TimeDelta::seconds(seconds);
                let Decision { counted_attempts, next } = policy.after(&failed, &mut rng);
                let earlier = failed.counted_attempts;
                prop_assert!(counted_attempts == earlier || counted_attempts == earlier + 1);
                prop_assert!(counted_attempts <= attempts);
                failed.attempt += 1;
                failed.counted_attempts = counted_attempts;
                match next {
                    Next::Immediately => failed.repeats += 1,
                    Next::At(then) => {
                        prop_assert!(failed.at <= then && then <= policy.ends_at(window_started_at()));
                        (failed.at, failed.repeats) = (then, 0);
                    }
                    Next::Exhausted => {
                        prop_assert_eq!(counted_attempts, attempts);
                        return Ok(());
                    }
                    Next::Expired => return Ok(()),
                }
                prop_assert!(failed.repeats <= policy.immediate_retries);
                prop_assert!(counted_attempts < attempts);
            }
        }
    }
}
