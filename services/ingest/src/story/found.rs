use std::collections::BTreeMap;

use chrono::TimeDelta;
use throughline_messages::DeferralCause;
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::holds::{self, Release};
use throughline_store::order::{self, Ahead};
use throughline_store::{Store, StoreError, StoredStatus, outbox, requests};

/// All that a story is made of.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) status: StoredStatus,
    /// The node that has to publish it; none once Kafka has acknowledged it.
    pub(crate) outbox: Option<NodeId>,
    /// Who is before those that wait for their turn, by destination.
    pub(crate) ahead: BTreeMap<String, Ahead>,
    /// When those go on that wait for their destination, by destination.
    pub(crate) releases: BTreeMap<String, Release>,
    /// How long destinations may take for a delivery.
    pub(crate) windows: BTreeMap<String, TimeDelta>,
}

/// Asks the database; `None` if there is no such request.
///
/// # Errors
/// If it cannot be asked.
pub(crate) async fn find(
    store: &Store,
    id: RequestId,
    windows: &BTreeMap<String, TimeDelta>,
) -> Result<Option<Found>, StoreError> {
    let connection = store.connection();
    let Some(status) = requests::find(connection, id).await? else { return Ok(None) };
    let (mut ahead, mut releases) = (BTreeMap::new(), BTreeMap::new());
    for delivery in &status.deliveries {
        let destination = &delivery.destination;
        match delivery.deferred_by.as_deref() {
            Some("order") => {
                let found = order::ahead(connection, id, destination).await?;
                ahead.extend(found.map(|found| (destination.clone(), found)));
            }
            // A busy key waits for its time, whatever its destination's hold lets go.
            Some(cause) if cause != DeferralCause::KeyBusy.as_str() => {
                let found = holds::next(connection, destination).await?;
                releases.extend(found.map(|found| (destination.clone(), found)));
            }
            Some(_) | None => {}
        }
    }
    let outbox = outbox::node_of(connection, id).await?;
    Ok(Some(Found { status, outbox, ahead, releases, windows: windows.clone() }))
}
