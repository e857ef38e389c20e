use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement};

use crate::connection::{AnswerTimeout, Connection};
use crate::error::StoreError;
use crate::operation::{Operations, Session};
use crate::postgres::{self, Answer, execution_error, query_error};

/// A transaction that may write. Dropped without [`commit`](Self::commit), it is rolled back.
///
/// On `SQLite` only one can be open, and it blocks all other work.
#[derive(Debug)]
pub struct Transaction {
    open: Open,
    answer_timeout: AnswerTimeout,
    operations: Operations,
}

#[derive(Debug)]
pub(crate) enum Open {
    Postgres(postgres::Open),
    Sqlite(DatabaseTransaction),
}

impl Open {
    async fn commit(self) -> Result<(), DbErr> {
        match self {
            Self::Postgres(open) => Box::pin(open.commit()).await,
            Self::Sqlite(open) => open.commit().await,
        }
    }
}

impl Transaction {
    pub(crate) fn new(open: Open, Connection { answer_timeout, operations, .. }: Connection) -> Self {
        Self { open, answer_timeout, operations }
    }

    /// Commits the transaction durably.
    ///
    /// # Errors
    /// If the database does not confirm the commit. If [`StoreError::is_unavailable`] is true, the transaction may be
    /// durable all the same.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.operations.time("commit", self.answer_timeout.with(self.open.commit())).await?)
    }
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        match &self.open {
            Open::Postgres(_) => DbBackend::Postgres,
            Open::Sqlite(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let executed = async {
            match &self.open {
                Open::Postgres(open) => {
                    open.answer(statement).await.map(Answer::executed).map_err(execution_error)
                }
                Open::Sqlite(open) => open.execute_raw(statement).await,
            }
        };
        self.answer_timeout.with(executed).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let executed = async {
            match &self.open {
                Open::Postgres(open) => open.execute_unprepared(sql).await,
                Open::Sqlite(open) => open.execute_unprepared(sql).await,
            }
        };
        self.answer_timeout.with(executed).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let found = async {
            match &self.open {
                Open::Postgres(open) => open.answer(statement).await.map(Answer::one).map_err(query_error),
                Open::Sqlite(open) => open.query_one_raw(statement).await,
            }
        };
        self.answer_timeout.with(found).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let found = async {
            match &self.open {
                Open::Postgres(open) => open.answer(statement).await.map(Answer::all).map_err(query_error),
                Open::Sqlite(open) => open.query_all_raw(statement).await,
            }
        };
        self.answer_timeout.with(found).await
    }
}

impl Session for Transaction {
    fn operations(&self) -> &Operations {
        &self.operations
    }
}
