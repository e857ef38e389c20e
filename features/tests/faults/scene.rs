//! Where it all happens: the servers, the third party, the services, and what the database says.

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

/// How long a delivery may stay silent before it is published again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// For everything to end once all faults are over: what was lost waits for its patience to end, and what was
/// deferred is let go a few at first.
const SETTLED: Duration = Duration::from_mins(3);
/// For a database that has just come back.
const ANSWER: Duration = Duration::from_secs(10);
/// For the node ids to be those of the replicas that live: the lease of one that was killed runs out after 5 s.
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
    /// What each had in its groups, before one of them was killed.
    before: Vec<Shares>,
    /// What clients have seen of the requests that faults have posted.
    pub(crate) beside: Experience,
    /// What others have produced onto the topics.
    pub(crate) foreign: Vec<ForeignRecord>,
    /// Bursts, columns and foreign records so far: so that each has a name of its own.
    counter: usize,
    /// The programs run in it.
    _folder: TempDir,
}

/// A delivery, as the database has it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Row {
    request_id: i64,
    /// The `Idempotency-Key` that its request came with.
    pub(crate) key: Option<String>,
    /// None if the request has no delivery.
    pub(crate) state: Option<String>,
    pub(crate) reason: Option<String>,
    /// Whether one of its attempts delivered it.
    pub(crate) has_delivered: bool,
    /// The foreign record that it was adopted from, if it was.
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
        let Self { request_id, key, state, reason, has_delivered, origin } = self;
        let (key, state, reason) = (or_none(key), or_none(state), or_none(reason));
        let delivered = if *has_delivered { "an attempt" } else { "no attempt" };
        let key = origin.as_ref().map_or(key, |origin| format!("none, adopted from {origin}"));
        write!(f, "{request_id} of key {key}: state {state}, reason {reason}, delivered by {delivered}")
    }
}

const ROWS: &str = "\
    SELECT requests.id AS request_id, key, state, reason, EXISTS ( \
        SELECT 1 FROM attempts WHERE attempts.request_id = requests.id AND outcome = 'delivered' \
    ) AS has_delivered, requests.origin \
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
            .replace("${DATABASE}", &url)
            .replace("${BROKER}", &broker.bootstrap_servers())
            .replace("${THIRD_PARTY}", &third_party.url())
            .replace("${PATIENCE}", &format!("{}s", PATIENCE.as_secs()));
        std::fs::write(folder.path().join("throughline.yaml"), configuration)?;
        let doors = Arc::<Doors>::default();
        let mut cast = Cast::new(programs, folder.path(), Arc::clone(&doors));
        for replica in Replica::all() {
            cast.start(replica).await?;
        }
        let records = PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER).connect_lazy(&url)?;
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

    /// One replica more joins, with the system's clock or one that is `ahead` of it. It gets its share of the
    /// partitions, and no other partition moves.
    pub(crate) async fn grow(&mut self, service: Service, ahead: Option<&str>) -> anyhow::Result<()> {
        let before = self.shared_out(service, REPLICAS).await?;
        self.cast.start_ahead(Replica::newcomer(service), ahead).await?;
        self.share_anew(service, REPLICAS + 1, &before, 0).await
    }

    /// That one leaves. The others get what it had, and keep what they have.
    pub(crate) async fn shrink(&mut self, service: Service, leave: Leave) -> anyhow::Result<()> {
        let before = self.shared_out(service, REPLICAS + 1).await?;
        match leave {
            Leave::Stop => self.cast.stop(Replica::newcomer(service)).await?,
            Leave::Kill => self.cast.kill(Replica::newcomer(service)).await?,
        }
        self.share_anew(service, REPLICAS, &before, 1).await
    }

    /// A replica is killed, to be revived.
    pub(crate) async fn kill(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.before = self.shared_out(replica.service, REPLICAS).await?;
        self.cast.kill(replica).await
    }

    /// It is there again, to its groups a stranger. It gets its share; between the others nothing moves.
    pub(crate) async fn revive(&mut self, replica: Replica) -> anyhow::Result<()> {
        self.cast.start(replica).await?;
        let before = std::mem::take(&mut self.before);
        self.share_anew(replica.service, REPLICAS, &before, 1).await
    }

    /// Waits until so many replicas of a service have a node id each, if they need one, and have shared out their
    /// partitions, in each of their groups.
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

    /// Waits until so many replicas have a node id each.
    async fn leased(&self, replicas: usize) -> anyhow::Result<()> {
        eventually("each ingest to have a node id of its own", LEASED, async || {
            let live = "SELECT count(*), count(DISTINCT holder) FROM nodes WHERE expires_at > now()";
            let (nodes, holders): (i64, i64) = sqlx::query_as(live).fetch_one(&self.records).await?;
            let expected = i64::try_from(replicas)?;
            ensure!(
                nodes == expected && holders == expected,
                "{nodes} are leased to {holders} of {replicas}"
            );
            Ok(())
        })
        .await
    }

    /// Waits until so many replicas have shared out anew, of which so many are missed that were there before; blames
    /// them for what moves in vain.
    async fn share_anew(
        &mut self,
        service: Service,
        replicas: usize,
        before: &[Shares],
        missed: usize,
    ) -> anyhow::Result<()> {
        let after = eventually("those that are gone to be missed", SHARED_OUT, async || {
            let after = self.shared_out(service, replicas).await?;
            let gone = before.iter().zip(&after).map(|(before, after)| groups::gone(before, after)).min();
            ensure!(gone >= Some(missed), "{gone:?} instead of {missed}");
            Ok(after)
        })
        .await?;
        for (group, (before, after)) in groups::of(service).iter().zip(before.iter().zip(&after)) {
            self.blame_for(group, before, after, missed);
        }
        Ok(())
    }

    fn blame_for(&mut self, group: &str, before: &Shares, after: &Shares, missed: usize) {
        let moved = groups::moved(before, after);
        self.watch.say(format_args!("    {group}: {moved} partitions moved"));
        let gone = groups::gone(before, after);
        if gone > missed {
            let (before, after) = (before.len(), after.len());
            self.cast.blame(format!("{gone} members of {group} are gone when {before} became {after}"));
        }
        let in_vain = groups::taken_in_vain(before, after);
        if !in_vain.is_empty() {
            self.cast
                .blame(format!("partitions went from one to another that could have stayed: {in_vain:?}"));
        }
    }

    /// A number that was not used before.
    pub(crate) fn next_number(&mut self) -> usize {
        self.counter += 1;
        self.counter
    }

    /// Deletes a topic, as an operator might by mistake.
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

    /// Waits until every delivery has ended of what was accepted so far.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        self.settle_within(SETTLED).await
    }

    /// The same, within a time.
    pub(crate) async fn settle_within(&self, deadline: Duration) -> anyhow::Result<()> {
        let newest = "SELECT coalesce(max(id), 0) FROM requests";
        let newest: i64 = eventually("the newest request", ANSWER, async || {
            Ok(sqlx::query_scalar(newest).fetch_one(&self.records).await?)
        })
        .await?;
        eventually("every delivery to end", deadline, async || {
            let unended = "SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL AND request_id <= $1";
            let unended: i64 = sqlx::query_scalar(unended).bind(newest).fetch_one(&self.records).await?;
            ensure!(unended == 0, "{unended} unended");
            Ok(())
        })
        .await
    }

    /// How many rows the outbox has.
    pub(crate) async fn unpublished(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&self.records).await?)
    }

    /// Every request with its delivery.
    pub(crate) async fn rows(&self) -> anyhow::Result<Vec<Row>> {
        Ok(sqlx::query_as(ROWS).fetch_all(&self.records).await?)
    }
}
