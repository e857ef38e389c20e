use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{DeadReason, DeferralCause, TraceContext};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::holds::Release;
use throughline_store::order::Ahead;
use throughline_store::{DeliveryState, StoredAttempt, StoredDelivery, StoredRequest, StoredStatus};

use super::{Found, Story, tell};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_225_600 + seconds, 0).unwrap()
}

fn id(number: i64) -> RequestId {
    RequestId::from_i64(number).unwrap()
}

/// Accepted at 0, published, and nothing heard.
fn delivery() -> StoredDelivery {
    StoredDelivery {
        destination: "three".to_owned(),
        state: DeliveryState::Pending,
        attempt_count: 0,
        since: at(0),
        due_at: Some(at(900)),
        published_at: Some(at(0)),
        deferred_by: None,
        lane: None,
        last_status: None,
        reason: None,
        last_error_class: None,
        last_error: None,
        updated_at: at(0),
        attempts: Vec::new(),
    }
}

fn ended(state: DeliveryState, attempts: Vec<StoredAttempt>) -> StoredDelivery {
    StoredDelivery { state, due_at: None, published_at: None, updated_at: at(50), attempts, ..delivery() }
}

fn failed(number: u32, began: i64, outcome: &str) -> StoredAttempt {
    StoredAttempt {
        number,
        started_at: at(began),
        duration_ms: 34,
        outcome: outcome.to_owned(),
        status: Some(503),
        error_class: Some("server_error".to_owned()),
        error: Some("503 Service Unavailable".to_owned()),
        response_excerpt: Some("hunter2".to_owned()),
        trace_id: Some(TRACE.to_owned()),
        origin: Some(format!("throughline.retries/2/{began}")),
    }
}

fn answered(number: u32, began: i64) -> StoredAttempt {
    StoredAttempt { status: Some(200), error_class: None, error: None, ..failed(number, began, "delivered") }
}

fn found(delivery: StoredDelivery) -> Found {
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
    Found {
        status: StoredStatus { request, deliveries: vec![delivery] },
        outbox: None,
        ahead: [].into(),
        releases: [].into(),
        windows: [("three".to_owned(), TimeDelta::hours(24))].into(),
    }
}

/// What is told of the delivery's way, at 60.
fn way(delivery: StoredDelivery) -> Vec<String> {
    let Story { events, .. } = tell(&found(delivery), at(60));
    assert!(events[0].destination.is_none() && events[0].at == at(0), "{events:?}");
    let of_it = events.into_iter().skip(1);
    of_it
        .map(|event| {
            assert_eq!(event.destination.as_deref(), Some("three"));
            format!("{} {}", (event.at - at(0)).num_seconds(), event.text)
        })
        .collect()
}

/// What is told of where it stands, at 60.
#[track_caller]
fn assert_stands(found: &Found, expected: &str) {
    assert_eq!(tell(found, at(60)).standings[0].text, expected);
}

#[test]
fn how_it_was_accepted() {
    let mut found = found(delivery());
    let accepted = |found: &Found| tell(found, at(60)).events.remove(0);
    let text = "accepted by the route `one`, on node 0: 312 bytes of application/json";
    assert_eq!((accepted(&found).text.as_str(), accepted(&found).trace_id), (text, None));
    let request = &mut found.status.request;
    request.client = Some("shop".to_owned());
    request.body_bytes = 1;
    request.ordering_key = Some("u-1".to_owned());
    let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
    request.trace = Some(TraceContext { traceparent, tracestate: None });
    let text = "accepted from the client `shop` by the route `one`, on node 0: 1 byte of application/json, with \
         the ordering key `u-1`";
    assert_eq!(accepted(&found).text, text);
    assert_eq!(accepted(&found).trace_id.as_deref(), Some(TRACE));
    found.status.request.client = None;
    found.status.request.origin = Some("one-requests/0/41".to_owned());
    assert!(
        accepted(&found).text.starts_with("adopted from the record one-requests/0/41 by the route `one`")
    );
}

#[test]
fn attempts_are_told_in_order_with_their_outcomes_and_why() {
    let attempts = vec![failed(1, 1, "retry"), failed(2, 10, "retry"), answered(3, 40)];
    assert_eq!(
        way(ended(DeliveryState::Delivered, attempts)),
        [
            "1 attempt 1, by the record throughline.retries/2/1, failed after 34 ms: 503 Service Unavailable \
             (server_error); it is to be made again",
            "10 attempt 2, by the record throughline.retries/2/10, failed after 34 ms: 503 Service Unavailable \
             (server_error); it is to be made again",
            "40 attempt 3, by the record throughline.retries/2/40, was answered 200 after 34 ms: delivered",
            "50 delivered",
        ]
    );
}

#[test]
fn how_it_ended_is_told() {
    let unknown = StoredAttempt { origin: None, error: None, error_class: None, ..failed(1, 1, "dead") };
    let dead =
        StoredDelivery { reason: Some("rejected".to_owned()), ..ended(DeliveryState::Dead, vec![unknown]) };
    let failed = "1 attempt 1 failed after 34 ms: for a reason that is not known; it is given up";
    assert_eq!(way(dead), [failed, "50 dead, with the reason `rejected`"]);
    assert_eq!(way(ended(DeliveryState::Cancelled, Vec::new())), ["50 cancelled: it was called off"]);
    assert_eq!(way(delivery()), [""; 0]);
}

#[test]
fn an_attempt_that_a_crash_had_made_again_and_a_replay_are_told() {
    let replayed = StoredDelivery {
        since: at(20),
        published_at: Some(at(21)),
        attempts: vec![failed(1, 1, "retry"), failed(1, 5, "dead"), failed(2, 30, "retry")],
        ..delivery()
    };
    let told = way(replayed);
    assert!(told[1].starts_with("5 attempt 1 once more, by the record"), "{told:?}");
    assert_eq!(told[2], "20 it was replayed: its attempts and its time begin anew");
    assert_eq!(told[3], "21 published to Kafka again");
    assert!(told[4].starts_with("30 attempt 2 after a replay, by the record"), "{told:?}");
}

#[test]
fn in_a_lane_a_turn_that_came_is_told_from_a_replay() {
    let turned = |deferred_by: Option<&str>, attempts| {
        let deferred_by = deferred_by.map(str::to_owned);
        let lane = Some("one/u-1".to_owned());
        way(StoredDelivery { since: at(20), published_at: None, deferred_by, lane, attempts, ..delivery() })
            .pop()
            .unwrap()
    };
    let came = "20 its turn came: those before it with its ordering key had ended";
    assert_eq!(turned(None, Vec::new()), came);
    let dead = || vec![failed(1, 1, "dead")];
    let queued = "20 it was replayed: its attempts and its time begin anew";
    assert_eq!(turned(Some("order"), dead()), queued);
    let both = "20 it was replayed, and its turn came: its attempts and its time begin anew";
    assert_eq!(turned(None, dead()), both);
}

#[test]
fn what_clocks_that_differ_say_is_told_in_the_order_in_which_it_must_have_been() {
    let mut found = found(ended(DeliveryState::Delivered, vec![failed(1, -5, "retry"), answered(2, 70)]));
    let other = StoredDelivery { destination: "four".to_owned(), ..delivery() };
    let attempts = vec![answered(1, 1)];
    let other = StoredDelivery { attempts, updated_at: at(2), state: DeliveryState::Delivered, ..other };
    found.status.deliveries.push(other);
    let told = tell(&found, at(60)).events;
    let told: Vec<_> = told
        .iter()
        .map(|event| (event.destination.as_deref().unwrap_or("-"), (event.at - at(0)).num_seconds()))
        .collect();
    assert_eq!(told, [("-", 0), ("three", -5), ("four", 1), ("four", 2), ("three", 70), ("three", 50)]);
}

#[test]
fn what_a_third_party_said_is_not_repeated() {
    let told =
        format!("{:?}", tell(&found(ended(DeliveryState::Delivered, vec![failed(1, 1, "retry")])), at(60)));
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn what_is_not_published_waits_for_kafka() {
    let found = Found { outbox: Some(NodeId::try_from(3).unwrap()), ..found(delivery()) };
    assert_stands(
        &found,
        "It is committed, and Kafka has not acknowledged it: node 3 publishes it as soon as Kafka takes it. If \
         this lasts, see whether Kafka is there; `/readyz` of ingest tells.",
    );
}

#[test]
fn what_is_published_waits_for_news() {
    assert_stands(
        &found(delivery()),
        "Kafka has acknowledged it, and nothing was heard of attempt 1 yet: dispatch has still to come to it, or \
         is at it. If nothing is heard until then, it is published again at 2026-01-01 00:15:00 UTC (in 14m), or \
         later, once dispatch has come past it.",
    );
    let retried = StoredDelivery {
        state: DeliveryState::Retrying,
        attempt_count: 2,
        published_at: Some(at(30)),
        due_at: Some(at(60)),
        ..delivery()
    };
    assert_stands(
        &found(retried),
        "It was published again at 2026-01-01 00:00:30 UTC, and nothing was heard of attempt 3 for \
         `ingest.patience`. It is published again as soon as dispatch has come past it: see that dispatch runs, \
         and how far behind it is.",
    );
}

#[test]
fn what_is_tried_again_waits_for_its_time() {
    let retrying = |due| StoredDelivery {
        state: DeliveryState::Retrying,
        attempt_count: 2,
        published_at: None,
        due_at: Some(at(due)),
        ..delivery()
    };
    assert_stands(
        &found(retrying(105)),
        "Attempt 3 is due at 2026-01-01 00:01:45 UTC (in 45s): it is published then, and made when dispatch comes \
         to it. It ends dead, as `expired`, if it is not delivered by 2026-01-02 00:00:00 UTC.",
    );
    // A destination that is not configured any more has no window.
    let found = Found { windows: [].into(), ..found(retrying(60)) };
    assert_stands(
        &found,
        "Attempt 3 is due since 2026-01-01 00:01:00 UTC: it is published as soon as Kafka takes it. If this \
         lasts, see whether ingest runs and Kafka is there.",
    );
}

/// Deferred by this until 65.
fn deferred(by: &str) -> Found {
    let deferred_by = Some(by.to_owned());
    found(StoredDelivery { published_at: None, deferred_by, due_at: Some(at(65)), ..delivery() })
}

#[test]
fn what_keeps_its_order_waits_for_its_turn() {
    let mut found = deferred("order");
    found.ahead.insert("three".to_owned(), Ahead { first: id(7), count: 1 });
    assert_stands(
        &found,
        "It waits for its turn, because its route keeps the order (`after_failure: hold`): 1 request with its \
         ordering key is before it, and request 00000000000000000007 is the one whose turn it is. It goes on by \
         itself when they have ended. Look at that one, `throughline explain 00000000000000000007`, and call it \
         off if nobody needs it.",
    );
    found.ahead.insert("three".to_owned(), Ahead { first: id(7), count: 2 });
    assert!(
        tell(&found, at(60)).standings[0].text.contains(": 2 requests with its ordering key are before it,")
    );
    found.ahead.clear();
    assert_stands(&found, "Its turn has just come: those before it with its ordering key have ended.");
}

#[test]
fn what_its_destination_cannot_take_waits_for_that() {
    let mut found = deferred("breaker_open");
    let rest = " It ends dead, as `expired`, if it is not delivered by 2026-01-02 00:00:00 UTC.";
    let why = "It waits, as `breaker_open`, which costs no attempt: the third party has failed too often, so that \
         its breaker is open; a few calls probe it. It may go on at 2026-01-01 00:01:05 UTC (in 5s).";
    let cure =
        " See what it answers. When it is back, what waits is let go by itself, twice as much each second.";
    assert_stands(&found, &format!("{why}{cure}{rest}"));
    for (count, next) in [(1, "The next one that waits"), (4, "The next 4 that wait")] {
        found.releases.insert("three".to_owned(), Release { at: at(59), count });
        let release =
            format!(" {next} for `three` may go since 2026-01-01 00:00:59 UTC, the longest overdue first.");
        assert_stands(&found, &format!("{why}{release}{cure}{rest}"));
    }
    for (cause, why, cure) in [
        (DeferralCause::Limit, "called as much as it may be (`limits`).", "Raise the limits"),
        (
            DeferralCause::TokenUnavailable,
            "the token endpoint does not answer.",
            "See after the token endpoint",
        ),
        (DeferralCause::TokenRefused, "refuses our credentials.", "Mend `oauth2` of the destination"),
        (DeferralCause::UnknownDestination, "has no such destination, or not yet.", "Restart each dispatch"),
    ] {
        let text = &tell(&deferred(cause.as_str()), at(60)).standings[0].text;
        let begin = format!("It waits, as `{}`, which costs no attempt: ", cause.as_str());
        assert!(text.starts_with(&begin) && text.contains(why) && text.contains(cure), "{text}");
    }
    assert!(tell(&deferred("of late"), at(60)).standings[0].text.contains("`of late`"));
}

#[test]
fn what_its_key_keeps_busy_waits_for_its_time() {
    assert_stands(
        &deferred("key_busy"),
        "It waits, as `key_busy`, which costs no attempt: too many with its ordering key are before it in dispatch, \
         for one call at a time. It may go on at 2026-01-01 00:01:05 UTC (in 5s). It is published then, and lines up \
         again. If it is put off again and again, see how long the third party takes for a call, and whether so many \
         need the same key. It ends dead, as `expired`, if it is not delivered by 2026-01-02 00:00:00 UTC.",
    );
}

#[test]
fn the_dead_say_why_and_what_to_do() {
    let dead = |reason: &str| {
        let (reason, last_error) = (Some(reason.to_owned()), Some("503 Service Unavailable".to_owned()));
        found(StoredDelivery { reason, last_error, ..ended(DeliveryState::Dead, Vec::new()) })
    };
    assert_stands(
        &dead("attempts_exhausted"),
        "`attempts_exhausted`: `retry.attempts` failed. The last error: 503 Service Unavailable. See whether the \
         third party is well again; then replay it: `throughline dead-letters replay 00000000000000000042 three`. \
         See \"Why a delivery is dead\" in docs/operations.md.",
    );
    for (reason, why, cure) in [
        (DeadReason::Rejected, "the third party's answer is final", "say with `statuses`"),
        (DeadReason::Expired, "`retry.window` was over", "well again"),
        (DeadReason::Untransformable, "`filter` fails on this body", "Mend the filter"),
        (DeadReason::Unroutable, "no such route or destination", "Bring it back"),
        (DeadReason::Unpublishable, "Kafka refuses the record", "`max.message.bytes`"),
        (DeadReason::Malformed, "a header of its record", "of the same version"),
        (DeadReason::Internal, "panicked", "Report it"),
    ] {
        let text = &tell(&dead(reason.as_str()), at(60)).standings[0].text;
        let begin = format!("`{}`: ", reason.as_str());
        assert!(text.starts_with(&begin) && text.contains(why) && text.contains(cure), "{text}");
    }
    assert!(tell(&dead("of late"), at(60)).standings[0].text.starts_with("`of late`: "));
}

#[test]
fn what_has_ended_says_that_it_is_final_or_nearly() {
    assert_stands(
        &found(ended(DeliveryState::Delivered, Vec::new())),
        "The third party has it. This is final.",
    );
    assert_stands(
        &found(ended(DeliveryState::Cancelled, Vec::new())),
        "It was called off. A call that was on its way may still have reached the third party: then it is \
         delivered.",
    );
}
