use std::collections::BTreeMap;

use chrono::TimeDelta;
use throughline_messages::DeferralCause;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::order::{self, Ahead};
use throughline_store::slow_starts::{self, Release};
use throughline_store::{Store, StoreError, StoredStatus, outbox, requests};

/// The data for the explanation of a request.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) status: StoredStatus,
    /// The node that must publish the request; `None` once Kafka has acknowledged it.
    pub(crate) outbox: Option<NodeId>,
    /// The deliveries ahead of those that wait for their turn, by destination.
    pub(crate) ahead: BTreeMap<String, Ahead>,
    /// The next release of the deliveries that wait for their destination, by destination.
    pub(crate) releases: BTreeMap<String, Release>,
    /// The delivery windows of the destinations.
    pub(crate) windows: BTreeMap<String, TimeDelta>,
}

/// Reads the data from the database; returns `None` if there is no such request.
///
/// # Errors
/// If the database cannot be queried.
pub(crate) async fn find(
    store: &Store,
    id: RequestId,
    windows: &BTreeMap<String, TimeDelta>,
) -> Result<Option<Facts>, StoreError> {
    let connection = store.connection();
    let Some(status) = requests::find(connection, id).await? else { return Ok(None) };
    let (mut ahead, mut releases) = (BTreeMap::new(), BTreeMap::new());
    for delivery in &status.deliveries {
        let destination = &delivery.destination;
        match delivery.deferred_by {
            Some(DeferralCause::Order) => {
                let first = order::ahead(connection, id, destination).await?;
                ahead.extend(first.map(|first| (destination.clone(), first)));
            }
            // A delivery with a busy key waits for its due time, even if the slow start of its destination releases
            // others.
            Some(cause) if cause != DeferralCause::KeyBusy => {
                let next = slow_starts::next(connection, destination).await?;
                releases.extend(next.map(|next| (destination.clone(), next)));
            }
            Some(_) | None => {}
        }
    }
    let outbox = outbox::node_of(connection, id).await?;
    Ok(Some(Facts { status, outbox, ahead, releases, windows: windows.clone() }))
}
