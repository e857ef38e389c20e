//! Where a delivery stands, in the words of `docs/operations.md`.

use chrono::{DateTime, Utc};
use serde::de::value::{self, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use throughline_messages::{DeadReason, DeferralCause};
use throughline_snowflake::NodeId;
use throughline_store::{DeliveryState, StoredDelivery};

use super::words::{count, due, time};
use super::{Found, Standing};

pub(super) fn standing(found: &Found, delivery: &StoredDelivery, now: DateTime<Utc>) -> Standing {
    let text = match delivery.state {
        DeliveryState::Delivered => "The third party has it. This is final.".to_owned(),
        DeliveryState::Cancelled => {
            "It was called off. A call that was on its way may still have reached the \
             third party: then it is delivered."
                .to_owned()
        }
        DeliveryState::Dead => dead(found, delivery),
        DeliveryState::Pending | DeliveryState::Retrying => Waiting { found, delivery, now }.text(),
    };
    Standing { destination: delivery.destination.clone(), state: delivery.state, text }
}

/// Why it is dead, and what to do.
fn dead(found: &Found, delivery: &StoredDelivery) -> String {
    let reason = delivery.reason.as_deref().unwrap_or_default();
    let (why, cure) = match named(reason) {
        Some(DeadReason::Rejected) => (
            "the third party's answer is final",
            "Mend the request's sender or the destination's configuration, or say with `statuses` that this \
             answer means something else",
        ),
        Some(DeadReason::AttemptsExhausted) => {
            ("`retry.attempts` failed", "See whether the third party is well again")
        }
        Some(DeadReason::Expired) => (
            "`retry.window` was over before it could be delivered",
            "See whether the third party is well again",
        ),
        Some(DeadReason::Untransformable) => {
            ("the destination's `filter` fails on this body", "Mend the filter")
        }
        Some(DeadReason::Unroutable) => {
            ("the configuration knows no such route or destination", "Bring it back")
        }
        Some(DeadReason::Unpublishable) => {
            ("Kafka refuses the record", "Raise the topic's `max.message.bytes`")
        }
        Some(DeadReason::Malformed) => {
            ("a header of its record cannot be used", "See whether all services are of the same version")
        }
        Some(DeadReason::Internal) => ("dispatch panicked at it twice, which is a defect", "Report it"),
        Some(DeadReason::Other(_)) | None => ("this version does not know it", "Ask one that does"),
    };
    let last = delivery.last_error.as_ref().map(|error| format!(" The last error: {error}."));
    format!(
        "`{reason}`: {why}.{} {cure}; then replay it: `throughline dead-letters replay {} {}`. See \"Why a \
         delivery is dead\" in docs/operations.md.",
        last.unwrap_or_default(),
        found.status.request.id,
        delivery.destination
    )
}

/// What is known by this name.
fn named<T: DeserializeOwned>(name: &str) -> Option<T> {
    let name: StrDeserializer<'_, value::Error> = name.into_deserializer();
    T::deserialize(name).ok()
}

/// A delivery that has not ended.
struct Waiting<'a> {
    found: &'a Found,
    delivery: &'a StoredDelivery,
    now: DateTime<Utc>,
}

impl Waiting<'_> {
    fn text(&self) -> String {
        let StoredDelivery { deferred_by, published_at, .. } = self.delivery;
        match (deferred_by.as_deref(), self.found.outbox, published_at) {
            (Some("order"), _, _) => self.for_its_turn(),
            (Some(cause), _, _) => self.for_its_cause(cause),
            (None, Some(node), _) => for_kafka(node),
            (None, None, Some(published_at)) => self.for_news(*published_at),
            (None, None, None) => self.for_its_time(),
        }
    }

    fn for_its_turn(&self) -> String {
        let Some(ahead) = self.found.ahead.get(&self.delivery.destination) else {
            return "Its turn has just come: those before it with its ordering key have ended.".to_owned();
        };
        let first = ahead.first;
        format!(
            "It waits for its turn, because its route keeps the order (`after_failure: hold`): {} with its \
             ordering key {} before it, and request {first} is the one whose turn it is. It goes on by itself \
             when they have ended. Look at that one, `throughline explain {first}`, and call it off if nobody \
             needs it.",
            count(ahead.count, "request"),
            if ahead.count == 1 { "is" } else { "are" }
        )
    }

    fn for_its_cause(&self, cause: &str) -> String {
        let (why, cure) = match named(cause) {
            Some(DeferralCause::BreakerOpen) => (
                "the third party has failed too often, so that its breaker is open; a few calls probe it",
                "See what it answers. When it is back, what waits is let go by itself, twice as much each second",
            ),
            Some(DeferralCause::Limit) => (
                "the destination is called as much as it may be (`limits`)",
                "Raise the limits if the third party can take more",
            ),
            Some(DeferralCause::KeyBusy) => (
                "too many with its ordering key are before it in dispatch, for one call at a time",
                "It is published then, and lines up again. If it is put off again and again, see how long the third \
                 party takes for a call, and whether so many need the same key",
            ),
            Some(DeferralCause::TokenUnavailable) => (
                "the token endpoint does not answer",
                "See after the token endpoint; it is asked again every few seconds",
            ),
            Some(DeferralCause::TokenRefused) => (
                "the token endpoint refuses our credentials",
                "Mend `oauth2` of the destination and restart dispatch, or have the client's rights mended",
            ),
            Some(DeferralCause::UnknownDestination) => (
                "dispatch's configuration has no such destination, or not yet",
                "Restart each dispatch with a configuration that has it. After an hour the delivery ends as `unroutable`",
            ),
            Some(DeferralCause::Other(_)) | None => ("this version does not know it", "Ask one that does"),
        };
        let due = self.due().map(|due| format!(" It may go on {due}.")).unwrap_or_default();
        format!(
            "It waits, as `{cause}`, which costs no attempt: {why}.{due}{} {cure}.{}",
            self.release(),
            self.expiry()
        )
    }

    /// When its destination's hold lets some go.
    fn release(&self) -> String {
        let destination = &self.delivery.destination;
        let Some(release) = self.found.releases.get(destination) else { return String::new() };
        let next = if release.count == 1 {
            "The next one that waits".to_owned()
        } else {
            format!("The next {} that wait", release.count)
        };
        format!(
            " {next} for `{destination}` may go {}, the longest overdue first.",
            due(release.at, self.now)
        )
    }

    fn for_news(&self, published_at: DateTime<Utc>) -> String {
        let attempt = self.next_attempt();
        let published = if published_at == self.found.status.request.accepted_at {
            "Kafka has acknowledged it".to_owned()
        } else {
            format!("It was published again at {}", time(published_at))
        };
        match self.delivery.due_at {
            Some(due_at) if due_at > self.now => format!(
                "{published}, and nothing was heard of attempt {attempt} yet: dispatch has still to come to it, \
                 or is at it. If nothing is heard until then, it is published again {}, or later, \
                 once dispatch has come past it.",
                due(due_at, self.now)
            ),
            _ => format!(
                "{published}, and nothing was heard of attempt {attempt} for `ingest.patience`. It is published \
                 again as soon as dispatch has come past it: see that dispatch runs, and how far behind it is."
            ),
        }
    }

    fn for_its_time(&self) -> String {
        let attempt = self.next_attempt();
        let due = self.due().unwrap_or_default();
        let how = if self.delivery.due_at.is_some_and(|due_at| due_at > self.now) {
            "it is published then, and made when dispatch comes to it."
        } else {
            "it is published as soon as Kafka takes it. If this lasts, see whether ingest runs and Kafka is there."
        };
        format!("Attempt {attempt} is due {due}: {how}{}", self.expiry())
    }

    fn next_attempt(&self) -> u32 {
        self.delivery.attempt_count + 1
    }

    fn due(&self) -> Option<String> {
        Some(due(self.delivery.due_at?, self.now))
    }

    /// When its time is over.
    fn expiry(&self) -> String {
        let window = self.found.windows.get(&self.delivery.destination);
        let ends_at = window.and_then(|window| self.delivery.since.checked_add_signed(*window));
        match ends_at {
            Some(ends_at) => {
                format!(" It ends dead, as `expired`, if it is not delivered by {}.", time(ends_at))
            }
            None => String::new(),
        }
    }
}

fn for_kafka(node: NodeId) -> String {
    format!(
        "It is committed, and Kafka has not acknowledged it: node {node} publishes it as soon as Kafka takes it. \
         If this lasts, see whether Kafka is there; `/readyz` of ingest tells."
    )
}
