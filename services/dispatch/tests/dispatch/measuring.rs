//! Metrics of deliveries.

use throughline_testkit::Number;
use wiremock::matchers::path;
use wiremock::{Mock, ResponseTemplate};

use crate::world::{World, in_the_world};

const DESTINATION: &str = "throughline.destination";

async fn answer(world: &World, at: &str, status: u16) {
    Mock::given(path(at)).respond_with(ResponseTemplate::new(status)).mount(&world.third).await;
}

fn value(world: &World, name: &str, attributes: &[(&str, &str)]) -> Number {
    world.kafka.measured.value(name, attributes).unwrap()
}

#[test]
fn a_delivery_is_counted_and_timed() {
    in_the_world(async |world| {
        answer(world, "/measured", 200).await;
        for _ in 0..3 {
            world.attempt("measured", "{}").await;
        }
        let at = (DESTINATION, "measured");
        assert_eq!(value(world, "throughline.attempts", &[at, ("throughline.outcome", "delivered")]), 3);
        let measured = &world.kafka.measured;
        let delivered = [at, ("throughline.route", "measured")];
        assert_eq!(measured.count("throughline.delivery.latency", &delivered).unwrap(), 3);
        let call = [at, ("http.request.method", "POST"), ("http.response.status_code", "200")];
        assert_eq!(measured.count("http.client.request.duration", &call).unwrap(), 3);
        assert_eq!(value(world, "throughline.inflight", &[at]), 0);
        assert_eq!(value(world, "throughline.breaker.state", &[at]), 0);
        assert_eq!(value(world, "throughline.limit.concurrency", &[at]), 16);
        assert_eq!(value(world, "throughline.token.refused", &[at]), 0);
    });
}

#[test]
fn tokens_are_counted_by_their_source() {
    in_the_world(async |world| {
        answer(world, "/counting-tokens", 200).await;
        let token = r#"{"access_token": "t", "expires_in": 3600}"#;
        let token = ResponseTemplate::new(200).set_body_raw(token, "application/json");
        Mock::given(path("/token/counting-tokens")).respond_with(token).mount(&world.third).await;
        for _ in 0..3 {
            world.attempt("counting-tokens", "{}").await;
        }
        let count = |result| {
            let attributes = [(DESTINATION, "counting-tokens"), ("throughline.result", result)];
            value(world, "throughline.token.requests", &attributes)
        };
        assert_eq!(count("miss"), 1);
        assert_eq!(count("hit"), 2);
        let refusal =
            ResponseTemplate::new(401).set_body_raw(r#"{"error": "invalid_client"}"#, "application/json");
        Mock::given(path("/token/measured-tokenless")).respond_with(refusal).mount(&world.third).await;
        world.attempt("measured-tokenless", "{}").await;
        let at = (DESTINATION, "measured-tokenless");
        assert_eq!(value(world, "throughline.token.requests", &[at, ("throughline.result", "error")]), 1);
        let deferred = [at, ("throughline.outcome", "deferred"), ("error.type", "token_refused")];
        assert_eq!(value(world, "throughline.attempts", &deferred), 1);
        assert_eq!(value(world, "throughline.token.refused", &[at]), 1);
    });
}

#[test]
fn failures_are_counted_by_class_and_an_open_breaker_is_measured() {
    in_the_world(async |world| {
        answer(world, "/failing-measured", 503).await;
        for _ in 0..3 {
            world.attempt("failing-measured", "{}").await;
        }
        let at = (DESTINATION, "failing-measured");
        let retry = [at, ("throughline.outcome", "retry"), ("error.type", "server_error")];
        assert_eq!(value(world, "throughline.attempts", &retry), 2);
        assert_eq!(value(world, "throughline.retries.scheduled", &[at]), 2);
        let deferred = [at, ("throughline.outcome", "deferred"), ("error.type", "breaker_open")];
        assert_eq!(value(world, "throughline.attempts", &deferred), 1);
        assert_eq!(value(world, "throughline.breaker.state", &[at]), 2);
        let call = [at, ("http.response.status_code", "503"), ("error.type", "503")];
        assert_eq!(world.kafka.measured.count("http.client.request.duration", &call).unwrap(), 2);
    });
}

#[test]
fn a_record_that_cannot_be_read_is_counted_as_a_dead_letter() {
    in_the_world(async |world| {
        let headers = vec![("ce_id".to_owned(), "no id".into())];
        let signed = (throughline_messages::Kind::Request, headers);
        world.kafka.produce_signed("measured-requests", None, signed, "{}").await;
        world.kafka.heard.record(&world.kafka.topics.dead_letters, ("throughline-reason", "malformed")).await;
        assert!(
            value(world, "throughline.dead_letters", &[("throughline.reason", "malformed")]) >= Number(1.0)
        );
    });
}
