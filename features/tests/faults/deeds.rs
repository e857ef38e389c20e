//! Things that faults do to the scene, beside freezing and killing its parts.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::RngExt as _;
use serde_json::Value;
use throughline_snowflake::RequestId;
use throughline_testkit::eventually;
use tokio::time::sleep;

use crate::cast::Replica;
use crate::foreign;
use crate::load::burst;
use crate::scene::Scene;
use crate::third_party::Destination;

/// For calls to begin, columns to be added, replays to be done.
const DONE: Duration = Duration::from_mins(1);
/// How often a replica is frozen again if it was not within a transaction.
const FREEZES: usize = 300;

/// Replays of what has expired, at most.
const REPLAYS: usize = 5;

const TABLES: &str = "SELECT table_name FROM information_schema.tables \
    WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name NOT LIKE '\\_sqlx%'";

impl Scene {
    /// Posts requests to `path` beside the load; each of them is accepted.
    pub(crate) async fn post(&mut self, path: &'static str, count: u32) -> anyhow::Result<()> {
        let name = format!("burst-{}", self.next_number());
        let seen = burst(self.watch, &self.doors, &name, path, count).await?;
        self.beside.add(seen);
        Ok(())
    }

    /// Posts requests whose calls are slow, and waits until these calls have begun.
    pub(crate) async fn call_slowly(&mut self, count: u32) -> anyhow::Result<()> {
        let before = self.third_party.count(Destination::Slow);
        self.post("/slow", count).await?;
        eventually("the slow calls to begin", DONE, async || {
            let began = self.third_party.count(Destination::Slow) - before;
            ensure!(began >= count as usize, "{began} of {count}");
            Ok(())
        })
        .await
    }

    /// Waits until every delivery to a destination is dead that has not ended otherwise.
    pub(crate) async fn wait_until_dead(&self, destination: &str, deadline: Duration) -> anyhow::Result<()> {
        let open = "SELECT count(*) FROM deliveries WHERE destination = $1 AND due_at IS NOT NULL";
        eventually("deliveries to expire", deadline, async || {
            let open: i64 = sqlx::query_scalar(open).bind(destination).fetch_one(&self.records).await?;
            ensure!(open == 0, "{open} have not ended");
            Ok(())
        })
        .await
    }

    /// Replays the dead letters of a destination until they are delivered. A destination that was down gets few at
    /// first, so some may expire again.
    pub(crate) async fn replay(&self, destination: &str) -> anyhow::Result<()> {
        let dead = "SELECT count(*) FROM deliveries WHERE destination = $1 AND state = 'dead'";
        for _ in 0..REPLAYS {
            self.replay_once(destination).await?;
            self.settle_within(DONE).await?;
            let dead: i64 = sqlx::query_scalar(dead).bind(destination).fetch_one(&self.records).await?;
            if dead == 0 {
                break;
            }
        }
        Ok(())
    }

    async fn replay_once(&self, destination: &str) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{}/v1/replays", self.doors.address(0)?);
        let query = [("destination", destination), ("rate", "1000/s")];
        let answer = http.post(&url).query(&query).send().await?.error_for_status()?;
        let answer: Value = serde_json::from_str(&answer.text().await?)?;
        let url = format!("{url}/{}", answer.get("replay_id").context("a replay without an id")?);
        eventually("the replay to be done", DONE, async || {
            let replay: Value = serde_json::from_str(&http.get(&url).send().await?.text().await?)?;
            ensure!(replay.get("state").is_some_and(|state| state == "done"), "{replay}");
            Ok(())
        })
        .await
    }

    /// Adds a column to each table, as the migration of a later version does.
    pub(crate) async fn add_columns(&mut self) -> anyhow::Result<()> {
        let number = self.next_number();
        let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&self.records).await?;
        ensure!(!tables.is_empty(), "there are no tables");
        for table in tables {
            let sql = format!("ALTER TABLE {table} ADD COLUMN later_{number} text");
            eventually(&format!("a column more in {table}"), DONE, async || {
                // The table is locked for a moment, once the statements that use it have ended.
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone())).execute(&self.records).await?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Others produce records onto the topics, one of them in the name of a request that was accepted.
    pub(crate) async fn produce_foreign_records(&mut self) -> anyhow::Result<()> {
        let number = self.next_number();
        let rejected =
            "SELECT request_id FROM deliveries WHERE reason = 'rejected' ORDER BY request_id LIMIT 1";
        let real = eventually("a request that the third party rejects", DONE, async || {
            Ok(sqlx::query_scalar::<_, i64>(rejected).fetch_one(&self.records).await?)
        })
        .await?;
        let real = RequestId::from_i64(real)?;
        self.foreign.extend(foreign::produce(&self.broker.bootstrap_servers(), real, number).await?);
        Ok(())
    }

    /// Freezes an ingest; within a transaction, if it is seen in one.
    pub(crate) async fn freeze_in_transaction(&self, replica: Replica) -> anyhow::Result<()> {
        let open = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND state = 'idle in transaction' AND backend_xid IS NOT NULL \
            AND now() - state_change > interval '150 milliseconds'";
        for _ in 0..FREEZES {
            self.cast.freeze(replica)?;
            sleep(Duration::from_millis(200)).await;
            let open: i64 = sqlx::query_scalar(open).fetch_one(&self.records).await?;
            if open > 0 {
                self.watch.say("    it holds a transaction open");
                return Ok(());
            }
            self.cast.thaw(replica)?;
            let pause = Duration::from_millis(rand::rng().random_range(20..60));
            sleep(pause).await;
        }
        self.watch.say("    it was not seen within a transaction");
        self.cast.freeze(replica)
    }
}
