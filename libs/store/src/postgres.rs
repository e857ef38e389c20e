//! Connections to PostgreSQL. A connection is reused only after it has answered every statement.

use std::pin::pin;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sea_orm::sea_query::Values;
use sea_orm::{ConnAcquireErr, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow};
use sqlx::{AssertSqlSafe, Either, Executor as _, PgConnection, PgPool};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::bounds::Bounds;
use crate::error::is_outdated;

/// How much longer than the server's own limit an answer may take, for the network.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// The time after which TCP has given up on a machine that is gone.
const GONE: Duration = Duration::from_mins(16);

/// A pool of connections. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Postgres(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    connections: PgPool,
    server: PgConnectOptions,
    bounds: Bounds,
    schema: Arc<Schema>,
    abandoned: Semaphore,
}

/// When a changed schema was last seen under statements that were prepared before.
#[derive(Debug, Default)]
struct Schema(SyncMutex<Option<Instant>>);

impl Schema {
    fn has_changed(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns whether a connection of this age was opened after the last change.
    fn is_known_to(&self, age: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|at| age < at.elapsed())
    }
}

impl Postgres {
    /// A pool of at most `most` connections, opened on demand, each within `connect_timeout`.
    pub(crate) fn new(
        server: PgConnectOptions,
        bounds: Bounds,
        most: u32,
        connect_timeout: Duration,
    ) -> Self {
        let schema = Arc::<Schema>::default();
        let known = Arc::clone(&schema);
        let connections = PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(connect_timeout)
            .before_acquire(move |_, connection| {
                let is_current = known.is_known_to(connection.age);
                Box::pin(async move { Ok(is_current) })
            })
            .connect_lazy_with(server.clone().options(bounds.options()));
        let abandoned = Semaphore::new(most as usize);
        Self(Arc::new(Pool { connections, server, bounds, schema, abandoned }))
    }

    /// Another pool of connections to the same server.
    pub(crate) fn apart(&self, statement: Duration, most: u32) -> Self {
        let connect_timeout = self.pool().options().get_acquire_timeout();
        Self::new(self.0.server.clone(), self.bounds().within(statement), most, connect_timeout)
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.0.connections
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.0.bounds
    }

    pub(crate) async fn ping(&self) -> Result<(), DbErr> {
        self.held().await?.simple("/* ping */").await.map_err(connection_error)
    }

    pub(crate) async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let answer = self.held().await?.ask(Question::simple(sql)).await;
        answer.map(Answer::executed).map_err(execution_error)
    }

    /// Runs one statement outside a transaction.
    pub(crate) async fn answer(&self, statement: Statement) -> Result<Answer, sqlx::Error> {
        let answer = self.acquire().await?.ask(statement.clone().into()).await;
        if answer.as_ref().is_err_and(is_outdated) {
            // The failed statement had no effect, and a new connection knows the current schema.
            return self.acquire().await?.ask(statement.into()).await;
        }
        answer
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&self, bounds: Bounds) -> Result<Open, DbErr> {
        let mut held = self.held().await?;
        held.bound = bounds.statement();
        // Set before the answer arrives: whatever it is, the connection is not reused before a rollback.
        held.is_open = true;
        held.simple(&bounds.begin()).await.map_err(query_error)?;
        Ok(Open(Box::new(Mutex::new(held))))
    }

    async fn held(&self) -> Result<Held, DbErr> {
        self.acquire().await.map_err(acquire_error)
    }

    async fn acquire(&self) -> Result<Held, sqlx::Error> {
        let connection = Some(Box::pin(self.pool().acquire()).await?);
        let bound = self.bounds().statement();
        let postgres = self.clone();
        Ok(Held { connection, postgres, bound, is_open: false, is_outdated: false, asked: None })
    }

    /// Returns a connection to the pool once it has answered every statement. If it does not answer in time, the pool
    /// may open another one in its place, unless too many connections to the server are already abandoned.
    async fn recover(self, mut connection: PoolConnection<sqlx::Postgres>, asks: &'static str, by: Instant) {
        let permit = {
            let mut answered = pin!(connection.execute(asks));
            let answer = if let Ok(answer) = timeout_at(by, &mut answered).await {
                Ok(answer)
            } else {
                tokio::select! {
                    answer = &mut answered => Ok(answer),
                    permit = self.0.abandoned.acquire() => Err(permit),
                }
            };
            match answer {
                Ok(Ok(_)) => return,
                Ok(Err(_)) => None,
                Err(permit) => permit.ok(),
            }
        };
        let mut connection = connection.detach();
        if permit.is_some() {
            // The server is still working on the statement.
            let _ = timeout(GONE, connection.execute(asks)).await;
        }
    }
}

/// An open transaction.
#[derive(Debug)]
pub(crate) struct Open(Box<Mutex<Held>>);

impl Open {
    pub(crate) async fn answer(&self, statement: Statement) -> Result<Answer, sqlx::Error> {
        self.0.lock().await.ask(statement.into()).await
    }

    pub(crate) async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let answer = self.0.lock().await.ask(Question::simple(sql)).await;
        answer.map(Answer::executed).map_err(execution_error)
    }

    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        let mut held = self.0.into_inner();
        held.simple("COMMIT").await.map_err(query_error)?;
        held.is_open = false;
        Ok(())
    }
}

/// A connection in use.
#[derive(Debug)]
struct Held {
    connection: Option<PoolConnection<sqlx::Postgres>>,
    postgres: Postgres,
    /// The server's limit for one statement.
    bound: Duration,
    /// A transaction has begun on it.
    is_open: bool,
    /// Its statements were prepared for another schema.
    is_outdated: bool,
    /// When the unanswered statement was sent.
    asked: Option<Instant>,
}

impl Held {
    async fn simple(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.ask(Question::simple(sql)).await.map(|_| ())
    }

    async fn ask(&mut self, question: Question) -> Result<Answer, sqlx::Error> {
        let connection = self.connection.as_mut().ok_or(sqlx::Error::WorkerCrashed)?;
        self.asked = Some(Instant::now());
        let answer = question.put_to(connection).await;
        self.asked = None;
        if answer.as_ref().is_err_and(is_outdated) {
            self.is_outdated = true;
            self.postgres.0.schema.has_changed();
        }
        answer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let Ok(runtime) = Handle::try_current() else { return drop(connection.detach()) };
        if self.is_outdated {
            drop(connection.detach());
        } else if self.is_open || self.asked.is_some() {
            let asks = if self.is_open { "ROLLBACK" } else { "/* ping */" };
            let by = self.asked.unwrap_or_else(Instant::now) + self.bound + GRACE;
            runtime.spawn(self.postgres.clone().recover(connection, asks, by));
        }
    }
}

/// A statement to run on a connection.
enum Question {
    Simple(String),
    Prepared(Statement),
}

impl Question {
    fn simple(sql: &str) -> Self {
        Self::Simple(sql.to_owned())
    }

    async fn put_to(self, connection: &mut PgConnection) -> Result<Answer, sqlx::Error> {
        let mut parts = match self {
            Self::Simple(sql) => connection.fetch_many(AssertSqlSafe(sql)),
            Self::Prepared(Statement { sql, values, .. }) => {
                let values = SqlxValues(values.unwrap_or(Values(Vec::new())));
                connection.fetch_many(sqlx::query_with(AssertSqlSafe(sql), values))
            }
        };
        let mut answer = Answer::default();
        while let Some(part) = parts.try_next().await? {
            match part {
                Either::Left(done) => answer.done.extend([done]),
                Either::Right(row) => answer.rows.push(row),
            }
        }
        Ok(answer)
    }
}

impl From<Statement> for Question {
    fn from(statement: Statement) -> Self {
        Self::Prepared(statement)
    }
}

/// The result of a statement.
#[derive(Default)]
pub(crate) struct Answer {
    done: PgQueryResult,
    rows: Vec<PgRow>,
}

impl Answer {
    pub(crate) fn executed(self) -> ExecResult {
        self.done.into()
    }

    pub(crate) fn one(self) -> Option<QueryResult> {
        self.rows.into_iter().next().map(QueryResult::from)
    }

    pub(crate) fn all(self) -> Vec<QueryResult> {
        self.rows.into_iter().map(QueryResult::from).collect()
    }
}

fn acquire_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => connection_error(error),
    }
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

pub(crate) fn execution_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => acquire_error(error),
        error => DbErr::Exec(RuntimeErr::SqlxError(error.into())),
    }
}

pub(crate) fn query_error(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => acquire_error(error),
        error => DbErr::Query(RuntimeErr::SqlxError(error.into())),
    }
}
