use std::time::Duration;

use sea_orm::{ConnectionTrait, Statement};
use throughline_store::{NewRequest, Store, StoreError, requests};
use throughline_testkit::unmeasured;

use crate::databases::{Db, on_postgres, on_sqlite, settings, with_server};
use crate::fixtures::{insert, node, request, status};

pub(crate) async fn a_connected_database_answers(db: Db) {
    db.store.ping().await.unwrap();
    db.store.check_schema().await.unwrap();
}

pub(crate) async fn a_closed_database_is_unavailable(db: Db) {
    db.store.clone().close().await;
    for error in
        [db.store.ping().await.expect_err("it is closed"), db.store.begin().await.expect_err("it is closed")]
    {
        assert!(error.is_unavailable(), "{error:?}");
    }
}

async fn refused(url: &str) -> StoreError {
    let error = Store::connect(&settings(url), &unmeasured()).await.expect_err("it cannot be used");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(!line.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    error
}

#[tokio::test]
async fn an_invalid_url_is_rejected() {
    for url in ["", "throughline.db", "mysql://root:hunter2@localhost/x", "postgres://u:hunter2@host:port/x"]
    {
        let error = refused(url).await;
        assert!(matches!(error, StoreError::Url { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_reported() {
    // Nothing listens on a port that was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = refused(&format!("postgres://me:hunter2@{address}/throughline")).await;
    assert!(error.is_unavailable());
    assert!(error.to_string().starts_with(&format!("cannot connect to PostgreSQL at {address}")), "{error}");
}

#[tokio::test]
async fn connecting_to_a_silent_server_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://me:hunter2@{}/throughline", listener.local_addr().unwrap());
    let settings =
        throughline_store::Settings { connect_timeout: Duration::from_millis(50), ..settings(&url) };
    let error = Store::connect(&settings, &unmeasured()).await.expect_err("no response");
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
}

#[test]
fn a_rejected_user_is_reported() {
    with_server(async |server| {
        let url = server.url_of("postgres");
        let (_, server) = url.rsplit_once('@').expect("the server's URL names a user");
        let error = refused(&format!("postgres://nobody:hunter2@{server}")).await;
        assert!(matches!(&error, StoreError::Credentials { user, .. } if user == "nobody"), "{error}");
        assert!(!error.is_unavailable());
    });
}

#[test]
fn a_missing_database_is_reported() {
    with_server(async |server| {
        let error = refused(&server.url_of("nowhere")).await;
        assert!(error.to_string().contains("has no database nowhere; create it"), "{error}");
    });
}

#[test]
fn a_connection_that_the_server_ends_is_unavailable() {
    on_postgres(async |db: Db| {
        let transaction = db.store.begin().await.unwrap();
        let ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND state = 'idle in transaction'";
        db.store.connection().execute_unprepared(ends).await.unwrap();
        let error =
            StoreError::from(transaction.execute_unprepared("SELECT 1").await.expect_err("it was ended"));
        assert!(error.is_unavailable(), "{error:?}");
        db.store.ping().await.unwrap();
    });
}

#[tokio::test]
async fn a_file_is_created_when_missing_and_its_folder_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    Store::connect(&settings(&format!("sqlite://{}", file.display())), &unmeasured())
        .await
        .unwrap()
        .close()
        .await;
    assert!(file.exists());

    let file = folder.path().join("missing/new.db");
    let error = refused(&format!("sqlite://{}", file.display())).await;
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    assert!(error.to_string().contains("create its folder and make it writable"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "not a database, and long enough to be one: ".repeat(100)).unwrap();
    let error = refused(&format!("sqlite://{}", file.display())).await;
    assert!(matches!(error, StoreError::File { .. }), "{error}");
}

#[test]
fn a_file_is_durable_at_commit_and_keeps_foreign_keys() {
    on_sqlite(async |db: Db| {
        for (pragma, expected) in [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")] {
            let sql = format!("SELECT CAST({pragma} AS text) AS value FROM pragma_{pragma}");
            let statement = Statement::from_string(db.store.connection().get_database_backend(), sql);
            let row = db.store.connection().query_one_raw(statement).await.unwrap().unwrap();
            assert_eq!(row.try_get::<String>("", "value").unwrap(), expected, "{pragma}");
        }
    });
}

#[test]
fn a_file_that_another_process_is_writing_is_unavailable() {
    on_sqlite(async |db: Db| {
        let hasty = throughline_store::Settings { connect_timeout: Duration::from_millis(20), ..db.settings };
        let other = Store::connect(&hasty, &unmeasured()).await.unwrap();
        let transaction = db.store.begin().await.unwrap();
        let error = other.begin().await.expect_err("there is one writer");
        assert!(error.is_unavailable(), "{error:?}");
        drop(transaction);
    });
}

/// PostgreSQL's full disk is among ingest's tests, on a small one.
#[test]
fn a_file_that_cannot_grow_is_unavailable_until_it_can() {
    on_sqlite(async |db: Db| {
        let most_pages = async |pages: u32| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            db.store.connection().execute_unprepared(&sql).await.unwrap();
        };
        insert(&db.store, &[request(1)]).await;
        // It cannot be smaller than it is.
        most_pages(1).await;
        let large = NewRequest { body: vec![0; 1 << 20].into(), ..request(2) };
        let transaction = db.store.begin().await.unwrap();
        let refused = requests::insert(
            &transaction,
            &throughline_testkit::lease(node(1)),
            std::slice::from_ref(&large),
        )
        .await;
        let error = refused.expect_err("all connections are taken");
        assert!(error.is_unavailable(), "{error:?}");
        drop(transaction);
        most_pages(u32::MAX).await;
        insert(&db.store, &[large]).await;
        assert_eq!(status(&db.store, 1).await.deliveries.len(), 1);
    });
}

#[test]
fn a_database_that_does_not_answer_in_time_is_unavailable() {
    on_postgres(async |db: Db| {
        let impatient = throughline_store::Settings { timeout: Duration::from_secs(2), ..db.settings };
        let store = Store::connect(&impatient, &unmeasured()).await.unwrap();
        let sleep = "SELECT pg_sleep(60)";
        let error = StoreError::from(store.connection().execute_unprepared(sleep).await.unwrap_err());
        assert!(error.is_unavailable() && error.to_string().contains("statement timeout"), "{error}");
        let transaction = store.begin().await.unwrap();
        let error = StoreError::from(transaction.execute_unprepared(sleep).await.unwrap_err());
        assert!(error.is_unavailable(), "{error}");
        db.store.ping().await.unwrap();
    });
}
