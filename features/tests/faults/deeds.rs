//! Actions of faults other than freezing and killing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use throughline_kafka as kafka;
use throughline_kafka::Record;
use throughline_messages::RequestRecord;
use throughline_snowflake::RequestId;
use throughline_testkit::{Reader, eventually};

use crate::cast::Replica;
use crate::foreign;
use crate::load::burst;
use crate::scene::Scene;
use crate::third_party::{Call, Wish};

/// Deadline for calls, schema changes and replays.
const DONE: Duration = Duration::from_mins(1);
/// Deadline for a session of a process to reach a state. Less than `lock_timeout`, which is 5 s.
const SEEN: Duration = Duration::from_secs(2);

/// Condition for sessions whose statement waits for the table of attempts.
const WAITS_FOR_ATTEMPTS: &str = "EXISTS (SELECT 1 FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid \
    AND relation = 'attempts'::regclass AND NOT granted)";
/// Condition for sessions that wait for their client and have changed or locked rows.
const IDLE_IN_TRANSACTION: &str = "state = 'idle in transaction' AND backend_xid IS NOT NULL";

/// Number of requests whose calls take [`crate::third_party::SLOW`]: several for each dispatch and partition.
const SLOW_REQUESTS: u32 = 18;
/// Number of later requests whose calls are quick: many for each partition.
const QUICK_REQUESTS: u32 = 180;
/// The name sorts before those of all other topics. The assignor moves the first partitions of each member to a joining
/// member, so some partitions of this topic move, and few of the load's.
const SLOW_TOPIC: &str = "lingering-request-local";

/// Number of requests whose deliveries are deferred.
const DEFERRED: u32 = 100;
/// Triggers that allow only one process to claim deliveries.
const CLAIMS: &str = include_str!("claims.sql");
const NO_CLAIMS: &str = "DROP FUNCTION leave_claims CASCADE; DROP FUNCTION linger_in_claim CASCADE";

/// Maximum number of replays of expired deliveries.
const REPLAYS: usize = 5;

const TABLES: &str = "SELECT table_name FROM information_schema.tables \
    WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name NOT LIKE '\\_sqlx%'";

impl Scene {
    /// Posts requests to `path` in addition to the load, and returns the ids of the accepted ones.
    pub(crate) async fn post(
        &mut self,
        path: &'static str,
        wish: Wish,
        count: u32,
    ) -> anyhow::Result<BTreeSet<RequestId>> {
        let name = format!("burst-{}", self.next_number());
        let seen = burst(self.watch, &self.doors, &name, path, wish, count).await?;
        let ids = seen.posted.iter().filter_map(|posted| posted.id).collect();
        self.beside.add(seen);
        Ok(ids)
    }

    /// Starts slow calls, and completes quick calls to the same destination meanwhile. Returns the partitions with
    /// records of both kinds, where finished records follow an unfinished one.
    pub(crate) async fn call_slowly(&mut self) -> anyhow::Result<BTreeSet<(String, i32)>> {
        let slow = self.post("/slow", Wish::Linger, SLOW_REQUESTS).await?;
        self.called("the slow calls to begin", &slow, |_| true).await?;
        let quick = self.post("/slow", Wish::Accept, QUICK_REQUESTS).await?;
        self.called("the quick calls to end", &quick, |call| call.answered.is_some()).await?;
        let [slow_partitions, quick_partitions] = self.partitions([&slow, &quick]).await?;
        let both = slow_partitions.intersection(&quick_partitions);
        let both = both.map(|number| (SLOW_TOPIC.to_owned(), *number)).collect();
        let ended = self.third_party.count(|call| is_of(call, &slow) && call.ended.is_some());
        ensure!(ended == 0, "{ended} of the slow calls have already ended");
        Ok(both)
    }

    /// Returns the partitions of two sets of requests to `/slow`.
    async fn partitions(&self, sets: [&BTreeSet<RequestId>; 2]) -> anyhow::Result<[BTreeSet<i32>; 2]> {
        let kafka = kafka::Settings {
            bootstrap_servers: self.broker.bootstrap_servers(),
            ..kafka::Settings::default()
        };
        let mut reader = Reader::open(&kafka, SLOW_TOPIC)?;
        let mut left: BTreeSet<RequestId> = sets.into_iter().flatten().copied().collect();
        let mut partitions = [BTreeSet::new(), BTreeSet::new()];
        while !left.is_empty() {
            let record =
                reader.find(DONE, |record| id_of(record).is_some_and(|id| left.contains(&id))).await?;
            let id = id_of(&record).context("a record without an id")?;
            left.remove(&id);
            for (set, partitions) in sets.into_iter().zip(&mut partitions) {
                if set.contains(&id) {
                    partitions.insert(record.partition);
                }
            }
        }
        reader.close().await?;
        Ok(partitions)
    }

    /// Waits until each of the requests has led to a matching call.
    async fn called(
        &self,
        what: &str,
        ids: &BTreeSet<RequestId>,
        is_meant: fn(&Call) -> bool,
    ) -> anyhow::Result<()> {
        eventually(what, DONE, async || {
            let called = self.third_party.count(|call| is_of(call, ids) && is_meant(call));
            ensure!(called >= ids.len(), "{called} of {}", ids.len());
            Ok(())
        })
        .await
    }

    /// Posts requests to a destination that answers 503, and waits until their deliveries are deferred.
    pub(crate) async fn defer(&mut self) -> anyhow::Result<()> {
        self.third_party.close_shop(true);
        let ids: Vec<_> =
            self.post("/slow", Wish::Accept, DEFERRED).await?.into_iter().map(RequestId::as_i64).collect();
        let most = i64::try_from(ids.len())? * 9 / 10;
        let deferred = "SELECT count(*) FROM deliveries \
            WHERE destination = 'slow' AND deferred_by IS NOT NULL AND request_id = ANY($1)";
        eventually("deliveries to be deferred", DONE, async || {
            let count: i64 = sqlx::query_scalar(deferred).bind(&ids).fetch_one(&self.records).await?;
            // Some of them are probes.
            ensure!(count >= most, "{count} of {}", ids.len());
            Ok(())
        })
        .await
    }

    /// Kills an ingest that has claimed deferred deliveries but has not published them.
    pub(crate) async fn kill_with_claims(&mut self, replica: Replica) -> anyhow::Result<()> {
        let process = self.cast.process(replica)?.to_owned();
        self.change_schema("the triggers", &CLAIMS.replace("${PROCESS}", &process)).await?;
        self.sessions("a claim in progress", DONE, "wait_event = 'PgSleep'", &process).await?;
        self.cast.kill(replica).await?;
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
        eventually("the statements of the killed process to end", DONE, async || {
            let count: i64 = sqlx::query_scalar(sessions).bind(&process).fetch_one(&self.records).await?;
            ensure!(count == 0, "{count} sessions are left");
            Ok(())
        })
        .await?;
        let claimed =
            "SELECT count(*) FROM deliveries WHERE destination = 'slow' AND claimed_until IS NOT NULL";
        let claimed: i64 = sqlx::query_scalar(claimed).fetch_one(&self.records).await?;
        self.watch.say(format_args!("    {claimed} deliveries are left claimed"));
        self.change_schema("the removal of the triggers", NO_CLAIMS).await?;
        ensure!(claimed > 0, "the killed ingest left no claim");
        Ok(())
    }

    /// Waits until every delivery to a destination has ended.
    pub(crate) async fn wait_until_dead(&self, destination: &str, deadline: Duration) -> anyhow::Result<()> {
        let open = "SELECT count(*) FROM deliveries WHERE destination = $1 AND due_at IS NOT NULL";
        eventually("deliveries to expire", deadline, async || {
            let open: i64 = sqlx::query_scalar(open).bind(destination).fetch_one(&self.records).await?;
            ensure!(open == 0, "{open} have not ended");
            Ok(())
        })
        .await
    }

    /// Replays the dead letters of a destination until all are delivered. After an outage, few deliveries are released at
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
        ensure!(!tables.is_empty(), "the database has no tables");
        for table in tables {
            let sql = format!("ALTER TABLE {table} ADD COLUMN later_{number} text");
            self.change_schema(&format!("an additional column in {table}"), &sql).await?;
        }
        Ok(())
    }

    /// Changes a table, which is locked briefly after the statements that use it have ended.
    async fn change_schema(&self, what: &str, sql: &str) -> anyhow::Result<()> {
        eventually(what, DONE, async || {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.records).await?;
            Ok(())
        })
        .await
    }

    /// Produces foreign records onto the topics, one of them with the id of an accepted request.
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

    /// Freezes an ingest within a transaction of its recorder that holds locks needed by the other replicas.
    pub(crate) async fn freeze_in_transaction(&self, replica: Replica) -> anyhow::Result<()> {
        eventually("an ingest that is frozen within a transaction", DONE, async || {
            let frozen = self.freeze_recorder(replica).await;
            if frozen.is_err() {
                self.cast.thaw(replica)?;
            }
            frozen
        })
        .await
    }

    /// Freezes an ingest while its recorder waits for the table of attempts and has locked rows of deliveries. Then the
    /// statement completes, and the session waits for its client.
    async fn freeze_recorder(&self, replica: Replica) -> anyhow::Result<()> {
        let process = self.cast.process(replica)?;
        let mut lock = self.records.begin().await?;
        sqlx::raw_sql("LOCK TABLE attempts IN SHARE MODE").execute(&mut *lock).await?;
        self.sessions("a recorder that waits for the lock", SEEN, WAITS_FOR_ATTEMPTS, process).await?;
        self.cast.freeze(replica)?;
        lock.rollback().await?;
        self.sessions("a transaction that stays open", SEEN, IDLE_IN_TRANSACTION, process).await
    }

    /// Waits until a process has a matching session.
    async fn sessions(
        &self,
        what: &str,
        deadline: Duration,
        which: &str,
        process: &str,
    ) -> anyhow::Result<()> {
        eventually(what, deadline, async || {
            let sql =
                format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND {which}");
            let sql = sqlx::AssertSqlSafe(sql);
            let count: i64 = sqlx::query_scalar(sql).bind(process).fetch_one(&self.records).await?;
            ensure!(count > 0, "{process} has no matching session");
            Ok(())
        })
        .await
    }
}

fn id_of(record: &Record) -> Option<RequestId> {
    Some(RequestRecord::from_headers(&record.headers).ok()?.id)
}

fn is_of(call: &Call, ids: &BTreeSet<RequestId>) -> bool {
    call.id.is_some_and(|id| ids.contains(&id))
}
