//! Records that are not simply a request to deliver.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{
    Adoption, DeadReason, DeferralCause, ErrorClass, Outcome, RequestRecord, RetryRecord, name,
};
use wiremock::matchers::path;
use wiremock::{Mock, ResponseTemplate};

use crate::world::{header, in_the_world, request};

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, Bytes)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes()))).collect()
}

#[test]
fn a_foreign_record_is_adopted_with_its_origin_its_key_and_its_trace() {
    in_the_world(async |world| {
        let foreign = headers(&[
            ("Content-Type", "application/cloudevents+json"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ]);
        let key = Bytes::from_static(b"their key");
        world.kafka.produce("foreign-requests", Some(key.clone()), foreign, r#"{ "theirs": 1.0 }"#).await;

        let adoptions = &world.kafka.topics.adoptions;
        let record = world.kafka.heard.record(adoptions, (name::CE_TYPE, "foreign")).await;
        let adoption = Adoption::from_headers(&record.headers).unwrap();
        assert_eq!(adoption.origin.topic, "foreign-requests");
        assert_eq!(adoption.content_type.as_deref(), Some("application/cloudevents+json"));
        assert!(adoption.trace.unwrap().traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert_eq!(record.key, Some(key));
        assert_eq!(record.payload, r#"{ "theirs": 1.0 }"#);
        assert_eq!(world.calls("/foreign").await.len(), 0);
    });
}

#[test]
fn a_malformed_record_becomes_a_dead_letter_and_those_after_it_are_delivered() {
    in_the_world(async |world| {
        Mock::given(path("/readable")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let malformed = headers(&[("ce_id", "42"), ("ce_type", "readable"), ("own", "kept")]);
        world.kafka.produce("readable-requests", None, malformed, "its body").await;
        let report = world.attempt("readable", "{}").await;
        assert_eq!(report.outcome, Outcome::Delivered);

        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, ("own", "kept")).await;
        assert_eq!(letter.payload, "its body");
        assert_eq!(header(&letter, name::REASON), Some("malformed"));
        assert!(header(&letter, name::ERROR).unwrap().contains("ce_id"), "{letter:?}");
        assert!(header(&letter, name::ORIGIN).unwrap().starts_with("readable-requests/"), "{letter:?}");
        assert_eq!(header(&letter, name::DESTINATION), None);
    });
}

#[test]
fn a_retry_that_cannot_be_read_becomes_a_dead_letter() {
    in_the_world(async |world| {
        let mut retry = request("readable").to_headers();
        retry.extend(headers(&[(name::DESTINATION, "readable"), (name::ATTEMPT, "soon"), ("own", "retry")]));
        world.kafka.produce(&world.kafka.topics.retries, None, retry, "{}").await;
        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, ("own", "retry")).await;
        assert_eq!(header(&letter, name::REASON), Some("malformed"));
    });
}

#[test]
fn a_request_of_an_unknown_route_becomes_a_dead_letter() {
    in_the_world(async |world| {
        let request = request("abolished");
        let id = request.id.to_string();
        world.kafka.produce("readable-requests", None, request.to_headers(), "{}").await;
        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id)).await;
        assert_eq!(header(&letter, name::REASON), Some("unroutable"));
    });
}

#[test]
fn an_old_delivery_to_an_unknown_destination_is_reported_dead_and_kept_as_a_dead_letter() {
    in_the_world(async |world| {
        let request = request("readable");
        let since = request.accepted_at - TimeDelta::hours(1);
        let retry = RetryRecord { request, destination: "abolished".to_owned(), attempt: 1, spent: 0, since };
        world.kafka.produce(&world.kafka.topics.retries, None, retry.to_headers(), "{}").await;
        let report = world.kafka.heard.report(retry.request.id).await;
        let Outcome::Dead { reason, failure } = report.outcome else { panic!("has not ended dead") };
        assert_eq!((reason, failure.class), (DeadReason::Unroutable, ErrorClass::Configuration));
        assert_eq!(report.destination, "abolished");

        let id = retry.request.id.to_string();
        let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id)).await;
        assert_eq!(header(&letter, name::DESTINATION), Some("abolished"));
        assert_eq!(header(&letter, name::REASON), Some("unroutable"));
    });
}

#[test]
fn a_young_delivery_to_an_unknown_destination_waits_for_a_dispatch_that_knows_it() {
    in_the_world(async |world| {
        let request = request("readable");
        let since = request.accepted_at;
        let retry = RetryRecord { request, destination: "added".to_owned(), attempt: 1, spent: 0, since };
        world.kafka.produce(&world.kafka.topics.retries, None, retry.to_headers(), "{}").await;
        let report = world.kafka.heard.report(retry.request.id).await;
        let Outcome::Deferred { due_at, cause } = report.outcome else { panic!("is not deferred") };
        assert_eq!((cause, report.destination.as_str()), (DeferralCause::UnknownDestination, "added"));
        assert!(due_at >= report.started_at + TimeDelta::seconds(30), "{due_at}");
        assert_eq!((report.attempt, report.spent), (1, 0));
    });
}

/// A record on the retries topic for the first attempt of a request.
fn again(request: &RequestRecord, since: DateTime<Utc>) -> RetryRecord {
    let destination = request.route.clone();
    RetryRecord { request: request.clone(), destination, attempt: 1, spent: 0, since }
}

#[test]
fn a_second_record_of_an_attempt_is_told_the_first_ones_outcome_and_leads_to_no_call() {
    in_the_world(async |world| {
        for (route, status, expected) in [("repeated", 200, "delivered"), ("repeated-rejection", 400, "dead")]
        {
            let answer = Mock::given(path(format!("/{route}"))).respond_with(ResponseTemplate::new(status));
            answer.mount(&world.third).await;
            let request = request(route);
            world.kafka.publish(&request, None, "{}").await;
            let first = world.kafka.heard.report(request.id).await;
            assert_eq!(first.outcome.as_str(), expected);
            world.kafka.publish(&request, None, "{}").await;
            world.kafka.retry(&again(&request, request.accepted_at)).await;
            let reports = world.kafka.heard.reports(request.id, 3).await;
            for report in reports {
                assert_eq!((&report.outcome, report.started_at), (&first.outcome, first.started_at));
            }
            assert_eq!(world.calls(&format!("/{route}")).await.len(), 1);
        }
    });
}

#[test]
fn a_replay_of_what_was_just_delivered_is_a_call() {
    in_the_world(async |world| {
        Mock::given(path("/replayed")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let request = request("replayed");
        world.kafka.publish(&request, None, "{}").await;
        world.kafka.heard.report(request.id).await;
        world.kafka.retry(&again(&request, request.accepted_at + TimeDelta::seconds(1))).await;
        let reports = world.kafka.heard.reports(request.id, 2).await;
        assert!(reports[1].started_at >= reports[0].started_at);
        assert_eq!(world.calls("/replayed").await.len(), 2);
    });
}
