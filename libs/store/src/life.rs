//! The life of a delivery: what a report makes of it.
//!
//! Reports may come twice, late and in any order: Kafka hands them over at least once, a record that is
//! read again after a crash leads to a second call, and so does a silent delivery that is published again.
//! So a report counts by what it says, never by when it comes:
//!
//! - `delivered` always wins: the third party has it, whatever another call met;
//! - whatever else is reported of a delivery that has ended changes nothing;
//! - of one that goes on, only the newest counts, in the order of attempts; the same attempt may be made
//!   again after a crash, and then the one that began later is the newer one;
//! - what is reported of an attempt that was not made, since the delivery had to wait or ended before, counts for
//!   no attempt, and for nothing if the attempt was made after all.
//!
//! Its times are of dispatch's clock, all others of ours. Where they are far apart, what counts is how long is
//! to be waited.

use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{AttemptReport, Outcome};

use crate::deliveries::DeliveryState;
use crate::entity::delivery::Model;

/// How far a report may be from our time. Clocks that are kept in step differ by less, and what is told comes
/// sooner.
const SKEW: TimeDelta = TimeDelta::seconds(10);

/// What a report makes of a delivery; says whether it was news.
pub(crate) fn advance(delivery: &mut Model, report: &AttemptReport, now: DateTime<Utc>) -> bool {
    let is_news = match delivery.state {
        DeliveryState::Pending | DeliveryState::Retrying => {
            is_newer(delivery, report) || has_delivered(report)
        }
        DeliveryState::Dead | DeliveryState::Cancelled => has_delivered(report),
        DeliveryState::Delivered => false,
    };
    if is_news {
        take(delivery, report, now);
    }
    let attempts =
        if report.is_of_a_call() { delivery.attempts.max(number(report)) } else { delivery.attempts };
    if is_news || attempts > delivery.attempts {
        delivery.attempts = attempts;
        delivery.reported_at = Some(report.started_at);
        delivery.updated_at = now;
    }
    is_news
}

fn is_newer(delivery: &Model, report: &AttemptReport) -> bool {
    let began_later = delivery.reported_at.is_none_or(|known| report.started_at > known);
    match number(report).cmp(&delivery.attempts) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => report.is_of_a_call() && began_later,
        // The next attempt is made only once, but it may be put off again and again. Clocks differ: while news
        // is awaited, any word on it is news that was not the last one; but an end without a call may be one from
        // before a replay.
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
        Outcome::Delivered => end(delivery, DeliveryState::Delivered),
        Outcome::Dead { .. } => end(delivery, DeliveryState::Dead),
        // Who goes on at once has it in hand: it is as published as it was.
        Outcome::Retry { due_at: None, .. } => delivery.state = DeliveryState::Retrying,
        Outcome::Retry { due_at, .. } => {
            delivery.state = DeliveryState::Retrying;
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
        delivery.spent = i32::try_from(report.spent).unwrap_or(i32::MAX);
    }
    delivery.last_status = report.status.map(i32::from);
    delivery.last_error_class = failure.map(|failure| failure.class.as_str().to_owned());
    delivery.last_error = failure.map(|failure| failure.error.clone());
    delivery.reason = match &report.outcome {
        Outcome::Dead { reason, .. } => Some(reason.as_str().to_owned()),
        _ => None,
    };
}

/// A pause that was told of at another time than ours begins now: else a clock that is behind would leave none,
/// and one that is ahead would add to it.
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

fn end(delivery: &mut Model, state: DeliveryState) {
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

    use http::StatusCode;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use throughline_messages::{DeadReason, DeferralCause, ErrorClass, Failure};
    use throughline_resilience::{Cause, Failed, Fault, Next, Pauses, RetryAfter, RetryPolicy};

    use super::*;

    const PATIENCE: i64 = 900;
    const CLAIM: i64 = 30;
    const ATTEMPTS: u32 = 5;
    const WINDOW: i64 = 24 * 3600;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    fn policy() -> RetryPolicy {
        let pauses =
            Pauses::Exponential { base: Duration::from_secs(1), factor: 2.0, max: Duration::from_mins(1) };
        RetryPolicy { attempts: ATTEMPTS, at_once: 2, pauses, window: Duration::from_hours(24) }
    }

    fn accepted() -> Model {
        Model {
            request_id: 1,
            destination: "three".to_owned(),
            state: DeliveryState::Pending,
            attempts: 0,
            spent: 0,
            since: at(0),
            due_at: Some(at(PATIENCE)),
            published_at: Some(at(0)),
            claimed_until: None,
            deferred_by: None,
            lane: None,
            reported_at: None,
            last_status: None,
            last_error_class: None,
            last_error: None,
            reason: None,
            updated_at: at(0),
        }
    }

    /// How a third party, or what stands before it, takes an attempt.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Delivered,
        /// With this status, and perhaps a wish to be asked again so many seconds later.
        Unwell(u16, Option<u32>),
        TimesOut,
        Deferred(i64),
        Rejected,
        /// It ends before the third party is asked.
        Untransformable,
    }

    #[derive(Debug, Clone)]
    enum Event {
        /// Time passes.
        Wait(i64),
        /// The clock of dispatch is put forward or back.
        Step(i64),
        /// The sweeper looks: it claims what is due, hands it to Kafka, and notes that it is published.
        Sweep,
        /// The same, but for the note: that comes later, or never.
        Claim,
        /// The note of the last claim, whatever has happened since.
        Note,
        /// Dispatch works on a record; and, if it crashes before it commits, will again.
        Dispatch { which: usize, fate: Fate, crashes: bool },
        /// The recorder reads a report; and, if it crashes, will again.
        Record { which: usize, crashes: bool },
        /// Somebody calls it off.
        Cancel,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        let unwell = (prop_oneof![Just(500), Just(503), Just(429)], prop::option::of(0..2000_u32));
        prop_oneof![
            1 => Just(Fate::Delivered),
            4 => unwell.prop_map(|(status, wish)| Fate::Unwell(status, wish)),
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
        spent: u32,
    }

    /// Everything round one delivery: what lies in Kafka, and what the third party has.
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
                records: vec![Asked { attempt: 1, spent: 0 }],
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
                        end(&mut self.delivery, DeliveryState::Cancelled);
                        self.delivery.deferred_by = None;
                    }
                }
            }
        }

        /// As the sweeper and the holds do; the outbox has been emptied before.
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
                self.records.push(Asked { attempt, spent: u32::try_from(delivery.spent).unwrap() });
                delivery.claimed_until = Some(at(self.now + CLAIM));
                self.claim = delivery.claimed_until;
                // A hold releases what it defers, before it is claimed.
                delivery.deferred_by = None;
            }
        }

        fn note(&mut self) {
            let delivery = &mut self.delivery;
            if delivery.claimed_until.is_some() && delivery.claimed_until == self.claim.take() {
                delivery.due_at = Some(at(self.now + PATIENCE));
                delivery.published_at = Some(at(self.now));
                delivery.claimed_until = None;
            }
        }

        /// As dispatch does. Who crashes has made only the first of the attempts that follow at once.
        fn dispatch(&mut self, which: usize, fate: Fate, crashes: bool) {
            if self.records.is_empty() {
                return;
            }
            let which = which % self.records.len();
            let mut asked = if crashes { self.records[which] } else { self.records.remove(which) };
            for repeats in 0.. {
                self.now += 1;
                let called = self.calls(fate);
                let (outcome, spent) = self.judge(asked, fate, repeats);
                let goes_on = matches!(outcome, Outcome::Retry { due_at: None, .. });
                self.report(asked.attempt, called, spent, outcome);
                if !goes_on || crashes {
                    return;
                }
                asked = Asked { attempt: asked.attempt + 1, spent };
            }
        }

        fn calls(&self, fate: Fate) -> bool {
            self.dispatch_time() < policy().ends_at(self.delivery.since)
                && !matches!(fate, Fate::Deferred(_) | Fate::Untransformable)
        }

        fn judge(&mut self, Asked { attempt, spent }: Asked, fate: Fate, repeats: u32) -> (Outcome, u32) {
            let failure = Failure { class: ErrorClass::ServerError, error: "503".to_owned() };
            let now = self.dispatch_time();
            if now >= policy().ends_at(self.delivery.since) {
                return (Outcome::Dead { reason: DeadReason::Expired, failure }, spent);
            }
            let cause = match fate {
                Fate::Delivered => {
                    self.third_party_has_it = true;
                    return (Outcome::Delivered, spent + 1);
                }
                Fate::Rejected => {
                    return (Outcome::Dead { reason: DeadReason::Rejected, failure }, spent + 1);
                }
                Fate::Untransformable => {
                    return (Outcome::Dead { reason: DeadReason::Untransformable, failure }, spent);
                }
                Fate::Deferred(pause) => {
                    let due_at = now + TimeDelta::seconds(pause);
                    return (Outcome::Deferred { due_at, cause: DeferralCause::BreakerOpen }, spent);
                }
                Fate::TimesOut => Cause::Fault(Fault::Timeout),
                Fate::Unwell(status, wish) => {
                    let wish = wish.and_then(|seconds| RetryAfter::parse(&seconds.to_string(), now));
                    Cause::Status(StatusCode::from_u16(status).unwrap(), wish)
                }
            };
            let since = self.delivery.since;
            let verdict =
                policy().after(&Failed { attempt, spent, repeats, since, at: now, cause }, &mut self.chance);
            let outcome = match verdict.next {
                Next::AtOnce => Outcome::Retry { due_at: None, failure },
                Next::At(due_at) => Outcome::Retry { due_at: Some(due_at), failure },
                Next::Exhausted => Outcome::Dead { reason: DeadReason::AttemptsExhausted, failure },
                Next::Expired => Outcome::Dead { reason: DeadReason::Expired, failure },
            };
            (outcome, verdict.spent)
        }

        fn dispatch_time(&self) -> DateTime<Utc> {
            at(self.now + self.ahead)
        }

        fn report(&mut self, attempt: u32, called: bool, spent: u32, outcome: Outcome) {
            self.reports.push(AttemptReport {
                request_id: "00000000000000000001".parse().unwrap(),
                destination: "three".to_owned(),
                attempt,
                called,
                spent,
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
            let goes_on = matches!(delivery.state, DeliveryState::Pending | DeliveryState::Retrying);
            // What the database checks, too.
            assert_eq!(delivery.due_at.is_some(), goes_on, "{delivery:?}");
            assert_eq!(delivery.reason.is_some(), delivery.state == DeliveryState::Dead, "{delivery:?}");
            assert!(goes_on || (delivery.published_at.is_none() && delivery.deferred_by.is_none()));
            assert!(goes_on || delivery.claimed_until.is_none(), "{delivery:?}");
            assert!(delivery.published_at.is_none() || delivery.deferred_by.is_none(), "{delivery:?}");
            let heard = self.recorded.iter().any(has_delivered);
            assert_eq!(
                delivery.state == DeliveryState::Delivered,
                heard,
                "the third party's word is the last"
            );
            let ended = [DeliveryState::Dead, DeliveryState::Cancelled, DeliveryState::Delivered];
            if ended.contains(&before.state) && delivery.state != before.state {
                assert_eq!(delivery.state, DeliveryState::Delivered, "what has ended stays so");
            }
            if self.recorded.last().is_some_and(|report| !report.is_of_a_call()) {
                let counted = |delivery: &Model| (delivery.attempts, delivery.spent);
                assert_eq!(counted(delivery), counted(before), "what was not made costs no attempts");
            }
            assert!(u32::try_from(delivery.spent).unwrap() <= ATTEMPTS, "{delivery:?}");
        }

        /// From here on nobody crashes, and every attempt has the same fate.
        fn calm_down(&mut self, fate: Fate) {
            for _ in 0..200 {
                while !self.records.is_empty() {
                    self.dispatch(0, fate, false);
                }
                while !self.reports.is_empty() {
                    self.record(0, false);
                }
                self.now += PATIENCE;
                self.sweep();
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_what_the_third_party_takes_in_the_end_is_known(events in events()) {
            let mut world = World::after(&events);
            world.calm_down(Fate::Delivered);
            prop_assert_eq!(world.delivery.due_at, None, "it has ended");
            prop_assert_eq!(world.delivery.state == DeliveryState::Delivered, world.third_party_has_it);
        }

        #[test]
        fn whatever_happens_what_nobody_takes_ends_within_its_attempts_and_its_window(
            events in events(), fate in fate()
        ) {
            let mut world = World::after(&events);
            world.calm_down(fate);
            prop_assert_eq!(world.delivery.due_at, None, "it has ended");
            let mut calls = world.recorded.iter().filter(|report| report.is_of_a_call());
            prop_assert!(calls.all(|call| call.started_at <= at(WINDOW)), "{:?}", world.recorded);
        }

        #[test]
        fn a_report_that_comes_again_changes_nothing(events in events()) {
            let mut world = World::new();
            for event in &events {
                let known = world.recorded.len();
                world.happen(event);
                // At once: one that was put off may be put off again once it is awaited.
                for report in &world.recorded[known..] {
                    // While word is awaited, a deferral that is not the last one is taken for it: then the
                    // delivery is published once more.
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
    fn a_pause_is_as_long_as_it_was_drawn_whatever_the_clock_of_who_drew_it() {
        for (ahead, late) in [(0, 0), (-3600, 0), (3600, 0), (0, 300)] {
            for fate in [Fate::Deferred(100), Fate::Unwell(429, Some(100))] {
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
    fn what_comes_late_sets_nothing_back() {
        let mut world = World::new();
        world.dispatch(0, Fate::Unwell(500, None), false);
        world.record(0, true);
        world.now += 10;
        world.sweep();
        let published = world.delivery.clone();
        world.record(0, false);
        assert_eq!(world.delivery, published, "its next attempt is on its way");
    }

    /// Else it would be taken for silent, each time that it is put off.
    #[test]
    fn a_dispatch_whose_clock_is_behind_can_put_off_what_another_has_put_off() {
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

    /// What it ended without is replayed, and the report of that end comes again.
    #[test]
    fn an_end_without_a_call_does_not_end_what_is_replayed_a_second_time() {
        let mut world = World::new();
        world.dispatch(0, Fate::Untransformable, false);
        world.record(0, true);
        assert_eq!((world.delivery.state, world.delivery.attempts), (DeliveryState::Dead, 0));
        world.delivery =
            Model { reported_at: world.delivery.reported_at, due_at: Some(at(world.now)), ..accepted() };
        world.sweep();
        world.record(0, false);
        assert_eq!(world.delivery.state, DeliveryState::Pending);
        world.dispatch(0, Fate::Delivered, false);
        world.record(0, false);
        assert_eq!((world.delivery.state, world.delivery.attempts), (DeliveryState::Delivered, 1));
    }

    #[test]
    fn what_is_said_of_an_attempt_after_the_next_one_was_made_does_not_count() {
        let mut world = World::new();
        world.dispatch(0, Fate::Unwell(500, None), true);
        world.dispatch(0, Fate::Unwell(500, Some(700)), false);
        world.record(0, false);
        world.now += 10;
        world.sweep();
        let asked = world.records.len() - 1;
        world.dispatch(asked, Fate::Unwell(500, None), false);
        world.record(1, false);
        let tried_twice = world.delivery.clone();
        world.record(0, false);
        assert_eq!((world.delivery.attempts, world.delivery.due_at), (2, tried_twice.due_at));
    }
}
