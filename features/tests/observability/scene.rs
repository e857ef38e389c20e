//! The environment of a run: servers, third party and services.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use throughline_clock::Clock;
use throughline_settings::{Flags, Settings};
use throughline_testkit::{Broker, Database, Program, Programs, ThirdParty, eventually};

use crate::backends::Backends;
use crate::door::Door;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline for a request to reach a state.
pub(crate) const SOON: Duration = Duration::from_mins(1);

pub(crate) struct Scene {
    pub(crate) settings: Settings,
    pub(crate) third_party: ThirdParty,
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    pub(crate) door: Door,
    pub(crate) began: DateTime<Utc>,
    environment: String,
    http: Client,
    ingest: SocketAddr,
    /// The programs, which end when dropped.
    _programs: [Program; 2],
    _folder: TempDir,
}

impl Scene {
    /// Starts everything. The telemetry of the services has its own environment, so that it cannot be confused with that
    /// of an earlier run.
    pub(crate) async fn set(programs: Programs, backends: &Backends) -> anyhow::Result<Self> {
        let began = Clock::system().now();
        let environment = format!("test-{}", began.timestamp());
        let (database, broker) = tokio::try_join!(Database::start(), Broker::container())?;
        let third_party = ThirdParty::open().await;
        let folder = TempDir::with_prefix("throughline-")?;
        let url = database.create("throughline").await?;
        let settings = configure(folder.path(), &url, &broker, &third_party)?;
        let door = Door::open(&backends.addresses.otlp).await?;
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", door.url()),
            ("OTEL_RESOURCE_ATTRIBUTES", format!("deployment.environment.name={environment}")),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000".to_owned()),
            // Short, so that an outage of the Collector for seconds loses telemetry.
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000".to_owned()),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "512".to_owned()),
            ("OTEL_BLRP_MAX_QUEUE_SIZE", "512".to_owned()),
        ];
        let start = |name| Program::start_with(&programs.path(name), &[], &variables, folder.path());
        let mut ingest = start("throughline-ingest")?;
        let address = ingest.listening().await?;
        refuse_rows_of("unstorable", &url).await?;
        let mut dispatch = start("throughline-dispatch")?;
        dispatch.listening().await?;
        Ok(Self {
            settings,
            third_party,
            broker,
            database,
            door,
            began,
            environment,
            http: Client::builder().no_proxy().timeout(TIMEOUT).build()?,
            ingest: address,
            _programs: [ingest, dispatch],
            _folder: folder,
        })
    }

    /// The `deployment.environment.name` of the exported telemetry.
    pub(crate) fn environment(&self) -> &str {
        &self.environment
    }

    /// Prepares a request to ingest.
    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.ingest))
    }

    /// Prepares a POST to a route.
    pub(crate) fn to_post(&self, route: &str) -> RequestBuilder {
        self.ask(Method::POST, &format!("/{route}"))
            .header(CONTENT_TYPE, "application/json")
            .body(r#"{"prompt": "What is the value of k1?"}"#)
    }

    /// Posts to a route, and returns the request id.
    pub(crate) async fn post(&self, route: &str) -> anyhow::Result<String> {
        id_of(self.to_post(route)).await
    }

    /// Waits until the delivery of a request has a state.
    pub(crate) async fn becomes(&self, id: &str, state: &str) -> anyhow::Result<()> {
        self.has(id, &format!("state {state}"), |delivery| delivery["state"] == state).await
    }

    /// Waits until the delivery of a request is deferred by a cause.
    pub(crate) async fn is_deferred(&self, id: &str, by: &str) -> anyhow::Result<()> {
        self.has(id, &format!("deferred by {by}"), |delivery| delivery["deferred_by"] == by).await
    }

    async fn has(&self, id: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        eventually(&format!("request {id}: {what}"), SOON, async || {
            let answer = self.ask(Method::GET, &format!("/v1/requests/{id}")).send().await?;
            let status: Value = answer.error_for_status()?.json().await?;
            ensure!(is_it(&status["deliveries"][0]), "{status}");
            Ok(())
        })
        .await
    }
}

/// Makes the database reject the requests of a route, as after a faulty migration.
async fn refuse_rows_of(route: &str, database: &str) -> anyhow::Result<()> {
    let sql = format!("ALTER TABLE requests ADD CONSTRAINT refused CHECK (route <> '{route}')");
    let mut connection = PgConnection::connect(database).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// Sends a request that must be accepted, and returns its id.
pub(crate) async fn id_of(request: RequestBuilder) -> anyhow::Result<String> {
    let answer: Value = request.send().await?.error_for_status()?.json().await?;
    Ok(answer["request_id"].as_str().with_context(|| format!("no id: {answer}"))?.to_owned())
}

fn configure(
    folder: &Path,
    database: &str,
    broker: &Broker,
    third_party: &ThirdParty,
) -> anyhow::Result<Settings> {
    let file = folder.join("throughline.yaml");
    let text = include_str!("throughline.yaml")
        .replace("${DATABASE}", database)
        .replace("${BROKER}", &broker.bootstrap_servers())
        .replace("${THIRD_PARTY}", &third_party.url());
    std::fs::write(&file, text)?;
    Ok(throughline_settings::load(&Flags { config: Some(file), ..Flags::default() })?.settings)
}
