//! Deliveries that one ingest works on, and no other does, for as long as the claim lasts: it publishes or ends
//! them.
//!
//! A claim is a time in the row, not a lock, so no transaction is open while Kafka acknowledges. Whatever moves the
//! delivery on meanwhile (a report, a cancellation) takes the claim off its row, and the holder of the claim writes
//! only to rows that carry it still. An ingest that stops keeps its rows from the others until the claim ends.

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_snowflake::RequestId;

use crate::deliveries::{self, Ended, Refusal};
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::outbox::OutboxRequest;
use crate::requests::{number, request_id, trace};
use crate::rows::Rows;
use crate::store::Store;
use crate::waits;

/// How long a claim lasts: three times as long as Kafka may take to acknowledge a batch. After a crash its rows wait
/// that much longer.
const TERM: TimeDelta = TimeDelta::seconds(30);

/// A delivery that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    /// The request.
    pub request: OutboxRequest,
    /// The destination's name.
    pub destination: String,
    /// How many attempts were made so far.
    pub attempts: u32,
    /// How many of them counted.
    pub spent: u32,
    /// When its time began.
    pub since: DateTime<Utc>,
}

/// Why a delivery is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It waited for this time.
    Planned,
    /// It was published, and no outcome was recorded.
    Silent,
}

impl Due {
    /// What tells those from others; an index holds just them.
    fn condition(self) -> &'static str {
        match self {
            Self::Planned => waits::FOR_ITS_TIME,
            Self::Silent => waits::FOR_AN_OUTCOME,
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

/// Deliveries that no other ingest claims until the claim ends. Dropped, they are free again when it does.
#[derive(Debug)]
pub struct Claim {
    due: Vec<DueDelivery>,
    keys: Vec<Key>,
    until: DateTime<Utc>,
    store: Store,
}

/// A delivery's key.
type Key = (RequestId, String);

impl Claim {
    async fn of(
        store: &Store,
        connection: &impl ConnectionTrait,
        mut claimed: Vec<Claimed>,
        until: DateTime<Utc>,
        body: &str,
    ) -> Result<Self, StoreError> {
        claimed.sort_unstable_by_key(|row| (row.due_at, row.request_id));
        let requests = requests(connection, &claimed, body).await?;
        let mut claim = Self { due: Vec::new(), keys: Vec::new(), until, store: store.clone() };
        for row in claimed {
            let request = requests.get(&row.request_id).cloned();
            let request = request.ok_or_else(|| StoreError::foreign("delivery", "its request is gone"))?;
            claim.keys.push((request.id, row.destination.clone()));
            claim.due.push(DueDelivery {
                request,
                destination: row.destination,
                attempts: number("number of attempts", row.attempts)?,
                spent: number("number of attempts that counted", row.spent)?,
                since: row.since,
            });
        }
        Ok(claim)
    }

    /// Takes out the deliveries, the longest overdue first.
    pub fn take(&mut self) -> Vec<DueDelivery> {
        std::mem::take(&mut self.due)
    }

    /// Notes that these were published at `now`, so that they are due as silent at `due_at`; ends those that the
    /// broker refuses, and gives them; and frees the rest, which stays due. A delivery that has moved on since it was
    /// claimed keeps the state that it has reached.
    ///
    /// # Errors
    /// If the database cannot be asked; then the deliveries that it has not noted stay due.
    pub async fn published(
        self,
        deliveries: &[Key],
        refused: &[Refusal],
        now: DateTime<Utc>,
        due_at: DateTime<Utc>,
    ) -> Result<Vec<Ended>, StoreError> {
        let connection = Operation::new(self.store.connection(), "mark_published");
        self.note(&connection, deliveries, now, due_at).await?;
        drop(connection);
        self.ended(refused, now).await
    }

    /// Ends these, gives those that it has ended, and frees the rest.
    ///
    /// # Errors
    /// If the database cannot be asked; then the rest is free when the claim ends.
    pub async fn ended(self, refused: &[Refusal], now: DateTime<Utc>) -> Result<Vec<Ended>, StoreError> {
        let ended = self.end(refused, now).await?;
        self.free().await?;
        Ok(ended)
    }

    async fn note(
        &self,
        connection: &impl ConnectionTrait,
        deliveries: &[Key],
        now: DateTime<Utc>,
        due_at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let dialect = Dialect::of(connection);
        let set = "due_at = $2, published_at = $3, deferred_by = NULL, claimed_until = NULL";
        let times = vec![dialect.time(due_at), dialect.time(now)];
        self.update(connection, deliveries, set, times).await
    }

    /// Ends those that are refused, if they have not moved on.
    async fn end(&self, refused: &[Refusal], now: DateTime<Utc>) -> Result<Vec<Ended>, StoreError> {
        if refused.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = self.store.begin().await?;
        let operation = Operation::new(&transaction, "refuse");
        let ended = deliveries::end_refused(&operation, refused, Some(self.until), now).await?;
        drop(operation);
        transaction.commit().await?;
        Ok(ended)
    }

    /// Frees what carries the claim still.
    async fn free(&self) -> Result<(), StoreError> {
        let connection = Operation::new(self.store.connection(), "free_claimed");
        self.update(&connection, &self.keys, "claimed_until = NULL", Vec::new()).await
    }

    /// Changes the rows that carry the claim still; `$1` is its end. They are locked in the order of their keys, as
    /// the recorder does, so that two cannot wait for each other.
    async fn update(
        &self,
        connection: &impl ConnectionTrait,
        keys: &[Key],
        set: &str,
        parameters: Vec<Value>,
    ) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let dialect = Dialect::of(connection);
        let sql = format!(
            ", own AS MATERIALIZED ( \
                 SELECT d.request_id, d.destination FROM deliveries AS d \
                 JOIN r ON d.request_id = r.request_id AND d.destination = r.destination \
                 WHERE d.claimed_until = $1 ORDER BY d.request_id, d.destination {}) \
             UPDATE deliveries SET {set} \
             WHERE (request_id, destination) IN (SELECT request_id, destination FROM own) \
             AND claimed_until = $1",
            dialect.lock_rows_of("d")
        );
        let parameters = [dialect.time(self.until)].into_iter().chain(parameters).collect();
        Rows::of(keys)
            .column("request_id", |(id, _)| *id)
            .column("destination", |(_, destination)| destination.as_str())
            .execute(connection, parameters, &sql)
            .await?;
        Ok(())
    }
}

/// Claims at most `limit` deliveries that are due at `now`, except those of requests in the outbox, which are
/// published from there.
///
/// # Errors
/// If the database cannot be asked.
pub async fn claim_due(store: &Store, due: Due, now: DateTime<Utc>, limit: u64) -> Result<Claim, StoreError> {
    let connection = &Operation::new(store.connection(), "claim_due");
    let sql = format!("{} ORDER BY due_at, request_id LIMIT {}", due.due_by("$1"), limit_of(limit));
    let until = end_of_claim(now);
    let claimed = claim(connection, &sql, now, until, Vec::new()).await?;
    Claim::of(store, connection, claimed, until, "body").await
}

/// Claims at most `limit` deliveries that wait for this destination, and whose time began at `begun_by` or before, the
/// oldest first: to be ended. Bodies are left out.
///
/// # Errors
/// If the database cannot be asked.
pub async fn claim_expired(
    store: &Store,
    destination: &str,
    begun_by: DateTime<Utc>,
    now: DateTime<Utc>,
    limit: u64,
) -> Result<Claim, StoreError> {
    let connection = &Operation::new(store.connection(), "claim_expired");
    let dialect = Dialect::of(connection);
    let sql = format!(
        "destination = $3 AND {} AND since <= $4 ORDER BY since, request_id LIMIT {}",
        waits::FOR_ITS_DESTINATION,
        limit_of(limit)
    );
    let parameters = vec![dialect::text(destination).into(), dialect.time(begun_by)];
    let until = end_of_claim(now);
    let claimed = claim(connection, &sql, now, until, parameters).await?;
    Claim::of(store, connection, claimed, until, dialect.no_bytes()).await
}

/// Whether any delivery is due at `now` for this reason, claimed or not.
///
/// # Errors
/// If the database cannot be asked.
pub async fn is_any_due(session: &impl Session, due: Due, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let connection = &Operation::new(session, "look_for_due");
    let dialect = Dialect::of(connection);
    let sql =
        format!("SELECT 1 FROM deliveries WHERE {} ORDER BY due_at, request_id LIMIT 1", due.due_by("$1"));
    Ok(connection.query_one_raw(dialect.statement(sql, [dialect.time(now)])).await?.is_some())
}

fn end_of_claim(now: DateTime<Utc>) -> DateTime<Utc> {
    // To the microsecond, as databases keep it: it is compared with what they give.
    (now + TERM).trunc_subsecs(6)
}

/// As a number in the text, so that the plan is for so many.
fn limit_of(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// A row that was claimed.
#[derive(FromQueryResult)]
struct Claimed {
    request_id: i64,
    destination: String,
    attempts: i32,
    spent: i32,
    since: DateTime<Utc>,
    due_at: DateTime<Utc>,
}

/// Claims what `which` selects of the deliveries, and no other has claimed; in any order. `$1` is the time, and `$2`
/// the claim's end. What others have locked is left to them.
async fn claim(
    connection: &impl ConnectionTrait,
    which: &str,
    now: DateTime<Utc>,
    until: DateTime<Utc>,
    parameters: Vec<Value>,
) -> Result<Vec<Claimed>, StoreError> {
    let dialect = Dialect::of(connection);
    let sql = format!(
        "WITH free AS MATERIALIZED ( \
             SELECT request_id, destination FROM deliveries WHERE {} AND {which} {}) \
         UPDATE deliveries SET claimed_until = $2 \
         WHERE (request_id, destination) IN (SELECT request_id, destination FROM free) \
         RETURNING request_id, destination, attempts, spent, since, due_at",
        waits::is_free("$1"),
        dialect.lock_free_rows()
    );
    let parameters = [dialect.time(now), dialect.time(until)].into_iter().chain(parameters);
    Ok(Claimed::find_by_statement(dialect.statement(sql, parameters)).all(connection).await?)
}

/// What is published of a request.
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
            held: Vec::new(),
        })
    }
}

/// Requests by their ids, with what `body` is in SQL for their bodies.
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
