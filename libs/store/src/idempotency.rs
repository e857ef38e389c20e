//! The requests that idempotency keys stand for.
//!
//! On PostgreSQL a claim never waits for another one: a transaction that claims a key holds an advisory lock for the
//! key until the transaction ends, and a claim that does not get the lock is [in flight](ClaimResult::InFlight). A key
//! that a slow or vanished session holds therefore delays no other key of the batch. On `SQLite` one transaction writes
//! at a time.

use std::borrow::Cow;
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

/// The claims to decide, on `SQLite`: all of them.
const ALL: &str = "";
/// The claims to decide, on PostgreSQL: those with a free lock. Two keys with the same 64-bit hash share a lock, so one
/// of them may be reported as in flight unnecessarily.
const LOCKED: &str = "WHERE pg_try_advisory_xact_lock(hashtextextended(key, hashtextextended(scope, hashtextextended(route, 0))))";

/// Returns SQL that claims the keys that are free or have expired, and returns the holder of each decided key.
fn claim_sql(dialect: Dialect) -> String {
    let condition = match dialect {
        Dialect::Postgres => LOCKED,
        Dialect::Sqlite => ALL,
    };
    format!(
        ", free AS MATERIALIZED ( \
             SELECT route, scope, key, request_id, fingerprint, expires_at FROM r {condition} \
         ) \
         INSERT INTO idempotency_keys AS held (route, scope, key, request_id, fingerprint, expires_at) \
         SELECT route, scope, key, request_id, fingerprint, expires_at FROM free WHERE true \
         ON CONFLICT (route, scope, key) DO UPDATE SET \
             request_id = CASE WHEN held.expires_at <= $1 THEN excluded.request_id ELSE held.request_id END, \
             fingerprint = CASE WHEN held.expires_at <= $1 THEN excluded.fingerprint ELSE held.fingerprint END, \
             expires_at = CASE WHEN held.expires_at <= $1 THEN excluded.expires_at ELSE held.expires_at END \
         RETURNING route, scope, key, request_id, fingerprint, expires_at"
    )
}

/// The owner of a key. The same key in two scopes stands for two requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The configured client of this name.
    Client(String),
    /// Any caller, where no clients are configured.
    Open,
}

impl Scope {
    fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Client(name) => format!("client:{name}").into(),
            Self::Open => "open".into(),
        }
    }
}

/// An idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The route on which it is used.
    pub route: String,
    /// The owner of the key.
    pub scope: Scope,
    /// The key itself.
    pub key: String,
}

/// A request's claim to be the one that its idempotency key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key.
    pub key: Key,
    /// The request.
    pub request_id: RequestId,
    /// A digest of the request's body.
    pub fingerprint: [u8; 32],
    /// When the key expires.
    pub expires_at: DateTime<Utc>,
}

/// The result of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimResult {
    /// The key stands for this request from now on.
    New,
    /// The key stands for a request with the same body.
    Repeats(RequestId),
    /// The key stands for a request with another body.
    Conflicts,
    /// Another transaction that claims the key has not ended; its request is not known yet.
    InFlight,
}

/// Claims keys and returns the result of each claim, in order. A key that has expired at `now` is free. No two claims
/// may name the same key.
///
/// The claims hold until the caller's transaction ends; until then they are in flight for other transactions.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn claim(
    session: &impl Session,
    claims: &[Claim],
    now: DateTime<Utc>,
) -> Result<Vec<ClaimResult>, StoreError> {
    let connection = &Operation::new(session, "claim_keys");
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let dialect = Dialect::of(connection);
    let held: Vec<idempotency_key::Model> = Rows::of(claims)
        .column("route", |claim| claim.key.route.as_str())
        .column("scope", |claim| claim.key.scope.text())
        .column("key", |claim| claim.key.key.as_str())
        .column("request_id", |claim| claim.request_id)
        .column("fingerprint", |claim| Bytes::copy_from_slice(&claim.fingerprint))
        .column("expires_at", |claim| claim.expires_at)
        .query(connection, vec![dialect.time(now)], &claim_sql(dialect))
        .await?;
    let held: HashMap<_, _> =
        held.into_iter().map(|row| ((row.route.clone(), row.scope.clone(), row.key.clone()), row)).collect();
    let verdict = |claim: &Claim| {
        let Key { route, scope, key } = &claim.key;
        let Some(held) = held.get(&(dialect::text(route), dialect::text(&scope.text()), dialect::text(key)))
        else {
            return Ok(ClaimResult::InFlight);
        };
        Ok(if held.request_id == claim.request_id.as_i64() {
            ClaimResult::New
        } else if held.fingerprint == claim.fingerprint {
            ClaimResult::Repeats(request_id(held.request_id)?)
        } else {
            ClaimResult::Conflicts
        })
    };
    claims.iter().map(verdict).collect()
}

/// Deletes at most `limit` keys that have expired at `now`, the earliest first, and returns their number. A key that a
/// transaction has locked is skipped: that transaction's claim may make it stand for another request.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn purge(session: &impl Session, now: DateTime<Utc>, limit: u64) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "purge_keys");
    let dialect = Dialect::of(connection);
    // A number in the text, so that the planner plans for exactly this limit and not for a fraction of all rows.
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // Ordered as the index is, so that no plan reads the whole table.
    let sql = format!(
        "WITH expired AS MATERIALIZED \
         (SELECT route, scope, key FROM idempotency_keys WHERE expires_at <= $1 ORDER BY expires_at \
          LIMIT {limit} {}) \
         DELETE FROM idempotency_keys \
         WHERE (route, scope, key) IN (SELECT route, scope, key FROM expired)",
        dialect.lock_free_rows()
    );
    let statement = dialect.statement(sql, [dialect.time(now)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}
