//! The schema: plain SQL in `migrations/`, embedded.
//!
//! The bookkeeping is that of sqlx-cli, so that both can be used on the same database.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, FromQueryResult};
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::{Connection as _, Executor as _, PgPool, SqlitePool};

use crate::connection::{Connection, Database};
use crate::dialect::Dialect;
use crate::error::StoreError;

static POSTGRES: Migrator = sqlx::migrate!("../../migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("../../migrations/sqlite");

const TABLE: &str = "_sqlx_migrations";

/// A migration has no time limit: it may change a large table, or wait for another process that migrates.
const UNBOUNDED: &str = "SET lock_timeout = 0; SET statement_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0";

pub(crate) async fn migrate(database: &Database) -> Result<Vec<String>, StoreError> {
    match database {
        Database::Postgres(postgres) => migrate_postgres(postgres.pool()).await,
        Database::Sqlite(sqlite) => migrate_sqlite(sqlite.get_sqlite_connection_pool()).await,
    }
}

async fn migrate_postgres(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    // The lock belongs to the session. A connection of its own releases it on an error too.
    let mut connection = pool.acquire().await.map_err(MigrateError::from)?.detach();
    connection.execute(UNBOUNDED).await.map_err(MigrateError::from)?;
    let applied = apply_missing(&POSTGRES, &mut connection).await;
    // The migrations are committed, whatever the result of closing.
    let _ = connection.close().await;
    applied
}

async fn migrate_sqlite(pool: &SqlitePool) -> Result<Vec<String>, StoreError> {
    // sqlx takes no lock on SQLite. Inside this transaction, each migration's own transaction is a savepoint.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(MigrateError::from)?;
    let applied = apply_missing(&SQLITE, &mut *transaction).await?;
    transaction.commit().await.map_err(MigrateError::from)?;
    Ok(applied)
}

/// Locks out other processes, then applies the missing migrations.
async fn apply_missing<C: Migrate>(known: &Migrator, connection: &mut C) -> Result<Vec<String>, StoreError> {
    connection.lock().await?;
    connection.ensure_migrations_table(TABLE).await?;
    let applied = connection.list_applied_migrations(TABLE).await?;
    let applied = applied.into_iter().map(|row| (row.version, row.checksum.into_owned())).collect();
    let missing = missing(known, &applied)?;
    for migration in &missing {
        connection.apply(TABLE, migration).await?;
    }
    connection.unlock().await?;
    Ok(missing.into_iter().map(name).collect())
}

pub(crate) async fn check(connection: &Connection) -> Result<(), StoreError> {
    let known = match Dialect::of(connection) {
        Dialect::Sqlite => &SQLITE,
        Dialect::Postgres => &POSTGRES,
    };
    let missing = missing(known, &applied(connection).await?)?;
    if missing.is_empty() {
        Ok(())
    } else {
        Err(StoreError::SchemaBehind { missing: missing.into_iter().map(name).collect() })
    }
}

/// Checksums by version.
type Applied = BTreeMap<i64, Vec<u8>>;

#[derive(FromQueryResult)]
struct AppliedRow {
    version: i64,
    checksum: Vec<u8>,
}

/// Reads the applied migrations. Unlike sqlx it does not create the table: the database user may lack the permission.
async fn applied(connection: &Connection) -> Result<Applied, StoreError> {
    let dialect = Dialect::of(connection);
    let exists = match dialect {
        Dialect::Sqlite => "SELECT 1 FROM sqlite_schema WHERE name = $1",
        Dialect::Postgres => "SELECT 1 WHERE to_regclass($1) IS NOT NULL",
    };
    let exists = dialect.statement(exists, [TABLE.into()]);
    if connection.query_one_raw(exists).await?.is_none() {
        return Ok(Applied::new());
    }
    let rows = dialect.statement(format!("SELECT version, checksum FROM {TABLE}"), []);
    let rows = AppliedRow::find_by_statement(rows).all(connection).await?;
    Ok(rows.into_iter().map(|row| (row.version, row.checksum)).collect())
}

/// Returns the known migrations that are not applied, in order.
///
/// Applied migrations newer than all known ones belong to a later release that is, or was, being rolled out. They only
/// add to the schema, so this program continues with the part that it knows.
///
/// # Errors
/// If an applied migration that is not newer is unknown, or if its text differs.
fn missing<'m>(known: &'m Migrator, applied: &Applied) -> Result<Vec<&'m Migration>, StoreError> {
    let newest = known.iter().map(|migration| migration.version).max().unwrap_or_default();
    let of_this_release = applied.range(..=newest).map(|(version, _)| version);
    let unknown: Vec<_> =
        of_this_release.filter(|version| !known.version_exists(**version)).map(i64::to_string).collect();
    if !unknown.is_empty() {
        return Err(StoreError::SchemaUnknown { unknown });
    }
    let mut missing = Vec::new();
    for migration in known.iter().filter(|migration| migration.migration_type.is_up_migration()) {
        match applied.get(&migration.version) {
            None => missing.push(migration),
            Some(checksum) if *checksum == *migration.checksum => {}
            Some(_) => return Err(StoreError::SchemaDiffers { name: name(migration) }),
        }
    }
    Ok(missing)
}

fn name(migration: &Migration) -> String {
    format!("{:04} {}", migration.version, migration.description)
}
