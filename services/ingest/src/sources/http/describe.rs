//! The description of a route's path in `/openapi.json`.

use serde_json::{Value, json};
use throughline_settings::{Content, Route};

use crate::accept::LONGEST_ORDERING_KEY;
use crate::http::openapi::{header, json_content, problems};

/// Returns the Path Item of a route.
pub(super) fn path_item(name: &str, path: &str, route: &Route) -> Value {
    let mut responses = problems(&[400, 408, 409, 413, 415, 422, 431, 500, 503]);
    if route.rate.is_some() {
        responses.extend(problems(&[429]));
    }
    if route.content == Content::Any {
        responses.extend(problems(&[403]));
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
            "required": route.content == Content::Json,
            "description": body_description(route),
            "content": match route.content {
                Content::Json => json!({ "application/json": { "schema": body_schema(path, route) } }),
                Content::Any => json!({ "*/*": {} }),
            },
        },
        "responses": responses,
    } })
}

/// Describes requirements on a body that a schema cannot express.
fn body_description(route: &Route) -> String {
    let mut description = "The body is stored byte for byte. ".to_owned();
    description.push_str(match route.content {
        Content::Json => "Media types that end in `+json` are accepted too.",
        Content::Any => "Without a Content-Type, its media type is `application/octet-stream`.",
    });
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
fn body_schema(path: &str, route: &Route) -> Value {
    let Some(schema) = &route.schema else { return json!({}) };
    let mut schema = schema.document().clone();
    if let Some(members) = schema.as_object_mut().filter(|members| !members.contains_key("$id")) {
        members.insert("$id".to_owned(), format!("urn:throughline:route:{path}").into());
    }
    schema
}
