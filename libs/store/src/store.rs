use std::sync::Arc;

use opentelemetry::metrics::Meter;
use sea_orm::{SqliteTransactionMode, TransactionOptions, TransactionTrait};
use throughline_config::Database;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::connection::{Connection, Patience};
use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::operation::Operations;
use crate::pool::Pool;
use crate::transaction::Transaction;
use crate::{connect, migrations};

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Connection,
    #[expect(dead_code, reason = "connections are counted as long as it is kept")]
    counted: Arc<Pool>,
    sweeping: Arc<Mutex<()>>,
}

impl Store {
    /// Connects. The file of `SQLite` is created when missing. Measured with `meter` are operations and connections.
    ///
    /// # Errors
    /// If the database cannot be used: one line that says what to change.
    pub async fn connect(settings: &Database, meter: &Meter) -> Result<Self, StoreError> {
        let pool = connect::connect(settings).await?;
        let counted = Pool::observed(meter, &pool);
        let operations = Operations::new(meter, Dialect::of(&pool));
        let connection = Connection { pool, patience: Patience(settings.timeout), operations };
        Ok(Self { connection, counted, sweeping: Arc::default() })
    }

    /// What OpenTelemetry calls the database: `postgresql` or `sqlite`.
    #[must_use]
    pub fn system(&self) -> &'static str {
        match Dialect::of(&self.connection) {
            Dialect::Postgres => "postgresql",
            Dialect::Sqlite => "sqlite",
        }
    }

    /// Asks the database to answer.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.connection.patience.with(self.connection.pool.ping()).await?)
    }

    /// Applies the migrations that are missing, and returns their names. Who migrates at the same time
    /// waits.
    ///
    /// # Errors
    /// [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the database cannot be migrated.
    pub async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        migrations::migrate(&self.connection.pool).await
    }

    /// Looks whether the schema has all that this program knows of it. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::SchemaBehind`], [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the
    /// database cannot be asked.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        migrations::check(&self.connection.pool).await
    }

    /// The connections, for single statements.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Begins a transaction.
    ///
    /// On `SQLite` it has the only connection: who holds it must not ask for another, and should not
    /// wait for anything else meanwhile.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        let options = TransactionOptions {
            // Who begins to read and writes later may find that another process wrote between; who
            // begins as a writer waits its turn.
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let Connection { pool, patience, operations } = &self.connection;
        let open = operations.time("begin", patience.with(pool.begin_with_options(options))).await?;
        Ok(Transaction::new(open, self.connection.clone()))
    }

    /// Closes all connections, those of clones included, once they are given back.
    pub async fn close(self) {
        // Fails only for what was never connected.
        let _ = self.connection.pool.close().await;
    }

    pub(crate) async fn sweepers_turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.sweeping).lock_owned().await
    }
}
