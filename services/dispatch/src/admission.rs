//! Admits deliveries to work: a delivery joins the queue of its ordering key, if it has one, then waits for a share of
//! the budget.

use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_destination::Deferral;
use throughline_kafka::Record;
use throughline_messages::DeferralCause;

use crate::destination::Destination;
use crate::fair_share::SharePermit;
use crate::key_queues::{OrderingKey, QueueTicket};
use crate::not_attempted::NotAttempted;
use crate::routing::RouteTarget;
use crate::work::Deliveries;

/// Permission to work on a delivery to a destination, until it is dropped: the first place in its key queue, and its
/// shares of the budgets for deliveries in work and for bytes in memory.
pub(crate) struct Admission<'a> {
    pub(crate) destination: &'a Destination,
    _ticket: Option<QueueTicket>,
    _share: SharePermit,
    _bytes: SharePermit,
}

/// A delivery that waits to be admitted, or the reason why it is deferred instead.
pub(crate) type Queued = Result<QueuedDelivery, Deferral>;

/// A delivery that waits to be admitted.
pub(crate) struct QueuedDelivery {
    /// Its ticket in a key queue; none if no order is kept.
    ticket: Option<QueueTicket>,
    /// Its share of the budget for bytes; none if the destination is unknown.
    bytes: Option<SharePermit>,
}

impl QueuedDelivery {
    /// Returns whether the delivery is in a key queue.
    pub(crate) fn is_in_key_queue(&self) -> bool {
        self.ticket.is_some()
    }
}

/// Takes a share of the bytes for the record at each destination and, if the record has an ordering key, a ticket in
/// its key queue. A record's key is an ordering key unless it is the request's id.
pub(crate) fn enqueue(record: &Record, deliveries: &Deliveries) -> Vec<Queued> {
    deliveries.targets.iter().map(|target| enqueue_at(target, record, deliveries)).collect()
}

/// Takes a share of the bytes and a ticket at one destination.
pub(crate) fn enqueue_at(target: &RouteTarget, record: &Record, deliveries: &Deliveries) -> Queued {
    let request = &deliveries.request;
    let key = record.key.as_ref().filter(|key| **key != request.id.to_string().as_bytes());
    let RouteTarget::Destination(destination) = target else {
        return Ok(QueuedDelivery { ticket: None, bytes: None });
    };
    let bytes = destination.gate.take_bytes(record.payload.len())?;
    let ticket =
        key.map(|key| destination.enqueue(OrderingKey { route: request.route.clone(), key: key.clone() }));
    Ok(QueuedDelivery { ticket: ticket.transpose().map_err(key_busy)?, bytes: Some(bytes) })
}

fn key_busy(wait: Duration) -> Deferral {
    Deferral { cause: DeferralCause::KeyBusy, wait }
}

impl<'a> Admission<'a> {
    /// Waits until the delivery is the first in its key queue, and until the budget has a share for its work. The
    /// delivery's window began at `window_started_at`.
    ///
    /// # Errors
    /// If the delivery cannot be attempted now, or at all.
    pub(crate) async fn wait(
        target: &'a RouteTarget,
        queued: Queued,
        window_started_at: DateTime<Utc>,
        clock: &Clock,
    ) -> Result<Self, NotAttempted> {
        let QueuedDelivery { mut ticket, bytes } = queued?;
        let (RouteTarget::Destination(destination), Some(bytes)) = (target, bytes) else {
            return Err(NotAttempted::unknown(target.name(), window_started_at, clock.now()));
        };
        let gate = &destination.gate;
        if let Some(ticket) = &mut ticket {
            ticket.wait(|| gate.limits().is_slow()).await.map_err(key_busy)?;
        }
        let share = gate.admit().await?;
        if let Some(ticket) = &mut ticket {
            ticket.begin();
        }
        Ok(Self { destination, _ticket: ticket, _share: share, _bytes: bytes })
    }
}
