//! Metrics of the database: how long operations take.
//!
//! An operation is one function of this library, with one statement or several. Beginning a transaction and committing
//! it are operations of their own. The time that the caller spends between them does not count.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};
use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sqlx::error::DatabaseError;
use throughline_telemetry::SHORT;
use tokio::time::Instant;

use crate::dialect::Dialect;

/// A session in which statements run: the connections, or a transaction.
pub trait Session: ConnectionTrait {
    /// Returns the metrics that measure its operations.
    fn operations(&self) -> &Operations;
}

/// Measures the duration of operations. Opaque.
#[derive(Debug, Clone)]
pub struct Operations {
    duration: Histogram<f64>,
    system: &'static str,
}

impl Operations {
    pub(crate) fn new(meter: &Meter, dialect: Dialect) -> Self {
        let duration = meter
            .f64_histogram("db.client.operation.duration")
            .with_unit("s")
            .with_description("Duration of database operations.")
            .with_boundaries(SHORT.to_vec())
            .build();
        Self { duration, system: dialect.system() }
    }

    /// Measures an operation of one statement.
    pub(crate) async fn time<T>(
        &self,
        name: &'static str,
        answer: impl Future<Output = Result<T, DbErr>>,
    ) -> Result<T, DbErr> {
        Watch::new(self, name).see(answer).await
    }
}

/// A session that measures its statements as one operation, which ends when this is dropped. Without a statement
/// nothing is recorded.
pub(crate) struct Operation<'a, S> {
    session: &'a S,
    watch: Watch<'a>,
}

impl<'a, S: Session> Operation<'a, S> {
    pub(crate) fn new(session: &'a S, name: &'static str) -> Self {
        Self { session, watch: Watch::new(session.operations(), name) }
    }
}

#[async_trait]
impl<S: Session> ConnectionTrait for Operation<'_, S> {
    fn get_database_backend(&self) -> DbBackend {
        self.session.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.watch.see(self.session.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.watch.see(self.session.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.watch.see(self.session.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.watch.see(self.session.query_all_raw(statement)).await
    }
}

/// Measures one operation, from its first statement until it is dropped.
struct Watch<'a> {
    operations: &'a Operations,
    name: &'static str,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    since: Option<Instant>,
    is_waiting: bool,
    error: Option<Cow<'static, str>>,
}

impl<'a> Watch<'a> {
    fn new(operations: &'a Operations, name: &'static str) -> Self {
        Self { operations, name, seen: Mutex::default() }
    }

    async fn see<T>(&self, answer: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        {
            let mut seen = self.seen();
            seen.since.get_or_insert_with(Instant::now);
            seen.is_waiting = true;
        }
        let answer = answer.await;
        let mut seen = self.seen();
        seen.is_waiting = false;
        if let Err(error) = &answer {
            seen.error = Some(error_type(error));
        }
        answer
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Seen { since, is_waiting, error } = std::mem::take(&mut *self.seen());
        let Some(since) = since else { return };
        // Dropped during a statement: the caller stopped waiting.
        let error = if is_waiting { Some(Cow::Borrowed("cancelled")) } else { error };
        let mut attributes = vec![
            KeyValue::new("db.system.name", self.operations.system),
            KeyValue::new("db.operation.name", self.name),
        ];
        attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
        self.operations.duration.record(since.elapsed().as_secs_f64(), &attributes);
    }
}

/// Returns the database's error code if the database has answered, otherwise a name for the error.
fn error_type(error: &DbErr) -> Cow<'static, str> {
    match error {
        DbErr::ConnectionAcquire(_) => "no_connection".into(),
        // See `AnswerTimeout`.
        DbErr::Conn(RuntimeErr::Internal(_)) => "timeout".into(),
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => match &**error {
            sqlx::Error::Database(error) => code(error.as_ref()),
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => "no_connection".into(),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => "connection".into(),
            _ => OTHER.into(),
        },
        _ => OTHER.into(),
    }
}

fn code(error: &dyn DatabaseError) -> Cow<'static, str> {
    error.code().map_or(OTHER.into(), |code| code.into_owned().into())
}

/// The name in the OpenTelemetry conventions for an error without a name.
const OTHER: &str = "_OTHER";
