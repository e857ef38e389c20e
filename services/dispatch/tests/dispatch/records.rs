//! Records that are not simply a request to deliver.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{
    Adoption, AttemptReport, DeadReason, DeferralCause, ErrorClass, Keys, Kind, Outcome, RequestRecord,
    RetryRecord, name,
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
        assert!(adoption.origin_time.is_some());
        assert_eq!(adoption.content_type.as_deref(), Some("application/cloudevents+json"));
        assert!(adoption.trace.unwrap().traceparent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert_eq!(record.key, Some(key));
        assert_eq!(record.payload, r#"{ "theirs": 1.0 }"#);
        assert_eq!(world.calls("/foreign").await.len(), 0);
    });
}

#[test]
fn a_record_with_a_forged_id_is_adopted_and_calls_nobody() {
    in_the_world(async |world| {
        let forged = request("foreign");
        let mut by_another_key = forged.to_headers();
        Keys::new("the key of somebody else", None).sign(Kind::Request, &mut by_another_key, b"{}");
        let mut of_a_retry = forged.to_headers();
        let since = forged.accepted_at;
        let retry = RetryRecord {
            request: forged.clone(),
            destination: "foreign".to_owned(),
            attempt: 1,
            spent: 0,
            since,
        };
        of_a_retry.extend(world.kafka.signed(Kind::Retry, retry.to_headers(), "{}"));
        for (number, headers) in [forged.to_headers(), by_another_key, of_a_retry].into_iter().enumerate() {
            let origin = world.kafka.produce("foreign-requests", None, headers, "{}").await;
            let adoptions = &world.kafka.topics.adoptions;
            let record = world.kafka.heard.record(adoptions, (name::ORIGIN, &origin.to_string())).await;
            assert_eq!(header(&record, name::CE_ID), None, "{number}");
            assert_eq!(record.payload, "{}");
        }
        assert_eq!(world.calls("/foreign").await.len(), 0);
    });
}

#[test]
fn a_retry_that_is_not_signed_becomes_a_dead_letter_and_calls_nobody() {
    in_the_world(async |world| {
        let request = request("foreign");
        let (id, since) = (request.id, request.accepted_at);
        let retry = RetryRecord { request, destination: "foreign".to_owned(), attempt: 1, spent: 0, since };
        world.kafka.produce(&world.kafka.topics.retries, None, retry.to_headers(), "{}").await;
        let letter =
            world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id.to_string())).await;
        assert_eq!(header(&letter, name::REASON), Some("malformed"));
        assert!(header(&letter, name::ERROR).unwrap().contains("throughline-signature"), "{letter:?}");
        assert_eq!(world.calls("/foreign").await.len(), 0);
    });
}

/// What a report says of a delivery that could not be made of its record.
fn malformed(report: &AttemptReport) -> (&str, &str) {
    let Outcome::Dead { reason: DeadReason::Malformed, failure } = &report.outcome else {
        panic!("has not ended malformed: {report:?}")
    };
    assert_eq!((failure.class, report.called), (ErrorClass::Record, false));
    (&report.destination, &failure.error)
}

#[test]
fn a_record_of_ours_that_cannot_be_used_is_reported_dead_and_those_after_it_are_delivered() {
    in_the_world(async |world| {
        Mock::given(path("/readable")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let (bad_type, far) = (request("both"), request("readable"));
        let bad_type = RequestRecord { content_type: "application/json\n".to_owned(), ..bad_type };
        let mut far_off = far.to_headers();
        far_off.retain(|(name, _)| name != name::CE_TIME);
        far_off.extend(headers(&[(name::CE_TIME, "+262142-12-31T23:59:59Z"), ("own", "far")]));
        world.kafka.publish(&bad_type, None, "its body").await;
        world.kafka.produce_signed("readable-requests", None, (Kind::Request, far_off.clone()), "{}").await;
        assert_eq!(world.attempt("readable", "{}").await.outcome, Outcome::Delivered);

        let reports = world.kafka.heard.reports(bad_type.id, 2).await;
        let mut ends: Vec<_> = reports.iter().map(malformed).collect();
        ends.sort_unstable();
        let error = "header content-type: cannot be the value of an HTTP header";
        assert_eq!(ends, [("left", error), ("right", error)]);
        let letter = world
            .kafka
            .heard
            .record(&world.kafka.topics.dead_letters, (name::CE_ID, &bad_type.id.to_string()))
            .await;
        assert_eq!(letter.payload, "its body");
        assert_eq!(header(&letter, name::REASON), Some("malformed"));
        assert!(header(&letter, name::ORIGIN).unwrap().starts_with("both-requests/"), "{letter:?}");
        assert_eq!(header(&letter, name::SIGNATURE), None);

        let report = world.kafka.heard.report(far.id).await;
        let (destination, error) = malformed(&report);
        assert_eq!(destination, "readable");
        assert!(error.contains("ce_time"), "{error}");

        far_off.extend(headers(&[
            (name::DESTINATION, "readable"),
            (name::ATTEMPT, "3"),
            (name::SPENT, "2"),
            (name::SINCE, "+262142-12-31T23:59:59Z"),
        ]));
        world.kafka.produce_signed(&world.kafka.topics.retries, None, (Kind::Retry, far_off), "{}").await;
        let report = world.kafka.heard.reports(far.id, 2).await.remove(1);
        assert_eq!((malformed(&report).0, report.attempt, report.spent), ("readable", 3, 2));
    });
}

#[test]
fn a_record_of_ours_without_a_readable_id_becomes_a_dead_letter() {
    in_the_world(async |world| {
        let malformed = headers(&[("ce_id", "42"), ("ce_type", "readable"), ("own", "kept")]);
        for (topic, kind) in
            [("readable-requests", Kind::Request), (&*world.kafka.topics.retries, Kind::Retry)]
        {
            let mut malformed = malformed.clone();
            malformed.extend(headers(&[("on", topic)]));
            world.kafka.produce_signed(topic, None, (kind, malformed), "its body").await;
            let letter = world.kafka.heard.record(&world.kafka.topics.dead_letters, ("on", topic)).await;
            assert_eq!(letter.payload, "its body");
            assert_eq!(header(&letter, name::REASON), Some("malformed"));
            assert!(header(&letter, name::ERROR).unwrap().contains("ce_id"), "{letter:?}");
            assert!(header(&letter, name::ORIGIN).unwrap().starts_with(topic), "{letter:?}");
            assert_eq!(header(&letter, name::DESTINATION), None);
        }
    });
}

/// Ingest knows its destinations, and publishes a record for each when nothing was heard of it.
#[test]
fn a_request_of_an_unknown_route_is_left_to_its_retry() {
    in_the_world(async |world| {
        Mock::given(path("/readable")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let request = request("abolished");
        let (id, since) = (request.id, request.accepted_at);
        let signed = (Kind::Request, request.to_headers());
        world.kafka.produce_signed("readable-requests", None, signed, "{}").await;
        let retry = RetryRecord { request, destination: "readable".to_owned(), attempt: 1, spent: 0, since };
        world.kafka.retry(&retry).await;
        assert_eq!(world.kafka.heard.report(id).await.outcome, Outcome::Delivered);
        let id = id.to_string();
        let letters = world.kafka.heard.wait_for(|records| {
            Some(records.iter().filter(|record| header(record, name::CE_ID) == Some(&id)).count())
        });
        assert_eq!(letters.await, 0);
    });
}

#[test]
fn an_old_delivery_to_an_unknown_destination_is_reported_dead_and_kept_as_a_dead_letter() {
    in_the_world(async |world| {
        let request = request("readable");
        let since = request.accepted_at - TimeDelta::hours(1);
        let retry = RetryRecord { request, destination: "abolished".to_owned(), attempt: 1, spent: 0, since };
        world.kafka.retry(&retry).await;
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
        world.kafka.retry(&retry).await;
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
