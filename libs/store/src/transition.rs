//! State transitions of a delivery: how a report changes its state.
//!
//! Reports may arrive twice, late and in any order. Kafka delivers them at least once; a record that is read again
//! after a crash leads to a second call, and so does a silent delivery that is published again. A report therefore
//! counts by its content, never by its time of arrival:
//!
//! - `delivered` always wins: the third party has the request, whatever the result of another call;
//! - any other report on a delivery that has ended changes nothing;
//! - on a delivery that has not ended, only the newest report counts, in the order of attempts; the same attempt may be
//!   made again after a crash, and then the one that began later is the newer one;
//! - a report on an attempt that was not made, because the delivery had to wait or had ended, counts no attempt, and is
//!   ignored if the attempt was made after all.
//!
//! A report's times are of dispatch's clock, all other times of ingest's clock. If the two are far apart, the length of
//! a pause counts, not the time of its end.

use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{AttemptReport, Outcome};

use crate::entity::delivery::Model;
use crate::entity::delivery::State;

/// Maximum distance between a report's time and ingest's time at which the report's due time is used unchanged.
/// Synchronised clocks differ by less, and a report usually takes less time to arrive.
const SKEW: TimeDelta = TimeDelta::seconds(10);

/// Applies a report to a delivery; returns whether the report counts.
pub(crate) fn advance(delivery: &mut Model, report: &AttemptReport, now: DateTime<Utc>) -> bool {
    let counts = match delivery.state {
        State::Pending | State::Retrying => is_newer(delivery, report) || has_delivered(report),
        State::Dead | State::Cancelled => has_delivered(report),
        State::Delivered => false,
    };
    if counts {
        take(delivery, report, now);
    }
    let attempts =
        if report.is_of_a_call() { delivery.attempts.max(number(report)) } else { delivery.attempts };
    if counts || attempts > delivery.attempts {
        delivery.attempts = attempts;
        delivery.reported_at = Some(report.started_at);
        delivery.updated_at = now;
    }
    counts
}

fn is_newer(delivery: &Model, report: &AttemptReport) -> bool {
    let began_later = delivery.reported_at.is_none_or(|known| report.started_at > known);
    match number(report).cmp(&delivery.attempts) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => report.is_of_a_call() && began_later,
        // The next attempt is made only once, but it may be deferred repeatedly. Clocks differ, so while an outcome is
        // awaited every deferral counts, except a copy of the last report. This does not hold for an end without a
        // call, which may date from before a replay.
        std::cmp::Ordering::Greater => {
            let is_awaited = (delivery.published_at.is_some() || delivery.claimed_until.is_some())
                && delivery.reported_at != Some(report.started_at);
            report.is_of_a_call() || began_later || (is_deferral(report) && is_awaited)
        }
    }
}

fn take(delivery: &mut Model, report: &AttemptReport, now: DateTime<Utc>) {
    delivery.deferred_by = None;
    match &report.outcome {
        Outcome::Delivered => end(delivery, State::Delivered),
        Outcome::Dead { .. } => end(delivery, State::Dead),
        // Dispatch makes the next attempt at once: the delivery stays published.
        Outcome::Retry { due_at: None, .. } => delivery.state = State::Retrying,
        Outcome::Retry { due_at, .. } => {
            delivery.state = State::Retrying;
            wait(delivery, due_at.map(|due_at| by_our_clock(due_at, report, now)));
        }
        Outcome::Deferred { due_at, cause } => {
            wait(delivery, Some(by_our_clock(*due_at, report, now)));
            delivery.deferred_by = Some(cause.as_str().to_owned());
            return;
        }
    }
    let failure = report.outcome.failure();
    if report.is_of_a_call() {
        delivery.counted_attempts = i32::try_from(report.counted_attempts).unwrap_or(i32::MAX);
    }
    delivery.last_status = report.status.map(i32::from);
    delivery.last_error_class = failure.map(|failure| failure.class.as_str().to_owned());
    delivery.last_error = failure.map(|failure| failure.error.clone());
    delivery.reason = match &report.outcome {
        Outcome::Dead { reason, .. } => Some(reason.as_str().to_owned()),
        _ => None,
    };
}

/// Converts a due time to ingest's clock. If the report is further than [`SKEW`] from ingest's time, the pause begins
/// now: otherwise a dispatch clock that is behind would leave no pause, and one that is ahead would lengthen it.
fn by_our_clock(due_at: DateTime<Utc>, report: &AttemptReport, now: DateTime<Utc>) -> DateTime<Utc> {
    let took = TimeDelta::milliseconds(i64::try_from(report.duration_ms).unwrap_or_default());
    let apart = now - report.started_at.checked_add_signed(took).unwrap_or(report.started_at);
    if apart.abs() > SKEW { due_at.checked_add_signed(apart).unwrap_or(due_at) } else { due_at }
}

fn wait(delivery: &mut Model, due_at: Option<DateTime<Utc>>) {
    delivery.due_at = due_at;
    delivery.published_at = None;
    delivery.claimed_until = None;
}

fn end(delivery: &mut Model, state: State) {
    delivery.state = state;
    wait(delivery, None);
}

fn has_delivered(report: &AttemptReport) -> bool {
    report.outcome == Outcome::Delivered
}

fn is_deferral(report: &AttemptReport) -> bool {
    matches!(report.outcome, Outcome::Deferred { .. })
}

fn number(report: &AttemptReport) -> i32 {
    i32::try_from(report.attempt).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Failure};
    use throughline_resilience::{Cause, Failed, Next, Pauses, RetryPolicy};

    use super::*;

    const REDELIVERY_TIMEOUT: i64 = 900;
    const CLAIM: i64 = 30;
    const ATTEMPTS: u32 = 5;
    const WINDOW: i64 = 24 * 3600;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn policy() -> RetryPolicy {
        let pauses =
            Pauses::Exponential { base: Duration::from_secs(1), factor: 2.0, max: Duration::from_mins(1) };
        RetryPolicy { attempts: ATTEMPTS, immediate_retries: 2, pauses, window: Duration::from_hours(24) }
    }

    fn accepted() -> Model {
        Model {
            request_id: 1,
            destination: "three".to_owned(),
            state: State::Pending,
            attempts: 0,
            counted_attempts: 0,
            window_started_at: at(0),
            due_at: Some(at(REDELIVERY_TIMEOUT)),
            published_at: Some(at(0)),
            claimed_until: None,
            deferred_by: None,
            ordering_group: None,
            reported_at: None,
            last_status: None,
            last_error_class: None,
            last_error: None,
            reason: None,
            updated_at: at(0),
        }
    }

    /// The end of an attempt, at the third party or before it.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Delivered,
        /// A failure; the third party may ask to wait for this number of seconds.
        Fails(Option<i64>),
        /// The third party is busy for this number of seconds.
        Busy(i64),
        TimesOut,
        Deferred(i64),
        Rejected,
        /// It ends before a call.
        Untransformable,
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// Time passes.
        Wait(i64),
        /// The clock of dispatch steps forward or back.
        Step(i64),
        /// The sweeper claims the delivery if it is due, publishes it, and notes that it is published.
        Sweep,
        /// The same without the note, which follows later or never.
        Claim,
        /// The note of the last claim, whatever has happened since.
        Note,
        /// Dispatch works on a record, and works on it once more if it crashes before it commits.
        Dispatch { which: usize, fate: Fate, crashes: bool },
        /// The recorder reads a report, and reads it once more if it crashes.
        Record { which: usize, crashes: bool },
        /// An operator cancels the delivery.
        Cancel,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            1 => Just(Fate::Delivered),
            3 => prop::option::of(0..2000_i64).prop_map(Fate::Fails),
            1 => (0..2000_i64).prop_map(Fate::Busy),
            2 => Just(Fate::TimesOut),
            3 => (0..2000_i64).prop_map(Fate::Deferred),
            1 => Just(Fate::Rejected),
            1 => Just(Fate::Untransformable),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (1..1200_i64).prop_map(Event::Wait),
            1 => (-7200..7200_i64).prop_map(Event::Step),
            6 => Just(Event::Sweep),
            2 => Just(Event::Claim),
            2 => Just(Event::Note),
            8 => (any::<usize>(), fate(), any::<bool>())
                .prop_map(|(which, fate, crashes)| Event::Dispatch { which, fate, crashes }),
            8 => (any::<usize>(), any::<bool>()).prop_map(|(which, crashes)| Event::Record { which, crashes }),
            1 => Just(Event::Cancel),
        ]
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(event(), 0..60)
    }

    /// A record that asks for an attempt.
    #[derive(Clone, Copy)]
    struct Asked {
        attempt: u32,
        counted_attempts: u32,
    }

    /// One delivery, its records in Kafka, and the state of the third party.
    struct World {
        now: i64,
        /// How far the clock of dispatch is ahead.
        ahead: i64,
        delivery: Model,
        /// The end of the claim that was made last.
        claim: Option<DateTime<Utc>>,
        records: Vec<Asked>,
        reports: Vec<AttemptReport>,
        recorded: Vec<AttemptReport>,
        third_party_has_it: bool,
        chance: SmallRng,
    }

    impl World {
        fn new() -> Self {
            Self {
                now: 0,
                ahead: 0,
                delivery: accepted(),
                claim: None,
                records: vec![Asked { attempt: 1, counted_attempts: 0 }],
                reports: Vec::new(),
                recorded: Vec::new(),
                third_party_has_it: false,
                chance: SmallRng::seed_from_u64(7),
            }
        }

        fn after(events: &[Event]) -> Self {
            let mut world = Self::new();
            for event in events {
                world.happen(event);
            }
            world
        }

        fn happen(&mut self, event: &Event) {
            match *event {
                Event::Wait(seconds) => self.now += seconds,
                Event::Step(seconds) => self.ahead += seconds,
                Event::Sweep => self.sweep(),
                Event::Claim => self.claim(),
                Event::Note => self.note(),
                Event::Dispatch { which, fate, crashes } => self.dispatch(which, fate, crashes),
                Event::Record { which, crashes } => self.record(which, crashes),
                Event::Cancel => {
                    if self.delivery.due_at.is_some() {
                        end(&mut self.delivery, State::Cancelled);
                        self.delivery.deferred_by = None;
                    }
                }
            }
        }

        /// Does the work of the sweeper and of slow starts; the outbox is empty.
        fn sweep(&mut self) {
            self.claim();
            self.note();
        }

        fn claim(&mut self) {
            let delivery = &mut self.delivery;
            let is_due = |time: Option<DateTime<Utc>>| time.is_some_and(|time| time <= at(self.now));
            if is_due(delivery.due_at) && (delivery.claimed_until.is_none() || is_due(delivery.claimed_until))
            {
                let attempt = u32::try_from(delivery.attempts).unwrap() + 1;
                self.records.push(Asked {
                    attempt,
                    counted_attempts: u32::try_from(delivery.counted_attempts).unwrap(),
                });
                delivery.claimed_until = Some(at(self.now + CLAIM));
                self.claim = delivery.claimed_until;
                // A slow start releases a deferred delivery before the sweeper claims it.
                delivery.deferred_by = None;
            }
        }

        fn note(&mut self) {
            let delivery = &mut self.delivery;
            if delivery.claimed_until.is_some() && delivery.claimed_until == self.claim.take() {
                delivery.due_at = Some(at(self.now + REDELIVERY_TIMEOUT));
                delivery.published_at = Some(at(self.now));
                delivery.claimed_until = None;
            }
        }

        /// Does the work of dispatch. A dispatch that crashes makes only the first attempt of an immediate sequence.
        fn dispatch(&mut self, which: usize, fate: Fate, crashes: bool) {
            if self.records.is_empty() {
                return;
            }
            let which = which % self.records.len();
            let mut asked = if crashes { self.records[which] } else { self.records.remove(which) };
            for repeats in 0.. {
                self.now += 1;
                let called = self.calls(fate);
                let (outcome, counted_attempts) = self.judge(asked, fate, repeats);
                let goes_on = matches!(outcome, Outcome::Retry { due_at: None, .. });
                self.report(asked.attempt, called, counted_attempts, outcome);
                if !goes_on || crashes {
                    return;
                }
                asked = Asked { attempt: asked.attempt + 1, counted_attempts };
            }
        }

        fn calls(&self, fate: Fate) -> bool {
            self.dispatch_time() < policy().ends_at(self.delivery.window_started_at)
                && !matches!(fate, Fate::Deferred(_) | Fate::Untransformable)
        }

        fn judge(
            &mut self,
            Asked { attempt, counted_attempts }: Asked,
            fate: Fate,
            repeats: u32,
        ) -> (Outcome, u32) {
            let failure = Failure { class: ErrorClass::ServerError, error: "503".to_owned() };
            let now = self.dispatch_time();
            if now >= policy().ends_at(self.delivery.window_started_at) {
                return (Outcome::Dead { reason: DeadReason::Expired, failure }, counted_attempts);
            }
            let cause = match fate {
                Fate::Delivered => {
                    self.third_party_has_it = true;
                    return (Outcome::Delivered, counted_attempts + 1);
                }
                Fate::Rejected => {
                    return (Outcome::Dead { reason: DeadReason::Rejected, failure }, counted_attempts + 1);
                }
                Fate::Untransformable => {
                    return (
                        Outcome::Dead { reason: DeadReason::Untransformable, failure },
                        counted_attempts,
                    );
                }
                Fate::Deferred(pause) => {
                    let due_at = now + TimeDelta::seconds(pause);
                    return (
                        Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen },
                        counted_attempts,
                    );
                }
                Fate::TimesOut => Cause::NoResponse,
                Fate::Fails(not_before) => {
                    Cause::Failed { not_before: not_before.map(|seconds| now + TimeDelta::seconds(seconds)) }
                }
                Fate::Busy(seconds) => Cause::Busy { until: now + TimeDelta::seconds(seconds) },
            };
            let window_started_at = self.delivery.window_started_at;
            let verdict = policy().after(
                &Failed { attempt, counted_attempts, repeats, window_started_at, at: now, cause },
                &mut self.chance,
            );
            let outcome = match verdict.next {
                Next::Immediately => Outcome::Retry { due_at: None, failure },
                Next::At(due_at) => Outcome::Retry { due_at: Some(due_at), failure },
                Next::Exhausted => Outcome::Dead { reason: DeadReason::AttemptsExhausted, failure },
                Next::Expired => Outcome::Dead { reason: DeadReason::Expired, failure },
            };
            (outcome, verdict.counted_attempts)
        }

        fn dispatch_time(&self) -> DateTime<Utc> {
            at(self.now + self.ahead)
        }

        fn report(&mut self, attempt: u32, called: bool, counted_attempts: u32, outcome: Outcome) {
            self.reports.push(AttemptReport {
                request_id: "00000000000000000001".parse().unwrap(),
                destination: "three".to_owned(),
                attempt,
                called,
                counted_attempts,
                started_at: self.dispatch_time(),
                duration_ms: 1,
                trace_id: None,
                origin: None,
                status: None,
                response_excerpt: None,
                outcome,
            });
        }

        fn record(&mut self, which: usize, crashes: bool) {
            if self.reports.is_empty() {
                return;
            }
            let which = which % self.reports.len();
            let report = if crashes { self.reports[which].clone() } else { self.reports.remove(which) };
            let before = self.delivery.clone();
            advance(&mut self.delivery, &report, at(self.now));
            self.recorded.push(report);
            self.check(&before);
        }

        fn check(&self, before: &Model) {
            let delivery = &self.delivery;
            let goes_on = matches!(delivery.state, State::Pending | State::Retrying);
            // The constraints of the database.
            assert_eq!(delivery.due_at.is_some(), goes_on, "{delivery:?}");
            assert_eq!(delivery.reason.is_some(), delivery.state == State::Dead, "{delivery:?}");
            assert!(goes_on || (delivery.published_at.is_none() && delivery.deferred_by.is_none()));
            assert!(goes_on || delivery.claimed_until.is_none(), "{delivery:?}");
            assert!(delivery.published_at.is_none() || delivery.deferred_by.is_none(), "{delivery:?}");
            let heard = self.recorded.iter().any(has_delivered);
            assert_eq!(delivery.state == State::Delivered, heard, "delivered exactly if a report says so");
            let ended = [State::Dead, State::Cancelled, State::Delivered];
            if ended.contains(&before.state) && delivery.state != before.state {
                assert_eq!(delivery.state, State::Delivered, "an ended delivery changes only to delivered");
            }
            if self.recorded.last().is_some_and(|report| !report.is_of_a_call()) {
                let counted = |delivery: &Model| (delivery.attempts, delivery.counted_attempts);
                assert_eq!(counted(delivery), counted(before), "a report without a call counts no attempt");
            }
            assert!(u32::try_from(delivery.counted_attempts).unwrap() <= ATTEMPTS, "{delivery:?}");
        }

        /// Continues without crashes, with the same end for every attempt.
        fn calm_down(&mut self, fate: Fate) {
            for _ in 0..200 {
                while !self.records.is_empty() {
                    self.dispatch(0, fate, false);
                }
                while !self.reports.is_empty() {
                    self.record(0, false);
                }
                self.now += REDELIVERY_TIMEOUT;
                self.sweep();
            }
        }
    }

    proptest! {
        #[test]
        fn every_delivery_that_the_third_party_accepts_is_recorded_in_any_order_of_events(events in events()) {
            let mut world = World::after(&events);
            world.calm_down(Fate::Delivered);
            prop_assert_eq!(world.delivery.due_at, None, "it has ended");
            prop_assert_eq!(world.delivery.state == State::Delivered, world.third_party_has_it);
        }

        #[test]
        fn every_other_delivery_ends_within_its_attempts_and_its_window(
            events in events(), fate in fate()
        ) {
            let mut world = World::after(&events);
            world.calm_down(fate);
            prop_assert_eq!(world.delivery.due_at, None, "it has ended");
            let mut calls = world.recorded.iter().filter(|report| report.is_of_a_call());
            prop_assert!(calls.all(|call| call.started_at <= at(WINDOW)), "{:?}", world.recorded);
        }

        #[test]
        fn a_repeated_report_changes_nothing(events in events()) {
            let mut world = World::new();
            for event in &events {
                let known = world.recorded.len();
                world.happen(event);
                // Immediately: a deferred delivery may be deferred again once its outcome is awaited.
                for report in &world.recorded[known..] {
                    // While an outcome is awaited, an older deferral counts as that outcome: then the delivery is
                    // published once more.
                    let is_awaited =
                        world.delivery.published_at.is_some() || world.delivery.claimed_until.is_some();
                    if !report.is_of_a_call() && is_awaited {
                        continue;
                    }
                    let mut again = world.delivery.clone();
                    advance(&mut again, report, world.delivery.updated_at);
                    prop_assert_eq!(&again, &world.delivery);
                }
            }
        }
    }

    #[test]
    fn a_pause_has_its_length_whatever_the_clock_of_the_dispatch_that_chose_it() {
        for (ahead, late) in [(0, 0), (-3600, 0), (3600, 0), (0, 300)] {
            for fate in [Fate::Deferred(100), Fate::Busy(100)] {
                let mut world = World { ahead, ..World::new() };
                world.dispatch(0, fate, false);
                world.now += late;
                world.record(0, false);
                let pause = world.delivery.due_at.unwrap() - at(world.now);
                let is_whole = (99_990..=101_000).contains(&pause.num_milliseconds());
                assert!(is_whole, "{ahead} ahead, {late} late: {pause}");
            }
        }
    }

    #[test]
    fn a_late_report_reverts_nothing() {
        let mut world = World::new();
        world.dispatch(0, Fate::Fails(None), false);
        world.record(0, true);
        world.now += 10;
        world.sweep();
        let published = world.delivery.clone();
        world.record(0, false);
        assert_eq!(world.delivery, published, "its next attempt is on its way");
    }

    /// Otherwise the delivery would count as silent after each deferral.
    #[test]
    fn a_dispatch_with_a_slow_clock_can_defer_a_deferred_delivery_again() {
        let mut world = World::new();
        world.dispatch(0, Fate::Deferred(5), false);
        world.record(0, false);
        world.now += 10;
        world.sweep();
        world.now -= 60;
        world.dispatch(0, Fate::Deferred(100), false);
        world.record(0, false);
        let (due_at, published_at) = (world.delivery.due_at, world.delivery.published_at);
        assert_eq!((due_at, published_at), (Some(at(world.now + 100)), None));
    }

    /// A delivery that ended without a call is replayed, and then the report of that end arrives once more.
    #[test]
    fn a_repeated_end_without_a_call_does_not_end_a_replayed_delivery() {
        let mut world = World::new();
        world.dispatch(0, Fate::Untransformable, false);
        world.record(0, true);
        assert_eq!((world.delivery.state, world.delivery.attempts), (State::Dead, 0));
        world.delivery =
            Model { reported_at: world.delivery.reported_at, due_at: Some(at(world.now)), ..accepted() };
        world.sweep();
        world.record(0, false);
        assert_eq!(world.delivery.state, State::Pending);
        world.dispatch(0, Fate::Delivered, false);
        world.record(0, false);
        assert_eq!((world.delivery.state, world.delivery.attempts), (State::Delivered, 1));
    }

    #[test]
    fn a_report_of_an_attempt_does_not_count_after_the_next_attempt() {
        let mut world = World::new();
        world.dispatch(0, Fate::Fails(None), true);
        world.dispatch(0, Fate::Fails(Some(700)), false);
        world.record(0, false);
        world.now += 10;
        world.sweep();
        let asked = world.records.len() - 1;
        world.dispatch(asked, Fate::Fails(None), false);
        world.record(1, false);
        let tried_twice = world.delivery.clone();
        world.record(0, false);
        assert_eq!((world.delivery.attempts, world.delivery.due_at), (2, tried_twice.due_at));
    }
}
