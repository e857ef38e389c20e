//! The environment of a run: servers, third party, services and queries of the database.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tempfile::TempDir;
use throughline_snowflake::RequestId;
use throughline_testkit::{Broker, Container, Database, Programs, Service, eventually};

use crate::cast::{Cast, REPLICAS, Replica};
use crate::faults::Leave;
use crate::foreign::ForeignRecord;
use crate::groups::{self, Groups, SHARED_OUT, Shares};
use crate::load::{Doors, Experience};
use crate::third_party::ThirdParty;
use crate::watch::Watch;

/// `ingest.redelivery_timeout`: time without an outcome until a delivery is published again.
pub(crate) const REDELIVERY_TIMEOUT: Duration = Duration::from_secs(20);

/// Deadline for fewer deliveries to be open after the last fault: lost ones wait for [`REDELIVERY_TIMEOUT`], and
/// deferred ones are released gradually. A backlog may take longer as a whole, on a busy machine.
const SETTLED: Duration = Duration::from_mins(3);
/// Deadline for a database that has just restarted.
const ANSWER: Duration = Duration::from_secs(10);
/// Deadline for only running replicas to lease node ids: the lease of a killed replica expires after 5 s.
const LEASED: Duration = Duration::from_secs(15);

pub(crate) struct Scene {
    pub(crate) watch: Watch,
    pub(crate) cast: Cast,
    pub(crate) doors: Arc<Doors>,
    pub(crate) third_party: ThirdParty,
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    pub(crate) records: PgPool,
    groups: Groups,
    /// The assignments of the groups before a replica was killed.
    before: Vec<Shares>,
    /// The clients' observations of the requests that faults posted.
    pub(crate) beside: Experience,
    /// The records of other producers.
    pub(crate) foreign: Vec<ForeignRecord>,
    /// A counter for unique names of bursts, columns and foreign records.
    counter: usize,
    /// The working folder of the programs.
    _folder: TempDir,
}

/// A delivery in the database.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Row {
    request_id: i64,
    /// The `Idempotency-Key` of its request.
    pub(crate) key: Option<String>,
    /// None if the request has no delivery.
    pub(crate) state: Option<String>,
    pub(crate) reason: Option<String>,
    /// Whether one of its attempts succeeded.
    pub(crate) has_delivered: bool,
    /// The number of its attempts without an answer in time, which the third party may have acknowledged.
    pub(crate) timed_out: i64,
    /// The foreign record from which its request was adopted, if any.
    pub(crate) origin: Option<String>,
}

impl Row {
    pub(crate) fn id(&self) -> Option<RequestId> {
        RequestId::from_i64(self.request_id).ok()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let Self { request_id, key, state, reason, has_delivered, origin, .. } = self;
        let (key, state, reason) = (or_none(key), or_none(state), or_none(reason));
        let delivered = if *has_delivered { "an attempt" } else { "no attempt" };
        let key = origin.as_ref().map_or(key, |origin| format!("none (adopted from {origin})"));
        write!(f, "{request_id} with key {key}: state {state}, reason {reason}, delivered by {delivered}")
    }
}

const ROWS: &str = "\
    SELECT requests.id AS request_id, key, state, reason, EXISTS ( \
        SELECT 1 FROM attempts WHERE attempts.request_id = requests.id AND outcome = 'delivered' \
    ) AS has_delivered, ( \
        SELECT count(*) FROM attempts WHERE attempts.request_id = requests.id AND error_class = 'timeout' \
    ) AS timed_out, requests.origin \
    FROM requests \
    LEFT JOIN deliveries ON deliveries.request_id = requests.id \
    LEFT JOIN idempotency_keys ON idempotency_keys.request_id = requests.id";

impl Scene {
    /// Starts everything.
    pub(crate) async fn set(programs: Programs, watch: Watch) -> anyhow::Result<Self> {
        let (database, broker) = tokio::try_join!(Database::start(), Broker::container())?;
        let url = database.create("throughline").await?;
        let third_party = ThirdParty::open(watch).await?;
        let folder = TempDir::with_prefix("throughline-")?;
        let configuration = include_str!("throughline.yaml")
            .replace("${BROKER}", &broker.bootstrap_servers())
            .replace("${THIRD_PARTY}", &third_party.url())
            .replace("${REDELIVERY_TIMEOUT}", &format!("{}s", REDELIVERY_TIMEOUT.as_secs()));
        std::fs::write(folder.path().join("throughline.yaml"), configuration)?;
        let doors = Arc::<Doors>::default();
        let mut cast = Cast::new(watch, programs, folder.path(), url.clone(), Arc::clone(&doors));
        for replica in Replica::all() {
            cast.start(replica).await?;
        }
        let records = PgPoolOptions::new().max_connections(2).acquire_timeout(ANSWER).connect_lazy(&url)?;
        let groups = Groups::of(&broker.bootstrap_servers())?;
        let (before, beside, foreign, counter) = (Vec::new(), Experience::default(), Vec::new(), 0);
        Ok(Self {
            watch,
            cast,
            doors,
            third_party,
            broker,
            database,
            records,
            groups,
            before,
            beside,
            foreign,
            counter,
            _folder: folder,
        })
    }

    /// The broker's container.
    pub(crate) fn broker_container(&self) -> anyhow::Result<&Container> {
        self.broker.as_container().context("the broker has no container")
    }

    /// Starts an additional replica, with the system's clock or one that is `ahead` of it. The replica gets its share of
    /// the partitions, and no other partition moves. Returns the partitions that moved.
    pub(crate) async fn grow(
        &mut self,
        service: Service,
        ahead: Option<&str>,
    ) -> anyhow::Result<BTreeSet<(String, i32)>> {
        let before = self.shared_out(service, REPLICAS).await?;
        self.cast.start_ahead(Replica::newcomer(service), ahead).await?;
        self.share_anew(service, REPLICAS + 1, &before, 0).await
    }

    /// Removes the additional replica. The others get its partitions, and keep theirs. Returns the partitions that moved.
    pub(crate) async fn shrink(
        &mut self,
        service: Service,
        leave: Leave,
    ) -> anyhow::Result<BTreeSet<(String, i32)>> {
        let before = self.shared_out(service, REPLICAS + 1).await?;
        match leave {
            Leave::Stop => self.cast.stop(Replica::newcomer(service)).await?,
            Leave::Kill => self.cast.kill(Replica::newcomer(service)).await?,
            Leave::KillWithClaims => self.kill_with_claims(Replica::newcomer(service)).await?,
        }
        self.share_anew(service, REPLICAS, &before, 1).await
    }

    /// Kills a replica that will be restarted.
    pub(crate) async fn kill(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.before = self.shared_out(replica.service, REPLICAS).await?;
        self.cast.kill(replica).await
    }

    /// Restarts a killed replica, which is a new member of its groups. It gets its share, and no other partition moves.
    pub(crate) async fn revive(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.cast.start(replica).await?;
        let before = std::mem::take(&mut self.before);
        self.share_anew(replica.service, REPLICAS, &before, 1).await?;
        Ok(())
    }

    /// Waits until `replicas` replicas of a service have a node id each, if they need one, and have assigned their
    /// partitions in each of their groups.
    pub(crate) async fn shared_out(&self, service: Service, replicas: usize) -> anyhow::Result<Vec<Shares>> {
        match service {
            Service::Ingest => self.leased(replicas).await?,
            Service::Dispatch => {}
        }
        let mut shares = Vec::new();
        for group in groups::of(service) {
            shares.push(self.groups.shared_out(group, replicas).await?);
        }
        Ok(shares)
    }

    /// Waits until `replicas` replicas have a node id each.
    async fn leased(&self, replicas: usize) -> anyhow::Result<()> {
        eventually("each ingest to have its own node id", LEASED, async || {
            let live = "SELECT count(*), count(DISTINCT holder) FROM nodes WHERE expires_at > now()";
            let (nodes, holders): (i64, i64) = sqlx::query_as(live).fetch_one(&self.records).await?;
            let expected = i64::try_from(replicas)?;
            ensure!(
                nodes == expected && holders == expected,
                "{nodes} node ids are leased to {holders} of {replicas} replicas"
            );
            Ok(())
        })
        .await
    }

    /// Waits until `replicas` replicas have a new assignment without `missed` former members. Records partitions that
    /// moved unnecessarily as unexpected behaviour. Returns the partitions that moved.
    async fn share_anew(
        &mut self,
        service: Service,
        replicas: usize,
        before: &[Shares],
        missed: usize,
    ) -> anyhow::Result<BTreeSet<(String, i32)>> {
        let after = eventually("the groups to remove former members", SHARED_OUT, async || {
            let after = self.shared_out(service, replicas).await?;
            let gone = before.iter().zip(&after).map(|(before, after)| groups::gone(before, after)).min();
            ensure!(gone >= Some(missed), "{gone:?} removed instead of {missed}");
            Ok(after)
        })
        .await?;
        for (group, (before, after)) in groups::of(service).iter().zip(before.iter().zip(&after)) {
            self.blame_for(group, before, after, missed);
        }
        Ok(before.iter().zip(&after).flat_map(|(before, after)| groups::moved(before, after)).collect())
    }

    fn blame_for(&mut self, group: &str, before: &Shares, after: &Shares, missed: usize) {
        let moved = groups::moved(before, after).len();
        self.watch.say(format_args!("    {group}: {moved} partitions moved"));
        let gone = groups::gone(before, after);
        if gone > missed {
            let (before, after) = (before.len(), after.len());
            self.cast.blame(format!(
                "{gone} instead of {missed} members of {group} left when {before} became {after}"
            ));
        }
        let in_vain = groups::taken_in_vain(before, after);
        if !in_vain.is_empty() {
            self.cast.blame(format!("partitions of {group} moved unnecessarily: {in_vain:?}"));
        }
    }

    /// Returns a number that was not used before.
    pub(crate) fn next_number(&mut self) -> usize {
        self.counter += 1;
        self.counter
    }

    /// Deletes a topic, as an operator might do by mistake.
    pub(crate) async fn delete_topic(&self, name: &str) -> anyhow::Result<()> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.bootstrap_servers());
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        let options = AdminOptions::new().operation_timeout(Some(ANSWER));
        for deleted in admin.delete_topics(&[name], &options).await? {
            deleted.map_err(|(name, code)| anyhow::anyhow!("cannot delete the topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Waits until every delivery of all requests accepted so far has ended.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let newest = self.newest().await?;
        let mut left = i64::MAX;
        while left > 0 {
            left = eventually("a delivery to end", SETTLED, async || {
                let open = self.open(newest).await?;
                ensure!(open < left, "{open} have not ended");
                Ok(open)
            })
            .await?;
        }
        Ok(())
    }

    /// The same, with a deadline for all of them.
    pub(crate) async fn settle_within(&self, deadline: Duration) -> anyhow::Result<()> {
        let newest = self.newest().await?;
        eventually("every delivery to end", deadline, async || {
            let open = self.open(newest).await?;
            ensure!(open == 0, "{open} have not ended");
            Ok(())
        })
        .await
    }

    /// The id of the newest request.
    async fn newest(&self) -> anyhow::Result<i64> {
        let newest = "SELECT coalesce(max(id), 0) FROM requests";
        let newest = async || Ok(sqlx::query_scalar(newest).fetch_one(&self.records).await?);
        eventually("the newest request", ANSWER, newest).await
    }

    /// The number of deliveries that have not ended, of the requests up to one.
    async fn open(&self, newest: i64) -> anyhow::Result<i64> {
        let open = "SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL AND request_id <= $1";
        Ok(sqlx::query_scalar(open).bind(newest).fetch_one(&self.records).await?)
    }

    /// The number of rows in the outbox.
    pub(crate) async fn unpublished(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&self.records).await?)
    }

    /// Every request with its delivery.
    pub(crate) async fn rows(&self) -> anyhow::Result<Vec<Row>> {
        Ok(sqlx::query_as(ROWS).fetch_all(&self.records).await?)
    }
}
