use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::str::FromStr as _;

use rustls::crypto::CryptoProvider;
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};
use sqlx::ConnectOptions as _;
use sqlx::Connection as _;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::bounds::Bounds;
use crate::connection::Database;
use crate::error::StoreError;
use crate::postgres::Postgres;
use crate::settings::Settings;

/// TCP keepalives, in seconds. With them PostgreSQL notices in under a minute that a client's machine is gone, and
/// releases the rows that it had locked. With the defaults that takes two hours.
const KEEPALIVES: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "5"), ("tcp_keepalives_count", "3")];

pub(crate) async fn connect(settings: &Settings) -> Result<Database, StoreError> {
    let url = settings.url.expose();
    match url.split_once(':') {
        Some(("postgres" | "postgresql", _)) => postgres(url, settings).await.map(Database::Postgres),
        Some(("sqlite", _)) => sqlite(url, settings).await.map(Database::Sqlite),
        Some((scheme, _)) => Err(StoreError::Url { problem: format!("unsupported scheme {scheme}") }),
        None => Err(StoreError::Url { problem: "it has no scheme".to_owned() }),
    }
}

async fn postgres(url: &str, settings: &Settings) -> Result<Postgres, StoreError> {
    choose_cryptography();
    let mut options = PgConnectOptions::from_str(url)
        .map_err(|error| StoreError::Url { problem: error.to_string() })?
        .options(KEEPALIVES);
    if options.get_application_name().is_none() {
        options = options.application_name("throughline");
    }
    // A pool retries until its timeout and then reports only the timeout; a single connection reports the cause.
    let bounds = Bounds::new(settings.timeout);
    let bounded = options.clone().options(bounds.options());
    let first = tokio::time::timeout(settings.connect_timeout, bounded.connect())
        .await
        .map_err(|_| io::Error::from(ErrorKind::TimedOut).into())
        .flatten()
        .map_err(|error| not_connected(&options, error))?;
    // The connection was only a test; an error here would say nothing about the next one.
    let _ = first.close().await;
    Ok(Postgres::new(options, bounds, settings.max_connections.get(), settings.connect_timeout))
}

/// Chooses the process's cryptography provider. For `sslmode=verify-ca`, sqlx uses the default provider of rustls; if
/// several are compiled in, rustls panics unless one was chosen.
fn choose_cryptography() {
    if CryptoProvider::get_default().is_none() {
        // Fails if another thread has just installed one, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn not_connected(options: &PgConnectOptions, source: sqlx::Error) -> StoreError {
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let user = options.get_username().to_owned();
    let code = source.as_database_error().and_then(DatabaseError::code);
    match code.as_deref() {
        // Invalid password; invalid authorization (no such role, or no access from this host).
        Some("28P01" | "28000") => StoreError::Credentials { server, user, source },
        Some("3D000") => {
            let database = options.get_database().map_or(user, str::to_owned);
            StoreError::NoDatabase { server, database }
        }
        _ => match without_tls(&source, options) {
            Some(reason) => StoreError::Tls { server, reason },
            None => StoreError::Unreachable { server, source },
        },
    }
}

/// Returns why TLS failed, if TLS is the cause. A rejected certificate and an unreadable file are reported as I/O
/// errors of kinds that the network does not cause.
fn without_tls(error: &sqlx::Error, options: &PgConnectOptions) -> Option<String> {
    use ErrorKind::{InvalidData, NotFound, PermissionDenied};
    match error {
        sqlx::Error::Tls(error) => Some(error.to_string()),
        sqlx::Error::Io(error) if options.get_socket().is_none() => {
            matches!(error.kind(), InvalidData | NotFound | PermissionDenied).then(|| error.to_string())
        }
        _ => None,
    }
}

/// Opens a single connection: one writer by construction, first come, first served. Several would have to poll for
/// `SQLite`'s lock, and a connection that polls can starve.
///
/// Other processes can read the file meanwhile (WAL).
async fn sqlite(url: &str, settings: &Settings) -> Result<DatabaseConnection, StoreError> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Url { problem: error.to_string() })?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Makes a commit durable at once, not only at the next checkpoint.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // Applies when another process has the file open.
        .busy_timeout(settings.connect_timeout);
    let path = options.get_filename().to_owned();
    check_writable(&path)?;
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

/// Checks that the file can be written. `SQLite` opens a read-only file without an error and fails at the first write.
fn check_writable(path: &Path) -> Result<(), StoreError> {
    match File::options().append(true).open(path) {
        Err(source)
            if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            Err(StoreError::ReadOnlyFile { path: path.to_owned(), source })
        }
        // `SQLite` itself reports every other problem.
        _ => Ok(()),
    }
}
