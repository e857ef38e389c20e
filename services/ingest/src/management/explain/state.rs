//! The current state of a delivery, in the terms of `docs/operations.md`.

use chrono::{DateTime, Utc};
use throughline_api::DeliveryState;
use throughline_messages::{DeadReason, DeferralCause};
use throughline_snowflake::NodeId;
use throughline_store::StoredDelivery;

use super::format::{count, due, time};
use super::{CurrentState, Facts};

pub(super) fn state(facts: &Facts, delivery: &StoredDelivery, now: DateTime<Utc>) -> CurrentState {
    let text = match delivery.state {
        DeliveryState::Delivered => "The third party accepted it. This is final.".to_owned(),
        DeliveryState::Cancelled => {
            "It was cancelled. A call in progress may still have reached the third party: then its state becomes \
             `delivered`."
                .to_owned()
        }
        DeliveryState::Dead => dead(facts, delivery),
        DeliveryState::Pending | DeliveryState::Retrying => OpenDelivery { facts, delivery, now }.text(),
    };
    CurrentState { destination: delivery.destination.clone(), state: delivery.state, text }
}

/// Explains why the delivery is dead, and how to fix it.
fn dead(facts: &Facts, delivery: &StoredDelivery) -> String {
    let (why, cure) = match delivery.reason {
        Some(DeadReason::Rejected) => (
            "the third party's response is final",
            match delivery.last_status {
                Some(_) => {
                    "Fix the sender of the request or the configuration of the destination, or give this status \
                     another meaning with `statuses`"
                }
                None => "Fix the sender of the request or the configuration of the destination",
            },
        ),
        Some(DeadReason::AttemptsExhausted) => {
            ("`retry.attempts` attempts failed", "Check that the third party has recovered")
        }
        Some(DeadReason::Expired) => {
            ("`retry.window` passed before it could be delivered", "Check that the third party has recovered")
        }
        Some(DeadReason::Untransformable) => {
            ("the destination's `filter` fails on this body", "Fix the filter")
        }
        Some(DeadReason::Unroutable) => ("the configuration has no such route or destination", "Restore it"),
        Some(DeadReason::Unpublishable) => {
            ("Kafka refuses the record", "Raise the topic's `max.message.bytes`")
        }
        Some(DeadReason::Malformed) => {
            ("a header of its record is invalid", "Check that all services run the same version")
        }
        Some(DeadReason::Internal) => {
            ("dispatch panicked twice while processing it, which is a defect", "Report the defect")
        }
        Some(DeadReason::Other(_)) | None => {
            ("unknown to this version", "Query a newer instance to interpret it")
        }
    };
    let last = delivery.last_error.as_ref().map(|error| format!(" Last error: {error}."));
    format!(
        "`{}`: {why}.{} {cure}; then replay it: `throughline dead-letters replay {} {}`. See \"Why a \
         delivery is dead\" in docs/operations.md.",
        delivery.reason.as_ref().map_or("", DeadReason::as_str),
        last.unwrap_or_default(),
        facts.status.request.id,
        delivery.destination
    )
}

/// A delivery that has not ended.
struct OpenDelivery<'a> {
    facts: &'a Facts,
    delivery: &'a StoredDelivery,
    now: DateTime<Utc>,
}

impl OpenDelivery<'_> {
    fn text(&self) -> String {
        let StoredDelivery { deferred_by, published_at, .. } = self.delivery;
        match (deferred_by, self.facts.outbox, published_at) {
            (Some(cause), _, _) => self.for_its_cause(*cause),
            (None, Some(node), _) => for_kafka(node),
            (None, None, Some(published_at)) => self.for_outcome(*published_at),
            (None, None, None) => self.for_due_time(),
        }
    }

    fn for_its_turn(&self) -> String {
        let Some(ahead) = self.facts.ahead.get(&self.delivery.destination) else {
            return "Its turn has come: all earlier deliveries with its ordering key have ended.".to_owned();
        };
        let first = ahead.first;
        format!(
            "It waits for its turn because its route preserves the order (`ordering: strict`): {} with its \
             ordering key {} ahead of it, and it is the turn of request {first}. It continues automatically when \
             they have ended. Check that request with `throughline explain {first}`, and cancel it if it is no \
             longer needed.",
            count(ahead.count, "request"),
            if ahead.count == 1 { "is" } else { "are" }
        )
    }

    fn for_its_cause(&self, cause: DeferralCause) -> String {
        let (why, cure) = match cause {
            DeferralCause::BreakerOpen => (
                "the third party has failed too often, so its breaker is open; a few calls probe it",
                "Check its responses. When it has recovered, the waiting deliveries are released automatically, \
                 twice as many each second",
            ),
            DeferralCause::Limit => (
                "the destination has reached its `limits`",
                "Raise the limits if the third party can take more",
            ),
            DeferralCause::KeyBusy => (
                "too many deliveries with its ordering key are ahead of it in dispatch, and a key allows one call at \
                 a time",
                "It is then published and queued again. If it keeps being deferred, check how long the third party \
                 takes for a call, and whether that many requests need the same key",
            ),
            DeferralCause::TokenUnavailable => (
                "the token endpoint does not answer",
                "Check the token endpoint; dispatch retries every few seconds",
            ),
            DeferralCause::TokenRefused => (
                "the token endpoint rejects our credentials",
                "Correct `oauth2` of the destination and restart dispatch, or get the client's permissions restored",
            ),
            DeferralCause::UnknownDestination => (
                "the configuration of dispatch does not have this destination, or not yet",
                "Restart every dispatch with a configuration that has it. After an hour the delivery ends dead as \
                 `unroutable`",
            ),
            DeferralCause::Order => return self.for_its_turn(),
            DeferralCause::Other(_) => ("unknown to this version", "Query a newer instance to interpret it"),
        };
        let due = self.due().map(|due| format!(" It can continue {due}.")).unwrap_or_default();
        format!(
            "It is deferred by `{}`, which costs no attempt: {why}.{due}{} {cure}.{}",
            cause.as_str(),
            self.release(),
            self.expiry()
        )
    }

    /// Describes when the slow start of the delivery's destination releases the next deliveries.
    fn release(&self) -> String {
        let destination = &self.delivery.destination;
        let Some(release) = self.facts.releases.get(destination) else { return String::new() };
        let next = if release.count == 1 {
            "The next delivery that waits".to_owned()
        } else {
            format!("The next {} deliveries that wait", release.count)
        };
        format!(
            " {next} for `{destination}` can continue {}, the longest overdue first.",
            due(release.at, self.now)
        )
    }

    fn for_outcome(&self, published_at: DateTime<Utc>) -> String {
        let attempt = self.next_attempt();
        let published = if published_at == self.facts.status.request.accepted_at {
            "Kafka has acknowledged it".to_owned()
        } else {
            format!("It was published again at {}", time(published_at))
        };
        match self.delivery.due_at {
            Some(due_at) if due_at > self.now => format!(
                "{published}. Attempt {attempt} has no outcome yet: it is queued for dispatch or being attempted now. \
                 If no outcome arrives, it is published again {}, or later, once dispatch has passed its record.",
                due(due_at, self.now)
            ),
            _ => format!(
                "{published}. Attempt {attempt} has had no outcome for `ingest.redelivery_timeout`: it is published \
                 again as soon as dispatch has passed its record. Check that dispatch runs, and how far behind it is."
            ),
        }
    }

    fn for_due_time(&self) -> String {
        let attempt = self.next_attempt();
        let due = self.due().unwrap_or_default();
        let how = if self.delivery.due_at.is_some_and(|due_at| due_at > self.now) {
            "it is then published, and dispatch makes it when it reaches the record."
        } else {
            "it is published as soon as Kafka accepts it. If this persists, check that ingest runs and that Kafka is \
             reachable."
        };
        format!("Attempt {attempt} is due {due}: {how}{}", self.expiry())
    }

    fn next_attempt(&self) -> u32 {
        self.delivery.attempt_count + 1
    }

    fn due(&self) -> Option<String> {
        Some(due(self.delivery.due_at?, self.now))
    }

    /// Describes when the delivery expires.
    fn expiry(&self) -> String {
        let window = self.facts.windows.get(&self.delivery.destination);
        let ends_at = window.and_then(|window| self.delivery.window_started_at.checked_add_signed(*window));
        match ends_at {
            Some(ends_at) => {
                format!(" It ends dead as `expired` if it is not delivered by {}.", time(ends_at))
            }
            None => String::new(),
        }
    }
}

fn for_kafka(node: NodeId) -> String {
    format!(
        "It is committed, but Kafka has not acknowledged it: node {node} publishes it as soon as Kafka accepts it. \
         If this persists, check that Kafka is reachable; `/readyz` of ingest reports it."
    )
}
