//! A migrated database for each test.
//!
//! PostgreSQL is the server at `THROUGHLINE_TEST_POSTGRES`, or else a container of the tests' own; where
//! there is neither, its tests say so and are skipped, unless `REQUIRE_CONTAINERS=1`.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Once, Weak};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use testcontainers_modules::postgres::Postgres;
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{ContainerAsync, ImageExt};
use throughline_config::Secret;
use throughline_store::Store;
use throughline_testkit::Measured;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// Longer than any test takes: what hangs fails.
const DEADLINE: Duration = Duration::from_mins(3);

/// A store, and what it takes to open another one on the same database.
pub(crate) struct Db {
    pub(crate) store: Store,
    pub(crate) settings: throughline_store::Settings,
    /// What the store measures.
    pub(crate) measured: Measured,
}

pub(crate) fn settings(url: &str) -> throughline_store::Settings {
    throughline_store::Settings {
        url: Secret::from(url),
        max_connections: NonZeroU32::new(12).unwrap(),
        connect_timeout: Duration::from_secs(10),
        timeout: Duration::from_secs(30),
        migrate: false,
    }
}

/// Runs a test on a new SQLite file.
pub(crate) fn on_sqlite<F: Future<Output = ()>>(test: impl FnOnce(Db) -> F) {
    RUNTIME.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("throughline.db").display());
        run(settings(&url), test).await;
    });
}

/// Runs a test on a new database of a PostgreSQL server, if there is one.
pub(crate) fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(Db) -> F) {
    with_server(async |server| {
        let name = server.create_database().await;
        run(settings(&server.url_of(&name)), test).await;
        server.drop_database(&name).await;
    });
}

/// Runs a test with a PostgreSQL server, if there is one.
pub(crate) fn with_server(test: impl AsyncFnOnce(&Server)) {
    RUNTIME.block_on(async {
        if let Some(server) = or_skip(Server::shared().await) {
            test(&server).await;
        }
    });
}

/// The server, if there is one; else says why a test is skipped.
pub(crate) fn or_skip<T>(server: Result<T, String>) -> Option<T> {
    match server {
        Ok(server) => Some(server),
        Err(why) if std::env::var("REQUIRE_CONTAINERS").is_ok_and(|value| value == "1") => {
            panic!("no PostgreSQL to test with: {why}")
        }
        Err(why) => {
            static SAID: Once = Once::new();
            // Past the capture of a test's output, which is shown only when it fails.
            let line = format!("\n*** SKIPPED: all tests on PostgreSQL: {why} ***\n\n");
            SAID.call_once(|| std::io::stderr().write_all(line.as_bytes()).unwrap());
            None
        }
    }
}

async fn run<F: Future<Output = ()>>(settings: throughline_store::Settings, test: impl FnOnce(Db) -> F) {
    let measured = Measured::new();
    let store = Store::connect(&settings, &measured.meter()).await.unwrap();
    store.migrate().await.unwrap();
    let db = Db { store: store.clone(), settings, measured };
    tokio::time::timeout(DEADLINE, test(db)).await.expect("the test ends");
    store.close().await;
}

/// One for all tests: the server's connections must outlive the test that made them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

pub(crate) struct Server {
    /// Without a database at its end.
    url: String,
    admin: DatabaseConnection,
    _container: Option<ContainerAsync<Postgres>>,
}

impl Server {
    /// The server that other tests use right now, or a new one. It goes with its last user: nothing in
    /// a `static` is ever dropped.
    async fn shared() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start().await?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    async fn start() -> Result<Self, String> {
        let (url, container) = if let Ok(url) = std::env::var("THROUGHLINE_TEST_POSTGRES") {
            (url.trim_end_matches('/').to_owned(), None)
        } else {
            let container = Postgres::default().with_tag("18").start().await;
            let container = container.map_err(|error| format!("no Docker engine answers: {error}"))?;
            let port = container.get_host_port_ipv4(5432).await.map_err(|error| error.to_string())?;
            let host = container.get_host().await.map_err(|error| error.to_string())?;
            (format!("postgres://postgres:postgres@{host}:{port}"), Some(container))
        };
        let admin = Database::connect(format!("{url}/postgres")).await.map_err(|error| error.to_string())?;
        Ok(Self { url, admin, _container: container })
    }

    pub(crate) fn url_of(&self, database: &str) -> String {
        format!("{}/{database}", self.url)
    }

    async fn create_database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("store_test_{}_{count}", std::process::id());
        // What a test of the same process id has left behind when it failed.
        self.drop_database(&name).await;
        self.admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }

    async fn drop_database(&self, name: &str) {
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        self.admin.execute_unprepared(&sql).await.unwrap();
    }
}
