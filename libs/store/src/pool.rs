use std::sync::{Arc, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use sqlx::{PgPool, SqlitePool};

use crate::connection::Database;

/// A pool with counted connections.
#[derive(Debug)]
pub(crate) enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Pool {
    /// Counts the connections of a database whenever metrics are collected, for as long as the returned value is kept.
    pub(crate) fn observed(meter: &Meter, name: &'static str, database: &Database) -> Arc<Self> {
        let pool = Arc::new(match database {
            Database::Postgres(postgres) => Self::Postgres(postgres.pool().clone()),
            Database::Sqlite(sqlite) => Self::Sqlite(sqlite.get_sqlite_connection_pool().clone()),
        });
        let name = KeyValue::new("db.client.connection.pool.name", name);
        let state = |state| [name.clone(), KeyValue::new("db.client.connection.state", state)];
        let (idle, used) = (state("idle"), state("used"));
        // The meter keeps the callback, which must not keep connections open.
        let of: Weak<Self> = Arc::downgrade(&pool);
        meter
            .i64_observable_up_down_counter("db.client.connection.count")
            .with_unit("{connection}")
            .with_description("Database connections that are in use or idle.")
            .with_callback(move |count| {
                let Some(pool) = of.upgrade() else { return };
                let all = pool.size();
                let free = pool.idle().min(all);
                count.observe(free, &idle);
                count.observe(all - free, &used);
            })
            .build();
        let of: Weak<Self> = Arc::downgrade(&pool);
        meter
            .i64_observable_up_down_counter("db.client.connection.max")
            .with_unit("{connection}")
            .with_description("Maximum number of database connections.")
            .with_callback(move |max| {
                if let Some(pool) = of.upgrade() {
                    max.observe(pool.max(), std::slice::from_ref(&name));
                }
            })
            .build();
        pool
    }

    fn size(&self) -> i64 {
        i64::from(match self {
            Self::Postgres(pool) => pool.size(),
            Self::Sqlite(pool) => pool.size(),
        })
    }

    fn idle(&self) -> i64 {
        let idle = match self {
            Self::Postgres(pool) => pool.num_idle(),
            Self::Sqlite(pool) => pool.num_idle(),
        };
        i64::try_from(idle).unwrap_or(i64::MAX)
    }

    fn max(&self) -> i64 {
        i64::from(match self {
            Self::Postgres(pool) => pool.options().get_max_connections(),
            Self::Sqlite(pool) => pool.options().get_max_connections(),
        })
    }
}
