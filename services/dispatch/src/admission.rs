//! What comes before the work on a delivery: it lines up where order is kept, and waits for room.

use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_kafka::Record;
use throughline_messages::DeferralCause;

use crate::destination::Destination;
use crate::gate::Hold;
use crate::lanes::{Key, Place};
use crate::no_call::NoCall;
use crate::room::Taken;
use crate::routing::Target;
use crate::work::Deliveries;

/// Leave to work on a delivery to a destination, until it is dropped: its turn in its lane, and its share of what is
/// in work and in memory.
pub(crate) struct Admission<'a> {
    pub(crate) destination: &'a Destination,
    _place: Option<Place>,
    _share: Taken,
    _bytes: Taken,
}

/// Where a delivery stands before it is admitted, or why it has no place there.
pub(crate) type Spot = Result<Standing, Hold>;

/// A delivery that waits to be admitted.
pub(crate) struct Standing {
    /// In a lane; none if no order is kept.
    place: Option<Place>,
    /// None if there is no destination.
    bytes: Option<Taken>,
}

impl Standing {
    /// Whether it waits for others of its key.
    pub(crate) fn is_in_lane(&self) -> bool {
        self.place.is_some()
    }
}

/// Takes room for the record's bytes at each destination, and a place, if the record has an ordering key: one that is
/// not its id.
pub(crate) fn line_up(record: &Record, deliveries: &Deliveries) -> Vec<Spot> {
    deliveries.targets.iter().map(|target| line_up_at(target, record, deliveries)).collect()
}

/// Takes room and a place at one destination.
pub(crate) fn line_up_at(target: &Target, record: &Record, deliveries: &Deliveries) -> Spot {
    let request = &deliveries.request;
    let key = record.key.as_ref().filter(|key| **key != request.id.to_string().as_bytes());
    let Target::Destination(destination) = target else {
        return Ok(Standing { place: None, bytes: None });
    };
    let bytes = destination.gate.hold(record.payload.len())?;
    let place = key.map(|key| destination.line_up(Key { route: request.route.clone(), key: key.clone() }));
    Ok(Standing { place: place.transpose().map_err(key_busy)?, bytes: Some(bytes) })
}

fn key_busy(wait: Duration) -> Hold {
    Hold { cause: DeferralCause::KeyBusy, wait }
}

impl<'a> Admission<'a> {
    /// Waits until the turn of a delivery, whose time began at `since`, has come in its lane, and there is room for its
    /// work.
    ///
    /// # Errors
    /// Why there is nothing to attempt now, or at all.
    pub(crate) async fn wait(
        target: &'a Target,
        spot: Spot,
        since: DateTime<Utc>,
        clock: &Clock,
    ) -> Result<Self, NoCall> {
        let Standing { mut place, bytes } = spot?;
        let (Target::Destination(destination), Some(bytes)) = (target, bytes) else {
            return Err(NoCall::unknown(target.name(), since, clock.now()));
        };
        let gate = &destination.gate;
        if let Some(place) = &mut place {
            place.turn(|| gate.limits().is_slow()).await.map_err(key_busy)?;
        }
        let share = gate.admit().await?;
        if let Some(place) = &mut place {
            place.begin();
        }
        Ok(Self { destination, _place: place, _share: share, _bytes: bytes })
    }
}
