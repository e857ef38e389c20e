//! Steps of the clock, forward and back.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, DeadReason, DeferralCause, Outcome, RequestRecord, RetryRecord};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::world::{Kafka, request};

/// Publishes an attempt, and returns the report on it.
async fn attempt(kafka: &Kafka, request: &RequestRecord, attempt: u32) -> AttemptReport {
    kafka
        .retry(&RetryRecord {
            request: request.clone(),
            destination: request.route.clone(),
            attempt,
            counted_attempts: attempt - 1,
            window_started_at: request.accepted_at,
        })
        .await;
    let number = usize::try_from(attempt).unwrap();
    kafka.heard.reports(request.id, number).await.remove(number - 1)
}

fn due_at(report: &AttemptReport) -> DateTime<Utc> {
    match report.outcome {
        Outcome::Retry { due_at: Some(due_at), .. } | Outcome::Deferred { due_at, .. } => due_at,
        ref other => panic!("does not go on: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_steps_change_no_pause_and_the_window_follows_the_clock() {
    let third = MockServer::start().await;
    Mock::given(wiremock::matchers::any()).respond_with(ResponseTemplate::new(503)).mount(&third).await;
    let kafka = Kafka::start(&json!({
        "failing": {"url": third.uri(), "breaker": {"consecutive": 1000}},
        "ailing": {"url": third.uri(), "breaker": {"consecutive": 1, "open": "60s"}},
    }));
    let clock = Clock::manual(Clock::system().now());
    let _dispatch = kafka.dispatch_at(clock.clone(), Shutdown::new()).await;
    let (failing, ailing) = (request("failing"), request("ailing"));
    attempt(&kafka, &ailing, 1).await;
    // The third attempt is made at the time of the first.
    for (number, hours) in [(1, 0), (2, -1), (3, 1)] {
        clock.advance(TimeDelta::hours(hours));
        let report = attempt(&kafka, &failing, number).await;
        assert_eq!(report.started_at, clock.now());
        let pause = due_at(&report) - clock.now();
        assert!(pause >= TimeDelta::zero() && pause <= TimeDelta::seconds(4), "{number}: {pause}");
    }

    clock.advance(TimeDelta::hours(1));
    let deferred = attempt(&kafka, &ailing, 2).await;
    assert!(
        matches!(deferred.outcome, Outcome::Deferred { cause: DeferralCause::BreakerOpen, .. }),
        "{deferred:?}"
    );
    assert!(due_at(&deferred) > clock.now(), "the breaker opened a moment ago");

    clock.advance(TimeDelta::hours(24));
    let expired = attempt(&kafka, &failing, 4).await;
    assert!(
        matches!(expired.outcome, Outcome::Dead { reason: DeadReason::Expired, .. }),
        "a day has passed by the clock: {expired:?}"
    );
    assert_eq!(third.received_requests().await.unwrap().len(), 4);
}
