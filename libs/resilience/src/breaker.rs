use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Number of steps in which a window forgets its calls.
const SLOTS: u32 = 10;

/// When a breaker opens and closes.
#[derive(Debug, Clone)]
pub struct BreakerPolicy {
    /// Number of consecutive failures that open the breaker.
    pub consecutive: u32,
    /// The failure rate within a window that opens the breaker, from 0 to 1.
    pub failure_rate: f64,
    /// Minimum number of calls in a window before its failure rate applies.
    pub minimum_calls: u32,
    /// Length of the window.
    pub window: Duration,
    /// How long the breaker first stays open before it probes; each failed probe doubles it.
    pub open: Duration,
    /// The longest time that the breaker stays open before it probes.
    pub max_open: Duration,
    /// Number of probes, all of which must succeed to close the breaker.
    pub probes: u32,
}

/// Stops calls that would fail, and lets a few through as probes.
///
/// A closed breaker permits every call and counts successes and failures. An open breaker permits no call until its
/// pause has ended. A half-open breaker permits as many calls as must succeed to close it; the first failure opens it
/// again.
#[derive(Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: State,
    /// Counts the states. The outcome of a call that started in an earlier state says nothing about the current one.
    epoch: u64,
}

#[derive(Debug)]
enum State {
    Closed { in_a_row: u32, window: Window },
    Open { pause: Duration, until: Instant },
    HalfOpen { pause: Duration, under_way: u32, succeeded: u32 },
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// All calls are permitted.
    Closed,
    /// No call is permitted.
    Open,
    /// A few calls are permitted as probes.
    HalfOpen,
}

/// A permit for one call. It must be returned with [`Breaker::record`] or [`Breaker::release`].
#[derive(Debug)]
#[must_use = "a probe that is not given back is one less"]
pub struct Permit {
    epoch: u64,
}

impl Breaker {
    /// Creates a closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, state: State::closed(), epoch: 0 }
    }

    /// Returns the state. When its pause ends, an open breaker remains open until the next call of
    /// [`Breaker::permit`].
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether the breaker is open and its pause has ended, so that the next call is a probe.
    #[must_use]
    pub fn awaits_probe(&self, now: Instant) -> bool {
        matches!(self.state, State::Open { until, .. } if until <= now)
    }

    /// Returns how long calls have to wait from now on; `None` if a call is permitted.
    #[must_use]
    pub fn open_for(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until, .. } => {
                Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
            }
            // They wait until the probes have ended, which cannot be predicted.
            State::HalfOpen { under_way, succeeded, .. } => {
                (under_way + succeeded >= self.policy.probes).then_some(self.policy.open)
            }
        }
    }

    /// Requests a permit for a call.
    ///
    /// # Errors
    /// If calls have to wait: how long to wait before the next request.
    pub fn permit(&mut self, now: Instant) -> Result<Permit, Duration> {
        if let Some(wait) = self.open_for(now) {
            return Err(wait);
        }
        if let State::Open { pause, .. } = self.state {
            self.enter(State::HalfOpen { pause, under_way: 0, succeeded: 0 });
        }
        if let State::HalfOpen { under_way, .. } = &mut self.state {
            *under_way += 1;
        }
        Ok(Permit { epoch: self.epoch })
    }

    /// Returns a permit and records the outcome of its call.
    pub fn record(&mut self, permit: &Permit, succeeded: bool, now: Instant) {
        if permit.epoch == self.epoch {
            if succeeded { self.success(now) } else { self.failure(now) }
        }
    }

    /// Returns a permit without an outcome: no call was made, or its outcome is unknown.
    pub fn release(&mut self, permit: &Permit) {
        if let State::HalfOpen { under_way, .. } = &mut self.state
            && permit.epoch == self.epoch
        {
            *under_way -= 1;
        }
    }

    fn success(&mut self, now: Instant) {
        match &mut self.state {
            State::Closed { in_a_row, window } => {
                *in_a_row = 0;
                window.count(&self.policy, false, now);
            }
            State::HalfOpen { under_way, succeeded, .. } => {
                *under_way -= 1;
                *succeeded += 1;
                if *succeeded >= self.policy.probes {
                    self.enter(State::closed());
                }
            }
            // An open breaker issues no permits.
            State::Open { .. } => {}
        }
    }

    fn failure(&mut self, now: Instant) {
        match &mut self.state {
            State::Closed { in_a_row, window } => {
                *in_a_row += 1;
                window.count(&self.policy, true, now);
                if *in_a_row >= self.policy.consecutive || window.is_bad(&self.policy) {
                    self.open(self.policy.open, now);
                }
            }
            State::HalfOpen { pause, .. } => {
                let pause = pause.saturating_mul(2);
                self.open(pause, now);
            }
            State::Open { .. } => {}
        }
    }

    fn open(&mut self, pause: Duration, now: Instant) {
        let pause = pause.min(self.policy.max_open);
        self.enter(State::Open { pause, until: now + pause });
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

impl State {
    fn closed() -> Self {
        Self::Closed { in_a_row: 0, window: Window::default() }
    }
}

/// Outcomes of recent calls.
#[derive(Debug, Default)]
struct Window(VecDeque<Slot>);

#[derive(Debug)]
struct Slot {
    began: Instant,
    calls: u64,
    failures: u64,
}

impl Window {
    fn count(&mut self, policy: &BreakerPolicy, failed: bool, now: Instant) {
        let age = |slot: &Slot| now.saturating_duration_since(slot.began);
        while self.0.front().is_some_and(|oldest| age(oldest) >= policy.window) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|newest| age(newest) >= policy.window / SLOTS) {
            self.0.push_back(Slot { began: now, calls: 0, failures: 0 });
        }
        if let Some(slot) = self.0.back_mut() {
            slot.calls += 1;
            slot.failures += u64::from(failed);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "one call does not change the rate of a large number")]
    fn is_bad(&self, policy: &BreakerPolicy) -> bool {
        let calls: u64 = self.0.iter().map(|slot| slot.calls).sum();
        let failures: u64 = self.0.iter().map(|slot| slot.failures).sum();
        calls >= u64::from(policy.minimum_calls) && failures as f64 >= policy.failure_rate * calls as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> BreakerPolicy {
        BreakerPolicy {
            consecutive: 3,
            failure_rate: 0.5,
            minimum_calls: 10,
            window: 30 * SECOND,
            open: 5 * SECOND,
            max_open: 60 * SECOND,
            probes: 2,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "all instants of a test are relative to this one")]
    fn start() -> Instant {
        Instant::now()
    }

    fn call(breaker: &mut Breaker, succeeded: bool, now: Instant) {
        let permit = breaker.permit(now).expect("calls are made");
        breaker.record(&permit, succeeded, now);
    }

    /// Open since `now`.
    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(policy());
        (0..3).for_each(|_| call(&mut breaker, false, now));
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker
    }

    #[test]
    fn consecutive_failures_open_it_and_a_success_resets_them() {
        let (mut breaker, now) = (Breaker::new(policy()), start());
        for succeeded in [false, false, true, false, false] {
            call(&mut breaker, succeeded, now);
        }
        assert_eq!((breaker.state(), breaker.open_for(now)), (BreakerState::Closed, None));
        call(&mut breaker, false, now);
        assert_eq!((breaker.state(), breaker.open_for(now)), (BreakerState::Open, Some(5 * SECOND)));
        assert_eq!(breaker.permit(now + 2 * SECOND).unwrap_err(), 3 * SECOND);
    }

    #[test]
    fn a_failure_rate_opens_it_after_enough_calls() {
        let now = start();
        for (calls, opens) in [("sffsffsff", false), ("sfsfsfsfs", false), ("sfsfsfsfsf", true)] {
            let mut breaker = Breaker::new(policy());
            calls.chars().for_each(|end| call(&mut breaker, end == 's', now));
            assert_eq!(breaker.state() == BreakerState::Open, opens, "{calls}");
        }
        let mut breaker = Breaker::new(policy());
        "ssfssfssfssfssfssfssf".chars().for_each(|end| call(&mut breaker, end == 's', now));
        assert_eq!(breaker.state(), BreakerState::Closed, "a third is less than half");
    }

    #[test]
    fn calls_leave_the_window() {
        let (mut breaker, now) = (Breaker::new(policy()), start());
        for second in 0..300 {
            // Two of three calls fail, and a window never has more than seven calls.
            let then = now + second * 5 * SECOND;
            call(&mut breaker, second % 3 == 0, then);
            assert_eq!(breaker.state(), BreakerState::Closed, "after {second} calls");
        }
    }

    #[test]
    fn after_its_pause_an_open_breaker_waits_for_a_probe() {
        let now = start();
        let mut breaker = open(now);
        assert!(!breaker.awaits_probe(now + 4 * SECOND));
        let then = now + 3600 * SECOND;
        assert!(breaker.awaits_probe(then) && breaker.state() == BreakerState::Open);
        call(&mut breaker, false, then);
        assert!(!breaker.awaits_probe(then));
    }

    #[test]
    fn the_required_number_of_probes_passes_and_closes_it() {
        let now = start();
        let mut breaker = open(now);
        assert_eq!(breaker.permit(now + 4 * SECOND).unwrap_err(), SECOND);
        let then = now + 5 * SECOND;
        let (one, two) = (breaker.permit(then).unwrap(), breaker.permit(then).unwrap());
        assert_eq!(breaker.permit(then).unwrap_err(), 5 * SECOND);
        breaker.record(&one, true, then);
        assert_eq!((breaker.state(), breaker.open_for(then)), (BreakerState::HalfOpen, Some(5 * SECOND)));
        breaker.record(&two, true, then);
        assert_eq!((breaker.state(), breaker.open_for(then)), (BreakerState::Closed, None));
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_the_maximum() {
        let mut now = start();
        let mut breaker = open(now);
        for seconds in [5, 10, 20, 40, 60, 60] {
            let pause = seconds * SECOND;
            assert_eq!(breaker.open_for(now), Some(pause));
            now += pause;
            // Two calls fail together, and count as one failure.
            let (one, two) = (breaker.permit(now).unwrap(), breaker.permit(now).unwrap());
            breaker.record(&one, false, now);
            breaker.record(&two, false, now);
        }
        now += 60 * SECOND;
        (0..2).for_each(|_| call(&mut breaker, true, now));
        (0..3).for_each(|_| call(&mut breaker, false, now));
        assert_eq!(breaker.open_for(now), Some(5 * SECOND), "once closed, it starts over");
    }

    #[test]
    fn a_probe_without_a_result_permits_another() {
        let now = start();
        let mut breaker = open(now);
        let then = now + 5 * SECOND;
        let (one, two) = (breaker.permit(then).unwrap(), breaker.permit(then).unwrap());
        breaker.release(&one);
        let three = breaker.permit(then).unwrap();
        assert!(breaker.permit(then).is_err());
        breaker.record(&two, true, then);
        breaker.record(&three, true, then);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn calls_of_an_earlier_state_do_not_count() {
        let now = start();
        let mut breaker = Breaker::new(policy());
        let early: Vec<_> = (0..9).map(|_| breaker.permit(now).unwrap()).collect();
        early[..3].iter().for_each(|permit| breaker.record(permit, false, now));
        let then = now + 5 * SECOND;
        breaker.record(&early[3], true, then);
        let probe = breaker.permit(then).unwrap();
        breaker.record(&early[4], true, then);
        breaker.record(&early[5], false, then);
        breaker.release(&early[6]);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.record(&probe, true, then);
        call(&mut breaker, true, then);
        assert_eq!(breaker.state(), BreakerState::Closed);
        early[6..].iter().for_each(|permit| breaker.record(permit, false, then));
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Ask,
        Succeed(usize),
        Fail(usize),
        Release(usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Ask),
            2 => (0_usize..50).prop_map(Step::Succeed),
            3 => (0_usize..50).prop_map(Step::Fail),
            1 => (0_usize..50).prop_map(Step::Release),
            2 => (0_u64..8_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn it_never_exceeds_its_probes_and_never_stays_open_for_good(
            steps in proptest::collection::vec(step(), 1..300),
        ) {
            let (mut breaker, mut now) = (Breaker::new(policy()), start());
            let mut held: Vec<(Permit, BreakerState)> = Vec::new();
            for step in steps {
                let before = breaker.state();
                let taken = |held: &mut Vec<_>, index: usize| {
                    (!held.is_empty()).then(|| held.swap_remove(index % held.len())).map(|(permit, _): (Permit, _)| permit)
                };
                match step {
                    Step::Ask => match breaker.permit(now) {
                        Ok(permit) => held.push((permit, breaker.state())),
                        Err(wait) => {
                            prop_assert!(before != BreakerState::Closed);
                            prop_assert!(!wait.is_zero() && wait <= breaker.policy.max_open);
                        }
                    },
                    Step::Succeed(index) => if let Some(permit) = taken(&mut held, index) {
                        breaker.record(&permit, true, now);
                        prop_assert!(before == breaker.state() || before == BreakerState::HalfOpen);
                    },
                    Step::Fail(index) => if let Some(permit) = taken(&mut held, index) {
                        breaker.record(&permit, false, now);
                    },
                    Step::Release(index) => if let Some(permit) = taken(&mut held, index) {
                        breaker.release(&permit);
                        prop_assert_eq!(before, breaker.state());
                    },
                    Step::Pass(milliseconds) => now += Duration::from_millis(milliseconds),
                }
                let probing = held.iter().filter(|(permit, state)| {
                    *state == BreakerState::HalfOpen && permit.epoch == breaker.epoch
                });
                prop_assert!(probing.count() <= breaker.policy.probes as usize);
            }
            // Once all permits are returned and the third party is healthy, the breaker closes.
            for (permit, _) in held.drain(..) {
                breaker.release(&permit);
            }
            for _ in 0..4 {
                now += breaker.policy.max_open;
                call(&mut breaker, true, now);
            }
            prop_assert_eq!(breaker.state(), BreakerState::Closed);
        }
    }
}
