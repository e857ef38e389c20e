//! Sessions that stand still in the middle of a transaction, and what becomes of the others.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use throughline_messages::Outcome;
use throughline_store::{DeliveryState, NewRequest, Store, StoreError, outcomes};
use throughline_testkit::{eventually, unmeasured};
use tokio::time::timeout;

use crate::databases::{Db, on_postgres, settings};
use crate::fixtures::{at, delivery, insert, publish, report, request};

/// Of the store that goes on.
const CONNECTIONS: u32 = 4;
const SOON: Duration = Duration::from_secs(30);

/// Another replica, whose statements take a second at most.
async fn hasty(db: &Db) -> Store {
    let settings = throughline_config::Database {
        max_connections: CONNECTIONS.try_into().unwrap(),
        timeout: Duration::from_secs(1),
        ..db.settings.clone()
    };
    Store::connect(&settings, &unmeasured()).await.unwrap()
}

fn in_lane(number: i64) -> NewRequest {
    NewRequest { lane: Some("a".to_owned()), ..request(number) }
}

async fn record(store: &Store, number: i64) -> Result<(), StoreError> {
    let transaction = store.begin().await?;
    outcomes::record(&transaction, &[report(number, 1, Outcome::Delivered)], at(5)).await?;
    transaction.commit().await
}

/// It has locked all lanes and the row of a delivery, and asks for nothing more.
async fn silent_session(db: &Db) -> PgConnection {
    let mut silent = PgConnection::connect(db.settings.url.expose()).await.unwrap();
    let lanes = "SELECT pg_advisory_xact_lock(1953002095, bucket) FROM generate_series(0, 255) AS bucket";
    for sql in ["BEGIN", lanes, "SELECT 1 FROM deliveries WHERE request_id = 1 FOR UPDATE"] {
        silent.execute(sql).await.unwrap();
    }
    silent
}

#[test]
fn a_silent_session_with_locks_stops_only_what_needs_them_and_takes_no_connections() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[in_lane(1), request(2), request(3)]).await;
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
            insert(&store, &[request(100 + round)]).await;
        }
        record(&store, 2).await.unwrap();
        nobody_waits_for_a_lock(&db.store).await;
        drop(silent);
        eventually("the lock", SOON, async || Ok(record(&store, 1).await?)).await.unwrap();
        assert_eq!(delivery(&store, 1).await.state, DeliveryState::Delivered);
    });
}

async fn nobody_waits_for_a_lock(store: &Store) {
    let sql =
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = Statement::from_string(DbBackend::Postgres, sql);
    let nobody = async || {
        let waiting = store.connection().query_one_raw(waiting.clone()).await?;
        anyhow::ensure!(waiting.is_none(), "a statement waits that nothing waits for");
        Ok(())
    };
    eventually("the end of abandoned statements", SOON, nobody).await.unwrap();
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
fn a_stopped_replica_loses_its_locks_and_others_record_in_its_place() {
    on_postgres(async |db: Db| {
        publish(&db.store, &[in_lane(1)]).await;
        let url = db.settings.url.expose().to_owned();
        let stopped = tokio::task::spawn_blocking(move || Stopped::at_work(&url)).await.unwrap();
        let store = hasty(&db).await;
        let mut number = 100;
        loop {
            insert(&store, &[in_lane_of_another(number)]).await;
            number += 1;
            match record(&store, 1).await {
                Ok(()) => break,
                Err(error) => assert!(error.is_unavailable(), "{error:?}"),
            }
        }
        assert!(number > 101, "it was locked at first");
        assert_eq!(delivery(&store, 1).await.state, DeliveryState::Delivered);
        drop(stopped);
    });
}

/// Of a lane whose lock another one has.
fn in_lane_of_another(number: i64) -> NewRequest {
    NewRequest { lane: Some("b".to_owned()), ..request(number) }
}

#[test]
fn slow_reads_apart_keep_neither_writers_nor_the_lease_waiting() {
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
fn transactions_are_read_committed_whatever_a_role_has_by_default() {
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

        // Under a stricter level the second of two that record the same delivery fails instead of waiting for its turn.
        publish(&store, &[request(1)]).await;
        let first = store.begin().await.unwrap();
        outcomes::record(&first, &[report(1, 1, Outcome::Delivered)], at(5)).await.unwrap();
        let (second, ()) = tokio::join!(record(&store, 1), async {
            crate::concurrency::somebody_waits_for_a_lock(&store).await;
            first.commit().await.unwrap();
        });
        second.unwrap();
    });
}
