//! `GET /v1/requests/{id}/explain`: the history and the state of a request in words, as JSON, or as text for clients
//! that prefer it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::TimeDelta;
use http::HeaderMap;
use http::header::VARY;
use throughline_api::{DeliveryExplanation, Event, Explanation, RequestPath};
use throughline_clock::Clock;
use throughline_settings::{Links, Settings};
use throughline_store::Store;

use super::accept_header::prefers_text;
use super::explain::{self, CurrentState, RequestHistory};
use super::requests::failed;
use crate::http::extract::Path;
use crate::http::openapi::{Operation, Output};
use crate::http::{Problem, Resource};
use crate::sweeper::Operations;

/// The dependencies of the handler.
#[derive(Debug, Clone)]
pub(super) struct Explainer {
    store: Store,
    clock: Clock,
    links: Links,
    /// The delivery windows of the destinations.
    windows: Arc<BTreeMap<String, TimeDelta>>,
}

impl Explainer {
    pub(super) fn new(settings: &Settings, operations: &Operations) -> Self {
        let window = |(name, destination): (&String, &throughline_destination::Settings)| {
            Some((name.clone(), TimeDelta::from_std(destination.retry.window).ok()?))
        };
        Self {
            store: operations.store.clone(),
            clock: operations.clock.clone(),
            links: settings.links.clone(),
            windows: Arc::new(settings.destinations.iter().filter_map(window).collect()),
        }
    }
}

/// Returns the resource.
pub(super) fn resource() -> Resource<Explainer> {
    let operation = Operation::management(
        "explain-request",
        "Explain a request: its history, its current state, and what it is waiting for",
        "The history and the current state.",
    )
    .description("As JSON or, if `Accept` prefers it, as plain text with one line per event.")
    .problems(&[404]);
    Resource::at("/v1/requests/{id}/explain").get(explain, operation)
}

/// An explanation in the media type that the client prefers.
enum Explained {
    Json(Explanation),
    Text(String),
}

impl IntoResponse for Explained {
    fn into_response(self) -> Response {
        let vary = [(VARY, "accept")];
        match self {
            Self::Json(explanation) => (vary, Json(explanation)).into_response(),
            Self::Text(text) => (vary, text).into_response(),
        }
    }
}

impl Output for Explained {
    fn describe(operation: &mut Operation) {
        operation.content::<Explanation>("application/json");
        operation.content::<serde_json::Value>("text/plain");
        operation.header("Vary", "`accept`.");
    }
}

/// `GET /v1/requests/{id}/explain`.
async fn explain(
    State(explainer): State<Explainer>,
    Path(RequestPath { id }): Path<RequestPath>,
    headers: HeaderMap,
) -> Result<Explained, Problem> {
    let facts = explain::find(&explainer.store, id, &explainer.windows).await;
    let facts = facts.map_err(|error| failed(&error, id))?.ok_or(Problem::RequestUnknown(id))?;
    let explanation = to_explanation(explain::explain(&facts, explainer.clock.now()), &explainer.links);
    Ok(if prefers_text(&headers) {
        Explained::Text(to_text(&explanation))
    } else {
        Explained::Json(explanation)
    })
}

fn to_explanation(history: RequestHistory, links: &Links) -> Explanation {
    let RequestHistory { request_id, events, states } = history;
    let to_event = |explain::Event { at, destination, text, trace_id }| {
        let trace_url = trace_id.as_deref().and_then(|id| links.to_trace(id));
        Event { at, destination, text, trace_id, trace_url }
    };
    let to_delivery =
        |CurrentState { destination, state, text }| DeliveryExplanation { destination, state, text };
    Explanation {
        request_id,
        request_url: links.to_request(&request_id.to_string()),
        history: events.into_iter().map(to_event).collect(),
        now: states.into_iter().map(to_delivery).collect(),
    }
}

/// Renders a line for each event, for each delivery, and for each page that shows more.
fn to_text(explanation: &Explanation) -> String {
    let mut lines = Lines::default();
    for Event { at, destination, text, trace_id, .. } in &explanation.history {
        let about = destination.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        let trace = trace_id.as_ref().map(|id| format!(" [trace {id}]")).unwrap_or_default();
        lines.add(&at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string(), &format!("{about}{text}{trace}"));
    }
    for DeliveryExplanation { destination, state, text } in &explanation.now {
        lines.add("now", &format!("{destination}: {}. {text}", state.as_str()));
    }
    let traces: BTreeSet<_> =
        explanation.history.iter().filter_map(|event| event.trace_url.as_ref()).collect();
    for page in explanation.request_url.iter().chain(traces) {
        lines.add("see", page);
    }
    lines.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, when: &str, what: &str) {
        /// The width of a time.
        const WIDTH: usize = 27;
        // Text from other systems must not look like a line of ours, nor move the cursor of a terminal.
        let what = what.replace(char::is_control, "\u{fffd}");
        // A write to a string cannot fail.
        let _ = writeln!(self.0, "{when:WIDTH$}  {what}");
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use throughline_api::DeliveryState;

    use super::*;

    fn explanation(links: &Links) -> Explanation {
        let at = DateTime::from_timestamp_millis(1_767_225_600_123).unwrap();
        let event = |destination: Option<&str>, text: &str| explain::Event {
            at,
            destination: destination.map(str::to_owned),
            text: text.to_owned(),
            trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        };
        let state = CurrentState {
            destination: "three".to_owned(),
            state: DeliveryState::Retrying,
            text: "Attempt 2 is due.".to_owned(),
        };
        let history = RequestHistory {
            request_id: "00000000000000000042".parse().unwrap(),
            events: vec![event(None, "accepted"), event(Some("three"), "failed: \u{1b}[2J\r\nnow")],
            states: vec![state],
        };
        to_explanation(history, links)
    }

    #[test]
    fn text_has_one_line_per_event_even_if_an_error_contains_control_characters() {
        let expected = "\
2026-01-01 00:00:00.123 UTC  accepted [trace 0af7651916cd43dd8448eb211c80319c]
2026-01-01 00:00:00.123 UTC  three: failed: \u{fffd}[2J\u{fffd}\u{fffd}now [trace 0af7651916cd43dd8448eb211c80319c]
now                          three: retrying. Attempt 2 is due.
";
        assert_eq!(to_text(&explanation(&Links::default())), expected);
    }

    #[test]
    fn each_configured_page_is_linked_once() {
        let links = Links {
            trace: Some("http://h/t/{trace_id}".to_owned()),
            request: Some("http://h/r/{request_id}".to_owned()),
        };
        let explanation = explanation(&links);
        let trace = "http://h/t/0af7651916cd43dd8448eb211c80319c";
        let text = to_text(&explanation);
        let pages: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("see")).map(str::trim).collect();
        assert_eq!(pages, ["http://h/r/00000000000000000042", trace]);
        assert_eq!(explanation.history[1].trace_url.as_deref(), Some(trace));
    }
}
