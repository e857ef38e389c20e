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
use throughline_testkit::{Broker, Container, Database, Programs, eventually};

use crate::cast::{Cast, Replica};
use crate::load::Doors;
use crate::third_party::ThirdParty;
use crate::watch::Watch;

/// How long a delivery may stay silent before it is published again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// For everything to end once all faults are over: what was lost waits for its patience to end, and what was
/// deferred is let go a few at first.
const SETTLED: Duration = Duration::from_mins(3);
/// For a database that has just come back.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) struct Scene {
    pub(crate) watch: Watch,
    pub(crate) cast: Cast,
    pub(crate) doors: Arc<Doors>,
    pub(crate) third_party: ThirdParty,
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    records: PgPool,
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
}

impl Row {
    pub(crate) fn id(&self) -> Option<RequestId> {
        RequestId::from_i64(self.request_id).ok()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let Self { request_id, key, state, reason, has_delivered } = self;
        let (key, state, reason) = (or_none(key), or_none(state), or_none(reason));
        let delivered = if *has_delivered { "an attempt" } else { "no attempt" };
        write!(f, "{request_id} of key {key}: state {state}, reason {reason}, delivered by {delivered}")
    }
}

const ROWS: &str = "\
    SELECT requests.id AS request_id, key, state, reason, EXISTS ( \
        SELECT 1 FROM attempts WHERE attempts.request_id = requests.id AND outcome = 'delivered' \
    ) AS has_delivered \
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
        Ok(Self { watch, cast, doors, third_party, broker, database, records, _folder: folder })
    }

    /// The broker's container.
    pub(crate) fn broker_container(&self) -> anyhow::Result<&Container> {
        self.broker.as_container().context("the broker has no container")
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
        let newest = "SELECT coalesce(max(id), 0) FROM requests";
        let newest: i64 = eventually("the newest request", ANSWER, async || {
            Ok(sqlx::query_scalar(newest).fetch_one(&self.records).await?)
        })
        .await?;
        eventually("every delivery to end", SETTLED, async || {
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
