//! What happened to a request.

use chrono::{DateTime, Utc};
use throughline_messages::TraceContext;
use throughline_store::{DeliveryState, StoredAttempt, StoredDelivery, StoredRequest, StoredStatus};

use super::Event;
use super::words::count;

/// All that is known to have happened, in order. Times are of several clocks: of each delivery the order is that in
/// which it must have been.
pub(super) fn events(status: &StoredStatus) -> Vec<Event> {
    let accepted = accepted(&status.request);
    let mut placed = Vec::new();
    for delivery in &status.deliveries {
        let mut place = accepted.at;
        for event in of_delivery(delivery, accepted.at) {
            place = place.max(event.at);
            placed.push((place, event));
        }
    }
    placed.sort_by_key(|(place, _)| *place);
    let mut events = vec![accepted];
    events.extend(placed.into_iter().map(|(_, event)| event));
    events
}

fn accepted(request: &StoredRequest) -> Event {
    let how = match (&request.client, &request.origin) {
        (_, Some(origin)) => format!("adopted from the record {origin}"),
        (Some(client), None) => format!("accepted from the client `{client}`"),
        (None, None) => "accepted".to_owned(),
    };
    let key = request.ordering_key.as_ref().map(|key| format!(", with the ordering key `{key}`"));
    let text = format!(
        "{how} by the route `{}`, on node {}: {} of {}{}",
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
    if delivery.since != accepted_at {
        insert(&mut events, begun_anew(delivery));
    }
    // When it was published first is not known; whoever accepts it does so.
    if let Some(at) = delivery.published_at.filter(|at| *at != accepted_at) {
        insert(&mut events, event(delivery, at, "published to Kafka again"));
    }
    events.extend(end(delivery));
    events
}

fn event(delivery: &StoredDelivery, at: DateTime<Utc>, text: impl Into<String>) -> Event {
    Event { at, destination: Some(delivery.destination.clone()), text: text.into(), trace_id: None }
}

/// Before the first one that came later.
fn insert(events: &mut Vec<Event>, event: Event) {
    let place = events.iter().position(|other| other.at >= event.at).unwrap_or(events.len());
    events.insert(place, event);
}

fn attempts(delivery: &StoredDelivery) -> Vec<Event> {
    let mut before: Option<&StoredAttempt> = None;
    let mut events = Vec::with_capacity(delivery.attempts.len());
    for attempt in &delivery.attempts {
        let text = attempted(attempt, before);
        let trace_id = attempt.trace_id.clone();
        events.push(Event { trace_id, ..event(delivery, attempt.started_at, text) });
        before = Some(attempt);
    }
    events
}

fn attempted(attempt: &StoredAttempt, before: Option<&StoredAttempt>) -> String {
    let number = attempt.number;
    let is_same = before.is_some_and(|before| before.number == number);
    let is_replayed = before.is_some_and(|before| before.outcome == "dead") && !is_same;
    let again = match (is_same, is_replayed) {
        (true, _) => " once more",
        (false, true) => " after a replay",
        (false, false) => "",
    };
    let origin = attempt.origin.as_ref().map(|origin| format!(", by the record {origin},"));
    let what = format!("attempt {number}{again}{}", origin.unwrap_or_default());
    let took = format!("after {} ms", attempt.duration_ms);
    let why = || {
        let error = attempt.error.as_deref().unwrap_or("for a reason that is not known");
        let class = attempt.error_class.as_ref().map(|class| format!(" ({class})"));
        format!("{error}{}", class.unwrap_or_default())
    };
    match (attempt.outcome.as_str(), attempt.status) {
        ("delivered", Some(status)) => format!("{what} was answered {status} {took}: delivered"),
        ("dead", _) => format!("{what} failed {took}: {}; it is given up", why()),
        ("retry", _) => format!("{what} failed {took}: {}; it is to be made again", why()),
        (other, _) => format!("{what} ended {took}: {other}"),
    }
}

/// Its time began later than when it was accepted: it was replayed, or waited for its turn.
fn begun_anew(delivery: &StoredDelivery) -> Event {
    let has_died = delivery.attempts.iter().any(|attempt| attempt.outcome == "dead");
    let waits = delivery.deferred_by.as_deref() == Some("order");
    let text = match (&delivery.lane, has_died) {
        (Some(_), false) => "its turn came: those before it with its ordering key had ended",
        (Some(_), true) if !waits => {
            "it was replayed, and its turn came: its attempts and its time begin anew"
        }
        _ => "it was replayed: its attempts and its time begin anew",
    };
    event(delivery, delivery.since, text)
}

fn end(delivery: &StoredDelivery) -> Option<Event> {
    let text = match delivery.state {
        DeliveryState::Pending | DeliveryState::Retrying => return None,
        DeliveryState::Delivered => "delivered".to_owned(),
        DeliveryState::Cancelled => "cancelled: it was called off".to_owned(),
        DeliveryState::Dead => {
            format!("dead, with the reason `{}`", delivery.reason.as_deref().unwrap_or("unknown"))
        }
    };
    Some(event(delivery, delivery.updated_at, text))
}
