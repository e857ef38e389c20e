//! `GET /v1/requests/{id}/explain`: the history and the state of a request in words, as JSON, or as text for clients
//! that prefer it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use http::header::VARY;
use http::{HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Serialize;
use throughline_clock::Clock;
use throughline_settings::{Links, Settings};
use throughline_snowflake::RequestId;
use throughline_store::{DeliveryState, Store};

use super::accept_header::prefers_text;
use super::problem::Problem;
use super::status::{failed, parse};
use crate::explain::{self, CurrentState, Event, RequestHistory};
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

/// The history and the current state of a request, in words.
#[derive(Serialize, JsonSchema)]
pub(super) struct Explanation {
    /// The request's id, 20 digits.
    #[schemars(with = "String")]
    request_id: RequestId,
    /// URL of a page that shows more about the request, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_url: Option<String>,
    /// The events of the request, in order.
    #[serde(rename = "story")]
    history: Vec<HistoryEntry>,
    /// The current state of each delivery.
    now: Vec<DeliveryStatus>,
}

/// An event in the history of the request.
#[derive(Serialize, JsonSchema)]
struct HistoryEntry {
    at: DateTime<Utc>,
    /// Absent if the event concerns the request as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    /// URL of a page that shows the trace, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_url: Option<String>,
}

/// The current state of a delivery: the condition that it waits for, until when, and what would advance it; or how it
/// ended.
#[derive(Serialize, JsonSchema)]
struct DeliveryStatus {
    destination: String,
    /// `pending` or `retrying`; once it has ended, `delivered`, `dead` or `cancelled`.
    #[schemars(with = "String")]
    state: DeliveryState,
    text: String,
}

pub(super) async fn explain(
    State(explainer): State<Explainer>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse(id)?;
    let facts = explain::find(&explainer.store, id, &explainer.windows).await;
    let facts = facts.map_err(|error| failed(&error, id))?.ok_or(Problem::RequestUnknown(id))?;
    let explanation = Explanation::new(explain::explain(&facts, explainer.clock.now()), &explainer.links);
    let mut response = if prefers_text(&headers) {
        explanation.to_text().into_response()
    } else {
        Json(explanation).into_response()
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

impl Explanation {
    fn new(history: RequestHistory, links: &Links) -> Self {
        let RequestHistory { request_id, events, states } = history;
        let to_entry = |Event { at, destination, text, trace_id }| {
            let trace_url = trace_id.as_deref().and_then(|id| links.to_trace(id));
            HistoryEntry { at, destination, text, trace_id, trace_url }
        };
        let to_status =
            |CurrentState { destination, state, text }| DeliveryStatus { destination, state, text };
        Self {
            request_id,
            request_url: links.to_request(&request_id.to_string()),
            history: events.into_iter().map(to_entry).collect(),
            now: states.into_iter().map(to_status).collect(),
        }
    }

    /// Renders a line for each event, for each delivery, and for each page that shows more.
    fn to_text(&self) -> String {
        let mut lines = Lines::default();
        for HistoryEntry { at, destination, text, trace_id, .. } in &self.history {
            let about = destination.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
            let trace = trace_id.as_ref().map(|id| format!(" [trace {id}]")).unwrap_or_default();
            lines.add(&at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string(), &format!("{about}{text}{trace}"));
        }
        for DeliveryStatus { destination, state, text } in &self.now {
            lines.add("now", &format!("{destination}: {}. {text}", state.as_str()));
        }
        let traces: BTreeSet<_> = self.history.iter().filter_map(|event| event.trace_url.as_ref()).collect();
        for page in self.request_url.iter().chain(traces) {
            lines.add("see", page);
        }
        lines.0
    }
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
    use super::*;

    fn explanation(links: &Links) -> Explanation {
        let at = DateTime::from_timestamp_millis(1_767_225_600_123).unwrap();
        let event = |destination: Option<&str>, text: &str| Event {
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
        Explanation::new(history, links)
    }

    #[test]
    fn text_has_one_line_per_event_even_if_an_error_contains_control_characters() {
        let expected = "\
2026-01-01 00:00:00.123 UTC  accepted [trace 0af7651916cd43dd8448eb211c80319c]
2026-01-01 00:00:00.123 UTC  three: failed: \u{fffd}[2J\u{fffd}\u{fffd}now [trace 0af7651916cd43dd8448eb211c80319c]
now                          three: retrying. Attempt 2 is due.
";
        assert_eq!(explanation(&Links::default()).to_text(), expected);
    }

    #[test]
    fn each_configured_page_is_linked_once() {
        let links = Links {
            trace: Some("http://h/t/{trace_id}".to_owned()),
            request: Some("http://h/r/{request_id}".to_owned()),
        };
        let explanation = explanation(&links);
        let trace = "http://h/t/0af7651916cd43dd8448eb211c80319c";
        let text = explanation.to_text();
        let pages: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("see")).map(str::trim).collect();
        assert_eq!(pages, ["http://h/r/00000000000000000042", trace]);
        assert_eq!(explanation.history[1].trace_url.as_deref(), Some(trace));
    }
}
