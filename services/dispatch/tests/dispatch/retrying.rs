//! Retries after a failed attempt.

use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Outcome, RetryRecord, name};
use wiremock::matchers::path;
use wiremock::{Mock, Request, ResponseTemplate};

use crate::world::{World, header, in_the_world, request};

async fn answer(world: &World, at: &str, response: ResponseTemplate) {
    Mock::given(path(at)).respond_with(response).mount(&world.third).await;
}

/// When the next attempt is due.
fn due_at(report: &AttemptReport) -> Option<DateTime<Utc>> {
    match &report.outcome {
        Outcome::Retry { due_at, .. } => *due_at,
        other => panic!("is not to be tried again: {other:?}"),
    }
}

/// Number, counted attempts, and outcome of each.
fn course(reports: &[AttemptReport]) -> Vec<(u32, u32, &str)> {
    reports.iter().map(|report| (report.attempt, report.counted_attempts, report.outcome.as_str())).collect()
}

/// A delivery that comes back for an attempt of this number, all before which counted.
fn retry(route: &str, attempt: u32) -> RetryRecord {
    let request = request(route);
    let window_started_at = request.accepted_at;
    RetryRecord {
        request,
        destination: route.to_owned(),
        attempt,
        counted_attempts: attempt - 1,
        window_started_at,
    }
}

#[test]
fn a_temporary_failure_is_reported_with_the_time_of_the_next_attempt() {
    in_the_world(async |world| {
        answer(world, "/failing", ResponseTemplate::new(503).set_body_string("later")).await;
        let report = world.attempt("failing", "{}").await;
        let Outcome::Retry { due_at: Some(due_at), failure } = &report.outcome else { panic!("{report:?}") };
        assert_eq!(
            (failure.class, failure.error.as_str()),
            (ErrorClass::ServerError, "503 Service Unavailable")
        );
        assert_eq!((report.status, report.response_excerpt.as_deref()), (Some(503), Some("later")));
        assert_eq!((report.attempt, report.counted_attempts), (1, 1));
        let pause = *due_at - report.started_at;
        assert!(pause >= TimeDelta::zero() && pause < TimeDelta::seconds(10), "{pause}");
        assert_eq!(world.calls("/failing").await.len(), 1);
    });
}

#[test]
fn a_third_party_that_recovers_gets_the_delivery_under_the_same_idempotency_key() {
    in_the_world(async |world| {
        let calls = AtomicU32::new(0);
        let answer = move |_: &Request| {
            let is_well = calls.fetch_add(1, Ordering::SeqCst) == 2;
            ResponseTemplate::new(if is_well { 200 } else { 500 })
        };
        Mock::given(path("/recovering")).respond_with(answer).mount(&world.third).await;
        let request = request("recovering");
        let id = request.id.to_string();
        let reports = world.kafka.see_through(request).await;
        assert_eq!(course(&reports), [(1, 1, "retry"), (2, 2, "retry"), (3, 3, "delivered")]);
        let calls = world.calls("/recovering").await;
        assert_eq!(calls.len(), 3);
        assert!(calls.iter().all(|call| call.headers["idempotency-key"] == id.as_str()));
    });
}

#[test]
fn a_failed_connection_is_retried_immediately_before_it_counts() {
    in_the_world(async |world| {
        let id = world.publish("refusing", "{}").await;
        let reports = world.kafka.heard.reports(id, 3).await;
        assert_eq!(course(&reports), [(1, 0, "retry"), (2, 0, "retry"), (3, 1, "retry")]);
        assert_eq!((due_at(&reports[0]), due_at(&reports[1])), (None, None));
        assert!(due_at(&reports[2]).is_some());
    });
}

#[test]
fn a_connection_that_breaks_once_costs_nothing() {
    in_the_world(async |world| {
        let reports = world.kafka.see_through(request("flaky")).await;
        assert_eq!(course(&reports), [(1, 0, "retry"), (2, 1, "delivered")]);
        assert_eq!(due_at(&reports[0]), None);
    });
}

#[test]
fn a_delivery_is_not_retried_before_retry_after_and_no_attempt_is_counted() {
    in_the_world(async |world| {
        let busy = ResponseTemplate::new(429).insert_header("retry-after", "120");
        answer(world, "/putting-off", busy).await;
        let report = world.attempt("putting-off", "{}").await;
        assert_eq!((report.attempt, report.counted_attempts), (1, 0));
        let pause = due_at(&report).unwrap() - report.started_at;
        assert!(pause >= TimeDelta::seconds(120) && pause < TimeDelta::seconds(130), "{pause}");

        let then = request("dated").accepted_at + TimeDelta::hours(2);
        let date = then.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let dated = ResponseTemplate::new(503).insert_header("retry-after", date.as_str());
        answer(world, "/dated", dated).await;
        let report = world.attempt("dated", "{}").await;
        assert_eq!(report.counted_attempts, 0);
        // The date has no fractions.
        let late = due_at(&report).unwrap() - then;
        assert!(late > TimeDelta::seconds(-1) && late < TimeDelta::seconds(10), "{late}");
    });
}

#[test]
fn the_last_attempt_ends_the_delivery_and_leaves_a_dead_letter() {
    in_the_world(async |world| {
        answer(world, "/exhausting", ResponseTemplate::new(500)).await;
        let retry = retry("exhausting", 2);
        world.kafka.retry(&retry).await;
        let report = world.kafka.heard.report(retry.request.id).await;
        let Outcome::Dead { reason, failure } = &report.outcome else { panic!("{report:?}") };
        assert_eq!((*reason, failure.class), (DeadReason::AttemptsExhausted, ErrorClass::ServerError));
        assert_eq!((report.attempt, report.counted_attempts), (2, 2));
        let id = retry.request.id.to_string();
        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id)).await;
        assert_eq!(header(&letter, name::REASON), Some("attempts_exhausted"));
    });
}

#[test]
fn an_expired_delivery_ends_without_a_call() {
    in_the_world(async |world| {
        let retry = retry("expiring", 3);
        let window_started_at = retry.window_started_at - TimeDelta::hours(24);
        world.kafka.retry(&RetryRecord { window_started_at, ..retry.clone() }).await;
        let report = world.kafka.heard.report(retry.request.id).await;
        let Outcome::Dead { reason, failure } = &report.outcome else { panic!("{report:?}") };
        assert_eq!((*reason, failure.error.as_str()), (DeadReason::Expired, "not delivered within 86400s"));
        assert_eq!((report.attempt, report.counted_attempts, report.status), (3, 2, None));
        assert_eq!(world.calls("/expiring").await.len(), 0);
    });
}

#[test]
fn a_retry_after_beyond_the_window_ends_the_delivery() {
    in_the_world(async |world| {
        let busy = ResponseTemplate::new(503).insert_header("retry-after", "3601");
        answer(world, "/put-off-too-long", busy).await;
        let report = world.attempt("put-off-too-long", "{}").await;
        assert!(matches!(report.outcome, Outcome::Dead { reason: DeadReason::Expired, .. }), "{report:?}");
        assert_eq!(report.status, Some(503));
    });
}

#[test]
fn a_destination_can_redefine_a_status() {
    in_the_world(async |world| {
        answer(world, "/conflicting", ResponseTemplate::new(409)).await;
        let report = world.attempt("conflicting", "{}").await;
        assert_eq!((report.outcome, report.status), (Outcome::Delivered, Some(409)));
    });
}
