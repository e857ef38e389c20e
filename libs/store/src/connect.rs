use std::io;
use std::str::FromStr as _;

use sea_orm::{DatabaseConnection, SqlxPostgresConnector, SqlxSqliteConnector};
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use throughline_config::Database;

use crate::error::StoreError;

/// Notices in under a minute that a client's machine is gone, and frees the rows it had locked; by
/// default that takes PostgreSQL two hours. In seconds.
const KEEPALIVES: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")];

pub(crate) async fn connect(settings: &Database) -> Result<DatabaseConnection, StoreError> {
    let url = settings.url.expose();
    match url.split_once(':') {
        Some(("postgres" | "postgresql", _)) => postgres(url, settings).await,
        Some(("sqlite", _)) => sqlite(url, settings).await,
        Some((scheme, _)) => Err(StoreError::Url { problem: format!("{scheme} is not supported") }),
        None => Err(StoreError::Url { problem: "it names no kind of database".to_owned() }),
    }
}

async fn postgres(url: &str, settings: &Database) -> Result<DatabaseConnection, StoreError> {
    let mut options = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::Url { problem: error.to_string() })?
        .options(KEEPALIVES);
    if options.get_application_name().is_none() {
        options = options.application_name("throughline");
    }
    // A pool tries again until its time is up and then says only that; a single connection says why.
    let first = tokio::time::timeout(settings.connect_timeout, options.connect())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut).into())
        .flatten()
        .map_err(|error| not_connected(&options, error))?;
    // It has served its purpose; an error now would say nothing about the next one.
    let _ = first.close().await;
    let pool = PgPoolOptions::new()
        .max_connections(settings.max_connections.get())
        .acquire_timeout(settings.connect_timeout)
        .connect_lazy_with(options);
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

fn not_connected(options: &PgConnectOptions, source: sqlx::Error) -> StoreError {
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let user = options.get_username().to_owned();
    let code = source.as_database_error().and_then(DatabaseError::code);
    match code.as_deref() {
        // Invalid password; invalid authorization (no such role, or not let in from here).
        Some("28P01" | "28000") => StoreError::Credentials { server, user, source },
        Some("3D000") => {
            let database = options.get_database().map_or(user, str::to_owned);
            StoreError::NoDatabase { server, database }
        }
        _ => StoreError::Unreachable { server, source },
    }
}

/// One connection: one writer by construction, first come, first served. Several would have to poll for
/// `SQLite`'s lock, and whoever polls can starve.
///
/// The file stays readable for other processes meanwhile (WAL).
async fn sqlite(url: &str, settings: &Database) -> Result<DatabaseConnection, StoreError> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Url { problem: error.to_string() })?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Durable at commit, not only at the next checkpoint.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // For another process that has the file open.
        .busy_timeout(settings.connect_timeout);
    let path = options.get_filename().to_owned();
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(settings.connect_timeout)
        .connect_with(options)
        .await
        .map_err(|source| StoreError::File { path, source })?;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}
