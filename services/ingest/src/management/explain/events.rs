//! The events of a request.

use chrono::{DateTime, Utc};
use throughline_api::{Attempt, AttemptOutcome, DeliveryState};
use throughline_messages::{DeadReason, DeferralCause, ErrorClass, TraceContext};
use throughline_store::{StoredDelivery, StoredRequest, StoredStatus};

use super::Event;
use super::format::count;

/// Returns all known events, in order. Their times come from several clocks, so the events of each delivery keep the
/// order in which they must have happened.
pub(super) fn events(status: &StoredStatus) -> Vec<Event> {
    let accepted = accepted(&status.request);
    let mut sorted = Vec::new();
    for delivery in &status.deliveries {
        let mut latest = accepted.at;
        for event in of_delivery(delivery, accepted.at) {
            latest = latest.max(event.at);
            sorted.push((latest, event));
        }
    }
    sorted.sort_by_key(|(latest, _)| *latest);
    let mut events = vec![accepted];
    events.extend(sorted.into_iter().map(|(_, event)| event));
    events
}

fn accepted(request: &StoredRequest) -> Event {
    let how = match (&request.client, &request.origin) {
        (_, Some(origin)) => format!("adopted from record {origin}"),
        (Some(client), None) => format!("accepted from client `{client}`"),
        (None, None) => "accepted".to_owned(),
    };
    let key = request.ordering_key.as_ref().map(|key| format!(", ordering key `{key}`"));
    let text = format!(
        "{how} on route `{}` by node {}: {} of {}{}",
        request.route,
        request.id.node(),
        count(request.body_bytes, "byte"),
        request.content_type,
        key.unwrap_or_default()
    );
    let trace_id = request.trace.as_ref().and_then(TraceContext::trace_id).map(str::to_owned);
    Event { at: request.accepted_at, destination: None, text, trace_id }
}

fn of_delivery(delivery: &StoredDelivery, accepted_at: DateTime<Utc>) -> Vec<Event> {
    let mut events = attempts(delivery);
    if delivery.window_started_at != accepted_at {
        insert(&mut events, restarted(delivery));
    }
    // `published_at` begins as the time of acceptance: the time of the first publication is not recorded.
    if let Some(at) = delivery.published_at.filter(|at| *at != accepted_at) {
        insert(&mut events, event(delivery, at, "published to Kafka again"));
    }
    events.extend(end(delivery));
    events
}

fn event(delivery: &StoredDelivery, at: DateTime<Utc>, text: impl Into<String>) -> Event {
    Event { at, destination: Some(delivery.destination.clone()), text: text.into(), trace_id: None }
}

/// Inserts an event before the first later one.
fn insert(events: &mut Vec<Event>, event: Event) {
    let index = events.iter().position(|other| other.at >= event.at).unwrap_or(events.len());
    events.insert(index, event);
}

fn attempts(delivery: &StoredDelivery) -> Vec<Event> {
    let mut before: Option<&Attempt> = None;
    let mut events = Vec::with_capacity(delivery.attempts.len());
    for attempt in &delivery.attempts {
        let text = attempted(attempt, before);
        let trace_id = attempt.trace_id.clone();
        events.push(Event { trace_id, ..event(delivery, attempt.started_at, text) });
        before = Some(attempt);
    }
    events
}

fn attempted(attempt: &Attempt, before: Option<&Attempt>) -> String {
    let number = attempt.number;
    let is_same = before.is_some_and(|before| before.number == number);
    let is_replayed = before.is_some_and(|before| before.outcome == AttemptOutcome::Dead) && !is_same;
    let again = match (is_same, is_replayed) {
        (true, _) => " (repeated)",
        (false, true) => " (after a replay)",
        (false, false) => "",
    };
    let origin = attempt.origin.as_ref().map(|origin| format!(", from record {origin},"));
    let what = format!("attempt {number}{again}{}", origin.unwrap_or_default());
    let took = format!("after {} ms", attempt.duration_ms);
    let why = || {
        let error = attempt.error.as_deref().unwrap_or("unknown error");
        let class = attempt.error_class.as_ref().map(ErrorClass::as_str).map(|class| format!(" ({class})"));
        format!("{error}{}", class.unwrap_or_default())
    };
    match (attempt.outcome, attempt.status) {
        (AttemptOutcome::Delivered, Some(status)) => {
            format!("{what} was answered with {status} {took}: delivered")
        }
        (AttemptOutcome::Delivered, None) => format!("{what} succeeded {took}: delivered"),
        (AttemptOutcome::Dead, _) => format!("{what} failed {took}: {}; no retry follows", why()),
        (AttemptOutcome::Retry, _) => format!("{what} failed {took}: {}; a retry is scheduled", why()),
        (AttemptOutcome::Other(name), _) => format!("{what} ended {took}: {}", name.as_str()),
    }
}

/// The delivery's window began after its request was accepted: it was replayed, or it waited for its turn.
fn restarted(delivery: &StoredDelivery) -> Event {
    let has_died = delivery.attempts.iter().any(|attempt| attempt.outcome == AttemptOutcome::Dead);
    let waits = delivery.deferred_by == Some(DeferralCause::Order);
    let text = match (&delivery.ordering_group, has_died) {
        (Some(_), false) => "its turn came: all earlier deliveries with its ordering key had ended",
        (Some(_), true) if !waits => "replayed, and its turn came: its attempts and its time window restart",
        _ => "replayed: its attempts and its time window restart",
    };
    event(delivery, delivery.window_started_at, text)
}

fn end(delivery: &StoredDelivery) -> Option<Event> {
    let text = match delivery.state {
        DeliveryState::Pending | DeliveryState::Retrying => return None,
        DeliveryState::Delivered => "delivered".to_owned(),
        DeliveryState::Cancelled => "cancelled".to_owned(),
        DeliveryState::Dead => {
            format!("dead, reason `{}`", delivery.reason.as_ref().map_or("unknown", DeadReason::as_str))
        }
    };
    Some(event(delivery, delivery.updated_at, text))
}
