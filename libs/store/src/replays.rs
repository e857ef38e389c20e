//! Replays: many dead letters delivered again at a given rate, with any number of interruptions.

use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};
use throughline_api::{DeadLetterFilter, ReplayState};
use throughline_messages::{DeadReason, ErrorClass};

use crate::dead_letters::{Order, REPLAYED, Walked, walk};
use crate::delivery_key::DeliveryKey;
use crate::dialect::{self, Dialect};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::order;
use crate::requests::{name, number, optional_name};
use crate::store::Store;

/// Maximum number of dead letters that one step takes, whatever the rate, to keep the transaction short.
const MOST: i64 = 500;
/// Maximum number of replays that run at the same time: each costs a step that scans a few thousand dead letters, in
/// turn.
pub const MOST_RUNNING: u32 = 16;
/// The advisory lock under which a replay begins.
const LOCK: i64 = 0x7468_726f_7265_706c;
/// The replay's next step is due.
const IS_DUE: &str = "state = 'running' AND next_at <= $1";

/// The progress of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Its number.
    pub id: i64,
    /// The dead letters that it takes.
    pub filter: DeadLetterFilter,
    /// The rate: this many deliveries in that time.
    pub rate: (NonZeroU32, Duration),
    /// Whether it runs.
    pub state: ReplayState,
    /// How many dead letters it has taken.
    pub replayed: u64,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    id: i64,
    route: Option<String>,
    destination: Option<String>,
    reason: Option<String>,
    error_class: Option<String>,
    died_since: Option<DateTime<Utc>>,
    died_before: DateTime<Utc>,
    rate_count: i32,
    rate_millis: i64,
    state: String,
    replayed: i64,
    last_request_id: i64,
    last_destination: String,
    next_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, route, destination, reason, error_class, died_since, died_before, rate_count, \
     rate_millis, state, replayed, last_request_id, last_destination, next_at";

impl Row {
    fn filter(&self) -> Result<DeadLetterFilter, StoreError> {
        Ok(DeadLetterFilter {
            route: self.route.clone(),
            destination: self.destination.clone(),
            reason: optional_name("reason", self.reason.as_deref())?,
            error_class: optional_name("error class", self.error_class.as_deref())?,
            since: self.died_since,
            before: Some(self.died_before),
        })
    }
}

impl TryFrom<Row> for Replay {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, Self::Error> {
        let count = number("rate", row.rate_count).map(NonZeroU32::new)?;
        Ok(Self {
            id: row.id,
            filter: row.filter()?,
            rate: (
                count.ok_or_else(|| StoreError::foreign("rate", "it is zero"))?,
                Duration::from_millis(number("rate", row.rate_millis)?),
            ),
            replayed: number("number of replayed deliveries", row.replayed)?,
            state: name("state of a replay", &row.state)?,
        })
    }
}

/// Begins to replay the dead letters that match `filter` and are dead at `now`. Returns the replay's number, or `None`
/// if [`MOST_RUNNING`] replays already run.
///
/// Must run in a transaction.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn begin(
    session: &impl Session,
    filter: &DeadLetterFilter,
    (count, per): (NonZeroU32, Duration),
    now: DateTime<Utc>,
) -> Result<Option<i64>, StoreError> {
    let connection = &Operation::new(session, "begin_replay");
    let dialect = Dialect::of(connection);
    if dialect == Dialect::Postgres {
        // Otherwise two that begin at the same time would not count each other.
        let statement = dialect.statement("SELECT pg_advisory_xact_lock($1)", [LOCK.into()]);
        connection.execute_raw(statement).await?;
    }
    let text = |text: Option<&str>| text.map(dialect::text).into();
    let sql = format!(
        "INSERT INTO replays (route, destination, reason, error_class, died_since, died_before, \
         rate_count, rate_millis, state, replayed, last_request_id, last_destination, next_at, updated_at) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, 'running', 0, -1, '', $9, $9 \
         WHERE (SELECT count(*) FROM replays WHERE state = 'running') < {MOST_RUNNING} RETURNING id"
    );
    let parameters = [
        text(filter.route.as_deref()),
        text(filter.destination.as_deref()),
        text(filter.reason.as_ref().map(DeadReason::as_str)),
        text(filter.error_class.as_ref().map(ErrorClass::as_str)),
        dialect.nullable_time(filter.since),
        dialect.time(filter.before.unwrap_or(now).min(now)),
        i64::from(count.get()).into(),
        i64::try_from(per.as_millis()).unwrap_or(i64::MAX).max(1).into(),
        dialect.time(now),
    ];
    let row = connection.query_one_raw(dialect.statement(sql, parameters)).await?;
    Ok(row.map(|row| row.try_get("", "id")).transpose()?)
}

/// Returns the progress of a replay; `None` if no replay has this number.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn find(session: &impl Session, id: i64) -> Result<Option<Replay>, StoreError> {
    let connection = &Operation::new(session, "find_replay");
    let sql = format!("SELECT {COLUMNS} FROM replays WHERE id = $1");
    let statement = Dialect::of(connection).statement(sql, [id.into()]);
    Row::find_by_statement(statement).one(connection).await?.map(Replay::try_from).transpose()
}

/// Stops a replay, unless it has ended. The dead letters that it has already taken are delivered.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn stop(session: &impl Session, id: i64, now: DateTime<Utc>) -> Result<(), StoreError> {
    let connection = &Operation::new(session, "stop_replay");
    let dialect = Dialect::of(connection);
    let sql = "UPDATE replays SET state = 'stopped', updated_at = $2 WHERE id = $1 AND state = 'running'";
    connection.execute_raw(dialect.statement(sql, [id.into(), dialect.time(now)])).await?;
    Ok(())
}

/// Deletes the replays that ended before a time, and returns their number.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn purge(session: &impl Session, over_before: DateTime<Utc>) -> Result<u64, StoreError> {
    let connection = &Operation::new(session, "purge_replays");
    let dialect = Dialect::of(connection);
    let sql = "DELETE FROM replays WHERE state <> 'running' AND updated_at < $1";
    let statement = dialect.statement(sql, [dialect.time(over_before)]);
    Ok(connection.execute_raw(statement).await?.rows_affected())
}

/// The result of one step of all due replays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// How many dead letters are due again.
    pub revived: u64,
    /// How many were scanned and will not be scanned again.
    pub looked_at: u64,
}

/// Scans the next dead letters of each due replay and takes those that match its filter. Concurrent calls share the
/// replays.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn go_on(store: &Store, now: DateTime<Utc>) -> Result<Step, StoreError> {
    let dialect = Dialect::of(store.connection());
    // On SQLite an open transaction blocks all other work, so it begins only if a replay is due.
    let due = format!("SELECT id FROM replays WHERE {IS_DUE} ORDER BY next_at");
    let connection = Operation::new(store.connection(), "look_at_replays");
    let due = connection.query_all_raw(dialect.statement(due, [dialect.time(now)])).await?;
    drop(connection);
    let mut all = Step::default();
    for replay in due {
        let step = go_on_with(store, replay.try_get("", "id")?, now).await?;
        all.revived += step.revived;
        all.looked_at += step.looked_at;
    }
    Ok(all)
}

/// Returns when the next step of any replay is due; `None` if none runs.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn next(session: &impl Session) -> Result<Option<DateTime<Utc>>, StoreError> {
    #[derive(FromQueryResult)]
    struct Next {
        at: Option<DateTime<Utc>>,
    }
    let connection = &Operation::new(session, "find_next_replay");
    let sql = "SELECT min(next_at) AS at FROM replays WHERE state = 'running'";
    let next = Next::find_by_statement(Dialect::of(connection).statement(sql, [])).one(connection).await?;
    Ok(next.and_then(|next| next.at))
}

/// Runs one step in a transaction of its own: each enters the ordering groups that it changes before it locks
/// deliveries, as recorders do.
async fn go_on_with(store: &Store, id: i64, now: DateTime<Utc>) -> Result<Step, StoreError> {
    let dialect = Dialect::of(store.connection());
    let transaction = store.begin().await?;
    let operation = Operation::new(&transaction, "replay_dead_letters");
    let sql =
        format!("SELECT {COLUMNS} FROM replays WHERE {IS_DUE} AND id = $2 {}", dialect.lock_free_rows());
    let due = Row::find_by_statement(dialect.statement(sql, [dialect.time(now), id.into()]));
    let Some(replay) = due.one(&operation).await? else { return Ok(Step::default()) };
    let after = (replay.last_request_id, replay.last_destination.as_str());
    let walked = walk(&operation, &replay.filter()?, Some(after), Order::OldestFirst, replay.most()).await?;
    let revived = revive(&operation, dialect, &walked.meant, now).await?;
    save(&operation, dialect, &replay, &walked, revived, now).await?;
    drop(operation);
    transaction.commit().await?;
    Ok(Step { revived, looked_at: walked.looked_at as u64 })
}

impl Row {
    /// At most one second's share of the rate, so that a rate per hour is spread evenly.
    fn most(&self) -> usize {
        let in_a_second = (i64::from(self.rate_count) * 1000 + self.rate_millis - 1) / self.rate_millis;
        usize::try_from(in_a_second.clamp(1, MOST)).unwrap_or(1)
    }
}

async fn revive(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    keys: &[DeliveryKey],
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    if keys.is_empty() {
        return Ok(0);
    }
    let requests: Vec<_> = keys.iter().map(|key| key.request_id).collect();
    order::enter(connection, &requests).await?;
    let dead = lock_dead(connection, dialect, keys).await?;
    let sql =
        format!("{REPLAYED} WHERE (request_id, destination) IN (SELECT request_id, destination FROM r)");
    let revived = DeliveryKey::rows(&dead).execute(connection, vec![dialect.time(now)], &sql).await?;
    order::queue(connection, &dead).await?;
    Ok(revived)
}

/// Saves the replay's progress, whether the step has found any dead letter or not.
async fn save(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    replay: &Row,
    walked: &Walked,
    revived: u64,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let taken = i64::try_from(walked.meant.len()).unwrap_or(i64::MAX);
    let pause =
        TimeDelta::milliseconds(replay.rate_millis.saturating_mul(taken) / i64::from(replay.rate_count));
    let state = if walked.next.is_some() { ReplayState::Running } else { ReplayState::Done };
    let (last_request, last_destination) = match &walked.next {
        Some(key) => (key.request_id.as_i64(), key.destination.as_str()),
        None => (replay.last_request_id, replay.last_destination.as_str()),
    };
    let sql = "UPDATE replays SET state = $7, replayed = replayed + $2, last_request_id = $3, \
         last_destination = $4, next_at = $5, updated_at = $6 WHERE id = $1";
    let parameters = [
        replay.id.into(),
        i64::try_from(revived).unwrap_or(i64::MAX).into(),
        last_request.into(),
        last_destination.into(),
        // Counted from the time at which the step was due, so that a short delay does not slow the replay. A longer
        // interruption is not caught up.
        dialect.time((replay.next_at + pause).max(now)),
        dialect.time(now),
        state.as_str().into(),
    ];
    connection.execute_raw(dialect.statement(sql, parameters)).await?;
    Ok(())
}

/// Locks the deliveries that are still dead. Every transaction locks them in the same order, which prevents deadlocks.
async fn lock_dead(
    connection: &impl ConnectionTrait,
    dialect: Dialect,
    keys: &[DeliveryKey],
) -> Result<Vec<DeliveryKey>, StoreError> {
    let sql = format!(
        "SELECT d.request_id, d.destination FROM deliveries AS d \
         JOIN r ON d.request_id = r.request_id AND d.destination = r.destination WHERE d.state = 'dead' \
         ORDER BY d.request_id, d.destination {}",
        dialect.lock_rows_of("d")
    );
    DeliveryKey::rows(keys).query(connection, Vec::new(), &sql).await
}
