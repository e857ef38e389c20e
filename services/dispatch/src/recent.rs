//! Remembers the attempts made here recently, so that a second record for the same attempt causes no second call.
//!
//! Ingest publishes a delivery a second time when it cannot know whether the first record, or its outcome, is in
//! Kafka: after it has lost a lease, or when no outcome arrived in time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use throughline_messages::{AttemptReport, Failure, Outcome};
use throughline_snowflake::RequestId;

/// The number of attempts remembered: half a minute's worth at 2,000 deliveries a second, in about 17 MiB, or 30 MiB
/// if all of them failed.
const MOST: usize = 64 * 1024;

/// Bytes of an error's text that are remembered.
const WORDS: usize = 100;

/// An attempt that a record asks for. A replay has a later `window_started_at`, so its attempts are distinct.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) request: RequestId,
    pub(crate) destination: Arc<str>,
    /// The first attempt that the record asks for; more may follow at once.
    pub(crate) attempt: u32,
    /// When the delivery's window began.
    pub(crate) window_started_at: DateTime<Utc>,
}

/// A bounded memory of attempts: all that are in work, and the newest that have ended.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// Each attempt, with its end if it has ended.
    attempts: HashMap<Asked, Option<End>>,
    /// The attempts that have ended, oldest first.
    ended: VecDeque<Asked>,
}

/// How the last attempt of a record ended.
#[derive(Debug, Clone)]
struct End {
    attempt: u32,
    counted_attempts: u32,
    called: bool,
    started_at: DateTime<Utc>,
    duration_ms: u64,
    status: Option<u16>,
    /// None if it delivered the request, as nearly all attempts do.
    failed: Option<Box<Outcome>>,
}

/// The state of an attempt that a record asks for.
pub(crate) enum Known<'a> {
    /// Unknown: the attempt is to be made.
    New(InWork<'a>),
    /// Another record for the attempt is in work and will report it.
    InWork,
    /// The attempt ended, with this report.
    Ended(Box<AttemptReport>),
}

/// An attempt in work. If this is dropped before the attempt has ended, the attempt is forgotten.
pub(crate) struct InWork<'a> {
    recent: &'a Recent,
    asked: Option<Asked>,
}

impl Recent {
    /// Begins an attempt, unless it is known.
    pub(crate) fn begin(&self, asked: Asked) -> Known<'_> {
        match self.memory().attempts.entry(asked.clone()) {
            Entry::Occupied(known) => match known.get() {
                Some(end) => Known::Ended(Box::new(end.report(&asked))),
                None => Known::InWork,
            },
            Entry::Vacant(new) => {
                new.insert(None);
                Known::New(InWork { recent: self, asked: Some(asked) })
            }
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InWork<'_> {
    /// Notes that the last attempt has ended and that Kafka has its report. A deferral is not an end: the same
    /// attempt will be asked for again.
    pub(crate) fn ended(mut self, report: &AttemptReport) {
        if matches!(report.outcome, Outcome::Deferred { .. }) {
            return;
        }
        let Some(asked) = self.asked.take() else { return };
        let mut memory = self.recent.memory();
        memory.attempts.insert(asked.clone(), Some(End::of(report)));
        memory.ended.push_back(asked);
        if memory.ended.len() > MOST
            && let Some(oldest) = memory.ended.pop_front()
        {
            memory.attempts.remove(&oldest);
        }
    }
}

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.recent.memory().attempts.remove(&asked);
        }
    }
}

impl End {
    fn of(report: &AttemptReport) -> Self {
        Self {
            attempt: report.attempt,
            counted_attempts: report.counted_attempts,
            called: report.called,
            started_at: report.started_at,
            duration_ms: report.duration_ms,
            status: report.status,
            failed: (report.outcome != Outcome::Delivered).then(|| Box::new(in_few_words(&report.outcome))),
        }
    }

    fn report(&self, asked: &Asked) -> AttemptReport {
        AttemptReport {
            request_id: asked.request,
            destination: asked.destination.to_string(),
            attempt: self.attempt,
            called: self.called,
            counted_attempts: self.counted_attempts,
            started_at: self.started_at,
            duration_ms: self.duration_ms,
            trace_id: None,
            origin: None,
            status: self.status,
            response_excerpt: None,
            outcome: self.failed.as_deref().cloned().unwrap_or(Outcome::Delivered),
        }
    }
}

fn in_few_words(outcome: &Outcome) -> Outcome {
    let mut outcome = outcome.clone();
    if let Outcome::Retry { failure: Failure { error, .. }, .. }
    | Outcome::Dead { failure: Failure { error, .. }, .. } = &mut outcome
    {
        error.truncate(error.floor_char_boundary(WORDS));
        error.shrink_to_fit();
    }
    outcome
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use throughline_messages::{DeferralCause, ErrorClass};

    use super::*;

    fn asked(request: i64) -> Asked {
        let window_started_at = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        Asked {
            request: RequestId::from_i64(request).unwrap(),
            destination: "three".into(),
            attempt: 2,
            window_started_at,
        }
    }

    fn report(asked: &Asked, outcome: Outcome) -> AttemptReport {
        let start = End {
            attempt: asked.attempt + 1,
            counted_attempts: 2,
            called: true,
            started_at: asked.window_started_at,
            duration_ms: 12,
            status: Some(200),
            failed: Some(Box::new(outcome)),
        };
        start.report(asked)
    }

    fn begin(recent: &Recent, asked: Asked) -> InWork<'_> {
        match recent.begin(asked) {
            Known::New(in_work) => in_work,
            Known::InWork | Known::Ended(_) => panic!("it is known"),
        }
    }

    fn retry(error: &str) -> Outcome {
        let failure = Failure { class: ErrorClass::Connect, error: error.to_owned() };
        Outcome::Retry { due_at: DateTime::from_timestamp(1_767_225_700, 0), failure }
    }

    #[test]
    fn the_report_of_an_ended_attempt_is_repeated_unchanged() {
        let recent = Recent::default();
        for (request, outcome) in [(1, Outcome::Delivered), (2, retry("connection refused"))] {
            let report = report(&asked(request), outcome);
            begin(&recent, asked(request)).ended(&report);
            let Known::Ended(known) = recent.begin(asked(request)) else { panic!("it is not known") };
            assert_eq!(*known, report);
        }
    }

    #[test]
    fn only_one_record_of_an_attempt_is_processed_at_a_time() {
        let recent = Recent::default();
        let first = begin(&recent, asked(1));
        assert!(matches!(recent.begin(asked(1)), Known::InWork));
        drop(first);
        drop(begin(&recent, asked(1)));
    }

    #[test]
    fn other_attempts_replays_destinations_and_deferred_attempts_are_new() {
        let recent = Recent::default();
        let first = asked(1);
        begin(&recent, first.clone()).ended(&report(&first, Outcome::Delivered));
        drop(begin(&recent, Asked { attempt: 3, ..first.clone() }));
        drop(begin(
            &recent,
            Asked {
                window_started_at: first.window_started_at + TimeDelta::milliseconds(1),
                ..first.clone()
            },
        ));
        drop(begin(&recent, Asked { destination: "four".into(), ..first.clone() }));
        let deferred = Outcome::Deferred { due_at: first.window_started_at, cause: DeferralCause::Limit };
        begin(&recent, asked(2)).ended(&report(&asked(2), deferred));
        drop(begin(&recent, asked(2)));
    }

    #[test]
    fn the_memory_is_limited() {
        let recent = Recent::default();
        let outcome = retry(&"long ".repeat(1000));
        let attempts = i64::try_from(MOST).unwrap() + 10;
        for request in 1..=attempts {
            begin(&recent, asked(request)).ended(&report(&asked(request), outcome.clone()));
        }
        let memory = recent.memory();
        assert_eq!((memory.attempts.len(), memory.ended.len()), (MOST, MOST));
        let error = |end: &Option<End>| {
            end.as_ref().unwrap().failed.as_ref().unwrap().failure().unwrap().error.capacity()
        };
        assert!(memory.attempts.values().all(|end| error(end) <= WORDS));
        drop(memory);
        drop(begin(&recent, asked(10)));
        assert!(matches!(recent.begin(asked(11)), Known::Ended(_)));
    }
}
