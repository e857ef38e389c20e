//! What is under `/v1`.

use serde_json::{Map, Value, json};

use super::super::dead_letters::MOST;
use super::{json_content, problems};

/// A request id, up to the year 2092: which ids are too large is not for a pattern to tell.
const REQUEST_ID: &str = "^0[0-8][0-9]{18}$";

/// `/v1/requests/{id}`.
pub(in super::super) fn request() -> Value {
    json!({ "get": {
        "operationId": "get-request",
        "tags": ["management"],
        "summary": "Ask what became of a request: its deliveries, and their attempts",
        "parameters": [request_id()],
        "responses": responses("200", "What is known of it.", &json_content("Status"), &[404]),
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
        "responses": responses("200", "Byte for byte, and of the media type, as it came.", &any, &[404]),
    } })
}

/// `/v1/requests/{id}/explain`.
pub(in super::super) fn explain() -> Value {
    let mut content = json_content("Explanation");
    content["text/plain"] = json!({});
    let mut responses = responses("200", "What happened, and what it waits for now.", &content, &[404]);
    responses["200"]["headers"] =
        json!({ "Vary": { "description": "`accept`.", "schema": { "type": "string" } } });
    json!({ "get": {
        "operationId": "explain-request",
        "tags": ["management"],
        "summary": "Have the story of a request told in words",
        "description": "As JSON, or as text, a line an event, for whoever would rather `Accept` that.",
        "parameters": [request_id()],
        "responses": responses,
    } })
}

/// `/v1/requests/{id}/cancel`.
pub(in super::super) fn cancel() -> Value {
    let destination = query("destination", "Only the delivery to this one; without it, all.", &text());
    json!({ "post": {
        "operationId": "cancel-request",
        "tags": ["management"],
        "summary": "Call off what has not ended; a call that is under way is reported as it ends",
        "parameters": [request_id(), destination],
        "responses": responses("200", "What is known of it now.", &json_content("Status"), &[404, 409]),
    } })
}

/// `/v1/dead-letters`.
pub(in super::super) fn dead_letters() -> Value {
    let mut of_a_page = vec![
        query(
            "cursor",
            "The `next` of the page before.",
            &json!({ "type": "string", "pattern": "^0[0-8][0-9]{18}[.][^\\u0000]*$" }),
        ),
        query(
            "limit",
            "Most of a page; by default 50.",
            &json!({ "type": "integer", "minimum": 1, "maximum": MOST }),
        ),
    ];
    of_a_page.extend(filter());
    let mut of_a_purge = filter();
    for parameter in of_a_purge.iter_mut().filter(|parameter| parameter["name"] == "before") {
        parameter["required"] = true.into();
    }
    let mut page = responses("200", "A page of them.", &json_content("DeadLetters"), &[]);
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
            "summary": "List deliveries that ended without success, the youngest requests first",
            "parameters": of_a_page,
            "responses": page,
        },
        "delete": {
            "operationId": "purge-dead-letters",
            "tags": ["management"],
            "summary": "Throw away, for good, those that died before a time",
            "parameters": of_a_purge,
            "responses": responses("200", "How many they were.", &json_content("Purged"), &[]),
        },
    })
}

/// `/v1/dead-letters/{id}/{destination}/replay`.
pub(in super::super) fn replay_one() -> Value {
    json!({ "post": {
        "operationId": "replay-dead-letter",
        "tags": ["management"],
        "summary": "Try a dead delivery again, now",
        "parameters": [request_id(), in_path("destination", "The one that did not get it.", &text())],
        "responses": responses("200", "What is known of the request now.", &json_content("Status"), &[404, 409]),
    } })
}

/// `/v1/replays`.
pub(in super::super) fn replays() -> Value {
    let rate = json!({ "type": "string", "pattern": "^[1-9][0-9]{0,8}/([1-9][0-9]{0,3})?(ms|s|min|h)$" });
    let mut parameters = vec![query("rate", "So many in a time, such as `10/s`; by default `100/s`.", &rate)];
    parameters.extend(filter());
    let mut responses = responses("202", "It has begun.", &json_content("Replay"), &[409]);
    responses["202"]["headers"] = json!({ "Location": { "description": "Where to ask how far it is.", "schema": { "type": "string" } } });
    let of_the_replay = json!({ "id": "$response.body#/replay_id" });
    let link = |operation: &str| json!({ "operationId": operation, "parameters": of_the_replay });
    responses["202"]["links"] = json!({ "progress": link("get-replay"), "stop": link("stop-replay") });
    json!({ "post": {
        "operationId": "begin-replay",
        "tags": ["management"],
        "summary": "Try all again that a filter means and that are dead by now, at a rate",
        "parameters": parameters,
        "responses": responses,
    } })
}

/// `/v1/replays/{id}`.
pub(in super::super) fn replay() -> Value {
    json!({ "get": of_a_replay("get-replay", "Ask how far a replay is") })
}

/// `/v1/replays/{id}/stop`.
pub(in super::super) fn stop_replay() -> Value {
    json!({ "post": of_a_replay("stop-replay", "Stop a replay; what it took is on its way") })
}

fn of_a_replay(id: &str, summary: &str) -> Value {
    json!({
        "operationId": id,
        "tags": ["management"],
        "summary": summary,
        "parameters": [in_path("id", "The `replay_id`.", &json!({ "type": "integer", "minimum": 1 }))],
        "responses": responses("200", "How far it is.", &json_content("Replay"), &[404]),
    })
}

/// The parameters that say which dead letters are meant.
fn filter() -> Vec<Value> {
    let time = json!({ "type": "string", "format": "date-time" });
    [
        ("route", "Only those of this route.", text()),
        ("destination", "Only those of this destination.", text()),
        ("reason", "Only those that died for this reason, such as `attempts_exhausted`.", text()),
        ("error_class", "Only those whose last error was of this class, such as `timeout`.", text()),
        ("since", "Only those that died then or later, such as `2026-01-01T00:00:00Z`.", time.clone()),
        ("before", "Only those that died before.", time),
    ]
    .map(|(name, description, schema)| query(name, description, &schema))
    .to_vec()
}

/// Any text but one with a NUL, which PostgreSQL cannot take.
fn text() -> Value {
    json!({ "type": "string", "pattern": "^[^\\u0000]*$" })
}

fn request_id() -> Value {
    in_path("id", "The request's id, as it was given.", &json!({ "type": "string", "pattern": REQUEST_ID }))
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
