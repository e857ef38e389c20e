use std::path::Path;

use futures_util::future::join_all;
use serde_json::Value;
use throughline_messages::{RequestRecord, RouteRecord, TraceContext};
use throughline_testkit::Program;

use crate::world::{FILES, FILES_TOPIC, TOPIC, World, id_of, says};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_body_reaches_kafka_byte_for_byte_with_its_trace() {
    let world = World::new("");
    let ingest = world.start().await;
    let body = " {\"b\":1.0,\r\n\"b\" : 1e2,\t\"\\u0061\":\"\u{1f600}\"} ";
    let trace = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1")];
    let response = world.post_with(&ingest, body, &trace).await;
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let id = id_of(response).await;
    assert_eq!(location, format!("/v1/requests/{id}"));

    let records = world.records(TOPIC, 1).await;
    assert_eq!(records[0].payload, body.as_bytes());
    let RouteRecord { request: read, destinations } = RouteRecord::from_headers(&records[0].headers).unwrap();
    assert_eq!((read.id, read.route.as_str()), (id, "one"));
    assert_eq!(destinations, ["three"]);
    let TraceContext { traceparent, tracestate } = read.trace.unwrap();
    assert!(traceparent.contains("0af7651916cd43dd8448eb211c80319c"), "{traceparent}");
    assert_ne!(traceparent, TRACEPARENT, "the parent is ingest's own span");
    assert_eq!(tracestate.as_deref(), Some("vendor=1"));
    ingest.stop().await;
}

#[tokio::test]
async fn a_route_for_any_content_keeps_bodies_and_media_types() {
    let world = World::new(FILES);
    let ingest = world.start().await;
    let post = async |body: &'static [u8], media_type: Option<&str>| {
        let mut request = world.http.post(format!("{}/files", ingest.base)).header("idempotency-key", "k-1");
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        request.body(body).send().await.unwrap()
    };
    let id = id_of(post(b"\xff\0{", Some("image/png; q=1")).await).await;
    assert_eq!(id_of(post(b"\xff\0{", Some("image/png; q=1")).await).await, id, "repeated");
    assert_eq!(post(b"\xff\0", Some("image/png; q=1")).await.status(), 422, "another body for the same key");
    let problem: Value = post(b"\xff\0", Some("png")).await.json().await.unwrap();
    assert_eq!(problem["type"], "https://throughline.dev/problems/unsupported-media-type");
    assert!(problem["detail"].as_str().unwrap().contains("not a media type"), "{problem}");

    let elsewhere = world.http.post(format!("{}/files", ingest.base)).header("origin", "https://example.com");
    assert_eq!(elsewhere.send().await.unwrap().status(), 403, "a page of another origin");

    // Without a body, and without a media type.
    let empty = world.http.post(format!("{}/files", ingest.base)).send().await.unwrap();
    assert_eq!(empty.status(), 201);
    let expected = [("image/png; q=1", &b"\xff\0{"[..]), ("application/octet-stream", &b""[..])];
    for (record, (media_type, body)) in world.records(FILES_TOPIC, 2).await.into_iter().zip(expected) {
        let request = RequestRecord::from_headers(&record.headers).unwrap();
        assert_eq!((&record.payload[..], request.content_type.as_str()), (body, media_type));
        let url = format!("{}/v1/requests/{}/body", ingest.base, request.id);
        let stored = world.http.get(url).send().await.unwrap();
        let header = |name| stored.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), media_type);
        // A browser must not run it in the origin of the management API.
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert!(header("content-security-policy").contains("sandbox"));
        assert_eq!(stored.bytes().await.unwrap(), body);
    }
    ingest.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_request_with_one_body() {
    let world = World::new("");
    let ingest = world.start().await;
    let key = [("idempotency-key", "k-1")];
    let concurrent = (0..20).map(|_| async { id_of(world.post_with(&ingest, "{}", &key).await).await });
    let ids = join_all(concurrent).await;
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    let other = world.post_with(&ingest, "[]", &key).await;
    assert_eq!(other.status(), 422);
    let problem: Value = other.json().await.unwrap();
    assert_eq!(problem["type"], "https://throughline.dev/problems/idempotency-key-reused");
    ingest.stop().await;
}

#[tokio::test]
async fn a_body_larger_than_the_limit_is_refused_however_it_is_sent() {
    let world = World::new("http: { body_limit: 1KiB }");
    let ingest = world.start().await;
    let large = format!("\"{}\"", "x".repeat(2000));
    let announced = world.post(&ingest, large.clone()).await;
    assert_eq!(announced.status(), 413);
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(large.clone()), Ok(large)]);
    let streamed = world.post(&ingest, reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!(streamed.status(), 413);
    assert_eq!(streamed.headers()["content-type"], "application/problem+json");
    ingest.stop().await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_receives_its_refusal() {
    let world = World::new("http: { body_limit: 1KiB }");
    let ingest = world.start().await;
    let far_too_large = bytes::Bytes::from(vec![b' '; 8 << 20]);
    for _ in 0..20 {
        assert_eq!(world.post(&ingest, far_too_large.clone()).await.status(), 413);
        let elsewhere = world.http.post(format!("{}/nowhere", ingest.base)).body(far_too_large.clone());
        assert_eq!(elsewhere.send().await.unwrap().status(), 404);
    }
    ingest.stop().await;
}

#[tokio::test]
async fn an_unreadable_head_is_answered_with_a_problem() {
    let world = World::new("");
    let ingest = world.start().await;
    let large = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "x".repeat(40_000));
    let unreadable = "GET /v1/requests/%ff%fe HTTP/1.1\r\nhost: x\r\n\r\n".to_owned();
    for (request, status, problem) in
        [(large, 431, "headers-too-large"), (unreadable, 400, "path-unreadable")]
    {
        let answer = says(&ingest, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("application/problem+json") && answer.contains(problem), "{answer}");
    }
    ingest.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_answered_with_a_problem() {
    let world = World::new("http: {timeout: 100ms}");
    let ingest = world.start().await;
    let head =
        "POST /one HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let answer = says(&ingest, head).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body-timeout"), "{answer}");
    ingest.stop().await;
}

#[tokio::test]
async fn ingest_is_ready_while_the_broker_is_down_and_reports_it() {
    let world = World::new("");
    let ingest = world.start().await;
    let ready = || async { world.http.get(format!("{}/readyz", ingest.base)).send().await.unwrap() };
    let report =
        |broker| serde_json::json!({ "status": "ready", "database": "up", "clock": "up", "broker": broker });
    assert_eq!(ready().await.json::<Value>().await.unwrap(), report("up"));
    world.broker.down().unwrap();
    let down = async {
        while ready().await.json::<Value>().await.unwrap() != report("down") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::world::DEADLINE, down).await.unwrap();
    assert_eq!(ready().await.status(), 200);
    assert!(is_healthy(&ingest.health).await);
    assert_eq!(world.http.get(format!("{}/healthz", ingest.base)).send().await.unwrap().status(), 200);
    world.broker.up().unwrap();
    let health = ingest.health.clone();
    ingest.stop().await;
    assert!(!is_healthy(&health).await);
}

/// Returns the result of the health check of a container.
async fn is_healthy(health: &str) -> bool {
    let ingest = Path::new(env!("CARGO_BIN_EXE_throughline-ingest"));
    let address = health.trim_start_matches("http://").to_owned();
    let ended = Program::healthcheck(ingest, "THROUGHLINE_HTTP__HEALTH_ADDRESS", address).await.unwrap();
    assert!(ended.status.success() || ended.output.text().contains("no response from"), "{:?}", ended.output);
    ended.status.success()
}
