//! Permissions in PostgreSQL that are revoked while ingest runs.

use throughline_store::Settings;
use throughline_store::{ConnectionTrait as _, Store};
use throughline_testkit::{Database, Environment, eventually, unmeasured};

use crate::world::{DEADLINE, Running, TOPIC, World, id_of, ids};

/// PostgreSQL, with a role of ingest's own: a superuser has every permission.
struct Permissions {
    _server: Database,
    url: String,
    superuser: Store,
}

impl Permissions {
    async fn of_a_role() -> Self {
        let server = Database::start().await.unwrap();
        let url = server.create("throughline").await.unwrap();
        let settings = Settings { url: url.as_str().into(), ..Settings::default() };
        let superuser = Store::connect(&settings, &unmeasured()).await.unwrap();
        let url = url.replace("postgres:postgres@", "ingest:ingest@");
        let permissions = Self { _server: server, url, superuser };
        permissions.run("CREATE ROLE ingest LOGIN PASSWORD 'ingest'").await;
        permissions.run("ALTER DATABASE throughline OWNER TO ingest").await;
        permissions
    }

    async fn run(&self, sql: &str) {
        self.superuser.connection().execute_unprepared(sql).await.unwrap();
    }

    async fn revoke(&self, permission: &str) {
        self.run(&format!("REVOKE {permission} FROM ingest")).await;
    }

    async fn grant(&self, permission: &str) {
        self.run(&format!("GRANT {permission} TO ingest")).await;
    }
}

/// Waits until an operation was tried three more times, and checks that ingest still runs.
async fn is_tried_again(world: &World, ingest: &Running, operation: &str) {
    let tries = || {
        world.measured.count("db.client.operation.duration", &[("db.operation.name", operation)]).unwrap_or(0)
    };
    let before = tries();
    eventually("further tries", DEADLINE, async || {
        anyhow::ensure!(tries() >= before + 3, "{operation}: {before} tries, now {}", tries());
        Ok(())
    })
    .await
    .unwrap();
    assert!(!ingest.shutdown.soft().is_cancelled(), "{operation} has ended ingest");
}

#[tokio::test]
async fn ingest_retries_until_a_permission_that_was_revoked_is_granted_and_publishes_once() {
    if !Environment::engine_or_skip("permissions of PostgreSQL").await.unwrap() {
        return;
    }
    let permissions = Permissions::of_a_role().await;
    let world = World::new(&format!("database: {{url: '{}'}}", permissions.url));
    world.store().await.migrate().await.unwrap();
    for permission in ["SELECT, DELETE ON outbox", "DELETE ON idempotency_keys"] {
        permissions.revoke(permission).await;
    }
    let ingest = world.start().await;
    for operation in ["read_outbox", "find_nodes_that_are_gone", "purge_keys"] {
        is_tried_again(&world, &ingest, operation).await;
    }
    let mut accepted = vec![world.accepted(&ingest, "{}").await];
    permissions.grant("SELECT ON outbox").await;
    is_tried_again(&world, &ingest, "remove_published").await;
    permissions.grant("DELETE ON outbox").await;
    permissions.grant("DELETE ON idempotency_keys").await;
    world.outbox_empty().await;

    permissions.revoke("UPDATE ON nodes").await;
    is_tried_again(&world, &ingest, "renew_lease").await;
    permissions.grant("UPDATE ON nodes").await;
    eventually("a request to be accepted", DEADLINE, async || {
        let answer = world.post(&ingest, "{}").await;
        anyhow::ensure!(answer.status() == 201, "{}", answer.status());
        accepted.push(id_of(answer).await);
        Ok(())
    })
    .await
    .unwrap();
    world.outbox_empty().await;
    assert_eq!(ids(&world.records(TOPIC, accepted.len()).await), accepted);
    ingest.stop().await;
}
