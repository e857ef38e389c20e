use std::io;
use std::path::PathBuf;

use sea_orm::{DbErr, RuntimeErr};
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use throughline_snowflake::NodeId;

/// Why a database operation failed. No error text contains a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `database.url` cannot be read.
    #[error(
        "invalid database.url ({problem}); expected postgres://user:password@host:5432/database \
         or sqlite://path/to/file.db"
    )]
    Url {
        /// Why it cannot be read.
        problem: String,
    },
    /// PostgreSQL cannot be reached.
    #[error("cannot connect to PostgreSQL at {server}: {source}; start PostgreSQL, or change database.url")]
    Unreachable {
        /// Host and port, or the socket.
        server: String,
        /// The cause.
        source: sqlx::Error,
    },
    /// The TLS connection to PostgreSQL failed.
    #[error(
        "no TLS connection to PostgreSQL at {server}: {reason}; check sslmode, sslrootcert, sslcert and \
         sslkey in database.url, and that the server offers TLS"
    )]
    Tls {
        /// Host and port, or the socket.
        server: String,
        /// The cause.
        reason: String,
    },
    /// PostgreSQL rejects the user.
    #[error("PostgreSQL at {server} rejected the user {user}: {source}; change database.url")]
    Credentials {
        /// Host and port, or the socket.
        server: String,
        /// The user of `database.url`.
        user: String,
        /// PostgreSQL's error.
        source: sqlx::Error,
    },
    /// PostgreSQL has no such database.
    #[error("PostgreSQL at {server} has no database {database}; create it, or change database.url")]
    NoDatabase {
        /// Host and port, or the socket.
        server: String,
        /// The database of `database.url`.
        database: String,
    },
    /// The `SQLite` file cannot be used.
    #[error(
        "cannot open the SQLite file {}: {source}; create its folder and make it writable, or change \
         database.url (--database)", path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: sqlx::Error,
    },
    /// The `SQLite` file exists and is read-only.
    #[error(
        "cannot write the SQLite file {}: {source}; make it writable, or change database.url \
         (--database)", path.display()
    )]
    ReadOnlyFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The schema lacks migrations that this program needs.
    #[error("the database lacks {}; run `throughline migrate`", listed(missing))]
    SchemaBehind {
        /// Names of the migrations, in order.
        missing: Vec<String>,
    },
    /// The schema has migrations that this program should know but does not.
    #[error(
        "the database has {}, which this program does not know: the database belongs to another program or to an \
         unreleased version",
        listed(unknown)
    )]
    SchemaUnknown {
        /// Versions of the migrations, in order.
        unknown: Vec<String>,
    },
    /// The text of an applied migration differs from this program's.
    #[error("migration {name} in the database differs from the migration in this program")]
    SchemaDiffers {
        /// The migration's name.
        name: String,
    },
    /// A migration failed and left no changes.
    #[error("cannot migrate the database: {0}")]
    Migration(#[from] MigrateError),
    /// A statement failed, or the database is unreachable.
    #[error("{0}")]
    Database(#[from] DbErr),
    /// The lease has ended, so nothing may be written under it.
    #[error("the lease of node id {node} has expired, or another process holds it")]
    LeaseOver {
        /// The node id.
        node: NodeId,
    },
    /// A row holds an invalid value.
    #[error("the database contains an invalid {what}: {problem}")]
    Foreign {
        /// The expected kind of value.
        what: &'static str,
        /// Why the value is invalid.
        problem: String,
    },
}

fn listed(migrations: &[String]) -> String {
    format!("migration{} {}", if migrations.len() == 1 { "" } else { "s" }, migrations.join(", "))
}

impl StoreError {
    pub(crate) fn foreign(what: &'static str, problem: impl Into<String>) -> Self {
        Self::Foreign { what, problem: problem.into() }
    }

    /// Returns whether the same call may succeed later: the database is unreachable, overloaded or out of space, or two
    /// transactions conflicted.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            // If the lease is renewed, a retry succeeds; if another process has taken it over, this process ends.
            Self::Unreachable { .. } | Self::LeaseOver { .. } => true,
            Self::Database(error) => is_passing(error),
            Self::Migration(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                is_passing_in_sqlx(error)
            }
            Self::Url { .. }
            | Self::Tls { .. }
            | Self::Credentials { .. }
            | Self::NoDatabase { .. }
            | Self::File { .. }
            | Self::ReadOnlyFile { .. }
            | Self::SchemaBehind { .. }
            | Self::SchemaUnknown { .. }
            | Self::SchemaDiffers { .. }
            | Self::Migration(_)
            | Self::Foreign { .. } => false,
        }
    }
}

impl StoreError {
    /// Returns whether the written data causes the error, not the database: a retry fails again, and other rows of the
    /// batch can be written.
    #[must_use]
    pub fn is_about_data(&self) -> bool {
        match self {
            Self::Foreign { .. } => true,
            Self::Database(
                DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)),
            ) => {
                let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
                code.is_some_and(|code| is_code_about_data(&code))
            }
            _ => false,
        }
    }
}

impl StoreError {
    /// Returns whether the database itself reported the error, so it is reachable.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        match self {
            Self::Foreign { .. } | Self::LeaseOver { .. } => true,
            Self::Database(
                DbErr::Conn(RuntimeErr::SqlxError(error))
                | DbErr::Exec(RuntimeErr::SqlxError(error))
                | DbErr::Query(RuntimeErr::SqlxError(error)),
            ) => error.as_database_error().is_some(),
            _ => false,
        }
    }
}

fn is_code_about_data(code: &str) -> bool {
    match (code.len(), code.parse::<u32>()) {
        // TOOBIG, CONSTRAINT, MISMATCH.
        (1..=4, Ok(number)) => matches!(number & 0xff, 18..=20),
        // Data exception, integrity constraint violation, program limit exceeded.
        _ => ["22", "23", "54"].iter().any(|class| code.starts_with(class)),
    }
}

fn is_passing(error: &DbErr) -> bool {
    match error {
        // `Internal` is the timeout of `AnswerTimeout`.
        DbErr::ConnectionAcquire(_) | DbErr::Conn(RuntimeErr::Internal(_)) => true,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => is_passing_in_sqlx(error),
        _ => false,
    }
}

/// Returns whether a statement was prepared for a schema that has changed since, or the server no longer has it. The
/// same statement succeeds on another connection.
pub(crate) fn is_outdated(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    let Some(postgres) = error.try_downcast_ref::<PgDatabaseError>() else { return false };
    match postgres.code() {
        // "cached plan must not change result type", in any language; every other unsupported feature is permanent.
        "0A000" => postgres.routine() == Some("RevalidateCachedQuery"),
        "26000" => true,
        _ => false,
    }
}

fn is_passing_in_sqlx(error: &sqlx::Error) -> bool {
    match error {
        error if is_outdated(error) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing_code(&code)),
        // `Protocol`: the error after a connection that broke in the middle of a message.
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Codes of PostgreSQL have five characters; those of `SQLite` are numbers below 10000.
///
/// See <https://www.postgresql.org/docs/current/errcodes-appendix.html> and
/// <https://www.sqlite.org/rescode.html>.
fn is_passing_code(code: &str) -> bool {
    match (code.len(), code.parse::<u32>()) {
        // BUSY, LOCKED, NOMEM, IOERR, FULL; an extended code has its primary code in the low byte.
        (1..=4, Ok(number)) => matches!(number & 0xff, 5 | 6 | 7 | 10 | 13),
        _ => {
            // Connection, rollback (serialization, deadlock), resources, intervention, system error.
            ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                // Lock not available; a transaction that was idle for too long; read-only, as on a primary that has
                // just become a standby.
                || matches!(code, "55P03" | "25P03" | "25006")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_the_data_are_distinguished_from_errors_of_the_database() {
        // Unique, foreign key, NUL in text, statement too complex; CONSTRAINT_UNIQUE, CONSTRAINT_CHECK, TOOBIG.
        for code in ["23505", "23503", "22021", "54001", "2067", "275", "18"] {
            assert!(is_code_about_data(code), "{code}");
        }
        // No such table, no permission, wrong password, no such database; READONLY, CORRUPT, FULL.
        for code in ["42P01", "42501", "28P01", "3D000", "57P01", "8", "11", "13", ""] {
            assert!(!is_code_about_data(code), "{code}");
        }
    }

    #[test]
    fn temporary_errors_are_distinguished_from_permanent_ones() {
        // Deadlock, serialization, shutdown, no more connections, disk full, read-only standby; the server's own bounds
        // on locks, statements and idle transactions.
        for code in ["40P01", "40001", "57P01", "53300", "53100", "08006", "25006", "55P03", "57014", "25P03"]
        {
            assert!(is_passing_code(code), "{code}");
        }
        // BUSY, BUSY_SNAPSHOT, LOCKED, IOERR_WRITE, FULL.
        for code in ["5", "517", "6", "778", "13"] {
            assert!(is_passing_code(code), "{code}");
        }
        // Unique, foreign key, NUL in text, no such table, wrong password; CONSTRAINT_UNIQUE, READONLY.
        for code in ["23505", "23503", "22021", "42P01", "28P01", "2067", "8", ""] {
            assert!(!is_passing_code(code), "{code}");
        }
    }
}
