//! The state of a request at a destination, and when to act on it.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, LockBehavior, LockType, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DeriveActiveEnum, EntityTrait, EnumIter, ExprTrait, QueryFilter,
    QueryOrder, QuerySelect, QueryTrait,
};
use serde::Serialize;
use throughline_messages::DeadReason;
use throughline_snowflake::RequestId;
use tokio::sync::OwnedMutexGuard;

use crate::dialect::Dialect;
use crate::entity::{delivery, outbox, request};
use crate::error::StoreError;
use crate::outbox::OutboxRequest;
use crate::requests::number;
use crate::rows::Rows;
use crate::store::Store;
use crate::transaction::Transaction;

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

/// A delivery of which nothing was heard for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    /// The request, to be published again.
    pub request: OutboxRequest,
    /// The destination's name.
    pub destination: String,
    /// How many attempts were made so far.
    pub attempts: u32,
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
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    Rows(Transaction),
    Turn(Store, OwnedMutexGuard<()>),
}

impl Claim {
    /// Takes out what is due, the longest overdue first.
    pub fn take(&mut self) -> Vec<DueDelivery> {
        std::mem::take(&mut self.due)
    }

    /// Has these be due at `due_at`, unless they have ended, and ends the claim. What is not named stays due.
    ///
    /// # Errors
    /// If the database cannot be asked; then all of them stay due.
    pub async fn postpone(
        self,
        deliveries: &[(RequestId, String)],
        due_at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        match self.hold {
            Hold::Rows(transaction) => {
                postpone(&transaction, deliveries, due_at).await?;
                transaction.commit().await
            }
            Hold::Turn(store, _turn) => postpone(store.connection(), deliveries, due_at).await,
        }
    }
}

/// Claims at most `limit` deliveries that are due at `now`, except those of requests in the outbox, which are
/// published from there.
///
/// # Errors
/// If the database cannot be asked.
pub async fn claim_due(store: &Store, now: DateTime<Utc>, limit: u64) -> Result<Claim, StoreError> {
    match Dialect::of(store.connection()) {
        Dialect::Sqlite => {
            let turn = store.sweepers_turn().await;
            let due = find_due(store.connection(), now, limit).await?;
            Ok(Claim { due, hold: Hold::Turn(store.clone(), turn) })
        }
        Dialect::Postgres => {
            let transaction = store.begin().await?;
            let due = find_due(&transaction, now, limit).await?;
            Ok(Claim { due, hold: Hold::Rows(transaction) })
        }
    }
}

async fn find_due(
    connection: &impl ConnectionTrait,
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
        })
    };
    rows.into_iter().map(due).collect()
}

async fn postpone(
    connection: &impl ConnectionTrait,
    deliveries: &[(RequestId, String)],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE deliveries SET due_at = r.due_at FROM r \
         WHERE deliveries.request_id = r.request_id AND deliveries.destination = r.destination \
         AND deliveries.due_at IS NOT NULL";
    Rows::of(deliveries)
        .column("request_id", |(id, _)| *id)
        .column("destination", |(_, destination)| destination.as_str())
        .column("due_at", |_| due_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

/// Has the unfinished deliveries of these requests be due at `due_at`, if they were due earlier: they
/// were published only now.
///
/// # Errors
/// If the database cannot be asked.
pub async fn postpone_all(
    connection: &impl ConnectionTrait,
    ids: &[RequestId],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE deliveries SET due_at = r.due_at FROM r \
         WHERE deliveries.request_id = r.request_id AND deliveries.due_at < r.due_at";
    Rows::of(ids)
        .column("request_id", |id| *id)
        .column("due_at", |_| due_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

/// Ends all unfinished deliveries of requests that cannot be published, with the reason and the error.
///
/// # Errors
/// If the database cannot be asked.
pub async fn refuse(
    connection: &impl ConnectionTrait,
    refusals: &[(RequestId, DeadReason, String)],
) -> Result<(), StoreError> {
    if refusals.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE deliveries SET state = 'dead', due_at = NULL, reason = r.reason, last_error = r.error, \
         updated_at = {} \
         FROM r WHERE deliveries.request_id = r.request_id AND deliveries.due_at IS NOT NULL",
        Dialect::of(connection).now()
    );
    Rows::of(refusals)
        .column("request_id", |(id, ..)| *id)
        .column("reason", |(_, reason, _)| reason.as_str())
        .column("error", |(.., error)| error.as_str())
        .execute(connection, Vec::new(), &sql)
        .await?;
    Ok(())
}

/// Has every unfinished delivery be due at `now`, except those of requests in the outbox, which are published
/// from there, and says how many: for a broker that forgets at its end.
///
/// # Errors
/// If the database cannot be asked.
pub async fn make_unfinished_due(
    connection: &impl ConnectionTrait,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let dialect = Dialect::of(connection);
    let sql = "UPDATE deliveries SET due_at = $1 WHERE due_at > $1 \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = deliveries.request_id)";
    let statement = dialect.statement(sql, [dialect.time(now)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}
