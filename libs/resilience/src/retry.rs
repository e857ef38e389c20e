use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use rand::{Rng, RngExt as _};

use crate::meaning::Fault;
use crate::retry_after::RetryAfter;

/// What a failed attempt is followed by.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Most attempts that count.
    pub attempts: u32,
    /// How often the first call without a complete response is made again at once, before it counts.
    pub at_once: u32,
    /// How long to wait otherwise.
    pub pauses: Pauses,
    /// How long a delivery is tried at all, from when its time began.
    pub window: Duration,
}

/// The pauses between attempts.
#[derive(Debug, Clone)]
pub enum Pauses {
    /// Each is drawn evenly from zero to its length, so that those who failed together do not come again
    /// together.
    Exponential {
        /// The length of the first.
        base: Duration,
        /// What each is longer by than the one before, at least 1.
        factor: f64,
        /// The greatest length.
        max: Duration,
    },
    /// As they are; the last one again if there are not enough.
    Schedule(Vec<Duration>),
}

/// An attempt that failed, of a delivery that another attempt may help.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// Its number, from 1.
    pub attempt: u32,
    /// How many of those before it counted.
    pub spent: u32,
    /// How many were made at once just before it.
    pub repeats: u32,
    /// When the delivery's time began.
    pub since: DateTime<Utc>,
    /// When it failed.
    pub at: DateTime<Utc>,
    /// How.
    pub cause: Cause,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// With this response.
    Status(StatusCode, Option<RetryAfter>),
    /// Without a complete one.
    Fault(Fault),
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// How many attempts count by now.
    pub spent: u32,
    /// What is next.
    pub next: Next,
}

/// What is next for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, now.
    AtOnce,
    /// Another attempt, at this time.
    At(DateTime<Utc>),
    /// Nothing: there are no attempts left.
    Exhausted,
    /// Nothing: there is no time left for another attempt.
    Expired,
}

impl RetryPolicy {
    /// When a delivery's time is over.
    #[must_use]
    pub fn ends_at(&self, since: DateTime<Utc>) -> DateTime<Utc> {
        later(since, self.window)
    }

    /// What follows a failed attempt.
    #[must_use]
    pub fn after(&self, failed: &Failed, rng: &mut impl Rng) -> Verdict {
        let ends_at = self.ends_at(failed.since);
        // Only at first: what has failed for a while is not mended in an instant.
        let is_at_once =
            matches!(failed.cause, Cause::Fault(_)) && failed.spent == 0 && failed.repeats < self.at_once;
        if is_at_once && failed.at < ends_at {
            return Verdict { spent: failed.spent, next: Next::AtOnce };
        }
        let spent = failed.spent.saturating_add(failed.counts().into());
        if spent >= self.attempts {
            return Verdict { spent, next: Next::Exhausted };
        }
        let then = self.pauses.end(failed, rng);
        Verdict { spent, next: if then <= ends_at { Next::At(then) } else { Next::Expired } }
    }
}

impl Failed {
    /// Who says when to come again is not asked in vain.
    fn counts(&self) -> bool {
        !matches!(
            self.cause,
            Cause::Status(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(_))
        )
    }

    /// The soonest that the third party wants to be asked again.
    fn floor(&self) -> DateTime<Utc> {
        match self.cause {
            Cause::Status(_, Some(retry_after)) => retry_after.at().max(self.at),
            Cause::Status(_, None) | Cause::Fault(_) => self.at,
        }
    }

    /// Which pause it is, from 0. Without end where no attempt counts, so that a third party that keeps saying
    /// `Retry-After: 0` is asked less and less often too.
    fn pause(&self) -> u32 {
        if self.counts() { self.spent } else { self.attempt.saturating_sub(1) }
    }
}

impl Pauses {
    fn end(&self, failed: &Failed, rng: &mut impl Rng) -> DateTime<Utc> {
        match self {
            // Beyond the floor, or all who got the same one would come again together.
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

/// The instant that is `pause` after `at`; the end of the calendar if the sum is beyond it.
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
            at_once: 2,
            pauses: Pauses::Exponential { base: SECOND, factor: 2.0, max: 60 * SECOND },
            window: Duration::from_hours(24),
        }
    }

    fn since() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        since() + TimeDelta::seconds(seconds)
    }

    /// The first attempt, a minute after the acceptance.
    fn failed(cause: Cause) -> Failed {
        Failed { attempt: 1, spent: 0, repeats: 0, since: since(), at: at(60), cause }
    }

    fn status(code: u16, retry_after: Option<&str>) -> Cause {
        let retry_after = retry_after.map(|value| RetryAfter::parse(value, at(60)).unwrap());
        Cause::Status(StatusCode::from_u16(code).unwrap(), retry_after)
    }

    fn rng() -> SmallRng {
        SmallRng::seed_from_u64(7)
    }

    /// The earliest and the latest of many.
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
        for (spent, seconds) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
            let failed = Failed { attempt: spent + 1, spent, ..failed(status(500, None)) };
            let (first, last) = spread(&policy(), &failed);
            assert!(is_close(first, at(60), seconds * SECOND), "{spent}: {first}");
            assert!(is_close(last, at(60 + i64::from(seconds)), seconds * SECOND), "{spent}: {last}");
        }
        let long = RetryPolicy { attempts: u32::MAX, ..policy() };
        for spent in [6, 100, 10_000, u32::MAX - 2] {
            let failed = Failed { attempt: spent, spent, ..failed(status(500, None)) };
            let (_, last) = spread(&long, &failed);
            assert!(last <= at(120) && is_close(last, at(120), 60 * SECOND), "{spent}: {last}");
        }
    }

    #[test]
    fn pauses_by_hand_are_taken_as_they_are() {
        let pauses = vec![5 * SECOND, 300 * SECOND];
        let policy = RetryPolicy { attempts: 3, pauses: Pauses::Schedule(pauses), ..policy() };
        for (spent, next) in [(0, Next::At(at(65))), (1, Next::At(at(360))), (2, Next::Exhausted)] {
            let failed = Failed { attempt: spent + 1, spent, ..failed(status(500, None)) };
            assert_eq!(policy.after(&failed, &mut rng()), Verdict { spent: spent + 1, next });
        }
        // One that was put off has no end of pauses; the third party's wish is a floor of it.
        let put_off = Failed { attempt: 9, spent: 2, ..failed(status(429, Some("10"))) };
        assert_eq!(policy.after(&put_off, &mut rng()).next, Next::At(at(360)));
        let put_off = failed(status(429, Some("10")));
        assert_eq!(policy.after(&put_off, &mut rng()).next, Next::At(at(70)));
    }

    #[test]
    fn a_call_without_a_response_is_made_again_at_once_before_it_counts() {
        for fault in [Fault::Connect, Fault::Tls, Fault::Timeout, Fault::Transport] {
            let failed = failed(Cause::Fault(fault));
            for repeats in [0, 1] {
                let again = Verdict { spent: 0, next: Next::AtOnce };
                assert_eq!(policy().after(&Failed { repeats, ..failed }, &mut rng()), again);
            }
            let verdict = policy().after(&Failed { repeats: 2, ..failed }, &mut rng());
            assert!(matches!(verdict, Verdict { spent: 1, next: Next::At(_) }), "{verdict:?}");
        }
        let refused = policy().after(&failed(status(500, None)), &mut rng());
        assert!(matches!(refused, Verdict { spent: 1, next: Next::At(_) }), "{refused:?}");
    }

    #[test]
    fn attempts_are_exhausted_when_as_many_count() {
        let last = Failed { attempt: 9, spent: 4, ..failed(status(500, None)) };
        let exhausted = Verdict { spent: 5, next: Next::Exhausted };
        assert_eq!(policy().after(&last, &mut rng()), exhausted);
        let fault = Failed { cause: Cause::Fault(Fault::Connect), ..last };
        assert_eq!(policy().after(&fault, &mut rng()), exhausted, "only the first is made again at once");
        let one = RetryPolicy { attempts: 1, ..policy() };
        assert_eq!(one.after(&failed(status(500, None)), &mut rng()).next, Next::Exhausted);
    }

    #[test]
    fn what_the_third_party_puts_off_comes_no_sooner_and_only_429_and_503_do_not_count() {
        for (code, spent) in [(429, 0), (503, 0), (500, 1), (408, 1), (502, 1)] {
            for (wish, floor) in [("30", 90), ("Thu, 01 Jan 2026 00:02:00 GMT", 120), ("0", 60)] {
                let failed = failed(status(code, Some(wish)));
                let (first, last) = spread(&policy(), &failed);
                assert!(first >= at(floor) && last <= at(floor + 1), "{code} {wish}: {first} to {last}");
                assert!(last - first > TimeDelta::milliseconds(900), "all come at once");
                assert_eq!(policy().after(&failed, &mut rng()).spent, spent, "{code} {wish}");
            }
        }
        // A date that is over.
        let over = failed(status(503, Some("Thu, 01 Jan 1970 00:00:00 GMT")));
        assert!(spread(&policy(), &over).0 >= at(60));
        // One that counts all the same is put off to no avail if it was the last.
        let last = Failed { attempt: 5, spent: 4, ..failed(status(503, Some("30"))) };
        assert!(matches!(policy().after(&last, &mut rng()), Verdict { spent: 4, next: Next::At(_) }));
        let counts = Failed { cause: status(500, Some("30")), ..last };
        assert_eq!(policy().after(&counts, &mut rng()), Verdict { spent: 5, next: Next::Exhausted });
    }

    #[test]
    fn who_keeps_putting_off_for_no_time_is_asked_less_and_less_often() {
        let put_off = |attempt| Failed { attempt, ..failed(status(503, Some("0"))) };
        assert!(spread(&policy(), &put_off(20)).1 > at(60 + 50));
    }

    #[test]
    fn there_is_no_attempt_after_the_window() {
        let hour = RetryPolicy { window: 3600 * SECOND, ..policy() };
        let expired = |failed: &Failed| hour.after(failed, &mut rng()).next == Next::Expired;
        assert_eq!(hour.ends_at(since()), at(3600));
        assert!(expired(&failed(status(503, Some("3541")))));
        assert!(expired(&failed(status(503, Some("99999999999999999999")))));
        assert!(!expired(&failed(status(503, Some("3538")))));
        let late = Failed { at: at(3601), ..failed(Cause::Fault(Fault::Timeout)) };
        assert!(expired(&late), "not at once either");
        assert!(expired(&Failed { repeats: 2, ..late }));
    }

    proptest! {
        /// From any instant, with any numbers.
        #[test]
        fn no_sum_overflows(
            seed: u64,
            since in i64::MIN..=i64::MAX,
            at in i64::MIN..=i64::MAX,
            window: Duration,
            pause: Duration,
            numbers: (u32, u32, u32),
            retry_after: u64,
        ) {
            // What no calendar holds is one of its ends.
            let (attempt, spent, repeats) = numbers;
            let instant = |micros| DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::<Utc>::MAX_UTC);
            let (since, at) = (instant(since), instant(at));
            let retry_after = RetryAfter::parse(&retry_after.to_string(), at);
            for cause in [Cause::Fault(Fault::Timeout), Cause::Status(StatusCode::SERVICE_UNAVAILABLE, retry_after)] {
                let failed = Failed { attempt, spent, repeats, since, at, cause };
                for pauses in [Pauses::Schedule(vec![pause]), policy().pauses] {
                    let policy = RetryPolicy { attempts: u32::MAX, pauses, window, ..policy() };
                    let _ = policy.after(&failed, &mut SmallRng::seed_from_u64(seed));
                    prop_assert!(policy.ends_at(since) >= since);
                }
            }
        }

        #[test]
        fn a_delivery_ends_in_its_window_and_never_goes_back(
            seed: u64,
            attempts in 1_u32..8,
            failures in proptest::collection::vec((0_u8..5, 0_i64..200), 1..400),
        ) {
            let mut rng = SmallRng::seed_from_u64(seed);
            let policy = RetryPolicy { attempts, window: 3600 * SECOND, ..policy() };
            let mut failed = failed(status(500, None));
            for (kind, seconds) in failures {
                failed.cause = match kind {
                    0 => status(500, None),
                    1 => Cause::Fault(Fault::Timeout),
                    2 => Cause::Fault(Fault::Connect),
                    _ => status(503, Some("40")),
                };
                failed.at += TimeDelta::seconds(seconds);
                let Verdict { spent, next } = policy.after(&failed, &mut rng);
                prop_assert!(spent == failed.spent || spent == failed.spent + 1);
                prop_assert!(spent <= attempts);
                failed.attempt += 1;
                failed.spent = spent;
                match next {
                    Next::AtOnce => failed.repeats += 1,
                    Next::At(then) => {
                        prop_assert!(failed.at <= then && then <= policy.ends_at(since()));
                        (failed.at, failed.repeats) = (then, 0);
                    }
                    Next::Exhausted => {
                        prop_assert_eq!(spent, attempts);
                        return Ok(());
                    }
                    Next::Expired => return Ok(()),
                }
                prop_assert!(failed.repeats <= policy.at_once);
                prop_assert!(spent < attempts);
            }
        }
    }
}
