use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::Meter;
use sea_orm::{SqliteTransactionMode, TransactionOptions, TransactionTrait};
use throughline_config as configured;

use crate::connection::{Connection, Database, Patience};
use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::operation::Operations;
use crate::pool::Pool;
use crate::postgres::GRACE;
use crate::transaction::{Open, Transaction};
use crate::{connect, migrations};

/// The database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Connection,
    #[expect(dead_code, reason = "connections are counted as long as it is kept")]
    counted: Arc<Pool>,
    meter: Meter,
}

/// What metrics call the connections by which requests are accepted, published and recorded.
const NAME: &str = "throughline";

impl Store {
    /// Connects. The file of `SQLite` is created when missing. Measured with `meter` are operations and connections.
    ///
    /// # Errors
    /// If the database cannot be used: one line that says what to change.
    pub async fn connect(settings: &configured::Database, meter: &Meter) -> Result<Self, StoreError> {
        let database = connect::connect(settings).await?;
        let counted = Pool::observed(meter, NAME, &database);
        let (patience, system) = match &database {
            Database::Postgres(_) => (Patience(settings.timeout + GRACE), Dialect::Postgres),
            Database::Sqlite(_) => (Patience(settings.timeout), Dialect::Sqlite),
        };
        let operations = Operations::new(meter, system);
        let connection = Connection { database, patience, operations };
        Ok(Self { connection, counted, meter: meter.clone() })
    }

    /// The same database on `most` connections of its own, each statement of which takes `timeout` at most: whatever
    /// is asked here keeps nothing else waiting for a connection. `SQLite` has the one for all.
    #[must_use]
    pub fn apart(&self, name: &'static str, most: u32, timeout: Duration) -> Self {
        let Database::Postgres(postgres) = &self.connection.database else { return self.clone() };
        let postgres = postgres.apart(timeout, most);
        let patience = Patience(postgres.bounds().statement() + GRACE);
        let database = Database::Postgres(postgres);
        let counted = Pool::observed(&self.meter, name, &database);
        let connection = Connection { database, patience, operations: self.connection.operations.clone() };
        Self { connection, counted, ..self.clone() }
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
        Ok(self.connection.patience.with(self.connection.database.ping()).await?)
    }

    /// Applies the migrations that are missing, and returns their names. Who migrates at the same time
    /// waits.
    ///
    /// # Errors
    /// [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the database cannot be migrated.
    pub async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        migrations::migrate(&self.connection.database).await
    }

    /// Looks whether the schema has all that this program knows of it. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::SchemaBehind`], [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the
    /// database cannot be asked.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        migrations::check(&self.connection).await
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
        self.begin_within(Duration::MAX).await
    }

    /// The same for a transaction each statement of which takes `timeout` at most.
    ///
    /// # Errors
    /// If the database cannot be asked.
    pub async fn begin_within(&self, timeout: Duration) -> Result<Transaction, StoreError> {
        let Connection { database, patience, operations } = &self.connection;
        let begin = Box::pin(async {
            match database {
                Database::Postgres(postgres) => {
                    postgres.begin(postgres.bounds().within(timeout)).await.map(Open::Postgres)
                }
                Database::Sqlite(sqlite) => sqlite.begin_with_options(immediate()).await.map(Open::Sqlite),
            }
        });
        let open = operations.time("begin", patience.with(begin)).await?;
        Ok(Transaction::new(open, self.connection.clone()))
    }

    /// Closes all connections, those of clones included, once they are given back.
    pub async fn close(self) {
        match &self.connection.database {
            Database::Postgres(postgres) => postgres.pool().close().await,
            // Fails only for what was never connected.
            Database::Sqlite(sqlite) => drop(sqlite.clone().close().await),
        }
    }
}

/// A transaction that begins to read and writes later may find that another process wrote between; one that begins as a
/// writer waits its turn.
fn immediate() -> TransactionOptions {
    TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    }
}
