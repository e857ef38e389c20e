use chrono::{DateTime, TimeDelta, Utc};
use throughline_snowflake::{NodeId, RequestId};
use throughline_store::nodes::Lease;
use throughline_store::{ConnectionTrait as _, NewRequest, Store};

/// A request as it is accepted at a time: of the route `one`, for the destination `three`, and silent a quarter of an
/// hour later.
#[must_use]
pub fn new_request(id: RequestId, accepted_at: DateTime<Utc>) -> NewRequest {
    NewRequest {
        id,
        route: "one".to_owned(),
        ordering_key: None,
        lane: None,
        body: "{}".into(),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        trace: None,
        client: None,
        origin: None,
        accepted_at,
        destinations: vec!["three".to_owned()],
        due_at: accepted_at + TimeDelta::minutes(15),
    }
}

/// The first lease of a node id that ever was, for good.
#[must_use]
pub fn lease(node: NodeId) -> Lease {
    let at = DateTime::UNIX_EPOCH;
    Lease { node, epoch: 1, not_before: at, granted_at: at, expires_at: DateTime::<Utc>::MAX_UTC }
}

/// The same, and the database knows it, unless the node id was leased before.
///
/// # Errors
/// If the database cannot be asked.
pub async fn leased(store: &Store, node: NodeId) -> anyhow::Result<Lease> {
    let sql = format!(
        "INSERT INTO nodes (node_id, holder, epoch, expires_at) \
         VALUES ({}, 'a test', 1, '9999-01-01T00:00:00.000000+00:00') ON CONFLICT DO NOTHING",
        node.as_u16()
    );
    store.connection().execute_unprepared(&sql).await?;
    Ok(lease(node))
}
