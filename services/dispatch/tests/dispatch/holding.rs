//! Deferred deliveries: dispatch makes no call and counts no attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use throughline_dispatch::Dispatch;
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, DeferralCause, Outcome};
use wiremock::matchers::{any, path, path_regex};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::third_party::CROWD;
use crate::world::{Kafka, World, in_the_world, request};

/// Lets a path of the third party fail until the returned flag is set.
async fn ail(world: &World, at: &str) -> Arc<AtomicBool> {
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let answer =
        move |_: &Request| ResponseTemplate::new(if well.load(Ordering::SeqCst) { 200 } else { 503 });
    Mock::given(path(at)).respond_with(answer).mount(&world.third).await;
    is_well
}

/// Returns until when a delivery is deferred, and for which cause.
fn deferred(report: &AttemptReport) -> (DateTime<Utc>, DeferralCause) {
    match report.outcome {
        Outcome::Deferred { due_at, cause } => (due_at, cause),
        ref other => panic!("is not deferred: {other:?}"),
    }
}

#[test]
fn an_open_breaker_defers_deliveries_and_a_successful_probe_closes_it() {
    in_the_world(async |world| {
        let is_well = ail(world, "/ailing").await;
        for _ in 0..2 {
            assert_eq!(world.attempt("ailing", "{}").await.outcome.as_str(), "retry");
        }
        let report = world.attempt("ailing", "{}").await;
        let (due_at, cause) = deferred(&report);
        assert_eq!(cause, DeferralCause::BreakerOpen);
        assert!(due_at > report.started_at && due_at < report.started_at + TimeDelta::seconds(5), "{due_at}");
        assert_eq!((report.attempt, report.counted_attempts, report.status), (1, 0, None));
        assert_eq!(world.calls("/ailing").await.len(), 2);

        is_well.store(true, Ordering::SeqCst);
        let reports = world.kafka.see_through(request("ailing")).await;
        let (last, waited) = reports.split_last().unwrap();
        assert!(waited.iter().all(|report| deferred(report).1 == DeferralCause::BreakerOpen), "{waited:?}");
        assert_eq!((last.outcome.as_str(), last.attempt, last.counted_attempts), ("delivered", 1, 1));
        assert_eq!(world.attempt("ailing", "{}").await.outcome, Outcome::Delivered);
        assert_eq!(world.calls("/ailing").await.len(), 4);
    });
}

#[test]
fn a_third_party_that_is_down_is_probed_and_not_hammered() {
    in_the_world(async |world| {
        let is_well = ail(world, "/reopening").await;
        let mut ids = Vec::new();
        for _ in 0..100 {
            ids.push(world.publish("reopening", "{}").await);
        }
        let mut deferrals = 0;
        for id in ids {
            let report = world.kafka.heard.report(id).await;
            deferrals += usize::from(matches!(report.outcome, Outcome::Deferred { .. }));
        }
        let calls = world.calls("/reopening").await.len();
        assert_eq!(calls + deferrals, 100);
        // The calls in flight when the breaker opened, and a few probes.
        assert!(calls < 50, "{calls} calls");
        is_well.store(true, Ordering::SeqCst);
    });
}

#[test]
fn without_a_token_the_delivery_waits_and_the_third_party_is_not_called() {
    in_the_world(async |world| {
        let report = world.attempt("tokenless", "{}").await;
        let (due_at, cause) = deferred(&report);
        assert_eq!(cause, DeferralCause::TokenUnavailable);
        assert!(due_at > report.started_at && due_at < report.started_at + TimeDelta::minutes(2), "{due_at}");
        assert_eq!((report.attempt, report.counted_attempts), (1, 0));
        assert_eq!(world.calls("/tokenless").await.len(), 0);
    });
}

#[test]
fn refused_credentials_make_deliveries_wait_for_an_operator() {
    in_the_world(async |world| {
        let refusal = ResponseTemplate::new(401).set_body_json(json!({"error": "invalid_client"}));
        Mock::given(path("/token/unauthorised")).respond_with(refusal).mount(&world.third).await;
        for _ in 0..20 {
            let report = world.attempt("unauthorised", "{}").await;
            let (due_at, cause) = deferred(&report);
            assert_eq!(cause, DeferralCause::TokenRefused);
            assert!(due_at >= report.started_at + TimeDelta::minutes(5), "{due_at}");
            assert_eq!((report.attempt, report.counted_attempts), (1, 0));
        }
        assert_eq!(world.calls("/unauthorised").await.len(), 0);
        assert!(world.calls("/token/unauthorised").await.len() < 10);
    });
}

#[test]
fn a_token_endpoint_that_was_down_costs_no_attempt() {
    in_the_world(async |world| {
        let asked = AtomicU32::new(0);
        let answer = move |_: &Request| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => ResponseTemplate::new(503),
            _ => ResponseTemplate::new(200).set_body_json(json!({"access_token": "t", "expires_in": 3600})),
        };
        Mock::given(path("/token/patient")).respond_with(answer).mount(&world.third).await;
        Mock::given(path("/patient")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let reports = world.kafka.see_through(request("patient")).await;
        assert_eq!(deferred(&reports[0]).1, DeferralCause::TokenUnavailable);
        let last = reports.last().unwrap();
        assert_eq!((last.outcome.as_str(), last.attempt, last.counted_attempts), ("delivered", 1, 1));
        assert_eq!(world.calls("/patient").await.len(), 1);
    });
}

#[test]
fn a_third_party_never_has_more_concurrent_calls_than_its_limit() {
    in_the_world(async |world| {
        let mut ids = Vec::new();
        for _ in 0..30 {
            ids.push(world.publish("narrow", "{}").await);
        }
        for id in ids {
            assert_eq!(world.kafka.heard.report(id).await.outcome, Outcome::Delivered);
        }
        assert_eq!(CROWD.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_third_party_never_has_more_calls_per_time_than_its_rate() {
    in_the_world(async |world| {
        Mock::given(path("/paced")).respond_with(ResponseTemplate::new(200)).mount(&world.third).await;
        let mut ids = Vec::new();
        for _ in 0..12 {
            ids.push(world.publish("paced", "{}").await);
        }
        let mut began = Vec::new();
        for id in ids {
            let report = world.kafka.heard.report(id).await;
            assert_eq!(report.outcome, Outcome::Delivered);
            began.push(report.started_at);
        }
        began.sort_unstable();
        // The limiter's time is exact, a report's a little late.
        let second = TimeDelta::milliseconds(900);
        assert!(began.iter().zip(&began[5..]).all(|(first, beyond)| *beyond - *first >= second), "{began:?}");
    });
}

#[test]
fn a_full_destination_defers_further_deliveries() {
    in_the_world(async |world| {
        let slow = ResponseTemplate::new(200).set_delay(Duration::from_secs(3));
        Mock::given(path("/full")).respond_with(slow).mount(&world.third).await;
        let first = world.publish("full", "{}").await;
        while world.calls("/full").await.is_empty() {
            tokio::task::yield_now().await;
        }
        let report = world.attempt("full", "{}").await;
        let (due_at, cause) = deferred(&report);
        assert_eq!(cause, DeferralCause::Limit);
        assert!(due_at > report.started_at && due_at < report.started_at + TimeDelta::minutes(1), "{due_at}");
        assert_eq!((report.attempt, report.counted_attempts), (1, 0));
        assert_eq!(world.kafka.heard.report(first).await.outcome, Outcome::Delivered);
        assert_eq!(world.calls("/full").await.len(), 1);
    });
}

/// A third party whose paths hang, except for `/quick` and `/right`, and a dispatch that calls them. Deliveries to
/// `awaited` have a max wait of ten minutes.
struct Hanging {
    third: MockServer,
    kafka: Kafka,
    shutdown: Shutdown,
    _dispatch: Dispatch,
}

impl Hanging {
    /// Calls `publish` before dispatch starts. Paths and routes have the same names.
    async fn start(names: &[&str], publish: impl AsyncFnOnce(&Kafka)) -> Self {
        let third = MockServer::start().await;
        let hangs = ResponseTemplate::new(200).set_delay(Duration::from_mins(10));
        let quick = Mock::given(path_regex("^/(quick|right)$")).respond_with(ResponseTemplate::new(200));
        quick.mount(&third).await;
        Mock::given(any()).respond_with(hangs).mount(&third).await;
        let destination = |name: &str| {
            let mut settings = json!({"url": format!("{}/{name}", third.uri()), "timeout": "10m"});
            if name == "awaited" {
                settings["limits"] = json!({"max_wait": "10m"});
            }
            (name.to_owned(), settings)
        };
        let destinations: serde_json::Map<_, _> =
            names.iter().chain(&["quick"]).copied().map(destination).collect();
        let kafka = Kafka::start(&destinations.into());
        publish(&kafka).await;
        let shutdown = Shutdown::new();
        let dispatch = kafka.dispatch(shutdown.clone()).await;
        while third.received_requests().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        Self { third, kafka, shutdown, _dispatch: dispatch }
    }

    /// Publishes requests to `/quick` one after another, and waits for the delivery of each.
    async fn all_is_well_elsewhere(&self) {
        for _ in 0..20 {
            let request = request("quick");
            self.kafka.publish(&request, Some("a key"), "{}").await;
            assert_eq!(self.kafka.heard.report(request.id).await.outcome, Outcome::Delivered);
        }
    }

    async fn calls(&self, at: &str) -> usize {
        self.third.received_requests().await.unwrap().iter().filter(|call| call.url.path() == at).count()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.shutdown.force();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_hangs_slows_no_other() {
    // Many more than dispatch has in work at once.
    let publish = async |kafka: &Kafka| {
        for _ in 0..600 {
            kafka.publish(&request("hanging"), None, "{}").await;
        }
    };
    let world = Hanging::start(&["hanging"], publish).await;
    world.all_is_well_elsewhere().await;
    assert!(world.calls("/hanging").await <= 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_destinations_that_hang_slow_no_other() {
    let names = ["hanging", "stuck", "frozen", "silent"];
    let publish = async |kafka: &Kafka| {
        for _ in 0..200 {
            for name in names {
                kafka.publish(&request(name), None, "{}").await;
            }
        }
    };
    let world = Hanging::start(&names, publish).await;
    world.all_is_well_elsewhere().await;
    // The deliveries in work are calls, and each destination leaves as much of the budget as it takes.
    let calls = world.third.received_requests().await.unwrap();
    assert!(calls.iter().filter(|call| call.url.path() != "/quick").count() < 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_that_wait_for_a_destination_slow_no_other() {
    let publish = async |kafka: &Kafka| {
        for _ in 0..600 {
            kafka.publish(&request("awaited"), None, "{}").await;
        }
    };
    let world = Hanging::start(&["awaited"], publish).await;
    world.all_is_well_elsewhere().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_many_requests_for_a_destination_that_hangs_slows_no_other() {
    let publish = async |kafka: &Kafka| {
        for _ in 0..600 {
            kafka.publish(&request("hanging"), Some("a key"), "{}").await;
        }
    };
    let world = Hanging::start(&["hanging"], publish).await;
    world.all_is_well_elsewhere().await;
    assert_eq!(world.calls("/hanging").await, 1);
    let heard = &world.kafka.heard;
    let of_it = |records: &[_]| heard.reports_in(records).find(|report| report.destination == "hanging");
    assert_eq!(deferred(&heard.wait_for(of_it).await).1, DeferralCause::KeyBusy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_waits_only_at_the_destination_that_hangs() {
    let publish = async |kafka: &Kafka| {
        for _ in 0..2 {
            kafka.publish(&request("both"), Some("a key"), "{}").await;
        }
    };
    let world = Hanging::start(&["left", "right"], publish).await;
    let heard = &world.kafka.heard;
    let delivered =
        |records: &[_]| heard.reports_in(records).map(|report| report.destination).collect::<Vec<_>>();
    let both = heard.wait_for(|records| Some(delivered(records)).filter(|reports| reports.len() == 2)).await;
    assert_eq!(both, ["right", "right"]);
    assert_eq!(world.calls("/left").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_for_a_destination_that_hangs_slow_no_other() {
    // As many of these as the destination may have calls fill the budget for bytes.
    let large: &'static str = "x".repeat(4 << 20).leak();
    let world = Hanging::start(&["hanging"], async |kafka| {
        kafka.publish(&request("hanging"), None, "{}").await;
    })
    .await;
    for _ in 0..24 {
        world.kafka.publish(&request("hanging"), None, large).await;
    }
    let heard = &world.kafka.heard;
    let of_it = |records: &[_]| heard.reports_in(records).find(|report| report.destination == "hanging");
    assert_eq!(deferred(&heard.wait_for(of_it).await).1, DeferralCause::Limit);
    world.all_is_well_elsewhere().await;
}
