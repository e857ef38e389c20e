//! Where the two databases differ, but for [`rows`](crate::rows).

use chrono::{DateTime, SecondsFormat, Utc};
use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};

/// Which of the two it is.
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

    /// What OpenTelemetry calls it.
    pub(crate) fn system(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }

    /// A statement with its parameters, which both databases number `$1`, `$2`, ….
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

    /// A time as a parameter.
    pub(crate) fn time(self, at: DateTime<Utc>) -> Value {
        match self {
            Self::Postgres => at.into(),
            Self::Sqlite => time(at).into(),
        }
    }

    /// A time as a parameter, or null.
    pub(crate) fn nullable_time(self, at: Option<DateTime<Utc>>) -> Value {
        match self {
            Self::Postgres => at.into(),
            Self::Sqlite => at.map(time).into(),
        }
    }

    /// The time by the database's own clock: not that of the transaction's begin, which may have waited
    /// for a lock since.
    ///
    /// On PostgreSQL it must be volatile, which `now()` is not: what a lease allows is decided by it, and after a wait
    /// for a row PostgreSQL looks at the condition again.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Postgres => "clock_timestamp()",
            Self::Sqlite => "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')",
        }
    }

    /// [`now`](Self::now) and a number of milliseconds more, which is a parameter.
    pub(crate) fn later(self, millis: &str) -> String {
        match self {
            Self::Postgres => format!("clock_timestamp() + {millis} * interval '1 millisecond'"),
            Self::Sqlite => {
                format!("strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', ({millis} / 1000.0) || ' seconds')")
            }
        }
    }

    /// Ends a SELECT so that the rows it reads of a table are locked. `SQLite` has one writer, who needs
    /// no locks.
    pub(crate) fn lock_rows_of(self, table: &str) -> String {
        match self {
            Self::Postgres => format!("FOR NO KEY UPDATE OF {table}"),
            Self::Sqlite => String::new(),
        }
    }

    /// Bytes of which there are none.
    pub(crate) fn no_bytes(self) -> &'static str {
        match self {
            Self::Postgres => "''::bytea",
            Self::Sqlite => "x''",
        }
    }

    /// A parameter that is text or null, where nothing else says so.
    pub(crate) fn nullable_text(self, parameter: &str) -> String {
        match self {
            Self::Postgres => format!("{parameter}::text"),
            Self::Sqlite => parameter.to_owned(),
        }
    }

    /// Ends a SELECT so that it leaves out rows that others have locked, and locks the rest, to be deleted.
    pub(crate) fn lock_free_rows(self) -> &'static str {
        match self {
            Self::Postgres => "FOR UPDATE SKIP LOCKED",
            Self::Sqlite => "",
        }
    }
}

/// A time as text of one length, to the microsecond, which both databases read; `SQLite` keeps it so.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, false)
}

/// Text as both databases keep it: PostgreSQL knows no NUL, and one in a third party's answer or in a
/// foreign record must not stop what comes with it.
pub(crate) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
