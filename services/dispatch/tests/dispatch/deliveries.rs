//! The requests that a third party receives.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use throughline_messages::{AttemptReport, Outcome, RetryRecord, TraceContext};
use wiremock::matchers::path;
use wiremock::{Mock, Request, ResponseTemplate};

use crate::world::{World, in_the_world, request};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN_ID: &str = "b7ad6b7169203331";

fn trace() -> TraceContext {
    TraceContext {
        traceparent: format!("00-{TRACE_ID}-{SPAN_ID}-01"),
        tracestate: Some("vendor=1".to_owned()),
    }
}

/// Has a path of the third party answer 200.
async fn accept(world: &World, at: &str) {
    Mock::given(path(at)).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
}

/// Has the token endpoint of a client give out `<client>-1`, `<client>-2` and so on.
async fn give_tokens(world: &World, client: &'static str) {
    let given = std::sync::atomic::AtomicU32::new(0);
    let answer = move |_: &Request| {
        let number = given.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let token = format!("{client}-{number}");
        ResponseTemplate::new(200)
            .set_body_json(json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600}))
    };
    Mock::given(path(format!("/token/{client}"))).respond_with(answer).mount(&world.third).await;
}

fn header<'a>(call: &'a Request, name: &str) -> Option<&'a str> {
    call.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn a_request_arrives_transformed_with_a_token_and_configured_headers() {
    in_the_world(async |world| {
        give_tokens(world, "transformed").await;
        accept(world, "/transformed").await;
        let report = world.attempt("transformed", r#"{"user_id":"u-1"}"#).await;
        assert_eq!((report.outcome, report.status), (Outcome::Delivered, Some(200)));
        assert_eq!((report.attempt, report.counted_attempts), (1, 1));

        let [call] = &world.calls("/transformed").await[..] else { panic!("one call") };
        let id = report.request_id.to_string();
        assert_eq!(call.method.as_str(), "POST");
        assert_eq!(header(call, "authorization"), Some("Bearer transformed-1"));
        assert_eq!(header(call, "idempotency-key"), Some(id.as_str()));
        assert_eq!(header(call, "language"), Some("en"));
        assert_eq!(header(call, "content-type"), Some("application/json"));
        let mut body: Value = serde_json::from_slice(&call.body).unwrap();
        let accepted_at = body["accepted_at"].take();
        assert!(accepted_at.as_str().unwrap().ends_with('Z'), "{accepted_at}");
        assert_eq!(
            body,
            json!({
                "id": id, "route": "transformed", "attempt": 1, "accepted_at": null,
                "one_request": {"user_id": "u-1"},
            })
        );
    });
}

#[test]
fn a_body_without_a_filter_arrives_byte_for_byte() {
    in_the_world(async |world| {
        accept(world, "/plain").await;
        let body = "\u{feff}{ \"b\":1.0,\"a\" : 1e400,\r\n\t\"a\":\"\\u00e9\\/\", \"n\":123456789012345678901234567890 }\n\n";
        let request = throughline_messages::RequestRecord {
            content_type: "application/vnd.api+json; charset=utf-8".to_owned(),
            ..request("plain")
        };
        let origin = world.kafka.publish(&request, None, body).await;
        let report = world.kafka.heard.report(request.id).await;
        assert_eq!((report.outcome, report.origin), (Outcome::Delivered, Some(origin)));

        let [call] = &world.calls("/plain").await[..] else { panic!("one call") };
        assert_eq!(call.body, body.as_bytes());
        assert_eq!(header(call, "content-type"), Some("application/vnd.api+json; charset=utf-8"));
        assert_eq!(header(call, "authorization"), None);
    });
}

#[test]
fn a_configured_content_type_wins() {
    in_the_world(async |world| {
        accept(world, "/configured").await;
        world.attempt("configured", "{}").await;
        let [call] = &world.calls("/configured").await[..] else { panic!("one call") };
        assert_eq!(header(call, "content-type"), Some("text/x-own"));
        assert_eq!(call.headers.get_all("content-type").iter().count(), 1);
    });
}

#[test]
fn the_trace_of_a_request_continues_at_the_third_party() {
    in_the_world(async |world| {
        accept(world, "/traced").await;
        let request = throughline_messages::RequestRecord { trace: Some(trace()), ..request("traced") };
        world.kafka.publish(&request, None, "{}").await;
        let report = world.kafka.heard.report(request.id).await;
        assert_eq!(report.trace_id.as_deref(), Some(TRACE_ID));

        let [call] = &world.calls("/traced").await[..] else { panic!("one call") };
        let traceparent = header(call, "traceparent").unwrap();
        assert!(traceparent.starts_with(&format!("00-{TRACE_ID}-")), "{traceparent}");
        assert!(!traceparent.contains(SPAN_ID), "the third party's parent is dispatch: {traceparent}");
        assert_eq!(header(call, "tracestate"), Some("vendor=1"));
    });
}

#[test]
fn a_later_attempt_starts_a_new_trace_and_keeps_the_idempotency_key() {
    in_the_world(async |world| {
        accept(world, "/late").await;
        let request = throughline_messages::RequestRecord { trace: Some(trace()), ..request("late") };
        let retry = RetryRecord {
            window_started_at: request.accepted_at,
            request,
            destination: "late".to_owned(),
            attempt: 2,
            counted_attempts: 1,
        };
        let id = retry.request.id.to_string();
        let key = Bytes::from(id.clone());
        let signed = (throughline_messages::Kind::Retry, retry.to_headers());
        world.kafka.produce_signed(&world.kafka.topics.retries, Some(key), signed, "{}").await;
        let report = world.kafka.heard.report(retry.request.id).await;
        assert_eq!((report.attempt, report.counted_attempts, report.outcome), (2, 2, Outcome::Delivered));
        let trace_id = report.trace_id.unwrap();
        assert_ne!(trace_id, TRACE_ID);

        let [call] = &world.calls("/late").await[..] else { panic!("one call") };
        assert_eq!(header(call, "idempotency-key"), Some(id.as_str()));
        assert!(header(call, "traceparent").unwrap().contains(&trace_id));
    });
}

#[test]
fn a_refused_token_is_replaced_once_within_the_attempt() {
    in_the_world(async |world| {
        give_tokens(world, "revoking").await;
        let answer = |call: &Request| {
            let is_stale = call.headers["authorization"] == "Bearer revoking-1";
            ResponseTemplate::new(if is_stale { 401 } else { 200 })
        };
        Mock::given(path("/revoking")).respond_with(answer).mount(&world.third).await;
        let report = world.attempt("revoking", "{}").await;
        assert_eq!((report.outcome, report.attempt), (Outcome::Delivered, 1));
        assert_eq!(world.calls("/revoking").await.len(), 2);
        assert_eq!(world.calls("/token/revoking").await.len(), 2);
    });
}

#[test]
fn a_second_refused_token_ends_the_delivery() {
    in_the_world(async |world| {
        give_tokens(world, "forbidding").await;
        let unauthorized = ResponseTemplate::new(401).set_body_string("who are you?");
        Mock::given(path("/forbidding")).respond_with(unauthorized).mount(&world.third).await;
        let report = world.attempt("forbidding", "{}").await;
        assert_eq!((report.outcome.as_str(), report.status), ("dead", Some(401)));
        assert_eq!(report.response_excerpt.as_deref(), Some("who are you?"));
        assert_eq!(world.calls("/forbidding").await.len(), 2);
    });
}

#[test]
fn two_hundred_requests_need_one_token() {
    in_the_world(async |world| {
        give_tokens(world, "many").await;
        accept(world, "/many").await;
        let mut ids = Vec::new();
        for _ in 0..200 {
            ids.push(world.publish("many", "{}").await);
        }
        for id in ids {
            assert_eq!(world.kafka.heard.report(id).await.outcome, Outcome::Delivered);
        }
        assert_eq!(world.calls("/many").await.len(), 200);
        assert_eq!(world.calls("/token/many").await.len(), 1);
    });
}

#[test]
fn one_key_is_delivered_in_order_one_call_at_a_time_concurrently_with_other_keys() {
    in_the_world(async |world| {
        let slow = ResponseTemplate::new(200).set_delay(Duration::from_millis(60));
        Mock::given(path("/ordered")).respond_with(slow).mount(&world.third).await;
        let mut keys: HashMap<&str, Vec<_>> = HashMap::new();
        for _ in 0..5 {
            for key in ["a", "b", "c"] {
                let request = request("ordered");
                keys.entry(key).or_default().push(request.id);
                world.kafka.publish(&request, Some(key), "{}").await;
            }
        }
        let mut by_key = Vec::new();
        for ids in keys.into_values() {
            let mut reports = Vec::new();
            for id in ids {
                reports.push(world.kafka.heard.report(id).await);
            }
            let in_order = reports.windows(2).all(|pair| ended_at(&pair[0]) <= pair[1].started_at);
            assert!(in_order, "{reports:#?}");
            by_key.push(reports);
        }
        let overlaps =
            |a: &AttemptReport, b: &AttemptReport| a.started_at < ended_at(b) && b.started_at < ended_at(a);
        let beside = by_key[0].iter().any(|a| by_key[1].iter().chain(&by_key[2]).any(|b| overlaps(a, b)));
        assert!(beside, "no two keys were ever in work at once");
    });
}

fn ended_at(report: &AttemptReport) -> chrono::DateTime<chrono::Utc> {
    report.started_at + Duration::from_millis(report.duration_ms)
}

#[test]
fn each_destination_of_a_route_is_called_and_reported_separately() {
    in_the_world(async |world| {
        accept(world, "/left").await;
        Mock::given(path("/right")).respond_with(ResponseTemplate::new(500)).mount(&world.third).await;
        let id = world.publish("both", "{}").await;
        let mut reports = world.kafka.heard.reports(id, 2).await;
        reports.sort_by(|a, b| a.destination.cmp(&b.destination));
        let ends: Vec<_> = reports.iter().map(|r| (r.destination.as_str(), r.outcome.as_str())).collect();
        assert_eq!(ends, [("left", "delivered"), ("right", "retry")]);
    });
}
