use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::world::{Running, TOPIC, World, id_of, ids, says};

const CLIENTS: &str = "
clients:
  shop: {key: the-key-of-the-shop, routes: [one]}
  other: {key: the-key-of-another-shop, routes: [two]}
  operator: {key: the-key-of-the-operator, routes: [], manage: true}
routes:
  two: {path: /two, topic: two-requests, destinations: [three]}
";

struct Answer {
    status: StatusCode,
    authenticate: Option<String>,
    problem: Option<String>,
}

async fn ask(world: &World, ingest: &Running, method: &Method, path: &str, key: Option<&str>) -> Answer {
    let url = format!("{}{path}", ingest.base);
    let mut request = world.http.request(method.clone(), url).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request.body("{}").send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let authenticate = headers.get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
    let body: Option<Value> = response.json().await.ok();
    let problem = body.and_then(|body| Some(body["type"].as_str()?.rsplit('/').next()?.to_owned()));
    Answer { status, authenticate, problem }
}

#[tokio::test]
async fn routes_and_management_require_the_key_of_a_client() {
    let world = World::new(CLIENTS);
    let ingest = world.start().await;
    let guarded = [
        (Method::POST, "/one"),
        (Method::PUT, "/one"),
        (Method::POST, "/two"),
        (Method::GET, "/v1/requests/00000000000000000042"),
        (Method::GET, "/v1/requests/42"),
        (Method::GET, "/v1/nothing"),
        (Method::GET, "/v1"),
    ];
    for (method, path) in &guarded {
        for key in [None, Some("the-key-of-another-ingest"), Some("the-key-of-the-sho")] {
            let answer = ask(&world, &ingest, method, path, key).await;
            assert_eq!(answer.status, 401, "{method} {path} {key:?}");
            assert_eq!(answer.authenticate.as_deref(), Some("Bearer"));
            assert_eq!(answer.problem.as_deref(), Some("unauthorized"));
        }
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/docs"] {
        assert_eq!(ask(&world, &ingest, &Method::GET, path, None).await.status, 200, "{path}");
    }
    assert_eq!(ask(&world, &ingest, &Method::POST, "/nowhere", None).await.status, 404);
    ingest.stop().await;
}

#[tokio::test]
async fn a_client_may_use_only_the_paths_that_the_configuration_permits() {
    let world = World::new(CLIENTS);
    let ingest = world.start().await;
    let unknown = "/v1/requests/00000000000000000042";
    for (key, method, path, status, problem) in [
        ("the-key-of-the-shop", Method::POST, "/one", 201, None),
        ("the-key-of-the-shop", Method::PUT, "/one", 405, Some("method-not-allowed")),
        ("the-key-of-the-shop", Method::POST, "/two", 403, Some("forbidden")),
        ("the-key-of-the-shop", Method::GET, unknown, 403, Some("forbidden")),
        ("the-key-of-another-shop", Method::POST, "/two", 201, None),
        ("the-key-of-another-shop", Method::POST, "/one", 403, Some("forbidden")),
        ("the-key-of-the-operator", Method::GET, unknown, 404, Some("request-unknown")),
        ("the-key-of-the-operator", Method::GET, "/v1/nothing", 404, Some("not-found")),
        ("the-key-of-the-operator", Method::POST, "/one", 403, Some("forbidden")),
    ] {
        let answer = ask(&world, &ingest, &method, path, Some(key)).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem.as_deref()),
            (status, problem),
            "{key} {method} {path}"
        );
        assert_eq!(answer.authenticate, None);
    }
    ingest.stop().await;
}

#[tokio::test]
async fn a_client_without_permission_is_refused_before_its_body_is_read() {
    let world = World::new(CLIENTS);
    let ingest = world.start().await;
    let head = "POST /one HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n";
    for (authorization, status) in [("", "401"), ("authorization: Bearer the-key-of-another-shop\r\n", "403")]
    {
        // The body never arrives.
        let answer = says(&ingest, &format!("{head}{authorization}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    ingest.stop().await;
}

#[tokio::test]
async fn a_route_accepts_requests_up_to_its_rate() {
    let world = World::new(
        "routes: {one: {rate: 2/h}, two: {path: /two, topic: two-requests, destinations: [three]}}",
    );
    let ingest = world.start().await;
    for _ in 0..2 {
        world.accepted(&ingest, "{}").await;
    }
    let refused = world.post(&ingest, "{}").await;
    assert_eq!(refused.status(), 429);
    let retry_after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1790..=1800).contains(&retry_after), "{retry_after}");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "https://throughline.dev/problems/rate-exceeded");
    // The body never arrives.
    let head =
        "POST /one HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
    let answer = says(&ingest, head).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    // Other routes have rates of their own, or none.
    for _ in 0..3 {
        assert_eq!(ask(&world, &ingest, &Method::POST, "/two", None).await.status, 201);
    }
    ingest.stop().await;
}

/// Posts to `/one` as a client, under an idempotency key.
async fn post_as(
    world: &World,
    ingest: &Running,
    client: &str,
    key: &str,
    body: &'static str,
) -> reqwest::Response {
    let authorization = format!("Bearer the-key-of-{client}");
    world.post_with(ingest, body, &[("authorization", &authorization), ("idempotency-key", key)]).await
}

#[tokio::test]
async fn an_idempotency_key_belongs_to_the_client_that_sends_it() {
    let world = World::new("clients: {shop: {key: the-key-of-the-shop}, crm: {key: the-key-of-the-crm}}");
    let ingest = world.start().await;
    let id = async |client, body| {
        let response = post_as(&world, &ingest, client, "order-1001", body).await;
        assert_eq!(response.status(), 201, "{client}");
        id_of(response).await
    };
    let (shop, crm) = (id("the-shop", r#""same""#).await, id("the-crm", r#""same""#).await);
    assert_ne!(shop, crm, "a request of its own for the same key and body");
    assert_eq!((id("the-shop", r#""same""#).await, id("the-crm", r#""same""#).await), (shop, crm));
    let other = post_as(&world, &ingest, "the-crm", "another-key", r#""other""#).await;
    assert_eq!(other.status(), 201);
    // A key conflicts only with another body of its own client.
    for (client, status) in [("the-shop", 201), ("the-crm", 422)] {
        let response = post_as(&world, &ingest, client, "another-key", r#""same""#).await;
        assert_eq!(response.status(), status, "{client}");
    }
    assert_eq!(ids(&world.records(TOPIC, 4).await).len(), 4, "each is published");
    ingest.stop().await;
}

#[tokio::test]
async fn a_client_does_not_consume_the_rate_of_another_client() {
    let world = World::new(
        "{clients: {shop: {key: the-key-of-the-shop}, crm: {key: the-key-of-the-crm}}, routes: {one: {rate: 2/h}}}",
    );
    let ingest = world.start().await;
    for client in ["the-key-of-the-shop", "the-key-of-the-crm"] {
        for status in [201, 201, 429, 429] {
            assert_eq!(
                ask(&world, &ingest, &Method::POST, "/one", Some(client)).await.status,
                status,
                "{client}"
            );
        }
    }
    ingest.stop().await;
}

#[tokio::test]
async fn unauthorized_requests_do_not_consume_the_rate_of_a_route() {
    let world = World::new(&format!("{CLIENTS}  one: {{rate: 1/h}}"));
    let ingest = world.start().await;
    for key in [None, Some("the-key-of-another-shop"), None] {
        assert!(matches!(ask(&world, &ingest, &Method::POST, "/one", key).await.status.as_u16(), 401 | 403));
    }
    let shop = Some("the-key-of-the-shop");
    assert_eq!(ask(&world, &ingest, &Method::POST, "/one", shop).await.status, 201);
    assert_eq!(ask(&world, &ingest, &Method::POST, "/one", shop).await.status, 429);
    ingest.stop().await;
}
