//! `/openapi.json`: what is answered here, in the words of [OpenAPI 3.1](https://spec.openapis.org/oas/v3.1.1);
//! and `/docs`, which shows it to people.

pub(super) mod management;

use std::future::ready;

use axum::routing::get;
use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use throughline_config::Route;

use super::accept::Accepted;
use super::described::Described;
use super::{dead_letters, explain, only, problem, status};
use crate::admission::LONGEST_ORDERING_KEY;

const DOCS: &str = include_str!("docs.html");
/// The page needs nothing but the description.
const DOCS_POLICY: &str =
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";

/// What a status says, whatever was asked for.
const PROBLEMS: [(u16, &str); 13] = [
    (
        400,
        "The request cannot be read: its path, its query, a header, or a body that is not JSON or not whole.",
    ),
    (401, "No key was sent, or one that no client has."),
    (
        403,
        "The client may not do this; or nothing under /v1 is for other machines, or for pages of other origins.",
    ),
    (404, "There is nothing by this name."),
    (408, "The body did not arrive in time."),
    (409, "It is not in a state for that, or a request with its Idempotency-Key is still being stored."),
    (413, "The body is too large."),
    (415, "The media type is not JSON."),
    (422, "The body is not what the route takes, or its Idempotency-Key was used with another one."),
    (429, "The route takes no more requests now."),
    (431, "The headers are too large; beyond 100 headers or 64 KiB, there is no body."),
    (500, "Something went wrong here, and was logged."),
    (503, "The request cannot be taken now."),
];

/// `/openapi.json`, which describes these paths and its own, and `/docs`.
pub(super) fn documents(api: &Described, health: &Described) -> Described {
    let own = [("/openapi.json", description()), ("/docs", docs())];
    let mut paths = api.paths.clone();
    paths.extend(health.paths.clone());
    paths.extend(own.iter().map(|(path, item)| ((*path).to_owned(), item.clone())));
    let document = Bytes::from(document(&paths, api.is_guarded).to_string());
    let json = move || ready(([(CONTENT_TYPE, "application/json")], document.clone()));
    let html = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, DOCS_POLICY)];
    let [(document_path, document_item), (docs_path, docs_item)] = own;
    Described::default().path(document_path, get(json).fallback(|| only("GET, HEAD")), document_item).path(
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
            "description": "The key of a client in the configuration.",
        });
        components["securitySchemes"] = json!({ "client": scheme });
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Throughline ingest",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Accepts requests, never loses them, and sees them through to third-party APIs. \
                Whoever is refused is told why in problem details (RFC 9457).",
        },
        "tags": [
            { "name": "routes", "description": "Hand in requests." },
            { "name": "management", "description": "Ask what became of them, call them off, see to those that failed." },
            { "name": "health", "description": "For orchestrators." },
            { "name": "description", "description": "What you are reading." },
        ],
        "paths": paths,
        "components": components,
    })
}

/// A route's path.
pub(super) fn accept(name: &str, route: &Route) -> Value {
    let mut responses = problems(&[400, 408, 409, 413, 415, 422, 431, 500, 503]);
    if route.rate.is_some() {
        responses.extend(problems(&[429]));
    }
    let of_the_request = json!({ "id": "$response.body#/request_id" });
    let link = |operation: &str| json!({ "operationId": operation, "parameters": of_the_request });
    let created = json!({
        "description": "It is durable, and will be seen through.",
        "links": {
            "request": link("get-request"),
            "body": link("get-request-body"),
            "story": link("explain-request"),
            "cancel": link("cancel-request"),
        },
        "headers": { "Location": { "description": "Where to ask for it.", "schema": { "type": "string" } } },
        "content": json_content("Accepted"),
    });
    responses.insert("201".to_owned(), created);
    json!({ "post": {
        "operationId": format!("accept-{name}"),
        "tags": ["routes"],
        "summary": format!("Hand in a request by the route {name}"),
        "parameters": [
            header(
                "Idempotency-Key",
                "Repeats the first answer when the same body is sent again under it.",
                &json!({ "type": "string", "maxLength": 255, "pattern": "^[!-~]([\\t -~]*[!-~])?$" }),
            ),
            header(
                "traceparent",
                "The trace that the request is to be part of (W3C Trace Context). One that is none is ignored.",
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

/// What a schema cannot say of a body.
fn body_description(route: &Route) -> String {
    let mut description = "Kept byte for byte. Any media type that ends in `+json` will do too.".to_owned();
    if let Some(pointer) = &route.ordering_key {
        let ordering_key = format!(
            " Requests with the same value at `{pointer}` are delivered in order: a string, a number or a boolean of at \
             most {LONGEST_ORDERING_KEY} characters."
        );
        description.push_str(&ordering_key);
    }
    description
}

/// The route's own schema, as a resource of its own: references in it begin at its root, not at that of the
/// whole description.
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
        "200": says("It lives."),
        "503": says("A part of it gets no answer from a database that answers others: start it again."),
    });
    look("live", "health", "Whether the process lives", &responses)
}

/// `/readyz`.
pub(super) fn readiness() -> Value {
    let says = |what: &str| json!({ "description": what, "content": json_content("Readiness") });
    let responses = json!({
        "200": says("The database answers, so it accepts. What it accepts waits while the broker is down."),
        "503": says("The database does not answer, this clock is more than an hour ahead of its, or the process is stopping."),
    });
    look("ready", "health", "Whether it can accept", &responses)
}

fn description() -> Value {
    let found = json!({ "description": "The description.", "content": { "application/json": {} } });
    look("openapi", "description", "This description, for programs", &json!({ "200": found }))
}

fn docs() -> Value {
    let page = json!({ "description": "A page.", "content": { "text/html": {} } });
    look("docs", "description", "This description, for people", &json!({ "200": page }))
}

fn look(id: &str, tag: &str, summary: &str, responses: &Value) -> Value {
    json!({ "get": { "operationId": id, "tags": [tag], "summary": summary, "responses": responses } })
}

/// A Path Item as it is where only known clients are let in.
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
        409 | 429 | 503 => Some(("Retry-After", "After how many seconds to try again.", "integer")),
        _ => None,
    }
}

/// What bodies look like, from the types that they are made of.
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
