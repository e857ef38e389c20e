use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::Meter;
use sea_orm::{SqliteTransactionMode, TransactionOptions, TransactionTrait};

use crate::connection::{AnswerTimeout, Connection, Database};
use crate::dialect::Dialect;
use crate::error::StoreError;
use crate::operation::Operations;
use crate::pool::Pool;
use crate::postgres::GRACE;
use crate::settings::Settings;
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

/// The name in metrics of the connections that accept, publish and record requests.
const NAME: &str = "throughline";

impl Store {
    /// Connects to the database. The `SQLite` file is created if it is missing. `meter` measures operations and
    /// connections.
    ///
    /// # Errors
    /// If the database cannot be used. The error is one line that names the change to make.
    pub async fn connect(settings: &Settings, meter: &Meter) -> Result<Self, StoreError> {
        let database = connect::connect(settings).await?;
        let counted = Pool::observed(meter, NAME, &database);
        let (answer_timeout, system) = match &database {
            Database::Postgres(_) => (AnswerTimeout(settings.timeout + GRACE), Dialect::Postgres),
            Database::Sqlite(_) => (AnswerTimeout(settings.timeout), Dialect::Sqlite),
        };
        let operations = Operations::new(meter, system);
        let connection = Connection { database, answer_timeout, operations };
        Ok(Self { connection, counted, meter: meter.clone() })
    }

    /// Returns the same database with a pool of its own: at most `most` connections, each statement limited to
    /// `timeout`. Statements on it keep no other statement waiting for a connection. With `SQLite`, all share the one
    /// connection.
    #[must_use]
    pub fn apart(&self, name: &'static str, most: u32, timeout: Duration) -> Self {
        let Database::Postgres(postgres) = &self.connection.database else { return self.clone() };
        let postgres = postgres.apart(timeout, most);
        let answer_timeout = AnswerTimeout(postgres.bounds().statement() + GRACE);
        let database = Database::Postgres(postgres);
        let counted = Pool::observed(&self.meter, name, &database);
        let connection =
            Connection { database, answer_timeout, operations: self.connection.operations.clone() };
        Self { connection, counted, ..self.clone() }
    }

    /// Returns OpenTelemetry's name of the database: `postgresql` or `sqlite`.
    #[must_use]
    pub fn system(&self) -> &'static str {
        match Dialect::of(&self.connection) {
            Dialect::Postgres => "postgresql",
            Dialect::Sqlite => "sqlite",
        }
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.connection.answer_timeout.with(self.connection.database.ping()).await?)
    }

    /// Applies the missing migrations and returns their names. Concurrent migrations wait for each other.
    ///
    /// # Errors
    /// [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the migration fails.
    pub async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        migrations::migrate(&self.connection.database).await
    }

    /// Checks that the schema has all migrations that this program knows. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::SchemaBehind`], [`StoreError::SchemaUnknown`], [`StoreError::SchemaDiffers`]; or if the database
    /// is unreachable or a statement fails.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        migrations::check(&self.connection).await
    }

    /// Returns the connections, for single statements.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Begins a transaction.
    ///
    /// On `SQLite` the transaction holds the only connection: its holder must not ask for another one, and should not
    /// wait for anything else while the transaction is open.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        self.begin_within(Duration::MAX).await
    }

    /// Begins a transaction that limits each statement to `timeout`.
    ///
    /// # Errors
    /// If the database is unreachable or a statement fails.
    pub async fn begin_within(&self, timeout: Duration) -> Result<Transaction, StoreError> {
        let Connection { database, answer_timeout, operations } = &self.connection;
        let begin = Box::pin(async {
            match database {
                Database::Postgres(postgres) => {
                    postgres.begin(postgres.bounds().within(timeout)).await.map(Open::Postgres)
                }
                Database::Sqlite(sqlite) => sqlite.begin_with_options(immediate()).await.map(Open::Sqlite),
            }
        });
        let open = operations.time("begin", answer_timeout.with(begin)).await?;
        Ok(Transaction::new(open, self.connection.clone()))
    }

    /// Closes all connections, including those of clones, once they are returned to the pool.
    pub async fn close(self) {
        match &self.connection.database {
            Database::Postgres(postgres) => postgres.pool().close().await,
            // Fails only for a connection that was never made.
            Database::Sqlite(sqlite) => drop(sqlite.clone().close().await),
        }
    }
}

/// Begins as a writer, which waits for its turn. A transaction that begins as a reader and writes later may find that
/// another process wrote in between.
fn immediate() -> TransactionOptions {
    TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    }
}
