//! The state of a request at a destination, and when to act on it.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, LockBehavior, LockType, Query};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DeriveActiveEnum, EntityTrait, EnumIter, ExprTrait,
    FromQueryResult, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Value,
};
use serde::Serialize;
use throughline_messages::{DeadReason, ErrorClass};
use throughline_snowflake::RequestId;
use tokio::sync::OwnedMutexGuard;

use crate::dialect::{self, Dialect};
use crate::entity::{delivery, outbox, request};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::order;
use crate::outbox::OutboxRequest;
use crate::requests::number;
use crate::rows::Rows;
use crate::store::Store;
use crate::transaction::Transaction;
use crate::waits;

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, EnumIter, DeriveActiveEnum)]
#[sea_orm(rs_type = "String", db_type = "Text", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// No attempt was heard of yet.
    Pending,
    /// An attempt failed, and there is another to come.
    Retrying,
    /// The third party has it.
    Delivered,
    /// It ended without success.
    Dead,
    /// It was called off.
    Cancelled,
}

impl DeliveryState {
    /// The state's name, as in the database and in answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

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
    /// It was published, and nothing was heard of it.
    Silent,
}

impl Due {
    /// What tells those from others; an index holds just them.
    fn condition(self) -> Condition {
        match self {
            Self::Planned => Condition::all().add(Expr::cust(waits::FOR_ITS_TIME)),
            Self::Silent => Condition::all()
                .add(delivery::Column::DueAt.is_not_null())
                .add(delivery::Column::PublishedAt.is_not_null()),
        }
    }
}

/// Due deliveries that nobody else claims meanwhile. Dropped, they stay due, and can be claimed again as soon
/// as the database has heard of it.
///
/// It may be held while they are published, however long that takes. On PostgreSQL it is a
/// transaction that holds row locks. On `SQLite` a transaction would keep every other writer waiting,
/// so there it is only the turn of one sweeper in this process, the only one that there can be.
#[derive(Debug)]
pub struct Claim {
    due: Vec<DueDelivery>,
    claimed_at: DateTime<Utc>,
    store: Store,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    Rows(Transaction),
    Turn(OwnedMutexGuard<()>),
}

impl Claim {
    /// Takes out what is due, the longest overdue first.
    pub fn take(&mut self) -> Vec<DueDelivery> {
        std::mem::take(&mut self.due)
    }

    /// Notes that these were published at `now`, so that they are due as silent at `due_at`, unless something
    /// was heard of them meanwhile; ends those that the broker refuses, and gives them; and ends the claim. What is
    /// not named stays due.
    ///
    /// # Errors
    /// If the database cannot be asked; then those that it has not noted stay due.
    pub async fn published(
        self,
        deliveries: &[(RequestId, String)],
        refused: &[Refusal],
        now: DateTime<Utc>,
        due_at: DateTime<Utc>,
    ) -> Result<Vec<Ended>, StoreError> {
        let (transaction, _turn) = match self.hold {
            Hold::Rows(transaction) => (transaction, None),
            Hold::Turn(turn) => (self.store.begin().await?, Some(turn)),
        };
        let operation = Operation::new(&transaction, "mark_published");
        published(&operation, deliveries, self.claimed_at, now, due_at).await?;
        drop(operation);
        transaction.commit().await?;
        if refused.is_empty() {
            return Ok(Vec::new());
        }
        // On its own: lanes are entered before any row is locked. Meanwhile another one may have claimed and published
        // what is refused here, or something was heard of it: then it is not due any more as it was.
        let transaction = self.store.begin().await?;
        let operation = Operation::new(&transaction, "refuse");
        let ended = end_refused(&operation, refused, Some(self.claimed_at), now).await?;
        drop(operation);
        transaction.commit().await?;
        Ok(ended)
    }
}

/// Claims at most `limit` deliveries that are due at `now`, except those of requests in the outbox, which are
/// published from there.
///
/// # Errors
/// If the database cannot be asked.
pub async fn claim_due(store: &Store, due: Due, now: DateTime<Utc>, limit: u64) -> Result<Claim, StoreError> {
    match Dialect::of(store.connection()) {
        Dialect::Sqlite => {
            let turn = store.sweepers_turn().await;
            let due = find_due(&Operation::new(store.connection(), CLAIM), due, now, limit).await?;
            Ok(Claim { due, claimed_at: now, store: store.clone(), hold: Hold::Turn(turn) })
        }
        Dialect::Postgres => {
            let transaction = store.begin().await?;
            let due = find_due(&Operation::new(&transaction, CLAIM), due, now, limit).await?;
            Ok(Claim { due, claimed_at: now, store: store.clone(), hold: Hold::Rows(transaction) })
        }
    }
}

const CLAIM: &str = "claim_due";

async fn find_due(
    connection: &impl ConnectionTrait,
    due: Due,
    now: DateTime<Utc>,
    limit: u64,
) -> Result<Vec<DueDelivery>, StoreError> {
    let now = Dialect::of(connection).time(now);
    let in_outbox = Query::select()
        .expr(Expr::val(1))
        .from(outbox::Entity)
        .and_where(
            Expr::col((outbox::Entity, outbox::Column::RequestId))
                .equals((delivery::Entity, delivery::Column::RequestId)),
        )
        .take();
    let mut due = delivery::Entity::find()
        .find_also_related(request::Entity)
        .filter(due.condition())
        .filter(delivery::Column::DueAt.lte(now))
        .filter(Expr::exists(in_outbox).not())
        .order_by_asc(delivery::Column::DueAt)
        .order_by_asc(delivery::Column::RequestId)
        .limit(limit);
    // Left out for SQLite, which has one writer.
    QueryTrait::query(&mut due).lock_with_tables_behavior(
        LockType::NoKeyUpdate,
        [delivery::Entity],
        LockBehavior::SkipLocked,
    );
    let rows = due.all(connection).await?;
    let due = |(delivery, request): (delivery::Model, Option<request::Model>)| {
        let request = request.ok_or_else(|| StoreError::foreign("delivery", "its request is gone"))?;
        Ok(DueDelivery {
            request: request.try_into()?,
            destination: delivery.destination,
            attempts: number("number of attempts", delivery.attempts)?,
            spent: number("number of attempts that counted", delivery.spent)?,
            since: delivery.since,
        })
    };
    rows.into_iter().map(due).collect()
}

async fn published(
    connection: &impl ConnectionTrait,
    deliveries: &[(RequestId, String)],
    claimed_at: DateTime<Utc>,
    now: DateTime<Utc>,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    // On SQLite no lock keeps the recorder from what is claimed.
    let sql = "UPDATE deliveries SET due_at = r.due_at, published_at = r.now, deferred_by = NULL FROM r \
         WHERE deliveries.request_id = r.request_id AND deliveries.destination = r.destination \
         AND deliveries.due_at <= r.claimed_at \
         AND (deliveries.deferred_by IS NULL OR deliveries.deferred_by = 'key_busy')";
    Rows::of(deliveries)
        .column("request_id", |(id, _)| *id)
        .column("destination", |(_, destination)| destination.as_str())
        .column("claimed_at", |_| claimed_at)
        .column("now", |_| now)
        .column("due_at", |_| due_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

/// When the next delivery is due that waits for its time, or the next may be let go by a
/// [hold](crate::holds) or taken by a [replay](crate::replays); `None` if none is.
///
/// # Errors
/// If the database cannot be asked.
pub async fn next_due(session: &impl Session) -> Result<Option<DateTime<Utc>>, StoreError> {
    #[derive(FromQueryResult)]
    struct Next {
        at: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "find_next_due");
    // Each is the beginning of an index.
    let sql = format!(
        "SELECT min(at) AS at FROM ( \
             SELECT min(due_at) AS at FROM deliveries WHERE {} \
             UNION ALL SELECT min(next_at) FROM holds \
             UNION ALL SELECT min(next_at) FROM replays WHERE state = 'running' \
         ) AS next",
        waits::FOR_ITS_TIME
    );
    let statement = Dialect::of(connection).statement(sql, []);
    Ok(Next::find_by_statement(statement).one(connection).await?.and_then(|next| next.at))
}

/// What became of a wish to call deliveries off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// Those to these destinations were called off.
    Some(Vec<String>),
    /// There is none that has not ended.
    AllEnded,
    /// There is no such request, or it has no such delivery.
    Unknown,
}

/// Calls off what has not ended of a request: all of it, or the delivery to one destination. What is not
/// published yet will not be; a call that is on its way is made, and recorded.
///
/// To be called in a transaction.
///
/// # Errors
/// If the database cannot be asked.
pub async fn cancel(
    session: &impl Session,
    id: RequestId,
    destination: Option<&str>,
    now: DateTime<Utc>,
) -> Result<Cancelled, StoreError> {
    let connection = &Operation::new(session, "cancel");
    order::enter(connection, &[id]).await?;
    let dialect = Dialect::of(connection);
    let named = dialect.nullable_text("$2");
    let meant = format!("request_id = $1 AND ({named} IS NULL OR destination = {named})");
    let parameters = || [Value::from(id.as_i64()), destination.map(dialect::text).into()];
    let sql = format!(
        "UPDATE deliveries SET state = 'cancelled', due_at = NULL, published_at = NULL, deferred_by = NULL, \
         updated_at = $3 WHERE {meant} AND due_at IS NOT NULL RETURNING destination"
    );
    let all = parameters().into_iter().chain([dialect.time(now)]);
    let cancelled = connection.query_all_raw(dialect.statement(sql, all)).await?;
    let cancelled: Vec<String> =
        cancelled.iter().map(|row| row.try_get("", "destination")).collect::<Result<_, _>>()?;
    if cancelled.is_empty() {
        let sql = format!("SELECT 1 FROM deliveries WHERE {meant} LIMIT 1");
        let known = connection.query_one_raw(dialect.statement(sql, parameters())).await?;
        return Ok(if known.is_some() { Cancelled::AllEnded } else { Cancelled::Unknown });
    }
    let nothing_to_publish = "DELETE FROM outbox WHERE request_id = $1 AND NOT EXISTS \
         (SELECT 1 FROM deliveries WHERE request_id = $1 AND due_at IS NOT NULL)";
    connection.execute_raw(dialect.statement(nothing_to_publish, [id.as_i64().into()])).await?;
    order::move_up_behind(connection, &[id], now).await?;
    Ok(Cancelled::Some(cancelled))
}

/// Has the published deliveries of these requests be due as silent at `due_at`, if they were due earlier:
/// they were published only now.
///
/// # Errors
/// If the database cannot be asked.
pub async fn postpone_all(
    session: &impl Session,
    ids: &[RequestId],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "postpone");
    if ids.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE deliveries SET due_at = r.due_at FROM r \
         WHERE deliveries.request_id = r.request_id AND deliveries.published_at IS NOT NULL \
         AND deliveries.due_at < r.due_at";
    // In the order of who records, so that two do not wait for each other.
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    Rows::of(&ids)
        .column("request_id", |id| *id)
        .column("due_at", |_| due_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

/// What can never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The request.
    pub request_id: RequestId,
    /// The delivery to this destination; all that have not ended if there is none.
    pub destination: Option<String>,
    /// Why.
    pub reason: DeadReason,
    /// What kind of error it is.
    pub class: ErrorClass,
    /// The error in words.
    pub error: String,
}

/// A delivery that has ended by what was reported of it, or because it cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Ended {
    /// Where it was to go.
    pub destination: String,
    /// Why it is dead; `None` if it was delivered.
    pub reason: Option<String>,
    /// What kind of error it died of.
    pub error_class: Option<String>,
}

/// Ends deliveries that cannot be published, and gives them. To be called in a transaction.
///
/// # Errors
/// If the database cannot be asked.
pub async fn refuse(
    session: &impl Session,
    refusals: &[Refusal],
    now: DateTime<Utc>,
) -> Result<Vec<Ended>, StoreError> {
    if refusals.is_empty() {
        return Ok(Vec::new());
    }
    end_refused(&Operation::new(session, "refuse"), refusals, None, now).await
}

/// Ends those that are refused, if they are still due by then.
async fn end_refused(
    connection: &impl ConnectionTrait,
    refusals: &[Refusal],
    due_by: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Vec<Ended>, StoreError> {
    let ids: Vec<_> = refusals.iter().map(|refusal| refusal.request_id).collect();
    order::enter(connection, &ids).await?;
    let sql = "UPDATE deliveries SET state = 'dead', due_at = NULL, published_at = NULL, deferred_by = NULL, \
         reason = r.reason, last_error_class = r.class, last_error = r.error, updated_at = r.now \
         FROM r WHERE deliveries.request_id = r.request_id AND deliveries.due_at IS NOT NULL \
         AND (r.destination IS NULL OR deliveries.destination = r.destination) \
         AND (r.due_by IS NULL OR deliveries.due_at <= r.due_by) \
         RETURNING deliveries.destination, deliveries.reason, deliveries.last_error_class AS error_class";
    let ended = Rows::of(refusals)
        .column("request_id", |refusal| refusal.request_id)
        .column("destination", |refusal| refusal.destination.as_deref())
        .column("reason", |refusal| refusal.reason.as_str())
        .column("class", |refusal| refusal.class.as_str())
        .column("error", |refusal| refusal.error.as_str())
        .column("due_by", |_| due_by)
        .column("now", |_| now)
        .query(connection, Vec::new(), sql)
        .await?;
    order::move_up_behind(connection, &ids, now).await?;
    Ok(ended)
}

/// Has every delivery that is published and has not ended be due at `now`, except those of requests in the
/// outbox, which are published from there, and says how many: for a broker that forgets at its end.
///
/// # Errors
/// If the database cannot be asked.
pub async fn make_published_due(session: &impl Session, now: DateTime<Utc>) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "make_published_due");
    let dialect = Dialect::of(connection);
    let sql = "UPDATE deliveries SET due_at = $1 WHERE published_at IS NOT NULL AND due_at > $1 \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = deliveries.request_id)";
    let statement = dialect.statement(sql, [dialect.time(now)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}
