use std::io;
use std::path::PathBuf;

use sea_orm::{DbErr, RuntimeErr};
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgDatabaseError;
use throughline_snowflake::NodeId;

/// Why the database did not do what it was asked. No text of it holds a password.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `database.url` cannot be read.
    #[error(
        "database.url cannot be read ({problem}); it looks like postgres://user:password@host:5432/database \
         or sqlite://path/to/file.db"
    )]
    Url {
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing answers as PostgreSQL.
    #[error("PostgreSQL at {server} cannot be reached: {source}; start it, or change database.url")]
    Unreachable {
        /// Host and port, or the socket.
        server: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// TLS with PostgreSQL did not come about.
    #[error(
        "no secure connection to PostgreSQL at {server}: {reason}; check sslmode, sslrootcert, sslcert and \
         sslkey in database.url, and that the server offers TLS"
    )]
    Tls {
        /// Host and port, or the socket.
        server: String,
        /// Why not.
        reason: String,
    },
    /// PostgreSQL does not let this user in.
    #[error("PostgreSQL at {server} does not let in the user {user}: {source}; change database.url")]
    Credentials {
        /// Host and port, or the socket.
        server: String,
        /// The user of `database.url`.
        user: String,
        /// What it says.
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
        "the SQLite file {} cannot be opened: {source}; its folder must exist and be writable, or change \
         database.url (--database)", path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// The `SQLite` file is there, and may not be written to.
    #[error(
        "the SQLite file {} cannot be written: {source}; make it writable, or change database.url \
         (--database)", path.display()
    )]
    ReadOnlyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The schema lacks migrations that this program needs.
    #[error("the database lacks {}; run `throughline migrate`", listed(missing))]
    SchemaBehind {
        /// Names of the migrations, in order.
        missing: Vec<String>,
    },
    /// The schema has migrations that this program should know, and does not.
    #[error(
        "the database has {}, which this program does not know: it is that of another program, or of a version that was \
         never released",
        listed(unknown)
    )]
    SchemaUnknown {
        /// Versions of the migrations, in order.
        unknown: Vec<String>,
    },
    /// A migration was applied with another text than this program's.
    #[error("migration {name} was applied to the database with another text than this program's")]
    SchemaDiffers {
        /// The migration's name.
        name: String,
    },
    /// A migration failed; it left nothing behind.
    #[error("the database cannot be migrated: {0}")]
    Migration(#[from] MigrateError),
    /// The database failed at a statement, or could not be asked.
    #[error("{0}")]
    Database(#[from] DbErr),
    /// Nothing may be written under a lease that is over.
    #[error("the lease of node id {node} has run out, or another process has it")]
    LeaseOver {
        /// The node id.
        node: NodeId,
    },
    /// A row does not hold what was written there.
    #[error("the database holds a {what} that is not one: {problem}")]
    Foreign {
        /// What should be there.
        what: &'static str,
        /// What is wrong with it.
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

    /// Whether the same call may succeed later: the database is away, overloaded, out of space, or two
    /// transactions stood in each other's way.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            // Renewed, it goes on; taken over, the process ends.
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
    /// Whether it lies with what was to be written, and not with the database: tried again, it fails again,
    /// and what comes beside it does not.
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
    /// Whether the database said so itself: it is there, and answers.
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
        // The latter where nothing was answered in time.
        DbErr::ConnectionAcquire(_) | DbErr::Conn(RuntimeErr::Internal(_)) => true,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => is_passing_in_sqlx(error),
        _ => false,
    }
}

/// Whether a statement was prepared for a schema that has changed since, or the server has forgotten it. The same
/// statement is well on another connection.
pub(crate) fn is_outdated(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    let Some(postgres) = error.try_downcast_ref::<PgDatabaseError>() else { return false };
    match postgres.code() {
        // "cached plan must not change result type", in whatever language; anything else is not supported for good.
        "0A000" => postgres.routine() == Some("RevalidateCachedQuery"),
        "26000" => true,
        _ => false,
    }
}

fn is_passing_in_sqlx(error: &sqlx::Error) -> bool {
    match error {
        error if is_outdated(error) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing_code(&code)),
        // `Protocol`: what a connection that broke in the middle of a message leaves behind.
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// PostgreSQL's codes have five characters, `SQLite`'s are numbers below 10000.
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
                // Lock not available; a transaction that stood idle for too long; read-only, as a primary is that has
                // just become a standby.
                || matches!(code, "55P03" | "25P03" | "25006")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_with_the_data_is_told_from_what_lies_with_the_database() {
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
    fn what_may_pass_is_told_from_what_will_not() {
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
