use std::time::Duration;

use sea_orm::entity::prelude::async_trait::async_trait;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
};
use tokio::time::timeout;

use crate::operation::{Operations, Session};

/// The connections, for single statements; each has to be answered in time.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) pool: DatabaseConnection,
    pub(crate) patience: Patience,
    pub(crate) operations: Operations,
}

/// How long the database may take to answer. A host that vanished says nothing, and TCP gives it a quarter of an
/// hour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

impl Patience {
    pub(crate) async fn with<T>(self, answer: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        timeout(self.0, answer).await.unwrap_or_else(|_| {
            let words = format!("the database has not answered within {:?}", self.0);
            Err(DbErr::Conn(RuntimeErr::Internal(words)))
        })
    }
}

#[async_trait]
impl ConnectionTrait for Connection {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.patience.with(self.pool.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.patience.with(self.pool.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.patience.with(self.pool.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.patience.with(self.pool.query_all_raw(statement)).await
    }
}

impl Session for Connection {
    fn operations(&self) -> &Operations {
        &self.operations
    }
}
