//! Which request an idempotency key stands for.

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;
use throughline_snowflake::RequestId;

use crate::dialect::{self, Dialect};
use crate::entity::idempotency_key;
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::requests::request_id;
use crate::rows::Rows;

/// Claims a key that nobody has or whose claim has expired, and answers in any case with who has it.
///
/// Rows are locked in one order whoever claims, so that two cannot wait for each other.
const CLAIM: &str = "
    INSERT INTO idempotency_keys AS held (route, key, request_id, fingerprint, expires_at)
    SELECT route, key, request_id, fingerprint, expires_at FROM r WHERE true ORDER BY route, key
    ON CONFLICT (route, key) DO UPDATE SET
        request_id = CASE WHEN held.expires_at <= $1 THEN excluded.request_id ELSE held.request_id END,
        fingerprint = CASE WHEN held.expires_at <= $1 THEN excluded.fingerprint ELSE held.fingerprint END,
        expires_at = CASE WHEN held.expires_at <= $1 THEN excluded.expires_at ELSE held.expires_at END
    RETURNING route, key, request_id, fingerprint, expires_at";

/// A request's claim to be the one that its idempotency key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The route that the key belongs to.
    pub route: String,
    /// The key.
    pub key: String,
    /// The request.
    pub request_id: RequestId,
    /// What tells its body from others.
    pub fingerprint: [u8; 32],
    /// Until when the key stands for it.
    pub expires_at: DateTime<Utc>,
}

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The key stands for this request from now on.
    New,
    /// The key stands for a request of the same body.
    Repeats(RequestId),
    /// The key stands for a request of another body.
    Conflicts,
}

/// Claims keys, and says of each claim, in order, what came of it. A key that has expired at `now` is
/// free. No two claims may name the same key of the same route.
///
/// Who claims the same keys at the same time waits until this transaction ends.
///
/// # Errors
/// If the database cannot be asked.
pub async fn claim(
    session: &impl Session,
    claims: &[Claim],
    now: DateTime<Utc>,
) -> Result<Vec<Verdict>, StoreError> {
    let connection = &Operation::new(session, "claim_keys");
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let now = Dialect::of(connection).time(now);
    let held: Vec<idempotency_key::Model> = Rows::of(claims)
        .column("route", |claim| claim.route.as_str())
        .column("key", |claim| claim.key.as_str())
        .column("request_id", |claim| claim.request_id)
        .column("fingerprint", |claim| Bytes::copy_from_slice(&claim.fingerprint))
        .column("expires_at", |claim| claim.expires_at)
        .query(connection, vec![now], CLAIM)
        .await?;
    let held: HashMap<_, _> =
        held.into_iter().map(|row| ((row.route.clone(), row.key.clone()), row)).collect();
    let verdict = |claim: &Claim| {
        let key = (dialect::text(&claim.route), dialect::text(&claim.key));
        let held =
            held.get(&key).ok_or_else(|| StoreError::foreign("idempotency key", "it was not returned"))?;
        Ok(if held.request_id == claim.request_id.as_i64() {
            Verdict::New
        } else if held.fingerprint == claim.fingerprint {
            Verdict::Repeats(request_id(held.request_id)?)
        } else {
            Verdict::Conflicts
        })
    };
    claims.iter().map(verdict).collect()
}

/// Deletes keys that have expired at `now`, at most `limit`, and says how many. A key that somebody claims
/// meanwhile is left: it may be taken over, and stand for another request when it could be deleted.
///
/// # Errors
/// If the database cannot be asked.
pub async fn purge(session: &impl Session, now: DateTime<Utc>, limit: u64) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "purge_keys");
    let dialect = Dialect::of(connection);
    // As a number, so that the plan is for so many, and not for a part of all that are there.
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!(
        "WITH expired AS MATERIALIZED \
         (SELECT route, key FROM idempotency_keys WHERE expires_at <= $1 LIMIT {limit} {}) \
         DELETE FROM idempotency_keys WHERE (route, key) IN (SELECT route, key FROM expired)",
        dialect.lock_free_rows()
    );
    let statement = dialect.statement(sql, [dialect.time(now)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}
