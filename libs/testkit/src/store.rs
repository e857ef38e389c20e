use std::path::Path;

use chrono::{DateTime, Utc};
use opentelemetry::metrics::Meter;
use throughline_snowflake::NodeId;
use throughline_store as store;
use throughline_store::nodes::Lease;
use throughline_store::{ConnectionTrait as _, Store};

/// Creates a SQLite database with the current schema in a folder.
///
/// # Errors
/// If the database cannot be created.
pub async fn sqlite(folder: &Path, meter: &Meter) -> anyhow::Result<Store> {
    let url = format!("sqlite://{}", folder.join("throughline.db").display()).into();
    let store = Store::connect(&store::Settings { url, ..store::Settings::default() }, meter).await?;
    store.migrate().await?;
    Ok(store)
}

/// Returns the very first lease of a node id, which never expires.
#[must_use]
pub fn lease(node: NodeId) -> Lease {
    let at = DateTime::UNIX_EPOCH;
    Lease { node, epoch: 1, not_before: at, granted_at: at, expires_at: DateTime::<Utc>::MAX_UTC }
}

/// Returns the same lease and stores it in the database, unless the node id was leased before.
///
/// # Errors
/// If the database does not answer.
pub async fn leased(store: &Store, node: NodeId) -> anyhow::Result<Lease> {
    let sql = format!(
        "INSERT INTO nodes (node_id, holder, epoch, expires_at) \
         VALUES ({}, 'a test', 1, '9999-01-01T00:00:00.000000+00:00') ON CONFLICT DO NOTHING",
        node.as_u16()
    );
    store.connection().execute_unprepared(&sql).await?;
    Ok(lease(node))
}
