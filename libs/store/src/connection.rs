use std::time::Duration;

use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
};
use tokio::time::timeout;

use crate::operation::{Operations, Session};
use crate::postgres::{Answer, Postgres, execution_error, query_error};

/// The connections, for single statements; each statement has a deadline.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) database: Database,
    pub(crate) answer_timeout: AnswerTimeout,
    pub(crate) operations: Operations,
}

/// The connections of either database.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    Postgres(Postgres),
    Sqlite(DatabaseConnection),
}

impl Database {
    pub(crate) async fn ping(&self) -> Result<(), DbErr> {
        match self {
            Self::Postgres(postgres) => postgres.ping().await,
            Self::Sqlite(sqlite) => sqlite.ping().await,
        }
    }
}

/// How long the database may take to answer. A host that vanished sends nothing, and TCP waits a quarter of an hour for
/// it. PostgreSQL's own limits end a statement earlier; see [`Bounds`](crate::bounds::Bounds).
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerTimeout(pub(crate) Duration);

impl AnswerTimeout {
    pub(crate) async fn with<T>(self, answer: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        timeout(self.0, answer).await.unwrap_or_else(|_| {
            let words = format!("the database did not answer within {:?}", self.0);
            Err(DbErr::Conn(RuntimeErr::Internal(words)))
        })
    }
}

#[async_trait]
impl ConnectionTrait for Connection {
    fn get_database_backend(&self) -> DbBackend {
        match &self.database {
            Database::Postgres(_) => DbBackend::Postgres,
            Database::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let executed = async {
            match &self.database {
                Database::Postgres(postgres) => {
                    postgres.answer(statement).await.map(Answer::executed).map_err(execution_error)
                }
                Database::Sqlite(sqlite) => sqlite.execute_raw(statement).await,
            }
        };
        self.answer_timeout.with(executed).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let executed = async {
            match &self.database {
                Database::Postgres(postgres) => postgres.execute_unprepared(sql).await,
                Database::Sqlite(sqlite) => sqlite.execute_unprepared(sql).await,
            }
        };
        self.answer_timeout.with(executed).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let found = async {
            match &self.database {
                Database::Postgres(postgres) => {
                    postgres.answer(statement).await.map(Answer::one).map_err(query_error)
                }
                Database::Sqlite(sqlite) => sqlite.query_one_raw(statement).await,
            }
        };
        self.answer_timeout.with(found).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let found = async {
            match &self.database {
                Database::Postgres(postgres) => {
                    postgres.answer(statement).await.map(Answer::all).map_err(query_error)
                }
                Database::Sqlite(sqlite) => sqlite.query_all_raw(statement).await,
            }
        };
        self.answer_timeout.with(found).await
    }
}

impl Session for Connection {
    fn operations(&self) -> &Operations {
        &self.operations
    }
}
