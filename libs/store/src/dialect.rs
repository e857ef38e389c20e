//! The differences between the two databases, except those in [`rows`](crate::rows).

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};

/// The kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Postgres,
    Sqlite,
}

impl Dialect {
    pub(crate) fn of(connection: &impl ConnectionTrait) -> Self {
        match connection.get_database_backend() {
            DbBackend::Sqlite => Self::Sqlite,
            _ => Self::Postgres,
        }
    }

    /// Returns OpenTelemetry's name of the database.
    pub(crate) fn system(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }

    /// Returns a statement with its parameters, which both databases number `$1`, `$2`, ….
    pub(crate) fn statement(
        self,
        sql: impl Into<String>,
        parameters: impl IntoIterator<Item = Value>,
    ) -> Statement {
        let backend = match self {
            Self::Postgres => DbBackend::Postgres,
            Self::Sqlite => DbBackend::Sqlite,
        };
        Statement::from_sql_and_values(backend, sql, parameters)
    }

    /// Returns a time as a parameter.
    pub(crate) fn time(self, at: DateTime<Utc>) -> Value {
        match self {
            Self::Postgres => at.into(),
            Self::Sqlite => time(at).into(),
        }
    }

    /// Returns a time as a parameter, or null.
    pub(crate) fn nullable_time(self, at: Option<DateTime<Utc>>) -> Value {
        match self {
            Self::Postgres => at.into(),
            Self::Sqlite => at.map(time).into(),
        }
    }

    /// Returns SQL for the current time of the database's own clock. It is not the time at which the transaction began,
    /// since the transaction may have waited for a lock.
    ///
    /// On PostgreSQL the expression must be volatile, which `now()` is not: it decides whether a lease still holds, and
    /// after a wait for a row PostgreSQL evaluates the condition again.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Postgres => "clock_timestamp()",
            Self::Sqlite => "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')",
        }
    }

    /// Returns SQL for [`now`](Self::now) plus a number of milliseconds, which is a parameter.
    pub(crate) fn later(self, millis: &str) -> String {
        match self {
            Self::Postgres => format!("clock_timestamp() + {millis} * interval '1 millisecond'"),
            Self::Sqlite => {
                format!("strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', ({millis} / 1000.0) || ' seconds')")
            }
        }
    }

    /// Returns the end of a SELECT that locks the rows it reads of a table. `SQLite` has a single writer, which needs
    /// no locks.
    pub(crate) fn lock_rows_of(self, table: &str) -> String {
        match self {
            Self::Postgres => format!("FOR NO KEY UPDATE OF {table}"),
            Self::Sqlite => String::new(),
        }
    }

    /// Returns the literal of an empty byte string.
    pub(crate) fn no_bytes(self) -> &'static str {
        match self {
            Self::Postgres => "''::bytea",
            Self::Sqlite => "x''",
        }
    }

    /// Returns a parameter that is text or null, with its type where the statement does not imply it.
    pub(crate) fn nullable_text(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("{parameter}::text"),
            Self::Sqlite => parameter.to_owned(),
        }
    }

    /// Returns the end of a SELECT that skips rows locked by other transactions and locks the rest for deletion.
    pub(crate) fn lock_free_rows(self) -> &'static str {
        match self {
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
            Self::Sqlite => "",
        }
    }
}

/// Returns a time as text of fixed length, to the microsecond. Both databases read it; `SQLite` stores it in this form.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, false)
}

/// Returns text as both databases can store it. PostgreSQL rejects NUL, and a NUL in a third party's response or in a
/// foreign record must not block the rows of the same batch.
pub(crate) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
