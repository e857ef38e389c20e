//! The description of `/v1`.

use serde_json::{Map, Value, json};

use super::super::dead_letters::MOST;
use super::{json_content, problems};

/// A request id, up to the year 2092: the pattern does not express the exact maximum.
const REQUEST_ID: &str = "^0[0-8][0-9]{18}$";

/// `/v1/requests/{id}`.
pub(in super::super) fn request() -> Value {
    json!({ "get": {
        "operationId": "get-request",
        "tags": ["management"],
        "summary": "Get a request, its deliveries and their attempts",
        "parameters": [request_id()],
        "responses": responses("200", "The request.", &json_content("Status"), &[404]),
    } })
}

/// `/v1/requests/{id}/body`.
pub(in super::super) fn body() -> Value {
    let any = json!({ "*/*": {} });
    json!({ "get": {
        "operationId": "get-request-body",
        "tags": ["management"],
        "summary": "Get the body of a request",
        "parameters": [request_id()],
        "responses": responses("200", "The body, byte for byte as received, with its media type.", &any, &[404]),
    } })
}

/// `/v1/requests/{id}/explain`.
pub(in super::super) fn explain() -> Value {
    let mut content = json_content("Explanation");
    content["text/plain"] = json!({});
    let mut responses = responses("200", "The history and the current state.", &content, &[404]);
    responses["200"]["headers"] =
        json!({ "Vary": { "description": "`accept`.", "schema": { "type": "string" } } });
    json!({ "get": {
        "operationId": "explain-request",
        "tags": ["management"],
        "summary": "Explain a request: its history, its current state, and what it is waiting for",
        "description": "As JSON or, if `Accept` prefers it, as plain text with one line per event.",
        "parameters": [request_id()],
        "responses": responses,
    } })
}

/// `/v1/requests/{id}/cancel`.
pub(in super::super) fn cancel() -> Value {
    let destination = query(
        "destination",
        "Cancel only the delivery to this destination (default: all deliveries).",
        &text(),
    );
    json!({ "post": {
        "operationId": "cancel-request",
        "tags": ["management"],
        "summary": "Cancel the deliveries that have not ended; a call in progress is recorded when it ends",
        "parameters": [request_id(), destination],
        "responses": responses("200", "The request after the cancellation.", &json_content("Status"), &[404, 409]),
    } })
}

/// `/v1/dead-letters`.
pub(in super::super) fn dead_letters() -> Value {
    let pattern = json!({ "type": "string", "pattern": "^0[0-8][0-9]{18}[.][^\\u0000]*$" });
    let mut of_a_page = vec![
        query("cursor", "The `next` of the previous page.", &pattern),
        query(
            "limit",
            "Page size, 1–500 (default 50).",
            &json!({ "type": "integer", "minimum": 1, "maximum": MOST }),
        ),
    ];
    of_a_page.extend(filter());
    let mut of_a_purge = filter();
    for parameter in of_a_purge.iter_mut().filter(|parameter| parameter["name"] == "before") {
        parameter["required"] = true.into();
    }
    of_a_purge.push(query("cursor", "The `next` of the previous response.", &pattern));
    let mut purged = responses("200", "The number of purged dead letters.", &json_content("Purged"), &[]);
    purged["200"]["links"] = json!({
        "next": { "operationId": "purge-dead-letters", "parameters": { "cursor": "$response.body#/next" } },
    });
    let mut page = responses("200", "A page of dead letters.", &json_content("DeadLetters"), &[]);
    let of_the_first = json!({
        "id": "$response.body#/dead_letters/0/request_id",
        "destination": "$response.body#/dead_letters/0/destination",
    });
    page["200"]["links"] = json!({
        "next": { "operationId": "list-dead-letters", "parameters": { "cursor": "$response.body#/next" } },
        "replay": { "operationId": "replay-dead-letter", "parameters": of_the_first },
    });
    json!({
        "get": {
            "operationId": "list-dead-letters",
            "tags": ["management"],
            "summary": "List dead letters: deliveries that ended without success, newest requests first",
            "parameters": of_a_page,
            "responses": page,
        },
        "delete": {
            "operationId": "purge-dead-letters",
            "tags": ["management"],
            "summary": "Permanently delete dead letters that died before a given time",
            "parameters": of_a_purge,
            "responses": purged,
        },
    })
}

/// `/v1/dead-letters/{id}/{destination}/replay`.
pub(in super::super) fn replay_one() -> Value {
    json!({ "post": {
        "operationId": "replay-dead-letter",
        "tags": ["management"],
        "summary": "Replay one dead delivery now",
        "parameters": [request_id(), in_path("destination", "Destination of the dead delivery.", &text())],
        "responses": responses("200", "The request after the replay.", &json_content("Status"), &[404, 409]),
    } })
}

/// `/v1/replays`.
pub(in super::super) fn replays() -> Value {
    let rate = json!({ "type": "string", "pattern": "^[1-9][0-9]{0,8}/([1-9][0-9]{0,3})?(ms|s|min|h)$" });
    let mut parameters = vec![query("rate", "Replay rate, for example `10/s` (default `100/s`).", &rate)];
    parameters.extend(filter());
    let mut responses = responses("202", "The replay has started.", &json_content("Replay"), &[409]);
    responses["202"]["headers"] =
        json!({ "Location": { "description": "URL of the replay.", "schema": { "type": "string" } } });
    let of_the_replay = json!({ "id": "$response.body#/replay_id" });
    let link = |operation: &str| json!({ "operationId": operation, "parameters": of_the_replay });
    responses["202"]["links"] = json!({ "progress": link("get-replay"), "stop": link("stop-replay") });
    json!({ "post": {
        "operationId": "begin-replay",
        "tags": ["management"],
        "summary": "Replay all current dead letters matching a filter, at a given rate",
        "parameters": parameters,
        "responses": responses,
    } })
}

/// `/v1/replays/{id}`.
pub(in super::super) fn replay() -> Value {
    json!({ "get": of_a_replay("get-replay", "Get the progress of a replay") })
}

/// `/v1/replays/{id}/stop`.
pub(in super::super) fn stop_replay() -> Value {
    json!({ "post": of_a_replay("stop-replay", "Stop a replay; deliveries that it has already taken continue") })
}

fn of_a_replay(id: &str, summary: &str) -> Value {
    json!({
        "operationId": id,
        "tags": ["management"],
        "summary": summary,
        "parameters": [in_path("id", "The `replay_id`.", &json!({ "type": "integer", "minimum": 1 }))],
        "responses": responses("200", "The progress of the replay.", &json_content("Replay"), &[404]),
    })
}

/// Returns the parameters that select dead letters.
fn filter() -> Vec<Value> {
    let time = json!({ "type": "string", "format": "date-time" });
    [
        ("route", "Only dead letters of this route.", text()),
        ("destination", "Only dead letters of this destination.", text()),
        ("reason", "Only deliveries that died for this reason, for example `attempts_exhausted`.", text()),
        ("error_class", "Only deliveries with a last error of this class, for example `timeout`.", text()),
        (
            "since",
            "Only deliveries that died at this time or later, for example `2026-01-01T00:00:00Z`.",
            time.clone(),
        ),
        ("before", "Only deliveries that died before this time.", time),
    ]
    .map(|(name, description, schema)| query(name, description, &schema))
    .to_vec()
}

/// Returns the schema of a text without NUL, which PostgreSQL cannot store.
fn text() -> Value {
    json!({ "type": "string", "pattern": "^[^\\u0000]*$" })
}

fn request_id() -> Value {
    in_path("id", "The request's id, 20 digits.", &json!({ "type": "string", "pattern": REQUEST_ID }))
}

fn in_path(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema })
}

fn query(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn responses(status: &str, description: &str, content: &Value, more: &[u16]) -> Map<String, Value> {
    let mut responses = problems(&[400, 403, 431, 500, 503]);
    responses.extend(problems(more));
    responses.insert(status.to_owned(), json!({ "description": description, "content": content }));
    responses
}
