//! Sessions that are frozen within a transaction, and their effect on others.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use throughline_api::DeliveryState;
use throughline_messages::Outcome;
use throughline_store::{NewRequest, Store, StoreError, outcomes, requests};
use throughline_testkit::{eventually, leased, unmeasured};
use tokio::time::timeout;

use crate::databases::{Db, on_postgres, settings};
use crate::fixtures::{at, delivery, insert, node, publish, report, request};

/// Bounds of the store that continues.
const CONNECTIONS: u32 = 4;
const SOON: Duration = Duration::from_secs(30);

/// Another replica, whose statements take a second at most.
async fn hasty(db: &Db) -> Store {
    let settings = throughline_store::Settings {
        max_connections: CONNECTIONS.try_into().unwrap(),
        timeout: Duration::from_secs(1),
        ..db.settings.clone()
    };
    Store::connect(&settings, &unmeasured()).await.unwrap()
}

/// The lock of ordering group `a`, as `order.rs` computes it.
const LANE_A: &str = "SELECT pg_advisory_xact_lock(hashtextextended('a', x'7468726f6c616e65'::bigint))";

fn in_group(ordering_group: &str, number: i64) -> NewRequest {
    NewRequest { ordering_group: Some(ordering_group.to_owned()), ..request(number) }
}

/// Inserts a request in ordering group `a`, which another transaction has locked: it gives up after `lock_timeout`.
async fn insert_is_refused(store: &Store, number: i64) {
    let error = try_insert(store, in_group("a", number)).await.expect_err("its ordering_group is locked");
    assert!(error.is_unavailable() && !error.is_about_data(), "{error:?}");
}

async fn try_insert(store: &Store, new: NewRequest) -> Result<(), StoreError> {
    let lease = leased(store, node(1)).await.unwrap();
    let transaction = store.begin().await?;
    requests::insert(&transaction, &lease, &[new]).await?;
    transaction.commit().await
}

async fn record(store: &Store, number: i64) -> Result<(), StoreError> {
    let transaction = store.begin().await?;
    outcomes::record(&transaction, &[report(number, 1, Outcome::Delivered)], at(5)).await?;
    transaction.commit().await
}

/// It has locked ordering group `a` and the row of a delivery, and asks for nothing more.
async fn silent_session(db: &Db) -> PgConnection {
    let mut silent = PgConnection::connect(db.settings.url.expose()).await.unwrap();
    for sql in ["BEGIN", LANE_A, "SELECT 1 FROM deliveries WHERE request_id = 1 FOR UPDATE"] {
        silent.execute(sql).await.unwrap();
    }
    silent
}

#[test]
fn a_silent_session_blocks_only_statements_that_need_its_locks() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[in_group("a", 1), request(2), request(3)]).await;
        let silent = silent_session(&db).await;
        let store = hasty(&db).await;
        for round in 0..3 * i64::from(CONNECTIONS) {
            if round % 2 == 0 {
                let error = record(&store, 1).await.expect_err("its row is locked");
                assert!(error.is_unavailable() && !error.is_about_data(), "{error:?}");
            } else {
                // A caller that does not wait for the answer leaves nothing behind either.
                timeout(Duration::from_millis(50), record(&store, 1)).await.unwrap_err();
            }
            insert(&store, &[request(100 + round), in_group("b", 200 + round)]).await;
        }
        insert_is_refused(&store, 300).await;
        record(&store, 2).await.unwrap();
        no_session_waits_for_a_lock(&db.store).await;
        drop(silent);
        eventually("the lock", SOON, async || Ok(record(&store, 1).await?)).await.unwrap();
        assert_eq!(delivery(&store, 1).await.state, DeliveryState::Delivered);
        insert(&store, &[in_group("a", 300)]).await;
    });
}

async fn no_session_waits_for_a_lock(store: &Store) {
    let sql =
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = Statement::from_string(DbBackend::Postgres, sql);
    let none = async || {
        let waiting = store.connection().query_one_raw(waiting.clone()).await?;
        anyhow::ensure!(waiting.is_none(), "an abandoned statement still waits");
        Ok(())
    };
    eventually("the end of abandoned statements", SOON, none).await.unwrap();
}

const DATABASE: &str = "STALLED_REPLICA";

/// A process that is stopped, and ends with the test.
struct Stopped(Child);

impl Stopped {
    /// Starts a replica, and stops it where it says so.
    fn at_work(url: &str) -> Self {
        let mut replica = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stalled::replica", "--ignored", "--nocapture"])
            .env(DATABASE, url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(replica.stdout.take().unwrap()).lines();
        let replica = Self(replica);
        assert!(lines.any(|line| line.unwrap().contains("at work")), "the replica ended");
        let stop = Command::new("kill").args(["-STOP", &replica.0.id().to_string()]).status().unwrap();
        assert!(stop.success());
        replica
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
#[ignore = "another test runs it as a process"]
async fn replica() {
    let Ok(url) = std::env::var(DATABASE) else { return };
    let store = Store::connect(&settings(&url), &unmeasured()).await.unwrap();
    let transaction = store.begin().await.unwrap();
    outcomes::record(&transaction, &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
    writeln!(std::io::stdout(), "at work").unwrap();
    std::future::pending::<()>().await;
}

#[test]
fn a_frozen_replica_loses_the_lock_of_its_group_to_other_replicas() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[in_group("a", 1)]).await;
        let url = db.settings.url.expose().to_owned();
        let stopped = tokio::task::spawn_blocking(move || Stopped::at_work(&url)).await.unwrap();
        let store = hasty(&db).await;
        insert_is_refused(&store, 100).await;
        let error = record(&store, 1).await.expect_err("its ordering_group is locked");
        assert!(error.is_unavailable(), "{error:?}");
        let mut number = 200;
        // PostgreSQL ends the transaction of the stopped replica 15 s after its last statement.
        eventually("the lock of ordering_group a", SOON, async || {
            number += 1;
            // It would fail after `lock_timeout` if it had to wait for ordering group `a`.
            insert(&store, &[in_group("b", number)]).await;
            Ok(try_insert(&store, in_group("a", 100)).await?)
        })
        .await
        .unwrap();
        record(&store, 1).await.unwrap();
        assert_eq!(delivery(&store, 1).await.state, DeliveryState::Delivered);
        drop(stopped);
    });
}

#[test]
fn slow_reads_delay_neither_writers_nor_the_lease() {
    on_postgres(async |db: Db| {
        let store = hasty(&db).await;
        let reads = store.apart("reads", 2, Duration::from_secs(2));
        let lease = store.apart("lease", 1, Duration::from_secs(2));
        let slow: Vec<_> = (0..16)
            .map(|_| {
                let reads = reads.clone();
                tokio::spawn(
                    async move { reads.connection().execute_unprepared("SELECT pg_sleep(60)").await },
                )
            })
            .collect();
        for number in 0..16 {
            insert(&store, &[request(number)]).await;
            lease.ping().await.unwrap();
        }
        assert!(slow.iter().any(|read| !read.is_finished()), "reads were slow all the time");
        for read in slow {
            let error = StoreError::from(read.await.unwrap().unwrap_err());
            assert!(error.is_unavailable(), "{error:?}");
        }
    });
}

#[test]
fn transactions_are_read_committed_whatever_the_default_of_the_role() {
    on_postgres(async |db: Db| {
        let name = db.settings.url.expose().rsplit('/').next().unwrap().to_owned();
        let mut admin = PgConnection::connect(db.settings.url.expose()).await.unwrap();
        let stricter = format!(
            "ALTER ROLE CURRENT_USER IN DATABASE {name} SET default_transaction_isolation = 'serializable'"
        );
        admin.execute(AssertSqlSafe(stricter)).await.unwrap();
        let store = Store::connect(&db.settings, &unmeasured()).await.unwrap();
        let transaction = store.begin().await.unwrap();
        let setting = async |name: &str| {
            let sql = format!("SELECT current_setting('{name}') AS value");
            let row = transaction.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
            row.unwrap().unwrap().try_get::<String>("", "value").unwrap()
        };
        assert_eq!(setting("default_transaction_isolation").await, "serializable");
        assert_eq!(setting("transaction_isolation").await, "read committed");
        assert_eq!(setting("lock_timeout").await, "5s");
        assert_eq!(setting("statement_timeout").await, "30s");
        assert_eq!(setting("idle_in_transaction_session_timeout").await, "15s");
        assert_eq!(setting("tcp_user_timeout").await, "45000");
        drop(transaction);

        // Under a stricter level, the second of two recorders of the same delivery fails instead of waiting.
        publish(&store, &[request(1)]).await;
        let first = store.begin().await.unwrap();
        outcomes::record(&first, &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
        let (second, ()) = tokio::join!(record(&store, 1), async {
            crate::concurrency::a_session_waits_for_a_lock(&store).await;
            first.commit().await.unwrap();
        });
        second.unwrap();
    });
}
