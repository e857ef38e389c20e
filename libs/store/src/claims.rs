//! Claims: deliveries that one ingest alone publishes or ends, for as long as the claim lasts.
//!
//! A claim is a time in the row, not a lock, so no transaction is open while Kafka acknowledges. The time is of the
//! database's own clock, so that ingests with different clocks agree how long a claim lasts. Any other change to the
//! delivery (a report, a cancellation) removes the claim from its row, and the holder of the claim writes only to rows
//! that still carry it. If an ingest stops, its rows stay unavailable to the others until the claim ends.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};

use crate::deliveries::{self, Ended, Refusal};
use crate::delivery_key::DeliveryKey;
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::index_predicates;
use crate::operation::{Operation, Session};
use crate::outbox::OutboxRequest;
use crate::requests::{number, request_id, trace};
use crate::rows::Rows;
use crate::store::Store;

/// How long a claim lasts, in milliseconds: three times the limit for Kafka's acknowledgement of a batch. After a
/// crash, the claimed rows wait that much longer.
const TERM: &str = "30000";

/// A delivery to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    /// The request.
    pub request: OutboxRequest,
    /// The destination's name.
    pub destination: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// How many of those attempts counted.
    pub counted_attempts: u32,
    /// When the delivery's time window began.
    pub window_started_at: DateTime<Utc>,
}

impl DueDelivery {
    /// Returns the key of the delivery.
    #[must_use]
    pub fn key(&self) -> DeliveryKey {
        DeliveryKey::new(self.request.id, self.destination.as_str())
    }
}

/// Why a delivery is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The time for which it waited has come.
    Planned,
    /// It was published, and no outcome was recorded.
    Silent,
}

impl Due {
    /// Returns the condition that selects these deliveries; a partial index holds exactly them.
    fn condition(self) -> &'static str {
        match self {
            Self::Planned => index_predicates::FOR_ITS_TIME,
            Self::Silent => index_predicates::FOR_AN_OUTCOME,
        }
    }

    fn due_by(self, now: &str) -> String {
        format!(
            "{} AND due_at <= {now} \
             AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = deliveries.request_id)",
            self.condition()
        )
    }
}

/// Deliveries that no other ingest claims until the claim ends. If the claim is dropped, they stay claimed until then.
#[derive(Debug)]
pub struct Claim {
    due: Vec<DueDelivery>,
    keys: Vec<DeliveryKey>,
    /// The claim's end, which identifies its rows; `None` if there are none.
    until: Option<DateTime<Utc>>,
    store: Store,
}

impl Claim {
    async fn of(
        store: &Store,
        connection: &impl ConnectionTrait,
        mut claimed: Vec<Claimed>,
        body: &str,
    ) -> Result<Self, StoreError> {
        claimed.sort_unstable_by_key(|row| (row.due_at, row.request_id));
        let requests = requests(connection, &claimed, body).await?;
        let until = claimed.first().map(|row| row.until);
        let mut claim = Self { due: Vec::new(), keys: Vec::new(), until, store: store.clone() };
        for row in claimed {
            let request = requests.get(&row.request_id).cloned();
            let request = request.ok_or_else(|| StoreError::foreign("delivery", "its request is missing"))?;
            claim.keys.push(DeliveryKey::new(request.id, row.destination.as_str()));
            claim.due.push(DueDelivery {
                request,
                destination: row.destination,
                attempts: number("number of attempts", row.attempts)?,
                counted_attempts: number("number of attempts that counted", row.counted_attempts)?,
                window_started_at: row.window_started_at,
            });
        }
        Ok(claim)
    }

    /// Takes the deliveries out, the longest overdue first.
    pub fn take(&mut self) -> Vec<DueDelivery> {
        std::mem::take(&mut self.due)
    }

    /// Marks `deliveries` as published at `now`, so that they are due as silent at `due_at`. Ends the deliveries that
    /// the broker refuses, and returns those that it has ended. Releases the claim on the rest, which stays due. A
    /// delivery that has changed since it was claimed keeps its new state.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails. Deliveries that are not marked then stay due.
    pub async fn published(
        self,
        deliveries: &[DeliveryKey],
        refused: &[Refusal],
        now: DateTime<Utc>,
        due_at: DateTime<Utc>,
    ) -> Result<Vec<Ended>, StoreError> {
        let connection = Operation::new(self.store.connection(), "mark_published");
        self.note(&connection, deliveries, now, due_at).await?;
        drop(connection);
        let ended = self.end(refused, now).await?;
        self.release().await?;
        Ok(ended)
    }

    async fn note(
        &self,
        connection: &impl ConnectionTrait,
        deliveries: &[DeliveryKey],
        now: DateTime<Utc>,
        due_at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let dialect = Dialect::of(connection);
        let set = "due_at = $2, published_at = $3, deferred_by = NULL, claimed_until = NULL";
        let times = vec![dialect.time(due_at), dialect.time(now)];
        self.update(connection, deliveries, set, times).await
    }

    /// Ends the refused deliveries that have not changed since they were claimed, and returns those that it has ended.
    /// Keeps the claim on the rest.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails.
    pub async fn end(&self, refused: &[Refusal], now: DateTime<Utc>) -> Result<Vec<Ended>, StoreError> {
        let Some(until) = self.until.filter(|_| !refused.is_empty()) else { return Ok(Vec::new()) };
        let transaction = self.store.begin().await?;
        let operation = Operation::new(&transaction, "refuse");
        let ended = deliveries::end_refused(&operation, refused, Some(until), now).await?;
        drop(operation);
        transaction.commit().await?;
        Ok(ended)
    }

    /// Makes the claim last for another term, on the rows that still carry it.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails. The claim then ends when it would have ended.
    pub async fn renew(&mut self) -> Result<(), StoreError> {
        #[derive(FromQueryResult)]
        struct Renewed {
            until: DateTime<Utc>,
        }
        let Some(until) = self.until.filter(|_| !self.keys.is_empty()) else { return Ok(()) };
        let connection = Operation::new(self.store.connection(), "renew_claim");
        let dialect = Dialect::of(&connection);
        // Computed once, so that the end is the same in all rows.
        let sql = format!(
            ", term AS MATERIALIZED (SELECT {} AS ends_at), {} \
             RETURNING claimed_until AS until",
            dialect.later(TERM),
            update_own(dialect, "claimed_until = (SELECT ends_at FROM term)")
        );
        let renewed: Vec<Renewed> =
            DeliveryKey::rows(&self.keys).query(&connection, vec![dialect.time(until)], &sql).await?;
        self.until = renewed.first().map(|row| row.until).or(self.until);
        Ok(())
    }

    /// Releases the rows that still carry the claim.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails. The rows are then free when the claim ends.
    pub async fn release(&self) -> Result<(), StoreError> {
        let connection = Operation::new(self.store.connection(), "free_claimed");
        self.update(&connection, &self.keys, "claimed_until = NULL", Vec::new()).await
    }

    /// Updates the rows that still carry the claim; `$1` is its end. Rows are locked in the order of their keys, as in
    /// the recorder, which prevents deadlocks.
    async fn update(
        &self,
        connection: &impl ConnectionTrait,
        keys: &[DeliveryKey],
        set: &str,
        parameters: Vec<Value>,
    ) -> Result<(), StoreError> {
        let Some(until) = self.until.filter(|_| !keys.is_empty()) else { return Ok(()) };
        let dialect = Dialect::of(connection);
        let sql = format!(", {}", update_own(dialect, set));
        let parameters = [dialect.time(until)].into_iter().chain(parameters).collect();
        DeliveryKey::rows(keys).execute(connection, parameters, &sql).await?;
        Ok(())
    }
}

/// Returns SQL that updates the rows of `r` that carry the claim; `$1` is its end.
fn update_own(dialect: Dialect, set: &str) -> String {
    format!(
        "own AS MATERIALIZED ( \
             SELECT d.request_id, d.destination FROM deliveries AS d \
             JOIN r ON d.request_id = r.request_id AND d.destination = r.destination \
             WHERE d.claimed_until = $1 ORDER BY d.request_id, d.destination {}) \
         UPDATE deliveries SET {set} \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM own) \
         AND claimed_until = $1",
        dialect.lock_rows_of("d")
    )
}

/// Claims at most `limit` deliveries that are due at `now`, except those of requests in the outbox, which are
/// published from there.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn claim_due(store: &Store, due: Due, now: DateTime<Utc>, limit: u64) -> Result<Claim, StoreError> {
    let connection = &Operation::new(store.connection(), "claim_due");
    let sql = format!("{} ORDER BY due_at, request_id LIMIT {}", due.due_by("$1"), limit_of(limit));
    let claimed = claim(connection, &sql, [Dialect::of(connection).time(now)]).await?;
    Claim::of(store, connection, claimed, "body").await
}

/// Claims at most `limit` deliveries that wait for this destination and began their time window at `begun_by` or
/// before, the oldest first, so that the caller can end them. Bodies are left out.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn claim_expired(
    store: &Store,
    destination: &str,
    begun_by: DateTime<Utc>,
    limit: u64,
) -> Result<Claim, StoreError> {
    let connection = &Operation::new(store.connection(), "claim_expired");
    let dialect = Dialect::of(connection);
    let sql = format!(
        "destination = $1 AND {} AND window_started_at <= $2 ORDER BY window_started_at, request_id LIMIT {}",
        index_predicates::FOR_ITS_DESTINATION,
        limit_of(limit)
    );
    let parameters = [dialect::text(destination).into(), dialect.time(begun_by)];
    let claimed = claim(connection, &sql, parameters).await?;
    Claim::of(store, connection, claimed, dialect.no_bytes()).await
}

/// Returns whether any delivery is due at `now` for this reason, claimed or not.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn is_any_due(session: &impl Session, due: Due, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let connection = &Operation::new(session, "look_for_due");
    let dialect = Dialect::of(connection);
    let sql =
        format!("SELECT 1 FROM deliveries WHERE {} ORDER BY due_at, request_id LIMIT 1", due.due_by("$1"));
    Ok(connection.query_one_raw(dialect.statement(sql, [dialect.time(now)])).await?.is_some())
}

/// Returns the limit as a number for the statement's text, so that the planner plans for exactly this limit.
fn limit_of(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A claimed row.
#[derive(FromQueryResult)]
struct Claimed {
    request_id: i64,
    destination: String,
    attempts: i32,
    counted_attempts: i32,
    window_started_at: DateTime<Utc>,
    due_at: DateTime<Utc>,
    until: DateTime<Utc>,
}

/// Claims the deliveries that `which` selects and that carry no other claim, in any order. Rows that other transactions
/// have locked are skipped.
async fn claim(
    connection: &impl ConnectionTrait,
    which: &str,
    parameters: impl IntoIterator<Item = Value>,
) -> Result<Vec<Claimed>, StoreError> {
    let dialect = Dialect::of(connection);
    // Computed once, so that the end is the same in all rows.
    let sql = format!(
        "WITH term AS MATERIALIZED (SELECT {} AS ends_at), \
         free AS MATERIALIZED ( \
             SELECT request_id, destination FROM deliveries WHERE {} AND {which} {}) \
         UPDATE deliveries SET claimed_until = (SELECT ends_at FROM term) \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM free) \
         RETURNING request_id, destination, attempts, counted_attempts, window_started_at, due_at, \
             claimed_until AS until",
        dialect.later(TERM),
        index_predicates::is_free(dialect),
        dialect.lock_free_rows()
    );
    Ok(Claimed::find_by_statement(dialect.statement(sql, parameters)).all(connection).await?)
}

/// The columns of a request that are published.
#[derive(FromQueryResult)]
struct Request {
    id: i64,
    route: String,
    ordering_key: Option<String>,
    body: Vec<u8>,
    content_type: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
    accepted_at: DateTime<Utc>,
}

impl TryFrom<Request> for OutboxRequest {
    type Error = StoreError;

    fn try_from(row: Request) -> Result<Self, Self::Error> {
        Ok(Self {
            id: request_id(row.id)?,
            route: row.route,
            ordering_key: row.ordering_key,
            body: row.body.into(),
            content_type: row.content_type,
            trace: trace(row.traceparent, row.tracestate),
            accepted_at: row.accepted_at,
            destinations: Vec::new(),
        })
    }
}

/// Reads requests by their ids; `body` is the SQL expression for their bodies.
async fn requests(
    connection: &impl ConnectionTrait,
    claimed: &[Claimed],
    body: &str,
) -> Result<BTreeMap<i64, OutboxRequest>, StoreError> {
    if claimed.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT id, route, ordering_key, {body} AS body, content_type, traceparent, tracestate, accepted_at \
         FROM requests WHERE id IN (SELECT request_id FROM r)"
    );
    let rows: Vec<Request> = Rows::of(claimed)
        .column("request_id", |row| row.request_id)
        .query(connection, Vec::new(), &sql)
        .await?;
    rows.into_iter().map(|row| Ok((row.id, row.try_into()?))).collect()
}
