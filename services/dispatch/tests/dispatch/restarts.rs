//! Dispatch that stops, starts, and loses its broker for a while.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use throughline_kafka::Record;
use throughline_lifecycle::Shutdown;
use throughline_messages::Outcome;
use throughline_snowflake::RequestId;
use throughline_testkit::Program;
use tokio::time::timeout;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::world::{DEADLINE, Kafka, in_the_world, request};

const RECORDS: usize = 120;

async fn publish(kafka: &Kafka) {
    for _ in 0..RECORDS {
        kafka.publish(&request("work"), None, "{}").await;
    }
}

/// Waits for the reports on `at_least` requests, and returns all requests reported on.
async fn reported(kafka: &Kafka, at_least: usize) -> HashSet<RequestId> {
    kafka
        .heard
        .wait_for(|records: &[Record]| {
            let ids: HashSet<_> = kafka.heard.reports_in(records).map(|report| report.request_id).collect();
            (ids.len() >= at_least).then_some(ids)
        })
        .await
}

async fn calls(third: &MockServer) -> usize {
    third.received_requests().await.unwrap().len()
}

/// Waits for the first call.
async fn called(third: &MockServer) {
    let called = async {
        while calls(third).await == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, called).await.expect("calls are made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_under_load_reports_every_call_and_a_restart_makes_each_other_call_once() {
    let third = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_millis(100));
    Mock::given(wiremock::matchers::any()).respond_with(slow).mount(&third).await;
    let kafka = Kafka::start(&json!({"work": {"url": third.uri()}}));
    publish(&kafka).await;

    let shutdown = Shutdown::new();
    let dispatch = kafka.dispatch(shutdown.clone()).await;
    called(&third).await;
    shutdown.begin();
    timeout(DEADLINE, dispatch.join()).await.expect("ends").expect("ends well");
    let finished = calls(&third).await;
    assert!(finished < RECORDS, "the shut-down came too late to show anything");
    assert_eq!(reported(&kafka, finished).await.len(), finished);

    let _restarted = kafka.dispatch(Shutdown::new()).await;
    assert_eq!(reported(&kafka, RECORDS).await.len(), RECORDS);
    assert_eq!(calls(&third).await, RECORDS, "nothing was called twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_immediate_retry_is_made_during_shutdown() {
    let third = MockServer::start().await;
    let hangs = ResponseTemplate::new(200).set_delay(Duration::from_mins(10));
    Mock::given(wiremock::matchers::any()).respond_with(hangs).mount(&third).await;
    let kafka = Kafka::start(&json!({"work": {"url": third.uri(), "timeout": "2s"}}));
    let shutdown = Shutdown::new();
    let dispatch = kafka.dispatch(shutdown.clone()).await;
    let request = request("work");
    kafka.publish(&request, None, "{}").await;
    called(&third).await;
    shutdown.begin();
    timeout(DEADLINE, dispatch.join()).await.expect("ends").expect("ends well");
    let report = kafka.heard.report(request.id).await;
    assert!(matches!(report.outcome, Outcome::Retry { due_at: Some(_), .. }), "{report:?}");
    assert_eq!((report.attempt, report.counted_attempts, calls(&third).await), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_call_in_progress_is_repeated_after_a_forced_stop() {
    let third = MockServer::start().await;
    let is_first = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&is_first);
    let answer = move |_: &Request| {
        let pause =
            if hangs.swap(false, Ordering::SeqCst) { Duration::from_mins(10) } else { Duration::ZERO };
        ResponseTemplate::new(200).set_delay(pause)
    };
    Mock::given(wiremock::matchers::any()).respond_with(answer).mount(&third).await;
    let kafka = Kafka::start(&json!({"work": {"url": third.uri(), "timeout": "10m"}}));
    publish(&kafka).await;

    let shutdown = Shutdown::new();
    let dispatch = kafka.dispatch(shutdown.clone()).await;
    assert_eq!(reported(&kafka, RECORDS - 1).await.len(), RECORDS - 1);
    shutdown.begin();
    shutdown.force();
    timeout(DEADLINE, dispatch.join()).await.expect("ends though a call hangs").ok();

    let _restarted = kafka.dispatch(Shutdown::new()).await;
    assert_eq!(reported(&kafka, RECORDS).await.len(), RECORDS);
    assert_eq!(calls(&third).await, RECORDS + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_immediate_retry_is_made_when_the_partition_moves_to_another_dispatch() {
    let third = MockServer::start().await;
    // As long as the embedded broker takes to let another member join the group.
    let fails = ResponseTemplate::new(500).set_delay(Duration::from_secs(4));
    Mock::given(wiremock::matchers::any()).respond_with(fails).mount(&third).await;
    let retry = json!({"immediate_retries": 5});
    let kafka = Kafka::start(&json!({"work": {"url": third.uri(), "timeout": "1m", "retry": retry}}));
    // Some for each partition.
    for _ in 0..16 {
        kafka.publish(&request("work"), None, "{}").await;
    }
    let _first = kafka.dispatch(Shutdown::new()).await;
    called(&third).await;
    let _second = kafka.dispatch(Shutdown::new()).await;
    let left = kafka.heard.wait_for(|records: &[Record]| {
        let mut reports = kafka.heard.reports_in(records);
        reports.find(|report| matches!(report.outcome, Outcome::Retry { due_at: Some(_), .. }))
    });
    let left = left.await;
    assert!(left.attempt <= 5, "it was tried as often as may be: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_in_progress_at_a_forced_stop_are_processed_after_a_restart() {
    let third = MockServer::start().await;
    let is_hanging = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&is_hanging);
    let answer = move |_: &Request| {
        let pause = if hangs.load(Ordering::SeqCst) { Duration::from_mins(10) } else { Duration::ZERO };
        ResponseTemplate::new(200).set_delay(pause)
    };
    Mock::given(wiremock::matchers::any()).respond_with(answer).mount(&third).await;
    let kafka = Kafka::start(&json!({"work": {"url": third.uri(), "timeout": "10m"}}));
    publish(&kafka).await;

    let shutdown = Shutdown::new();
    let dispatch = kafka.dispatch(shutdown.clone()).await;
    called(&third).await;
    shutdown.begin();
    shutdown.force();
    timeout(DEADLINE, dispatch.join()).await.expect("ends though calls hang").ok();

    is_hanging.store(false, Ordering::SeqCst);
    let _restarted = kafka.dispatch(Shutdown::new()).await;
    assert_eq!(reported(&kafka, RECORDS).await.len(), RECORDS);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_waits_for_an_unreachable_broker_and_dispatch_is_not_ready_meanwhile() {
    let third = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_millis(300));
    Mock::given(wiremock::matchers::any()).respond_with(slow).mount(&third).await;
    let kafka = Kafka::start(&json!({"work": {"url": third.uri()}}));
    let dispatch = kafka.dispatch(Shutdown::new()).await;
    let ready = format!("http://{}/readyz", dispatch.address());
    becomes(&ready, StatusCode::OK).await;
    assert!(is_healthy(dispatch.address()).await);

    let request = request("work");
    kafka.publish(&request, None, "{}").await;
    called(&third).await;
    kafka.broker().down().unwrap();
    becomes(&ready, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(!is_healthy(dispatch.address()).await);
    kafka.broker().up().unwrap();
    assert_eq!(kafka.heard.report(request.id).await.outcome.as_str(), "delivered");
}

/// The result of a container's health check.
async fn is_healthy(address: SocketAddr) -> bool {
    let dispatch = Path::new(env!("CARGO_BIN_EXE_throughline-dispatch"));
    let variable = "THROUGHLINE_DISPATCH__ADDRESS";
    let ended = Program::healthcheck(dispatch, variable, address.to_string()).await.unwrap();
    assert!(ended.status.success() || ended.output.text().contains("not ready: "), "{:?}", ended.output);
    ended.status.success()
}

async fn becomes(url: &str, status: StatusCode) {
    let client = reqwest::Client::new();
    let becomes = async {
        while client.get(url).send().await.unwrap().status() != status {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, becomes).await.unwrap_or_else(|_| panic!("{url} never answers {status}"));
}

#[test]
fn a_running_dispatch_is_alive_and_ready() {
    in_the_world(async |world| {
        let address = world.dispatch.address();
        becomes(&format!("http://{address}/healthz"), StatusCode::OK).await;
        becomes(&format!("http://{address}/readyz"), StatusCode::OK).await;
    });
}
