//! The outcomes of deliveries that fail.

use std::sync::atomic::Ordering;
use std::time::Duration;

use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Outcome, name};
use wiremock::matchers::path;
use wiremock::{Mock, ResponseTemplate};

use crate::third_party::TAKEN;
use crate::world::{World, header, in_the_world};

async fn answer(world: &World, at: &str, response: ResponseTemplate) {
    Mock::given(path(at)).respond_with(response).mount(&world.third).await;
}

/// The contents of the report on a delivery that ended dead.
fn end(report: &AttemptReport) -> (DeadReason, ErrorClass, &str) {
    match &report.outcome {
        Outcome::Dead { reason, failure } => (*reason, failure.class, &failure.error),
        other => panic!("has not ended dead: {other:?}"),
    }
}

/// The contents of the report on an attempt that is retried.
fn failure(report: &AttemptReport) -> (ErrorClass, &str) {
    match &report.outcome {
        Outcome::Retry { failure, .. } => (failure.class, &failure.error),
        other => panic!("is not to be tried again: {other:?}"),
    }
}

#[test]
fn a_rejected_request_is_reported_dead_and_kept_as_a_dead_letter() {
    in_the_world(async |world| {
        answer(world, "/rejecting", ResponseTemplate::new(400).set_body_string("no such key")).await;
        let report = world.attempt("rejecting", r#"{ "kept": 1.0 }"#).await;
        assert_eq!(end(&report), (DeadReason::Rejected, ErrorClass::ClientError, "400 Bad Request"));
        assert_eq!((report.status, report.response_excerpt.as_deref()), (Some(400), Some("no such key")));

        let id = report.request_id.to_string();
        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id)).await;
        assert_eq!(letter.payload, r#"{ "kept": 1.0 }"#);
        assert_eq!(letter.key.as_deref(), Some(id.as_bytes()));
        assert_eq!(header(&letter, name::CE_TYPE), Some("rejecting"));
        assert_eq!(header(&letter, name::DESTINATION), Some("rejecting"));
        assert_eq!(header(&letter, name::REASON), Some("rejected"));
        assert_eq!(header(&letter, name::ERROR), Some("400 Bad Request"));
        assert!(header(&letter, name::ORIGIN).unwrap().starts_with("rejecting-requests/"));
    });
}

#[test]
fn a_refused_connection_is_reported_without_the_secrets_of_the_url() {
    in_the_world(async |world| {
        let report = world.attempt("refusing", "{}").await;
        let (class, error) = failure(&report);
        assert_eq!(class, ErrorClass::Connect);
        assert!(error.starts_with("no connection: Connection refused"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    });
}

#[test]
fn a_third_party_that_is_too_slow_times_out() {
    in_the_world(async |world| {
        answer(world, "/slow", ResponseTemplate::new(200).set_delay(Duration::from_mins(1))).await;
        let report = world.attempt("slow", "{}").await;
        assert_eq!(failure(&report), (ErrorClass::Timeout, "no complete response within 150ms"));
        assert_eq!(report.status, None);
        assert!((150..5_000).contains(&report.duration_ms), "{}", report.duration_ms);
    });
}

#[test]
fn a_redirect_is_not_followed() {
    in_the_world(async |world| {
        let elsewhere = format!("{}/elsewhere", world.third.uri());
        let redirect = ResponseTemplate::new(307).insert_header("location", elsewhere.as_str());
        answer(world, "/redirecting", redirect).await;
        let report = world.attempt("redirecting", "{}").await;
        assert_eq!(end(&report), (DeadReason::Rejected, ErrorClass::Redirect, "307 Temporary Redirect"));
        assert_eq!(world.calls("/elsewhere").await.len(), 0);
    });
}

#[test]
fn a_body_that_the_filter_fails_on_is_never_sent() {
    in_the_world(async |world| {
        let report = world.attempt("untransformable", r#"{"a":"text"}"#).await;
        let (reason, class, _) = end(&report);
        assert_eq!((reason, class), (DeadReason::Untransformable, ErrorClass::Transform));
        assert_eq!(world.calls("/untransformable").await.len(), 0);
    });
}

/// More filters run away than dispatch has threads.
#[test]
fn a_runaway_filter_ends_its_own_deliveries_and_delays_no_others() {
    in_the_world(async |world| {
        let mut running = Vec::new();
        for _ in 0..2 * std::thread::available_parallelism().unwrap().get() {
            running.push(world.publish("running-away", "{}").await);
        }
        answer(world, "/beside", ResponseTemplate::new(200)).await;
        let beside = world.attempt("beside", "{}").await;
        assert_eq!(beside.outcome, Outcome::Delivered);
        assert_eq!(world.calls("/beside").await[0].body, br#"{"beside":{}}"#);
        let ended = world.kafka.heard.wait_for(|records| {
            let reports = world.kafka.heard.reports_in(records);
            Some(reports.filter(|report| running.contains(&report.request_id)).count())
        });
        assert_eq!(ended.await, 0, "another delivery waited for them");

        let report = world.kafka.heard.wait_for(|records| {
            world.kafka.heard.reports_in(records).find(|report| running.contains(&report.request_id))
        });
        let report = report.await;
        let (reason, class, error) = end(&report);
        assert_eq!((reason, class), (DeadReason::Untransformable, ErrorClass::Transform));
        assert!(error.starts_with("the filter exceeded a limit: more than 64 MiB"), "{error}");
        assert_eq!(world.calls("/running-away").await.len(), 0);
    });
}

#[test]
fn an_untrusted_certificate_is_final_and_a_failed_handshake_is_not() {
    in_the_world(async |world| {
        let report = world.attempt("untrusted", "{}").await;
        let (reason, class, error) = end(&report);
        assert_eq!((reason, class), (DeadReason::Rejected, ErrorClass::Tls), "{error}");
        assert!(error.contains("certificate"), "{error}");

        let report = world.attempt("plaintext", "{}").await;
        let (class, error) = failure(&report);
        assert_eq!(class, ErrorClass::Tls, "{error}");
    });
}

#[test]
fn a_response_without_end_is_read_up_to_the_limit_and_judged_by_its_status() {
    in_the_world(async |world| {
        let report = world.attempt("endless", "{}").await;
        assert_eq!((&report.outcome, report.status), (&Outcome::Delivered, Some(200)));
        assert_eq!(report.response_excerpt.unwrap(), "x".repeat(1024));
    });
}

#[test]
fn a_truncated_response_is_a_failure_that_keeps_its_status() {
    in_the_world(async |world| {
        let report = world.attempt("breaking", "{}").await;
        let (class, error) = failure(&report);
        assert_eq!(class, ErrorClass::Transport, "{error}");
        assert_eq!((report.status, report.response_excerpt.as_deref()), (Some(200), Some("half")));
    });
}

#[test]
fn a_response_whose_head_is_too_large_to_be_read_is_a_failure() {
    in_the_world(async |world| {
        for route in ["large-header", "many-headers", "no-status"] {
            let report = world.attempt(route, "{}").await;
            let expected = (ErrorClass::Transport, "the connection broke: message head is too large");
            assert_eq!(failure(&report), expected, "{route}");
            assert_eq!((report.status, report.response_excerpt), (None, None), "{route}");
        }
        // The buffers of the operating system count too.
        let taken = TAKEN.load(Ordering::SeqCst);
        assert!(taken < 64 << 20, "{taken} bytes were taken");
    });
}
