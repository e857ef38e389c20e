use chrono::{DateTime, TimeDelta, Utc};
use throughline_api::{Attempt, AttemptOutcome, DeliveryState};
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, TraceContext};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::order::Ahead;
use throughline_store::slow_starts::Release;
use throughline_store::{StoredDelivery, StoredRequest, StoredStatus};

use super::{Facts, RequestHistory, explain};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600 + seconds, 0).unwrap()
}

fn id(number: i64) -> RequestId {
    RequestId::from_i64(number).unwrap()
}

/// A delivery that was accepted at 0 and published, without an outcome.
fn delivery() -> StoredDelivery {
    StoredDelivery {
        destination: "three".to_owned(),
        state: DeliveryState::Pending,
        attempt_count: 0,
        window_started_at: at(0),
        due_at: Some(at(900)),
        published_at: Some(at(0)),
        deferred_by: None,
        ordering_group: None,
        last_status: None,
        reason: None,
        last_error_class: None,
        last_error: None,
        updated_at: at(0),
        attempts: Vec::new(),
    }
}

fn ended(state: DeliveryState, attempts: Vec<Attempt>) -> StoredDelivery {
    StoredDelivery { state, due_at: None, published_at: None, updated_at: at(50), attempts, ..delivery() }
}

fn failed(number: u32, began: i64, outcome: AttemptOutcome) -> Attempt {
    Attempt {
        number,
        started_at: at(began),
        duration_ms: 34,
        outcome,
        status: Some(503),
        error_class: Some(ErrorClass::ServerError),
        error: Some("503 Service Unavailable".to_owned()),
        response_excerpt: Some("hunter2".to_owned()),
        trace_id: Some(TRACE.to_owned()),
        origin: Some(format!("throughline.retries/2/{began}")),
    }
}

fn answered(number: u32, began: i64) -> Attempt {
    Attempt {
        status: Some(200),
        error_class: None,
        error: None,
        ..failed(number, began, AttemptOutcome::Delivered)
    }
}

fn facts(delivery: StoredDelivery) -> Facts {
    let request = StoredRequest {
        id: id(42),
        route: "one".to_owned(),
        ordering_key: None,
        content_type: "application/json".to_owned(),
        body_bytes: 312,
        headers: Vec::new(),
        trace: None,
        client: None,
        origin: None,
        accepted_at: at(0),
    };
    Facts {
        status: StoredStatus { request, deliveries: vec![delivery] },
        outbox: None,
        ahead: [].into(),
        releases: [].into(),
        windows: [("three".to_owned(), TimeDelta::hours(24))].into(),
    }
}

/// Returns the events of the delivery, as reported at 60.
fn events_of(delivery: StoredDelivery) -> Vec<String> {
    let RequestHistory { events, .. } = explain(&facts(delivery), at(60));
    assert!(events[0].destination.is_none() && events[0].at == at(0), "{events:?}");
    let of_it = events.into_iter().skip(1);
    of_it
        .map(|event| {
            assert_eq!(event.destination.as_deref(), Some("three"));
            format!("{} {}", (event.at - at(0)).num_seconds(), event.text)
        })
        .collect()
}

/// Checks the current state of the delivery, as explained at 60.
#[track_caller]
fn assert_state(facts: &Facts, expected: &str) {
    assert_eq!(explain(facts, at(60)).states[0].text, expected);
}

#[test]
fn acceptance_is_reported_with_client_ordering_key_trace_and_origin() {
    let mut facts = facts(delivery());
    let accepted = |facts: &Facts| explain(facts, at(60)).events.remove(0);
    let text = "accepted on route `one` by node 0: 312 bytes of application/json";
    assert_eq!((accepted(&facts).text.as_str(), accepted(&facts).trace_id), (text, None));
    let request = &mut facts.status.request;
    request.client = Some("shop".to_owned());
    request.body_bytes = 1;
    request.ordering_key = Some("u-1".to_owned());
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    request.trace = Some(TraceContext { traceparent, tracestate: None });
    let text = "accepted from client `shop` on route `one` by node 0: 1 byte of application/json, ordering key `u-1`";
    assert_eq!(accepted(&facts).text, text);
    assert_eq!(accepted(&facts).trace_id.as_deref(), Some(TRACE));
    facts.status.request.client = None;
    facts.status.request.origin = Some("one-requests/0/41".to_owned());
    assert!(accepted(&facts).text.starts_with("adopted from record one-requests/0/41 on route `one`"));
}

#[test]
fn attempts_are_reported_in_order_with_their_outcomes_and_errors() {
    let attempts =
        vec![failed(1, 1, AttemptOutcome::Retry), failed(2, 10, AttemptOutcome::Retry), answered(3, 40)];
    assert_eq!(
        events_of(ended(DeliveryState::Delivered, attempts)),
        [
            "1 attempt 1, from record throughline.retries/2/1, failed after 34 ms: 503 Service Unavailable \
             (server_error); a retry is scheduled",
            "10 attempt 2, from record throughline.retries/2/10, failed after 34 ms: 503 Service Unavailable \
             (server_error); a retry is scheduled",
            "40 attempt 3, from record throughline.retries/2/40, was answered with 200 after 34 ms: delivered",
            "50 delivered",
        ]
    );
}

#[test]
fn the_end_of_a_delivery_is_reported() {
    let unknown =
        Attempt { origin: None, error: None, error_class: None, ..failed(1, 1, AttemptOutcome::Dead) };
    let dead =
        StoredDelivery { reason: Some(DeadReason::Rejected), ..ended(DeliveryState::Dead, vec![unknown]) };
    let failed = "1 attempt 1 failed after 34 ms: unknown error; no retry follows";
    assert_eq!(events_of(dead), [failed, "50 dead, reason `rejected`"]);
    assert_eq!(events_of(ended(DeliveryState::Cancelled, Vec::new())), ["50 cancelled"]);
    assert_eq!(events_of(delivery()), [""; 0]);
}

#[test]
fn an_attempt_repeated_after_a_crash_and_a_replay_are_reported() {
    let replayed = StoredDelivery {
        window_started_at: at(20),
        published_at: Some(at(21)),
        attempts: vec![
            failed(1, 1, AttemptOutcome::Retry),
            failed(1, 5, AttemptOutcome::Dead),
            failed(2, 30, AttemptOutcome::Retry),
        ],
        ..delivery()
    };
    let events = events_of(replayed);
    assert!(events[1].starts_with("5 attempt 1 (repeated), from record"), "{events:?}");
    assert_eq!(events[2], "20 replayed: its attempts and its time window restart");
    assert_eq!(events[3], "21 published to Kafka again");
    assert!(events[4].starts_with("30 attempt 2 (after a replay), from record"), "{events:?}");
}

#[test]
fn in_an_ordering_group_the_start_of_a_turn_differs_from_a_replay() {
    let turned = |deferred_by, attempts| {
        let ordering_group = Some("one/u-1".to_owned());
        events_of(StoredDelivery {
            window_started_at: at(20),
            published_at: None,
            deferred_by,
            ordering_group,
            attempts,
            ..delivery()
        })
        .pop()
        .unwrap()
    };
    let came = "20 its turn came: all earlier deliveries with its ordering key had ended";
    assert_eq!(turned(None, Vec::new()), came);
    let dead = || vec![failed(1, 1, AttemptOutcome::Dead)];
    let queued = "20 replayed: its attempts and its time window restart";
    assert_eq!(turned(Some(DeferralCause::Order), dead()), queued);
    let both = "20 replayed, and its turn came: its attempts and its time window restart";
    assert_eq!(turned(None, dead()), both);
}

#[test]
fn events_of_a_delivery_keep_their_causal_order_when_clocks_differ() {
    let mut facts =
        facts(ended(DeliveryState::Delivered, vec![failed(1, -5, AttemptOutcome::Retry), answered(2, 70)]));
    let other = StoredDelivery { destination: "four".to_owned(), ..delivery() };
    let attempts = vec![answered(1, 1)];
    let other = StoredDelivery { attempts, updated_at: at(2), state: DeliveryState::Delivered, ..other };
    facts.status.deliveries.push(other);
    let events = explain(&facts, at(60)).events;
    let events: Vec<_> = events
        .iter()
        .map(|event| (event.destination.as_deref().unwrap_or("-"), (event.at - at(0)).num_seconds()))
        .collect();
    assert_eq!(events, [("-", 0), ("three", -5), ("four", 1), ("four", 2), ("three", 70), ("three", 50)]);
}

#[test]
fn a_request_history_contains_no_response_excerpt() {
    let events = format!(
        "{:?}",
        explain(&facts(ended(DeliveryState::Delivered, vec![failed(1, 1, AttemptOutcome::Retry)])), at(60))
    );
    assert!(!events.contains("hunter2"), "{events}");
}

#[test]
fn an_unpublished_delivery_waits_for_kafka() {
    let facts = Facts { outbox: Some(NodeId::try_from(3).unwrap()), ..facts(delivery()) };
    assert_state(
        &facts,
        "It is committed, but Kafka has not acknowledged it: node 3 publishes it as soon as Kafka accepts it. If this \
         persists, check that Kafka is reachable; `/readyz` of ingest reports it.",
    );
}

#[test]
fn a_published_delivery_waits_for_an_outcome() {
    assert_state(
        &facts(delivery()),
        "Kafka has acknowledged it. Attempt 1 has no outcome yet: it is queued for dispatch or being attempted now. \
         If no outcome arrives, it is published again at 2026-01-01 00:15:00 UTC (in 14m), or later, once dispatch \
         has passed its record.",
    );
    let retried = StoredDelivery {
        state: DeliveryState::Retrying,
        attempt_count: 2,
        published_at: Some(at(30)),
        due_at: Some(at(60)),
        ..delivery()
    };
    assert_state(
        &facts(retried),
        "It was published again at 2026-01-01 00:00:30 UTC. Attempt 3 has had no outcome for \
         `ingest.redelivery_timeout`: it is published again as soon as dispatch has passed its record. Check that \
         dispatch runs, and how far behind it is.",
    );
}

#[test]
fn a_retry_waits_for_its_due_time() {
    let retrying = |due| StoredDelivery {
        state: DeliveryState::Retrying,
        attempt_count: 2,
        published_at: None,
        due_at: Some(at(due)),
        ..delivery()
    };
    assert_state(
        &facts(retrying(105)),
        "Attempt 3 is due at 2026-01-01 00:01:45 UTC (in 45s): it is then published, and dispatch makes it when it \
         reaches the record. It ends dead as `expired` if it is not delivered by 2026-01-02 00:00:00 UTC.",
    );
    // A destination that is no longer configured has no window.
    let facts = Facts { windows: [].into(), ..facts(retrying(60)) };
    assert_state(
        &facts,
        "Attempt 3 is due now (since 2026-01-01 00:01:00 UTC): it is published as soon as Kafka accepts it. If this \
         persists, check that ingest runs and that Kafka is reachable.",
    );
}

/// A delivery that a cause defers until 65.
fn deferred(cause: DeferralCause) -> Facts {
    let deferred_by = Some(cause);
    facts(StoredDelivery { published_at: None, deferred_by, due_at: Some(at(65)), ..delivery() })
}

#[test]
fn an_ordered_delivery_waits_for_its_turn() {
    let mut facts = deferred(DeferralCause::Order);
    facts.ahead.insert("three".to_owned(), Ahead { first: id(7), count: 1 });
    assert_state(
        &facts,
        "It waits for its turn because its route preserves the order (`ordering: strict`): 1 request with its \
         ordering key is ahead of it, and it is the turn of request 00000000000000000007. It continues automatically \
         when they have ended. Check that request with `throughline explain 00000000000000000007`, and cancel it if \
         it is no longer needed.",
    );
    facts.ahead.insert("three".to_owned(), Ahead { first: id(7), count: 2 });
    assert!(
        explain(&facts, at(60)).states[0]
            .text
            .contains(": 2 requests with its ordering key are ahead of it,")
    );
    facts.ahead.clear();
    assert_state(&facts, "Its turn has come: all earlier deliveries with its ordering key have ended.");
}

#[test]
fn a_deferred_delivery_names_its_cause_and_the_remedy() {
    let mut facts = deferred(DeferralCause::BreakerOpen);
    let rest = " It ends dead as `expired` if it is not delivered by 2026-01-02 00:00:00 UTC.";
    let why = "It is deferred by `breaker_open`, which costs no attempt: the third party has failed too often, so its \
         breaker is open; a few calls probe it. It can continue at 2026-01-01 00:01:05 UTC (in 5s).";
    let cure = " Check its responses. When it has recovered, the waiting deliveries are released automatically, twice \
         as many each second.";
    assert_state(&facts, &format!("{why}{cure}{rest}"));
    for (count, next) in [(1, "The next delivery that waits"), (4, "The next 4 deliveries that wait")] {
        facts.releases.insert("three".to_owned(), Release { at: at(59), count });
        let release = format!(
            " {next} for `three` can continue now (since 2026-01-01 00:00:59 UTC), the longest overdue first."
        );
        assert_state(&facts, &format!("{why}{release}{cure}{rest}"));
    }
    for (cause, why, cure) in [
        (DeferralCause::Limit, "has reached its `limits`.", "Raise the limits"),
        (DeferralCause::TokenUnavailable, "the token endpoint does not answer.", "Check the token endpoint"),
        (DeferralCause::TokenRefused, "rejects our credentials.", "Correct `oauth2` of the destination"),
        (
            DeferralCause::UnknownDestination,
            "does not have this destination, or not yet.",
            "Restart every dispatch",
        ),
    ] {
        let text = &explain(&deferred(cause), at(60)).states[0].text;
        let begin = format!("It is deferred by `{}`, which costs no attempt: ", cause.as_str());
        assert!(text.starts_with(&begin) && text.contains(why) && text.contains(cure), "{text}");
    }
    assert!(
        explain(&deferred(DeferralCause::Other("of_late".try_into().unwrap())), at(60)).states[0]
            .text
            .contains("`of_late`")
    );
}

#[test]
fn a_delivery_with_a_busy_key_waits_for_its_due_time() {
    assert_state(
        &deferred(DeferralCause::KeyBusy),
        "It is deferred by `key_busy`, which costs no attempt: too many deliveries with its ordering key are ahead of \
         it in dispatch, and a key allows one call at a time. It can continue at 2026-01-01 00:01:05 UTC (in 5s). It \
         is then published and queued again. If it keeps being deferred, check how long the third party takes for a \
         call, and whether that many requests need the same key. It ends dead as `expired` if it is not delivered by \
         2026-01-02 00:00:00 UTC.",
    );
}

#[test]
fn a_dead_delivery_names_its_reason_and_the_remedy() {
    let dead = |reason: DeadReason| {
        let (reason, last_error) = (Some(reason), Some("503 Service Unavailable".to_owned()));
        let last_status = Some(503);
        facts(StoredDelivery { reason, last_status, last_error, ..ended(DeliveryState::Dead, Vec::new()) })
    };
    assert_state(
        &dead(DeadReason::AttemptsExhausted),
        "`attempts_exhausted`: `retry.attempts` attempts failed. Last error: 503 Service Unavailable. Check that the \
         third party has recovered; then replay it: `throughline dead-letters replay 00000000000000000042 three`. \
         See \"Why a delivery is dead\" in docs/operations.md.",
    );
    for (reason, why, cure) in [
        (DeadReason::Rejected, "the third party's response is final", "with `statuses`"),
        (DeadReason::Expired, "`retry.window` passed", "has recovered"),
        (DeadReason::Untransformable, "`filter` fails on this body", "Fix the filter"),
        (DeadReason::Unroutable, "no such route or destination", "Restore it"),
        (DeadReason::Unpublishable, "Kafka refuses the record", "`max.message.bytes`"),
        (DeadReason::Malformed, "a header of its record", "the same version"),
        (DeadReason::Internal, "panicked", "Report the defect"),
    ] {
        let text = &explain(&dead(reason), at(60)).states[0].text;
        let begin = format!("`{}`: ", reason.as_str());
        assert!(text.starts_with(&begin) && text.contains(why) && text.contains(cure), "{text}");
    }
    assert!(
        explain(&dead(DeadReason::Other("of_late".try_into().unwrap())), at(60)).states[0]
            .text
            .starts_with("`of_late`: ")
    );
    let mut without_status = dead(DeadReason::Rejected);
    without_status.status.deliveries[0].last_status = None;
    let text = &explain(&without_status, at(60)).states[0].text;
    assert!(
        text.contains("configuration of the destination; then") && !text.contains("`statuses`"),
        "{text}"
    );
}

#[test]
fn an_ended_delivery_states_whether_its_state_is_final() {
    assert_state(
        &facts(ended(DeliveryState::Delivered, Vec::new())),
        "The third party accepted it. This is final.",
    );
    assert_state(
        &facts(ended(DeliveryState::Cancelled, Vec::new())),
        "It was cancelled. A call in progress may still have reached the third party: then its state becomes \
         `delivered`.",
    );
}
