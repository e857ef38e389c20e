//! The statements that the program makes, and their query plans.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, SqliteConnection};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, util::SubscriberInitExt as _};

use crate::databases::Db;

/// The statements, and the longest that each has taken.
type Logged = BTreeMap<String, Duration>;

static LOGGED: Mutex<Logged> = Mutex::new(Logged::new());

fn logged() -> MutexGuard<'static, Logged> {
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to record statements.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::registry().with(Listener).init());
    logged().clear();
}

/// Returns the statements since the start of the recording.
pub(crate) fn end() -> Logged {
    std::mem::take(&mut *logged())
}

/// Records the statements that sqlx logs.
struct Listener;

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut statement = Statement::default();
            event.record(&mut statement);
            let sql = if statement.sql.is_empty() { statement.summary } else { statement.sql };
            let mut logged = logged();
            let longest = logged.entry(sql.trim().to_owned()).or_default();
            *longest = statement.took.max(*longest);
        }
    }
}

#[derive(Default)]
struct Statement {
    summary: String,
    sql: String,
    took: Duration,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.sql),
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.took = Duration::from_secs_f64(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// A statement, and the plan of the database for it.
pub(crate) struct Plan {
    pub(crate) sql: String,
    pub(crate) lines: Vec<String>,
    pub(crate) took: Duration,
}

/// Lets the database explain all statements that search for rows.
pub(crate) async fn explain(db: &Db, logged: Logged) -> Vec<Plan> {
    let url = db.settings.url.expose();
    let looks =
        |sql: &String| ["SELECT", "WITH", "UPDATE", "DELETE"].iter().any(|verb| sql.starts_with(verb));
    let logged: Vec<_> = logged.into_iter().filter(|(sql, _)| looks(sql)).collect();
    match db.store.connection().get_database_backend() {
        DbBackend::Sqlite => sqlite(url, logged).await,
        _ => postgres(url, logged).await,
    }
}

async fn postgres(url: &str, logged: Vec<(String, Duration)>) -> Vec<Plan> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut plans = Vec::new();
    for (sql, took) in logged {
        // The plan that serves any parameters.
        let explain = AssertSqlSafe(format!("EXPLAIN (GENERIC_PLAN, COSTS false) {sql}"));
        let rows = sqlx::raw_sql(explain).fetch_all(&mut connection).await.unwrap();
        plans.push(Plan { sql, lines: rows.iter().map(|row| row.get(0)).collect(), took });
    }
    plans
}

async fn sqlite(url: &str, logged: Vec<(String, Duration)>) -> Vec<Plan> {
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    let mut plans = Vec::new();
    for (sql, took) in logged {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let rows = sqlx::raw_sql(explain).fetch_all(&mut connection).await.unwrap();
        plans.push(Plan { sql, lines: rows.iter().map(|row| row.get("detail")).collect(), took });
    }
    plans
}

/// The tables that grow with all requests ever accepted, and their aliases in statements.
const LARGE: [&str; 10] =
    ["deliveries", "requests", "attempts", "idempotency_keys", "d", "q", "a", "l", "k", "other"];

impl Plan {
    /// Whether it takes whatever columns a table has.
    pub(crate) fn asks_for_all_columns(&self) -> bool {
        let others = ["SELECT * FROM unnest(", "count(*)", "* interval"];
        others.iter().fold(self.sql.clone(), |sql, other| sql.replace(other, "")).contains('*')
    }

    /// Whether it is about the outbox of one node, and reads those of all.
    pub(crate) fn reads_all_outboxes(&self) -> bool {
        let scans = ["Seq Scan on outbox", "SCAN outbox"];
        let scans_all = |line: &String| line == "SCAN o" || scans.iter().any(|scan| line.contains(scan));
        self.sql.contains("node_id") && self.lines.iter().any(scans_all)
    }

    /// Whether it reads a large table, or one of its indexes, from end to end.
    pub(crate) fn reads_all(&self) -> bool {
        let before = [""].into_iter().chain(self.lines.iter().map(String::as_str));
        let after = self.lines.iter().skip(1).map(String::as_str).chain([""]);
        let mut lines = before.zip(&self.lines).zip(after);
        let is_bounded = self.sql.contains("ORDER BY ordering_group, destination, request_id LIMIT");
        lines.any(|((before, line), after)| {
            reads_all_of_sqlite(line, is_bounded) || reads_all_of_postgres(before, line, after)
        })
    }
}

/// An index that has exactly the rows of a query, in their order, may be read from its beginning; that of all ordering
/// groups only if the statement has a limit.
fn reads_all_of_sqlite(line: &str, is_bounded: bool) -> bool {
    let scanned = line.strip_prefix("SCAN ").and_then(|table| table.split_whitespace().next());
    let is_all = scanned.is_some_and(|table| LARGE.contains(&table)) && !line.contains("deliveries_dead");
    is_all || (line.contains("(ordering_group>?)") && !is_bounded)
}

fn reads_all_of_postgres(before: &str, line: &str, after: &str) -> bool {
    let Some((how, of)) = line.split_once("Scan ") else { return false };
    let is_large = LARGE[..4].iter().any(|table| of.contains(table));
    let takes_the_first =
        ["Limit", "LockRows"].iter().any(|node| before.trim_start_matches("->").contains(node));
    let by_index = how.contains("Index") && (after.contains("Index Cond") || takes_the_first);
    is_large && !by_index && !how.contains("Bitmap Heap")
}
