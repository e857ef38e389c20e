//! `/openapi.json`: the description of all paths, in [OpenAPI 3.1](https://spec.openapis.org/oas/v3.1.1); and `/docs`,
//! which shows it to people.

pub(super) mod management;

use std::future::ready;

use axum::routing::get;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use throughline_settings::Route;

use super::accept::Accepted;
use super::documented::Documented;
use super::{dead_letters, explain, only, problem, status};
use crate::admission::LONGEST_ORDERING_KEY;

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
        "The client is not permitted to do this, or /v1 is not open to other machines or to pages of other origins.",
    ),
    (404, "Not found."),
    (408, "The body did not arrive in time."),
    (409, "Conflicts with the current state, or a request with this Idempotency-Key is still in progress."),
    (413, "The body is too large."),
    (415, "The media type is not JSON."),
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
    let document = Bytes::from(document(&paths, api.is_guarded).to_string());
    let json = move || ready(([(CONTENT_TYPE, "application/json")], document.clone()));
    let html = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, DOCS_POLICY)];
    let [(document_path, document_item), (docs_path, docs_item)] = own;
    Documented::default().path(document_path, get(json).fallback(|| only("GET, HEAD")), document_item).path(
        docs_path,
        get(move || ready((html, DOCS))).fallback(|| only("GET, HEAD")),
        docs_item,
    )
}

fn document(paths: &Map<String, Value>, is_guarded: bool) -> Value {
    let mut components = json!({ "schemas": schemas(), "responses": responses() });
    if is_guarded {
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

/// Returns the Path Item of a route.
pub(super) fn accept(name: &str, route: &Route) -> Value {
    let mut responses = problems(&[400, 408, 409, 413, 415, 422, 431, 500, 503]);
    if route.rate.is_some() {
        responses.extend(problems(&[429]));
    }
    let of_the_request = json!({ "id": "$response.body#/request_id" });
    let link = |operation: &str| json!({ "operationId": operation, "parameters": of_the_request });
    let created = json!({
        "description": "The request is durable; its deliveries are attempted until each one has ended.",
        "links": {
            "request": link("get-request"),
            "body": link("get-request-body"),
            "story": link("explain-request"),
            "cancel": link("cancel-request"),
        },
        "headers": { "Location": { "description": "URL of the request.", "schema": { "type": "string" } } },
        "content": json_content("Accepted"),
    });
    responses.insert("201".to_owned(), created);
    json!({ "post": {
        "operationId": format!("accept-{name}"),
        "tags": ["routes"],
        "summary": format!("Submit a request to the route {name}"),
        "parameters": [
            header(
                "Idempotency-Key",
                "Makes retries safe: repeating the same body with the same key returns the first response.",
                &json!({ "type": "string", "maxLength": 255, "pattern": "^[!-~]([\\t -~]*[!-~])?$" }),
            ),
            header(
                "traceparent",
                "Trace that the request joins (W3C Trace Context). An invalid value is ignored.",
                &json!({ "type": "string" }),
            ),
        ],
        "requestBody": {
            "required": true,
            "description": body_description(route),
            "content": { "application/json": { "schema": body_schema(route) } },
        },
        "responses": responses,
    } })
}

/// Describes requirements on a body that a schema cannot express.
fn body_description(route: &Route) -> String {
    let mut description =
        "The body is stored byte for byte. Media types that end in `+json` are accepted too.".to_owned();
    if let Some(pointer) = &route.ordering_key {
        let ordering_key = format!(
            " Requests with the same value at `{pointer}` are delivered in order: a string, a number or a boolean of at \
             most {LONGEST_ORDERING_KEY} characters."
        );
        description.push_str(&ordering_key);
    }
    description
}

/// Returns the route's own schema, as a separate resource: references in it begin at its root, not at that of the whole
/// description.
fn body_schema(route: &Route) -> Value {
    let Some(schema) = &route.schema else { return json!({}) };
    let mut schema = schema.document().clone();
    if let Some(members) = schema.as_object_mut().filter(|members| !members.contains_key("$id")) {
        members.insert("$id".to_owned(), format!("urn:throughline:route:{}", route.path).into());
    }
    schema
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

fn header(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "header", "description": description, "schema": schema })
}

fn json_content(schema: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } })
}

fn problems(statuses: &[u16]) -> Map<String, Value> {
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

/// Returns the schemas of all bodies, from their types.
fn schemas() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    generator.subschema_for::<Accepted>();
    generator.subschema_for::<status::Status>();
    generator.subschema_for::<explain::Explanation>();
    generator.subschema_for::<dead_letters::Page>();
    generator.subschema_for::<dead_letters::Purged>();
    generator.subschema_for::<dead_letters::Progress>();
    generator.subschema_for::<problem::Body<'_>>();
    let mut schemas = generator.take_definitions(true);
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
