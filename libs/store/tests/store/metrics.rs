use std::time::Duration;

use throughline_store::{Store, outbox, requests};
use throughline_testkit::{Measured, eventually, lease, leased};

use crate::databases::{Db, on_postgres};
use crate::fixtures::{id, insert, node, request};

const DURATION: &str = "db.client.operation.duration";
const CONNECTIONS: &str = "db.client.connection.count";
const MOST: &str = "db.client.connection.max";

fn is_sqlite(db: &Db) -> bool {
    db.settings.url.expose().starts_with("sqlite")
}

pub(crate) async fn operations_are_timed_by_name(db: Db) {
    let system = ("db.system.name", if is_sqlite(&db) { "sqlite" } else { "postgresql" });
    let count = |operation| db.measured.count(DURATION, &[system, ("db.operation.name", operation)]);
    insert(&db.store, &[request(1), request(2)]).await;
    for operation in ["begin", "accept", "commit"] {
        assert_eq!(count(operation).unwrap(), 1, "{operation}");
    }
    outbox::remove(db.store.connection(), &[]).await.unwrap();
    assert!(count("remove_published").is_err(), "nothing was asked");
    outbox::remove(db.store.connection(), &[id(1)]).await.unwrap();
    outbox::remove(db.store.connection(), &[id(2)]).await.unwrap();
    assert_eq!(count("remove_published").unwrap(), 2);
    let failed = |points: Vec<throughline_testkit::Point>| {
        points.into_iter().filter(|point| point.attributes.contains_key("error.type")).count()
    };
    assert_eq!(failed(db.measured.points(DURATION).unwrap()), 0);
}

pub(crate) async fn a_failed_operation_is_counted_with_its_cause(db: Db) {
    insert(&db.store, &[request(1)]).await;
    let transaction = db.store.begin().await.unwrap();
    requests::insert(&transaction, &lease(node(1)), &[request(1)]).await.unwrap_err();
    // The codes of a primary key that is taken.
    let code = if is_sqlite(&db) { "1555" } else { "23505" };
    let failed = [("db.operation.name", "accept"), ("error.type", code)];
    assert_eq!(db.measured.count(DURATION, &failed).unwrap(), 1);
    assert_eq!(db.measured.count(DURATION, &failed[..1]).unwrap(), 2);
}

pub(crate) async fn connections_are_counted(db: Db) {
    let most = if is_sqlite(&db) { 1 } else { 12 };
    let pool = ("db.client.connection.pool.name", "throughline");
    let count =
        |state| db.measured.value(CONNECTIONS, &[pool, ("db.client.connection.state", state)]).unwrap();
    assert_eq!(db.measured.value(MOST, &[pool]).unwrap(), most);
    let transaction = db.store.begin().await.unwrap();
    assert_eq!(count("used"), 1);
    transaction.commit().await.unwrap();
    // It is given back beside what goes on.
    let given_back = async || {
        anyhow::ensure!(count("used") == 0 && count("idle").0 >= 1.0, "{:?}", count("used"));
        Ok(())
    };
    eventually("the connection", Duration::from_secs(10), given_back).await.unwrap();
}

pub(crate) async fn a_dropped_store_counts_no_connections(db: Db) {
    let measured = Measured::new();
    let store = Store::connect(&db.settings, &measured.meter()).await.unwrap();
    assert_eq!(measured.points(MOST).unwrap().len(), 1);
    drop(store);
    assert_eq!((measured.points(MOST).unwrap(), measured.points(CONNECTIONS).unwrap()), (vec![], vec![]));
}

#[test]
fn an_abandoned_operation_is_counted_as_cancelled() {
    on_postgres(async |db: Db| {
        let same = [request(1)];
        let lease = leased(&db.store, node(1)).await.unwrap();
        let first = db.store.begin().await.unwrap();
        requests::insert(&first, &lease, &same).await.unwrap();
        let second = db.store.begin().await.unwrap();
        let waits = requests::insert(&second, &lease, &same);
        tokio::time::timeout(Duration::from_millis(50), waits).await.unwrap_err();
        let cancelled = [("db.operation.name", "accept"), ("error.type", "cancelled")];
        assert_eq!(db.measured.count(DURATION, &cancelled).unwrap(), 1);
    });
}
