//! Records that are not simply a request to deliver.

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use throughline_messages::{
    Adoption, AttemptReport, DeadReason, DeferralCause, ErrorClass, Keys, Kind, Outcome, RequestRecord,
    RetryRecord, RouteRecord, name,
};
use wiremock::matchers::path;
use wiremock::{Mock, ResponseTemplate};

use crate::world::{header, in_the_world, of_route, request};

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
fn a_record_with_a_forged_id_is_adopted_and_causes_no_call() {
    in_the_world(async |world| {
        let forged = request("foreign");
        let mut by_another_key = of_route(&forged).to_headers();
        Keys::new("the key of another program", None).sign(Kind::Request, &mut by_another_key, b"{}");
        let mut of_a_retry = of_route(&forged).to_headers();
        let window_started_at = forged.accepted_at;
        let retry = RetryRecord {
            request: forged.clone(),
            destination: "foreign".to_owned(),
            attempt: 1,
            counted_attempts: 0,
            window_started_at,
        };
        of_a_retry.extend(world.kafka.signed(Kind::Retry, retry.to_headers(), "{}"));
        for (number, headers) in
            [of_route(&forged).to_headers(), by_another_key, of_a_retry].into_iter().enumerate()
        {
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
fn an_unsigned_retry_becomes_a_dead_letter_and_causes_no_call() {
    in_the_world(async |world| {
        let request = request("foreign");
        let (id, window_started_at) = (request.id, request.accepted_at);
        let retry = RetryRecord {
            request,
            destination: "foreign".to_owned(),
            attempt: 1,
            counted_attempts: 0,
            window_started_at,
        };
        world.kafka.produce(&world.kafka.topics.retries, None, retry.to_headers(), "{}").await;
        let letter =
            world.kafka.heard.record(&world.kafka.topics.dead_letters, (name::CE_ID, &id.to_string())).await;
        assert_eq!(header(&letter, name::REASON), Some("malformed"));
        assert!(header(&letter, name::ERROR).unwrap().contains("throughline-signature"), "{letter:?}");
        assert_eq!(world.calls("/foreign").await.len(), 0);
    });
}

/// The contents of the report on a delivery whose record cannot be decoded.
fn malformed(report: &AttemptReport) -> (&str, &str) {
    let Outcome::Dead { reason: DeadReason::Malformed, failure } = &report.outcome else {
        panic!("has not ended malformed: {report:?}")
    };
    assert_eq!((failure.class, report.called), (ErrorClass::Record, false));
    (&report.destination, &failure.error)
}

#[test]
fn an_unusable_signed_record_is_reported_dead_and_later_records_are_delivered() {
    in_the_world(async |world| {
        Mock::given(path("/readable")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let (bad_type, far) = (request("both"), request("readable"));
        let bad_type = RequestRecord { content_type: "application/json\n".to_owned(), ..bad_type };
        let mut far_off = of_route(&far).to_headers();
        far_off.retain(|(name, _)| name != name::CE_TIME);
        far_off.extend(headers(&[(name::CE_TIME, "+262142-12-31T23:59:59Z"), ("own", "far")]));
        world.kafka.publish(&bad_type, None, "its body").await;
        world.kafka.produce_signed("readable-requests", None, (Kind::Request, far_off.clone()), "{}").await;
        assert_eq!(world.attempt("readable", "{}").await.outcome, Outcome::Delivered);

        let reports = world.kafka.heard.reports(bad_type.id, 2).await;
        let mut ends: Vec<_> = reports.iter().map(malformed).collect();
        ends.sort_unstable();
        let error = "header content-type: is not a valid HTTP header value";
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
            (name::COUNTED_ATTEMPTS, "2"),
            (name::WINDOW_STARTED_AT, "+262142-12-31T23:59:59Z"),
        ]));
        world.kafka.produce_signed(&world.kafka.topics.retries, None, (Kind::Retry, far_off), "{}").await;
        let report = world.kafka.heard.reports(far.id, 2).await.remove(1);
        assert_eq!((malformed(&report).0, report.attempt, report.counted_attempts), ("readable", 3, 2));
    });
}

#[test]
fn a_signed_record_without_a_valid_id_becomes_a_dead_letter() {
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

/// A request on its way to named destinations.
fn to(route: &str, destinations: &[&str]) -> RouteRecord {
    let destinations = destinations.iter().map(|name| (*name).to_owned()).collect();
    RouteRecord { request: request(route), destinations }
}

#[test]
fn a_record_of_an_unknown_route_is_delivered_to_the_destinations_that_it_names() {
    in_the_world(async |world| {
        Mock::given(path("/readable")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let record = to("abolished", &["readable"]);
        let signed = (Kind::Request, record.to_headers());
        world.kafka.produce_signed("readable-requests", None, signed, "{}").await;
        let report = world.kafka.heard.report(record.request.id).await;
        assert_eq!((report.outcome, report.destination.as_str()), (Outcome::Delivered, "readable"));
    });
}

/// Ingest and dispatch get a new configuration one after the other.
#[test]
fn a_record_calls_the_destinations_that_it_names_and_no_other_of_its_route() {
    in_the_world(async |world| {
        Mock::given(path("/left")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let record = to("both", &["left", "added"]);
        let signed = (Kind::Request, record.to_headers());
        world.kafka.produce_signed("both-requests", None, signed, "{}").await;
        let mut reports = world.kafka.heard.reports(record.request.id, 2).await;
        reports.sort_by(|one, other| one.destination.cmp(&other.destination));
        let outcomes: Vec<_> =
            reports.iter().map(|report| (report.destination.as_str(), report.outcome.as_str())).collect();
        assert_eq!(outcomes, [("added", "deferred"), ("left", "delivered")]);
        // Other tests call it too.
        let id = record.request.id.to_string();
        let calls = world.calls("/right").await;
        assert!(!calls.iter().any(|call| call.headers["idempotency-key"] == *id), "{calls:?}");
    });
}

#[test]
fn an_old_delivery_to_an_unknown_destination_is_reported_dead_and_kept_as_a_dead_letter() {
    in_the_world(async |world| {
        let request = request("readable");
        let window_started_at = request.accepted_at - TimeDelta::hours(1);
        let retry = RetryRecord {
            request,
            destination: "abolished".to_owned(),
            attempt: 1,
            counted_attempts: 0,
            window_started_at,
        };
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
        let window_started_at = request.accepted_at;
        let retry = RetryRecord {
            request,
            destination: "added".to_owned(),
            attempt: 1,
            counted_attempts: 0,
            window_started_at,
        };
        world.kafka.retry(&retry).await;
        let report = world.kafka.heard.report(retry.request.id).await;
        let Outcome::Deferred { due_at, cause } = report.outcome else { panic!("is not deferred") };
        assert_eq!((cause, report.destination.as_str()), (DeferralCause::UnknownDestination, "added"));
        assert!(due_at >= report.started_at + TimeDelta::seconds(30), "{due_at}");
        assert_eq!((report.attempt, report.counted_attempts), (1, 0));
    });
}

/// A record on the retries topic for the first attempt of a request.
fn again(request: &RequestRecord, window_started_at: DateTime<Utc>) -> RetryRecord {
    let destination = request.route.clone();
    RetryRecord { request: request.clone(), destination, attempt: 1, counted_attempts: 0, window_started_at }
}

#[test]
fn a_second_record_of_an_attempt_repeats_the_outcome_and_causes_no_call() {
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
fn a_replay_of_a_recent_delivery_causes_a_call() {
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
