use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, ExecResult, QueryResult, Statement};

use crate::connection::{Connection, Patience};
use crate::error::StoreError;
use crate::operation::{Operations, Session};

/// A transaction that may write. Dropped without [`commit`](Self::commit), it leaves nothing behind.
///
/// On `SQLite` it is the only one, and keeps everybody else waiting while it is open.
#[derive(Debug)]
pub struct Transaction {
    open: DatabaseTransaction,
    patience: Patience,
    operations: Operations,
}

impl Transaction {
    pub(crate) fn new(
        open: DatabaseTransaction,
        Connection { patience, operations, .. }: Connection,
    ) -> Self {
        Self { open, patience, operations }
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// If the database does not say so. When [`StoreError::is_unavailable`], it may be durable all the same.
    pub async fn commit(self) -> Result<(), StoreError> {
        Ok(self.operations.time("commit", self.patience.with(self.open.commit())).await?)
    }
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        self.open.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.patience.with(self.open.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.patience.with(self.open.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.patience.with(self.open.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.patience.with(self.open.query_all_raw(statement)).await
    }
}

impl Session for Transaction {
    fn operations(&self) -> &Operations {
        &self.operations
    }
}
