use std::pin::pin;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::{join, join_all, join3, select};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use throughline_clock::Clock;
use throughline_snowflake::{Generator, NodeId, RequestId};
use throughline_store::idempotency::{self, Claim, Key, Scope};
use throughline_store::{ConnectionTrait as _, Transaction, nodes, outbox, requests};
use throughline_testkit::{Database, Environment, Number, eventually, leased, new_request};
use tokio::time::Instant;

use crate::world::{DEADLINE, Running, TOPIC, World, id_of, ids};

/// Takes the database's only write transaction, so that no other session can write.
async fn hold_the_database(world: &World) -> Transaction {
    world.store().await.begin().await.unwrap()
}

async fn problem(response: reqwest::Response) -> (u16, bool, Value) {
    let (status, retry_after) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    (status, retry_after, response.json().await.unwrap())
}

#[tokio::test]
async fn a_request_that_cannot_be_stored_fails_alone_and_exposes_no_internals() {
    let world = World::new("");
    let ingest = world.start().await;
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON requests WHEN NEW.content_type LIKE '%poison%' \
                  BEGIN SELECT RAISE(ABORT, 'from within'); END";
    world.store().await.connection().execute_unprepared(poison).await.unwrap();
    // So that they are committed together.
    let held = hold_the_database(&world).await;
    let good = join_all((0..20).map(|_| world.accepted(&ingest, "{}")));
    let bad = world.post_with(&ingest, "{}", &[("content-type", "application/poison+json")]);
    let release = async { drop(held) };
    let ((good, bad), ()) = join(join(good, bad), release).await;
    let (status, _, problem) = problem(bad).await;
    assert_eq!((status, &problem["type"]), (500, &"https://throughline.dev/problems/internal".into()));
    assert!(!problem.to_string().contains("from within"), "{problem}");
    assert_eq!(ids(&world.records(TOPIC, 20).await).len(), good.len());
    ingest.stop().await;
}

#[tokio::test]
async fn requests_are_refused_in_time_while_the_database_is_silent_and_accepted_later() {
    let world = World::new("{http: {timeout: 300ms}, ingest: {queue: 1, batch: 1}}");
    let ingest = world.start().await;
    let held = hold_the_database(&world).await;
    let refused = join_all((0..10).map(|_| async { problem(world.post(&ingest, "{}").await).await })).await;
    assert!(refused.iter().all(|(status, retry_after, _)| *status == 503 && *retry_after), "{refused:?}");
    let details: Vec<_> = refused.iter().map(|(.., problem)| problem["detail"].as_str().unwrap()).collect();
    assert!(details.iter().any(|detail| detail.contains("did not answer in time")), "{details:?}");
    assert!(details.iter().any(|detail| detail.contains("Too many requests")), "{details:?}");
    drop(held);
    world.taken_again(&ingest).await;
    ingest.stop().await;
}

#[tokio::test]
async fn requests_whose_clients_disconnect_before_the_commit_are_not_stored() {
    let world = World::new("{http: {timeout: 1min}, ingest: {batch: 1}}");
    let ingest = world.start().await;
    let held = hold_the_database(&world).await;
    let active = |expected| {
        world.measures("http.server.active_requests", &[("http.request.method", "POST")], expected)
    };
    // The writer takes the first request and waits for the database; the others wait for the writer.
    let clients = join_all((0..5).map(|_| world.post(&ingest, "{}")));
    select(pin!(clients), pin!(active(5))).await;
    active(0).await;
    drop(held);
    world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    let published = world.measured.value("throughline.publisher.published", &[]).unwrap();
    assert!(published <= Number(2.0), "{published:?}");
    ingest.stop().await;
}

#[tokio::test]
async fn a_request_that_the_database_did_not_store_in_time_is_not_stored_later() {
    let world = World::new("http: {timeout: 300ms}");
    let ingest = world.start().await;
    world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    let held = hold_the_database(&world).await;
    // The second answer arrives long after the deadline of the first commit.
    for body in [r#""first""#, r#""second""#] {
        assert_eq!(world.post(&ingest, body).await.status(), 503);
    }
    drop(held);
    world.taken_again(&ingest).await;
    let records = world.records(TOPIC, 2).await;
    assert_ne!(records[1].payload, r#""first""#);
    ingest.stop().await;
}

/// On PostgreSQL, because SQLite has only one session that writes.
#[tokio::test]
async fn an_idempotency_key_locked_by_another_session_delays_no_other_request() {
    if !Environment::engine_or_skip("an idempotency key that a session on PostgreSQL holds").await.unwrap() {
        return;
    }
    let database = Database::start().await.unwrap();
    let url = database.create("throughline").await.unwrap();
    // Without a timeout, so that the test decides how long the key is held.
    let world = World::new(&format!("{{http: {{timeout: 1min}}, database: {{url: '{url}'}}}}"));
    let ingest = world.start().await;
    let store = world.store().await;
    // As another ingest does, or one that has vanished and left its transaction open.
    let holding = store.begin().await.unwrap();
    let first = new_request(RequestId::from_i64(1).unwrap(), Clock::system().now());
    let claim = Claim {
        key: Key { route: "one".to_owned(), scope: Scope::Open, key: "k".to_owned() },
        request_id: first.id,
        fingerprint: Sha256::digest("{}").into(),
        expires_at: first.accepted_at + TimeDelta::hours(1),
    };
    idempotency::claim(&holding, &[claim], first.accepted_at).await.unwrap();
    let other = leased(&store, NodeId::try_from(9).unwrap()).await.unwrap();
    requests::insert(&holding, &other, std::slice::from_ref(&first)).await.unwrap();

    let keyed = |key: &'static str| {
        let (world, ingest) = (&world, &ingest);
        async move { world.post_with(ingest, "{}", &[("idempotency-key", key)]).await }
    };
    let plain = join_all((0..20).map(|_| world.accepted(&ingest, "{}")));
    let ((held, again, free), plain) = join(join3(keyed("k"), keyed("k"), keyed("l")), plain).await;
    assert_eq!((plain.len(), free.status().as_u16()), (20, 201));
    for response in [held, again] {
        let (status, retry_after, problem) = problem(response).await;
        assert_eq!((status, retry_after), (409, true), "{problem}");
        assert_eq!(problem["type"], "https://throughline.dev/problems/idempotency-key-in-flight");
    }
    holding.commit().await.unwrap();
    let repeated = keyed("k").await;
    assert_eq!(repeated.status(), 201);
    assert_eq!(id_of(repeated).await, first.id);
    ingest.stop().await;
}

/// More of them than the lease's renewals, 10 s apart, could delete 10,000 at a time.
#[tokio::test]
async fn expired_keys_are_deleted_as_fast_as_they_expire() {
    const KEYS: i64 = 60_000;
    let world = World::new("ingest: {node_lease: 30s}");
    let store = world.store().await;
    store.migrate().await.unwrap();
    let keys = format!(
        "WITH RECURSIVE k (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k WHERE n < {KEYS}) \
         INSERT INTO idempotency_keys (route, scope, key, request_id, fingerprint, expires_at) \
         SELECT 'one', 'open', n, n, zeroblob(32), '2026-01-01T00:00:00.000000+00:00' FROM k"
    );
    store.connection().execute_unprepared(&keys).await.unwrap();
    let ingest = world.start().await;
    eventually("all of them to be deleted", DEADLINE, async || {
        let any = "UPDATE idempotency_keys SET request_id = 0 WHERE route = 'one' AND scope = 'open' \
             AND key = (SELECT key FROM idempotency_keys LIMIT 1)";
        let left = store.connection().execute_unprepared(any).await?.rows_affected();
        anyhow::ensure!(left == 0, "some are left");
        Ok(())
    })
    .await
    .unwrap();
    ingest.stop().await;
}

#[tokio::test]
async fn a_live_node_publishes_the_outbox_of_an_expired_node() {
    let world = World::new("");
    let living = world.start().await;
    let store = world.store().await;
    let dead = nodes::acquire(&store, "dead", Duration::from_mins(1), &NodeId::ALL).await.unwrap().unwrap();
    let clock = Clock::system();
    let id = Generator::new(dead.node, clock.clone(), dead.not_before).generate();
    let left = new_request(id, clock.now());
    let transaction = store.begin().await.unwrap();
    requests::insert(&transaction, &dead, std::slice::from_ref(&left)).await.unwrap();
    transaction.commit().await.unwrap();
    nodes::release(store.connection(), &dead, "dead").await.unwrap();
    assert_eq!(ids(&world.records(TOPIC, 1).await), [left.id]);
    living.stop().await;
}

#[tokio::test]
async fn an_ingest_that_lost_its_node_id_accepts_nothing_and_ends() {
    let world = World::new("ingest: {node_lease: 6s}");
    let ingest = world.start().await;
    let node = world.accepted(&ingest, "{}").await.node();
    world.outbox_empty().await;
    let store = world.store().await;
    // As after a process was frozen for longer than its lease, before it notices.
    store.connection().execute_unprepared("UPDATE nodes SET epoch = epoch + 1").await.unwrap();
    assert_eq!(world.post(&ingest, "{}").await.status(), 503);
    assert_eq!(outbox::oldest(store.connection(), node).await.unwrap(), None);
    let ended = ingest.ended().await.unwrap_err().to_string();
    assert!(ended.contains("node lease"), "{ended}");
}

#[tokio::test]
async fn requests_are_refused_while_the_clock_is_far_ahead_of_that_of_the_database() {
    let clock = Clock::manual(Clock::system().now() + TimeDelta::hours(2));
    let world = World::new("");
    let ingest = world.start_at(clock.clone()).await;
    assert_eq!(world.post(&ingest, "{}").await.status(), 503);
    let ready = world.http.get(format!("{}/readyz", ingest.base)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let report: serde_json::Value = ready.json().await.unwrap();
    assert_eq!((&report["clock"], &report["database"]), (&"down".into(), &"up".into()));
    clock.advance(TimeDelta::minutes(-90));
    world.taken_again(&ingest).await;
    ingest.stop().await;
}

/// The lock of a table simulates a slow statement.
#[tokio::test]
async fn slow_reads_delay_neither_requests_nor_the_renewal_of_the_lease() {
    if !Environment::engine_or_skip("slow reads on PostgreSQL").await.unwrap() {
        return;
    }
    let database = Database::start().await.unwrap();
    let url = database.create("throughline").await.unwrap();
    let world = World::new(&format!("database: {{url: '{url}', max_connections: 8}}"));
    let ingest = world.start().await;
    world.accepted(&ingest, "{}").await;
    let locked = world.store().await.begin().await.unwrap();
    locked.execute_unprepared("LOCK TABLE replays IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let reads: Vec<_> = (0..16)
        .map(|_| tokio::spawn(world.http.get(format!("{}/v1/replays/1", ingest.base)).send()))
        .collect();
    let began = Instant::now();
    for _ in 0..20 {
        world.accepted(&ingest, "{}").await;
        assert!(reads.iter().all(|read| !read.is_finished()), "requests wait for reads");
    }
    // For longer than the lease lasts.
    while began.elapsed() < Duration::from_secs(3) {
        world.accepted(&ingest, "{}").await;
        assert!(locked.execute_unprepared("SELECT 1").await.is_ok());
    }
    for read in reads {
        assert_eq!(read.await.unwrap().unwrap().status(), 503);
    }
    drop(locked);
    ingest.stop().await;
}

#[tokio::test]
async fn ingest_does_not_start_without_a_free_node_id() {
    let world = World::new("ingest: {node_ids: 7}");
    let first = world.start().await;
    assert_eq!(world.accepted(&first, "{}").await.node(), NodeId::try_from(7).unwrap());
    let refused = world.try_start().await.unwrap_err().to_string();
    assert!(refused.contains("all node ids (7) are leased"), "{refused}");
    first.stop().await;
    // The lease is released at the end, before its term is over.
    let next: Running = world.start().await;
    next.stop().await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_does_not_delay_shutdown() {
    use tokio::io::AsyncWriteExt as _;

    let world = World::new("http: {timeout: 200ms}");
    let ingest = world.start().await;
    let address = ingest.base.trim_start_matches("http://");
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"POST /one HT").await.unwrap();
    world.accepted(&ingest, "{}").await;
    ingest.stop().await;
}
