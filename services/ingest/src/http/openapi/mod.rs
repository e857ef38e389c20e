//! `/openapi.json`: the description of all paths, in [OpenAPI 3.1](https://spec.openapis.org/oas/v3.1.1); and `/docs`,
//! which shows it to people.

mod operation;

use std::future::ready;

use axum::routing::get;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::{Map, Value, json};

pub(crate) use self::operation::{Described, Input, Operation, Output, properties, schema_generator};
use super::documented::Documented;
use super::only;

const DOCS: &str = include_str!("docs.html");
/// The page loads nothing but the description.
const DOCS_POLICY: &str =
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";

/// The meaning of each error status, for all paths.
const PROBLEMS: [(u16, &str); 13] = [
    (400, "The path, the query or a header is invalid, or the body is incomplete or not JSON."),
    (401, "No key was sent, or an unknown one."),
    (
        403,
        "The client is not permitted to do this, or the path is not open to other machines or to pages of other \
         origins.",
    ),
    (404, "Not found."),
    (408, "The body did not arrive in time."),
    (409, "Conflicts with the current state, or a request with this Idempotency-Key is still in progress."),
    (413, "The body is too large."),
    (415, "The route does not accept the media type."),
    (
        422,
        "The body violates the requirements of the route, or the Idempotency-Key was used with another body.",
    ),
    (429, "The rate limit of the route is exceeded."),
    (431, "The headers are too large. Beyond 100 headers or 36 KiB, this response has no body."),
    (500, "Internal error; it was logged."),
    (503, "Temporarily unavailable."),
];

/// Returns `/openapi.json`, which describes these paths and its own, and `/docs`.
pub(super) fn documents(api: &Documented, health: &Documented) -> Documented {
    let own = [("/openapi.json", description()), ("/docs", docs())];
    let mut paths = api.paths.clone();
    paths.extend(health.paths.clone());
    paths.extend(own.iter().map(|(path, item)| ((*path).to_owned(), item.clone())));
    let document = Bytes::from(document(&paths, api).to_string());
    let json = move || ready(([(CONTENT_TYPE, "application/json")], document.clone()));
    let html = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, DOCS_POLICY)];
    let [(document_path, document_item), (docs_path, docs_item)] = own;
    Documented::default().path(document_path, get(json).fallback(|| only("GET, HEAD")), document_item).path(
        docs_path,
        get(move || ready((html, DOCS))).fallback(|| only("GET, HEAD")),
        docs_item,
    )
}

fn document(paths: &Map<String, Value>, api: &Documented) -> Value {
    let mut components = json!({ "schemas": schemas(api), "responses": responses() });
    if api.is_guarded {
        let scheme = json!({
            "type": "http",
            "scheme": "bearer",
            "description": "Key of a configured client.",
        });
        components["securitySchemes"] = json!({ "client": scheme });
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Throughline ingest",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Accepts requests, never loses one, and delivers each to third-party APIs. \
                Every refusal states its reason in problem details (RFC 9457).",
        },
        "tags": [
            { "name": "routes", "description": "Submit requests." },
            { "name": "management", "description": "Query and cancel requests; list, replay and purge dead letters." },
            { "name": "health", "description": "Probes for orchestrators." },
            { "name": "description", "description": "This API description." },
        ],
        "paths": paths,
        "components": components,
    })
}

/// `/healthz`.
pub(super) fn live() -> Value {
    let says = |what: &str| json!({ "description": what, "content": { "text/plain": {} } });
    let responses = json!({
        "200": says("The process is alive."),
        "503": says("A task gets no answer from the database although others do: restart the process."),
    });
    look("live", "health", "Liveness of the process", &responses)
}

/// `/readyz`.
pub(super) fn readiness() -> Value {
    let says = |what: &str| json!({ "description": what, "content": json_content("Readiness") });
    let responses = json!({
        "200": says("The database answers, so ingest accepts requests. They wait while the broker is down."),
        "503": says(
            "The database does not answer, the clock of ingest is more than an hour ahead of the database's, or the \
             process is stopping."
        ),
    });
    look("ready", "health", "Readiness to accept requests", &responses)
}

fn description() -> Value {
    let found = json!({ "description": "The API description.", "content": { "application/json": {} } });
    look("openapi", "description", "API description in machine-readable form", &json!({ "200": found }))
}

fn docs() -> Value {
    let page = json!({ "description": "An HTML page.", "content": { "text/html": {} } });
    look("docs", "description", "API description as a page", &json!({ "200": page }))
}

fn look(id: &str, tag: &str, summary: &str, responses: &Value) -> Value {
    json!({ "get": { "operationId": id, "tags": [tag], "summary": summary, "responses": responses } })
}

/// Adds to a Path Item the security and the errors of a path for known clients only.
pub(super) fn for_clients(mut item: Value) -> Value {
    for operation in item.as_object_mut().into_iter().flat_map(Map::values_mut) {
        operation["security"] = json!([{ "client": [] }]);
        if let Some(responses) = operation["responses"].as_object_mut() {
            responses.extend(problems(&[401, 403]));
        }
    }
    item
}

pub(crate) fn header(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "header", "description": description, "schema": schema })
}

pub(crate) fn json_content(schema: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

pub(crate) fn problems(statuses: &[u16]) -> Map<String, Value> {
    let problem =
        |status: &u16| (status.to_string(), json!({ "$ref": format!("#/components/responses/{status}") }));
    statuses.iter().map(problem).collect()
}

fn responses() -> Map<String, Value> {
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    let response = |&(status, description): &(u16, &str)| {
        let mut response = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": schema } },
        });
        if let Some((name, says, kind)) = problem_header(status) {
            response["headers"] = json!({ name: { "description": says, "schema": { "type": kind } } });
        }
        (status.to_string(), response)
    };
    PROBLEMS.iter().map(response).collect()
}

fn problem_header(status: u16) -> Option<(&'static str, &'static str, &'static str)> {
    match status {
        401 => Some(("WWW-Authenticate", "`Bearer`.", "string")),
        409 | 429 | 503 => Some(("Retry-After", "Seconds to wait before a retry.", "integer")),
        _ => None,
    }
}

/// Returns the schemas of all bodies.
fn schemas(api: &Documented) -> Map<String, Value> {
    let mut generator = schema_generator();
    generator.subschema_for::<throughline_api::Problem>();
    let mut schemas = generator.take_definitions(true);
    schemas.extend(api.schemas.clone());
    let dependency = json!({ "enum": ["up", "down"] });
    let readiness = json!({
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": { "enum": ["ready", "unready", "stopping"] },
            "database": dependency,
            "clock": dependency,
            "broker": dependency,
        },
        "additionalProperties": false,
    });
    schemas.insert("Readiness".to_owned(), readiness);
    schemas
}
