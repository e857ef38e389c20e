use std::path::Path;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sqlx::migrate::Migrator;
use sqlx::{PgPool, SqlitePool};
use throughline_store::{Store, StoreError};
use throughline_testkit::unmeasured;

use crate::databases::Db;

fn folder(backend: DbBackend) -> &'static Path {
    match backend {
        DbBackend::Sqlite => Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/sqlite")),
        _ => Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/postgres")),
    }
}

/// Undoes all migrations with the files that sqlx-cli reads.
async fn undo(db: &Db) {
    let url = db.settings.url.expose();
    let backend = db.store.connection().get_database_backend();
    let migrator = Migrator::new(folder(backend)).await.unwrap();
    let undone = match backend {
        DbBackend::Sqlite => migrator.undo(&SqlitePool::connect(url).await.unwrap(), 0).await,
        _ => migrator.undo(&PgPool::connect(url).await.unwrap(), 0).await,
    };
    undone.unwrap();
}

async fn tables(store: &Store) -> Vec<String> {
    let backend = store.connection().get_database_backend();
    let sql = match backend {
        DbBackend::Sqlite => "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name",
        _ => {
            "SELECT relname::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace \
             AND relkind IN ('r', 'S') ORDER BY relname"
        }
    };
    let rows = store.connection().query_all_raw(Statement::from_string(backend, sql)).await.unwrap();
    rows.iter().map(|row| row.try_get("", "name").unwrap()).collect()
}

pub(crate) async fn an_empty_database_is_behind(db: Db) {
    undo(&db).await;
    db.store.connection().execute_unprepared("DROP TABLE _sqlx_migrations").await.unwrap();
    let error = db.store.check_schema().await.expect_err("nothing is there");
    assert_eq!(error.to_string(), "the database lacks migration 0001 pipeline; run `throughline migrate`");
    assert_eq!(tables(&db.store).await, [""; 0], "a look changed something");
}

pub(crate) async fn migrating_brings_the_schema_up_to_date_once(db: Db) {
    undo(&db).await;
    assert!(matches!(db.store.check_schema().await, Err(StoreError::SchemaBehind { .. })));
    assert_eq!(db.store.migrate().await.unwrap(), ["0001 pipeline"]);
    db.store.check_schema().await.unwrap();
    assert_eq!(db.store.migrate().await.unwrap(), [""; 0]);
}

/// As if a migration of this number had been applied too.
async fn also_applied(db: &Db, version: i64) {
    let sql = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         SELECT {version}, 'another', success, checksum, 0 FROM _sqlx_migrations"
    );
    db.store.connection().execute_unprepared(&sql).await.unwrap();
}

pub(crate) async fn a_schema_of_a_later_release_is_supported(db: Db) {
    also_applied(&db, 9001).await;
    db.store.check_schema().await.unwrap();
    assert_eq!(db.store.migrate().await.unwrap(), [""; 0]);
}

pub(crate) async fn a_schema_of_another_program_is_rejected(db: Db) {
    also_applied(&db, 0).await;
    for refused in [db.store.check_schema().await, db.store.migrate().await.map(|_| ())] {
        let error = refused.expect_err("it does not know 0");
        assert!(matches!(&error, StoreError::SchemaUnknown { unknown } if unknown == &["0"]), "{error}");
        assert!(!error.is_unavailable());
    }
}

pub(crate) async fn a_migration_with_another_text_is_rejected(db: Db) {
    let (blob, sql) = match db.store.connection().get_database_backend() {
        DbBackend::Sqlite => ("x'00'", "UPDATE _sqlx_migrations SET checksum = "),
        _ => ("'\\x00'", "UPDATE _sqlx_migrations SET checksum = "),
    };
    db.store.connection().execute_unprepared(&format!("{sql}{blob}")).await.unwrap();
    for refused in [db.store.check_schema().await, db.store.migrate().await.map(|_| ())] {
        assert!(matches!(refused, Err(StoreError::SchemaDiffers { .. })), "{refused:?}");
    }
}

pub(crate) async fn two_concurrent_migrations_apply_each_migration_once(db: Db) {
    undo(&db).await;
    let (one, other) = (
        Store::connect(&db.settings, &unmeasured()).await.unwrap(),
        Store::connect(&db.settings, &unmeasured()).await.unwrap(),
    );
    let (by_one, by_other) = tokio::join!(one.migrate(), other.migrate());
    let mut applied = by_one.unwrap();
    applied.extend(by_other.unwrap());
    assert_eq!(applied, ["0001 pipeline"]);
    one.close().await;
    other.close().await;
}

pub(crate) async fn migrations_can_be_reverted(db: Db) {
    let up = tables(&db.store).await;
    assert!(up.contains(&"requests".to_owned()), "{up:?}");
    undo(&db).await;
    assert_eq!(tables(&db.store).await, ["_sqlx_migrations"]);
    db.store.migrate().await.unwrap();
    assert_eq!(tables(&db.store).await, up);
}
