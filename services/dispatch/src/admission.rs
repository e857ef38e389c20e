//! What comes before the work on a delivery: it lines up where order is kept, and waits for room.

use throughline_kafka::Record;
use throughline_messages::DeferralCause;

use crate::destination::Destination;
use crate::gate::Hold;
use crate::lanes::{self, Key, Place, Spot};
use crate::no_call::NoCall;
use crate::room::Taken;
use crate::routing::Target;
use crate::work::Deliveries;

/// Leave to work on a delivery to a destination, until it is dropped: its turn in its lane, and its share of what is
/// in work.
pub(crate) struct Admission<'a> {
    pub(crate) destination: &'a Destination,
    _place: Option<Place>,
    _share: Taken,
}

/// Takes a place at each destination, if the record has an ordering key: one that is not its id.
pub(crate) fn line_up(record: &Record, deliveries: &Deliveries) -> Vec<Spot> {
    let Deliveries { request, targets, .. } = deliveries;
    let key = record.key.as_ref().filter(|key| **key != request.id.to_string().as_bytes());
    let spot = |target: &Target| match (key, target) {
        (Some(key), Target::Destination(destination)) => {
            destination.line_up(Key { route: request.route.clone(), key: key.clone() }).map(Some)
        }
        (None, _) | (_, Target::Unknown(_)) => Ok(None),
    };
    targets.iter().map(spot).collect()
}

impl<'a> Admission<'a> {
    /// Waits until a delivery's turn in its lane has come, and there is room for its work.
    ///
    /// # Errors
    /// Why there is nothing to attempt now, or at all.
    pub(crate) async fn wait(target: &'a Target, spot: Spot) -> Result<Self, NoCall> {
        let destination = match target {
            Target::Destination(destination) => destination,
            Target::Unknown(name) => return Err(NoCall::unroutable(name)),
        };
        let busy = |wait| Hold { cause: DeferralCause::KeyBusy, wait };
        let place = lanes::turn(spot).await.map_err(busy)?;
        let share = destination.take_share().await?;
        Ok(Self { destination, _place: place, _share: share })
    }
}
