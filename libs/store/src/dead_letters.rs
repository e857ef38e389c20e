//! Deliveries that ended without success: found, sent on their way again, thrown away.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult, Value};
use throughline_snowflake::RequestId;

use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::order;
use crate::requests::{number, request_id};

/// Which dead letters are meant; what is none is any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The route their requests came in by.
    pub route: Option<String>,
    /// The destination that did not get them.
    pub destination: Option<String>,
    /// The name of a [`DeadReason`](throughline_messages::DeadReason).
    pub reason: Option<String>,
    /// The name of an [`ErrorClass`](throughline_messages::ErrorClass).
    pub error_class: Option<String>,
    /// Died then or later.
    pub died_since: Option<DateTime<Utc>>,
    /// Died before.
    pub died_before: Option<DateTime<Utc>>,
}

/// A delivery that ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The request.
    pub request_id: RequestId,
    /// The destination that did not get it.
    pub destination: String,
    /// The route its request came in by.
    pub route: String,
    /// When its request was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it died.
    pub died_at: DateTime<Utc>,
    /// Why, by the name of a [`DeadReason`](throughline_messages::DeadReason).
    pub reason: String,
    /// What kind of error it met last.
    pub error_class: Option<String>,
    /// The last error, in words.
    pub error: Option<String>,
    /// The status of the last response.
    pub status: Option<u16>,
    /// The beginning of the last response's body.
    pub response_excerpt: Option<String>,
    /// The trace that shows the last attempt.
    pub trace_id: Option<String>,
    /// How many attempts were made.
    pub attempts: u32,
}

/// A place in the list of dead letters: behind this one.
pub type Place = (RequestId, String);

#[derive(FromQueryResult)]
struct Row {
    request_id: i64,
    destination: String,
    route: String,
    accepted_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    reason: Option<String>,
    last_error_class: Option<String>,
    last_error: Option<String>,
    last_status: Option<i32>,
    response_excerpt: Option<String>,
    trace_id: Option<String>,
    attempts: i32,
}

/// At most `limit` of those that are meant, the youngest requests first, behind `after`.
///
/// # Errors
/// If the database cannot be asked.
pub async fn list(
    session: &impl Session,
    filter: &Filter,
    after: Option<&Place>,
    limit: u64,
) -> Result<Vec<DeadLetter>, StoreError> {
    let connection = &Operation::new(session, "list_dead_letters");
    let dialect = Dialect::of(connection);
    let mut meant = Meant::new(dialect, filter);
    if let Some((id, destination)) = after {
        let (id, destination) = (meant.parameter(id.as_i64()), meant.parameter(destination.as_str()));
        meant.condition(&format!("(d.request_id, d.destination) < ({id}, {destination})"));
    }
    // As a number, so that the plan is for so many; what belongs to them is looked up for those alone.
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!(
        "SELECT page.request_id, page.destination, page.updated_at, page.reason, page.last_error_class, \
             page.last_error, page.last_status, page.attempts, \
             q.route, q.accepted_at, a.response_excerpt, a.trace_id \
         FROM (SELECT d.request_id, d.destination, d.updated_at, d.reason, d.last_error_class, \
                 d.last_error, d.last_status, d.attempts FROM deliveries AS d WHERE {} \
             ORDER BY d.request_id DESC, d.destination DESC LIMIT {limit}) AS page \
         JOIN requests AS q ON q.id = page.request_id \
         LEFT JOIN attempts AS a ON a.request_id = page.request_id AND a.destination = page.destination \
             AND a.number = page.attempts AND a.started_at = (SELECT max(started_at) FROM attempts AS l \
                 WHERE l.request_id = page.request_id AND l.destination = page.destination \
                 AND l.number = page.attempts) \
         ORDER BY page.request_id DESC, page.destination DESC",
        meant.sql
    );
    let rows = Row::find_by_statement(dialect.statement(sql, meant.parameters)).all(connection).await?;
    rows.into_iter().map(DeadLetter::try_from).collect()
}

impl TryFrom<Row> for DeadLetter {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, Self::Error> {
        Ok(Self {
            request_id: request_id(row.request_id)?,
            destination: row.destination,
            route: row.route,
            accepted_at: row.accepted_at,
            died_at: row.updated_at,
            reason: row.reason.unwrap_or_default(),
            error_class: row.last_error_class,
            error: row.last_error,
            status: row.last_status.map(|status| number("status", status)).transpose()?,
            response_excerpt: row.response_excerpt,
            trace_id: row.trace_id,
            attempts: number("number of attempts", row.attempts)?,
        })
    }
}

/// Throws away at most `limit` of those that are meant, with their attempts, and requests of which nothing
/// is left; says how many. To be called in a transaction.
///
/// # Errors
/// If the database cannot be asked.
pub async fn purge(session: &impl Session, filter: &Filter, limit: u64) -> Result<u64, StoreError> {
    #[derive(FromQueryResult)]
    struct Key {
        request_id: i64,
        destination: String,
    }
    let connection = &Operation::new(session, "purge_dead_letters");
    let dialect = Dialect::of(connection);
    let meant = Meant::new(dialect, filter);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let sql = format!(
        "SELECT d.request_id, d.destination FROM deliveries AS d WHERE {} \
         ORDER BY d.request_id, d.destination LIMIT {limit} {}",
        meant.sql,
        dialect.lock_rows_of("d")
    );
    let keys = Key::find_by_statement(dialect.statement(sql, meant.parameters)).all(connection).await?;
    if keys.is_empty() {
        return Ok(0);
    }
    let rows = || {
        crate::rows::Rows::of(&keys)
            .column("request_id", |key| key.request_id)
            .column("destination", |key| key.destination.as_str())
    };
    let sql =
        "DELETE FROM deliveries WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)";
    let purged = rows().execute(connection, Vec::new(), sql).await?;
    let sql = "DELETE FROM requests WHERE id IN (SELECT request_id FROM r) \
         AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.request_id = requests.id) \
         AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.request_id = requests.id)";
    rows().execute(connection, Vec::new(), sql).await?;
    Ok(purged)
}

/// What became of a wish to deliver a dead letter after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// It is due.
    Yes,
    /// It is not dead.
    NotDead,
    /// There is no such delivery.
    Unknown,
}

/// Has one dead delivery be due at `now`, or when its turn in its lane has come, with all its attempts before it
/// again. To be called in a transaction.
///
/// # Errors
/// If the database cannot be asked.
pub async fn replay(
    session: &impl Session,
    id: RequestId,
    destination: &str,
    now: DateTime<Utc>,
) -> Result<Replayed, StoreError> {
    let connection = &Operation::new(session, "replay_dead_letter");
    order::enter(connection, &[id]).await?;
    let dialect = Dialect::of(connection);
    let key = || [Value::from(id.as_i64()), dialect::text(destination).into()];
    let sql = format!("{REVIVE} WHERE request_id = $2 AND destination = $3 AND state = 'dead'");
    let parameters = [dialect.time(now)].into_iter().chain(key());
    let replayed = connection.execute_raw(dialect.statement(sql, parameters)).await?.rows_affected();
    if replayed > 0 {
        order::queue(connection, &[(id, dialect::text(destination))]).await?;
        return Ok(Replayed::Yes);
    }
    let sql = "SELECT 1 FROM deliveries WHERE request_id = $1 AND destination = $2";
    let known = connection.query_one_raw(dialect.statement(sql, key())).await?.is_some();
    Ok(if known { Replayed::NotDead } else { Replayed::Unknown })
}

/// A dead delivery's second life, which begins at `$1`. What was tried stays known.
pub(crate) const REVIVE: &str = "UPDATE deliveries SET state = 'pending', reason = NULL, spent = 0, \
     since = $1, due_at = $1, published_at = NULL, deferred_by = NULL, updated_at = $1";

/// The conditions of a filter, on deliveries as `d`.
pub(crate) struct Meant {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<Value>,
}

impl Meant {
    pub(crate) fn new(dialect: Dialect, filter: &Filter) -> Self {
        let mut meant = Self { sql: "d.state = 'dead'".to_owned(), parameters: Vec::new() };
        let texts = [
            // Asked of each dead letter: a join might go through all requests instead.
            ("(SELECT route FROM requests WHERE id = d.request_id) =", &filter.route),
            ("d.destination =", &filter.destination),
            ("d.reason =", &filter.reason),
            ("d.last_error_class =", &filter.error_class),
        ];
        for (column, text) in texts {
            if let Some(text) = text {
                let text = meant.parameter(dialect::text(text));
                meant.condition(&format!("{column} {text}"));
            }
        }
        let times = [("d.updated_at >=", filter.died_since), ("d.updated_at <", filter.died_before)];
        for (column, time) in times {
            if let Some(time) = time {
                let time = meant.parameter(dialect.time(time));
                meant.condition(&format!("{column} {time}"));
            }
        }
        meant
    }

    pub(crate) fn parameter(&mut self, value: impl Into<Value>) -> String {
        self.parameters.push(value.into());
        format!("${}", self.parameters.len())
    }

    pub(crate) fn condition(&mut self, condition: &str) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
    }
}
