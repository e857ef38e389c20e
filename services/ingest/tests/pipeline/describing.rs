//! Ingest behaves as `/openapi.json` describes.
//!
//! `openapi-3.1.schema.json` is the schema of the `OpenAPI` Initiative (Apache-2.0), as the npm package
//! `@seriousme/openapi-schema-validator` has it.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use throughline_snowflake::RequestId;
use throughline_testkit::eventually;

use crate::world::{DEADLINE, Running, World, id_of};

const SETTINGS: &str = r"
clients:
  shop: {key: the-key-of-the-shop}
  operator: {key: the-key-of-the-operator, routes: [], manage: true}
routes:
  one: {rate: 3/h}
  Zwei und mehr: {path: /zwei/~2.x, topic: two-requests, destinations: [three]}
  files: {path: /files, topic: files-requests, destinations: [three], content: any}
  adopted: {topic: adopted-requests, destinations: [three]}
  orders:
    path: /orders
    topic: orders-requests
    destinations: [three]
    schema: {type: object, properties: {id: {$ref: '#/$defs/id'}}, $defs: {id: {type: string}}}
";

const CANCEL: &str = "/v1/requests/{id}/cancel";
const EXPLAIN: &str = "/v1/requests/{id}/explain";

async fn description(world: &World, ingest: &Running) -> Value {
    let response = world.http.get(format!("{}/openapi.json", ingest.base)).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    response.json().await.unwrap()
}

async fn ask(world: &World, ingest: &Running, method: &Method, path: &str) -> reqwest::Response {
    let key = if path.starts_with("/v1/") { "the-key-of-the-operator" } else { "the-key-of-the-shop" };
    let request = world.http.request(method.clone(), format!("{}{path}", ingest.base)).bearer_auth(key);
    request.header("content-type", "application/json").body("{}").send().await.unwrap()
}

/// A request that has ended dead.
async fn dead(world: &World, ingest: &Running) -> RequestId {
    let id = id_of(ask(world, ingest, &Method::POST, "/one").await).await;
    let outcome = json!({
        "request_id": id,
        "destination": "three",
        "attempt": 1,
        "counted_attempts": 1,
        "started_at": id.created_at(),
        "duration_ms": 12,
        "status": 400,
        "outcome": "dead",
        "reason": "rejected",
        "error_class": "client_error",
        "error": "400 Bad Request",
    });
    let signed = (throughline_messages::Kind::Outcome, Vec::new());
    world.produce_signed(&world.topics().outcomes, signed, outcome.to_string()).await;
    let path = format!("/v1/requests/{id}");
    eventually("the request to end", DEADLINE, async || {
        let status: Value = ask(world, ingest, &Method::GET, &path).await.json().await?;
        anyhow::ensure!(status["deliveries"][0]["state"] == "dead", "{status}");
        Ok(id)
    })
    .await
    .unwrap()
}

/// Returns a part of the description; follows its reference if it is one.
fn found<'a>(description: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(reference) => description.pointer(reference.trim_start_matches('#')).expect(reference),
        None => part,
    }
}

/// Checks that an answer is as described: its status, its media type, its body.
async fn assert_described(description: &Value, path: &str, method: &Method, answer: reqwest::Response) {
    let status = answer.status().as_u16().to_string();
    let case = format!("{method} {path}: {status}");
    let operation = &description["paths"][path][method.as_str().to_lowercase()];
    let response = found(description, &operation["responses"][&status]);
    assert!(response.is_object(), "{case}");
    for name in response["headers"].as_object().into_iter().flat_map(serde_json::Map::keys) {
        assert!(answer.headers().contains_key(name), "{case}: {name}");
    }
    let media_type = answer.headers()["content-type"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let content = response["content"].get(&media_type).or_else(|| response["content"].get("*/*"));
    let content = content.unwrap_or_else(|| panic!("{case}: {media_type}"));
    if let Some(schema) = content.get("schema") {
        // The whole description is the schema, so that references within it resolve.
        let mut whole = description.clone();
        whole["$ref"] = schema["$ref"].clone();
        let body: Value = answer.json().await.unwrap();
        if let Err(error) = jsonschema::validate(&whole, &body) {
            panic!("{case}: {error} at {}: {body}", error.instance_path());
        }
    }
}

#[tokio::test]
async fn the_openapi_description_is_valid() {
    let world = World::new(SETTINGS);
    let ingest = world.start().await;
    let description = description(&world, &ingest).await;
    let official: Value = serde_json::from_str(include_str!("openapi-3.1.schema.json")).unwrap();
    let official = jsonschema::validator_for(&official).unwrap();
    let errors: Vec<_> = official
        .iter_errors(&description)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    for (name, schema) in description["components"]["schemas"].as_object().unwrap() {
        assert!(jsonschema::meta::is_valid(schema), "{name}: {schema}");
    }
    let operations = description["paths"].as_object().unwrap().values();
    let ids: Vec<_> = operations
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    ingest.stop().await;
}

#[tokio::test]
async fn every_served_path_is_described_and_every_described_path_is_served() {
    let world = World::new(SETTINGS);
    let ingest = world.start().await;
    let description = description(&world, &ingest).await;
    let paths = description["paths"].as_object().unwrap();
    let mut names: Vec<_> =
        paths.keys().map(String::as_str).filter(|path| !path.starts_with("/v1/")).collect();
    names.sort_unstable();
    let described =
        ["/docs", "/files", "/healthz", "/one", "/openapi.json", "/orders", "/readyz", "/zwei/~2.x"];
    assert_eq!(names, described);
    let dead = dead(&world, &ingest).await.to_string();
    for (path, item) in paths {
        for method in item.as_object().unwrap().keys().rev() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let mut real_path = path.replace("replays/{id}", "replays/1");
            real_path = real_path.replace("{id}", &dead).replace("{destination}", "three");
            if method == Method::DELETE && path == "/v1/dead-letters" {
                real_path += "?before=2000-01-01T00:00:00Z";
            }
            let answer = ask(&world, &ingest, &method, &real_path).await;
            let status = answer.status();
            // A dead delivery can be replayed, but nothing is left to cancel.
            assert!(status.is_success() || (status == 409 && path == CANCEL), "{method} {path}: {status}");
            assert_described(&description, path, &method, answer).await;
        }
    }
    ingest.stop().await;
}

#[tokio::test]
async fn every_refusal_matches_its_description() {
    let world = World::new(&format!("http: {{body_limit: 100}}\n{SETTINGS}"));
    let ingest = world.start().await;
    let description = description(&world, &ingest).await;
    let shop = "Bearer the-key-of-the-shop";
    let operator = "Bearer the-key-of-the-operator";
    let json = "application/json";
    let long = "x".repeat(40_000);
    for (method, path, real_path, status, authorization, media_type, extra, body) in [
        (Method::POST, "/one", "/one", 401, "", json, "", "{}"),
        (Method::POST, "/one", "/one", 403, operator, json, "", "{}"),
        (Method::POST, "/one", "/one", 431, shop, json, long.as_str(), "{}"),
        (Method::POST, "/one", "/one", 201, shop, json, "", "{}"),
        (Method::POST, "/one", "/one", 400, shop, json, "", "{"),
        (Method::POST, "/one", "/one", 415, shop, "text/plain", "", "{}"),
        (Method::POST, "/one", "/one", 429, shop, json, "", "{}"),
        (Method::POST, "/files", "/files", 201, shop, "text/plain", "", "{"),
        (Method::POST, "/files", "/files", 415, shop, "plain", "", "{"),
        (Method::POST, "/orders", "/orders", 413, shop, json, "", &long),
        (Method::POST, "/orders", "/orders", 422, shop, json, "", r#"{"id":7}"#),
        (Method::GET, "/v1/requests/{id}", "/v1/requests/7", 400, operator, json, "", ""),
        (Method::GET, "/v1/requests/{id}", "/v1/requests/%ff", 400, operator, json, "", ""),
        (Method::GET, "/v1/requests/{id}", "/v1/requests/00000000000000000042", 404, operator, json, "", ""),
        (Method::POST, CANCEL, "/v1/requests/00000000000000000042/cancel", 404, operator, json, "", ""),
        (Method::GET, EXPLAIN, "/v1/requests/7/explain", 400, operator, json, "", ""),
        (Method::GET, EXPLAIN, "/v1/requests/00000000000000000042/explain", 404, operator, json, "", ""),
        (Method::GET, EXPLAIN, "/v1/requests/00000000000000000042/explain", 403, shop, json, "", ""),
        (
            Method::POST,
            CANCEL,
            "/v1/requests/7/cancel?destination=a&destination=b",
            400,
            operator,
            json,
            "",
            "",
        ),
    ] {
        let request = world.http.request(method.clone(), format!("{}{real_path}", ingest.base));
        let request = request.header("content-type", media_type).header("x-extra", extra);
        let answer =
            request.header("authorization", authorization).body(body.to_owned()).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {real_path} {body}");
        assert_described(&description, path, &method, answer).await;
    }
    ingest.stop().await;
}

#[tokio::test]
async fn the_description_reflects_the_configuration() {
    let world = World::new(SETTINGS);
    let ingest = world.start().await;
    let closed = description(&world, &ingest).await;
    ingest.stop().await;
    let world = World::new("");
    let ingest = world.start().await;
    let open = description(&world, &ingest).await;
    ingest.stop().await;

    let of = |description: &Value, path: &str| description["paths"][path]["post"].clone();
    assert_eq!(of(&closed, "/one")["security"], json!([{ "client": [] }]));
    assert_eq!(closed["components"]["securitySchemes"]["client"]["scheme"], "bearer");
    assert!(of(&open, "/one").get("security").is_none() && of(&open, "/one")["responses"]["401"].is_null());
    assert!(open["components"].get("securitySchemes").is_none());
    assert!(of(&closed, "/one")["responses"]["429"].is_object());
    assert!(of(&closed, "/orders")["responses"]["429"].is_null());

    let body = |path: &str| of(&closed, path)["requestBody"].clone();
    assert_eq!(body("/one")["content"], json!({ "application/json": { "schema": {} } }));
    assert_eq!(body("/files")["content"], json!({ "*/*": {} }));
    assert_eq!((&body("/one")["required"], &body("/files")["required"]), (&json!(true), &json!(false)));

    // A route's schema is a resource of its own, so that its references resolve within it.
    let schema = &of(&closed, "/orders")["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(schema["$id"], "urn:throughline:route:/orders");
    assert!(jsonschema::is_valid(schema, &json!({ "id": "7" })));
    assert!(!jsonschema::is_valid(schema, &json!({ "id": 7 })));
}

#[tokio::test]
async fn the_docs_page_loads_only_the_description() {
    let world = World::new("");
    let ingest = world.start().await;
    let page = world.http.get(format!("{}/docs", ingest.base)).send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; connect-src 'self'"), "{policy}");
    let page = page.text().await.unwrap();
    assert!(page.contains("fetch(\"openapi.json\")") && !page.contains("://"), "{page}");
    ingest.stop().await;
}
