//! `/v1/dead-letters` and `/v1/replays`: lists, purges and replays deliveries that ended without success.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::StatusCode;
use http::header::LOCATION;
use http::request::Parts;
use schemars::JsonSchema;
use serde::Serialize;
use throughline_config::Rate;
use throughline_snowflake::RequestId;
use throughline_store::dead_letters::{self, DeadLetter, Filter, Replayed};
use throughline_store::replays::{self, Replay};
use throughline_store::{DeliveryKey, Store, StoreError};

use super::problem::Problem;
use super::status;
use crate::sweeper::Operations;

/// Default number of dead letters on a page.
const PAGE: u64 = 50;
/// Maximum number of dead letters on a page.
pub(super) const MOST: u64 = 500;
/// Maximum number of steps of a walk for one answer: some ten thousand dead letters, among which few may match the
/// filter.
const STEPS: usize = 10;
/// Maximum number of dead letters purged in one transaction.
const PURGE_BATCH: u64 = 500;
/// Maximum number of transactions for one answer.
const PURGE_BATCHES: u64 = 20;
/// Default rate of a replay: any third party can take it.
const RATE: Rate = Rate { count: NonZeroU32::new(100).unwrap(), per: Duration::from_secs(1) };

/// The parameters of a query. Each handler takes those that it knows; any other is an error, because a misspelt filter
/// must not match everything.
pub(super) struct Parameters(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        let Query(query): Query<BTreeMap<String, String>> =
            query.map_err(|error| Problem::QueryInvalid(error.body_text()))?;
        // PostgreSQL cannot store NUL in a text.
        match query.iter().find(|(_, value)| value.contains('\0')) {
            Some((name, _)) => Err(Problem::QueryInvalid(format!("`{name}` contains a NUL character"))),
            None => Ok(Self(query)),
        }
    }
}

impl Parameters {
    fn take<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let parse = |text: String| {
            text.parse()
                .map_err(|_| Problem::QueryInvalid(format!("`{name}` must be {expected}; received `{text}`")))
        };
        self.0.remove(name).map(parse).transpose()
    }

    /// Returns the remaining parameters as a filter.
    fn filter(mut self) -> Result<Filter, Problem> {
        const TIME: &str = "a time, for example `2026-01-01T00:00:00Z`";
        let filter = Filter {
            route: self.0.remove("route"),
            destination: self.0.remove("destination"),
            reason: self.0.remove("reason"),
            error_class: self.0.remove("error_class"),
            died_since: self.take("since", TIME)?,
            died_before: self.take("before", TIME)?,
        };
        self.finish()?;
        Ok(filter)
    }

    /// Checks that no parameter remains.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Problem::QueryInvalid(format!("`{name}` is not a parameter of this operation")))
            }
        }
    }

    /// Returns a text parameter, if it is present.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }
}

/// A page of deliveries that ended without success.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadLetters")]
pub(super) struct Page {
    /// May hold fewer entries than `limit`, or none, although more follow: then the filter has excluded very many.
    dead_letters: Vec<Letter>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A delivery that ended without success.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
struct Letter {
    /// The request's id, 20 digits.
    #[schemars(with = "String")]
    request_id: RequestId,
    destination: String,
    route: String,
    accepted_at: DateTime<Utc>,
    died_at: DateTime<Utc>,
    reason: String,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_excerpt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// `GET /v1/dead-letters`: returns a page, the youngest requests first.
pub(super) async fn list(
    State(operations): State<Operations>,
    mut parameters: Parameters,
) -> Result<Json<Page>, Problem> {
    let Cursor(after) = parameters.take("cursor", "the `next` of the previous page")?.unwrap_or_default();
    let Limit(limit) = parameters.take("limit", "a number from 1 to 500")?.unwrap_or_default();
    let filter = parameters.filter()?;
    let found = walk(&operations.store, &filter, after, limit).await.map_err(|error| failed(&error))?;
    let next = found.next.map(cursor);
    Ok(Json(Page { dead_letters: found.letters.into_iter().map(Letter::from).collect(), next }))
}

/// Walks until the page is full, or until the maximum number of steps for one answer.
async fn walk(
    store: &Store,
    filter: &Filter,
    after: Option<DeliveryKey>,
    limit: u64,
) -> Result<dead_letters::Page, StoreError> {
    let mut found = dead_letters::Page { letters: Vec::new(), next: after };
    for _ in 0..STEPS {
        let left = limit - found.letters.len() as u64;
        let step = dead_letters::list(store.connection(), filter, found.next.as_ref(), left).await?;
        found.letters.extend(step.letters);
        found.next = step.next;
        if found.next.is_none() || found.letters.len() as u64 == limit {
            break;
        }
    }
    Ok(found)
}

/// The size of a page.
struct Limit(u64);

impl Default for Limit {
    fn default() -> Self {
        Self(PAGE)
    }
}

impl FromStr for Limit {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|limit| (1..=MOST).contains(limit)).map(Self).ok_or(())
    }
}

fn cursor(DeliveryKey { request_id, destination }: DeliveryKey) -> String {
    format!("{request_id}.{destination}")
}

/// A position in the list; the default is its beginning.
#[derive(Default)]
struct Cursor(Option<DeliveryKey>);

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, destination) = text.split_once('.').ok_or(())?;
        Ok(Self(Some(DeliveryKey::new(id.parse().map_err(|_| ())?, destination))))
    }
}

/// The result of a purge.
#[derive(Serialize, JsonSchema)]
pub(super) struct Purged {
    /// Number of dead letters that this call deleted.
    purged: u64,
    /// Present if more dead letters may match: call again with this value as `cursor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// `DELETE /v1/dead-letters`: deletes the dead letters that match the filter. The filter must name a time before which
/// they died, so that no delivery is deleted that died after the operator looked.
pub(super) async fn purge(
    State(operations): State<Operations>,
    mut parameters: Parameters,
) -> Result<Json<Purged>, Problem> {
    let Cursor(mut next) =
        parameters.take("cursor", "the `next` of the previous response")?.unwrap_or_default();
    let filter = parameters.filter()?;
    if filter.died_before.is_none() {
        return Err(Problem::QueryInvalid(
            "`before` is required: only deliveries that died before this time are purged".to_owned(),
        ));
    }
    let batch = async |after: Option<&DeliveryKey>| {
        let transaction = operations.store.begin().await?;
        let now = operations.clock.now();
        let batch = dead_letters::purge(&transaction, &filter, after, PURGE_BATCH, now).await?;
        transaction.commit().await?;
        // Logged for each batch, because the client may disconnect before the next one.
        if batch.purged > 0 {
            tracing::info!(
                event = "dead_letters.purged",
                dead_letters = batch.purged,
                ?filter,
                "dead letters were purged"
            );
        }
        Ok(batch)
    };
    let mut purged = 0;
    for _ in 0..PURGE_BATCHES {
        let batch: dead_letters::Purged = match batch(next.as_ref()).await {
            Ok(batch) => batch,
            // Answers with the batches that are committed; the next call meets the error.
            Err(_) if purged > 0 => break,
            Err(error) => return Err(failed(&error)),
        };
        purged += batch.purged;
        next = batch.next;
        if next.is_none() {
            break;
        }
    }
    Ok(Json(Purged { purged, next: next.map(cursor) }))
}

/// `POST /v1/dead-letters/{request id}/{destination}/replay`: retries one delivery now.
pub(super) async fn replay_one(
    State(operations): State<Operations>,
    Path((id, destination)): Path<(String, String)>,
) -> Result<Json<status::Status>, Problem> {
    let id = status::parse(id)?;
    if destination.contains('\0') {
        return Err(Problem::RequestUnknown(id));
    }
    let replay = async {
        let transaction = operations.store.begin().await?;
        let replayed = dead_letters::replay(&transaction, id, &destination, operations.clock.now()).await?;
        transaction.commit().await?;
        Ok(replayed)
    };
    match replay.await.map_err(|error| failed(&error))? {
        Replayed::Yes => {
            tracing::info!(
                event = "dead_letter.replayed", request_id = %id, destination,
                "a dead letter is replayed"
            );
            operations.wake_sweeper();
            status::status(&operations.store, id).await
        }
        Replayed::NotDead => Err(Problem::NotDead(id)),
        Replayed::Unknown => Err(Problem::RequestUnknown(id)),
    }
}

/// The progress of a replay, and the filter for its dead letters.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Replay")]
pub(super) struct Progress {
    replay_id: i64,
    state: String,
    replayed: u64,
    rate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<DateTime<Utc>>,
}

/// `POST /v1/replays`: replays all deliveries that match the filter and are dead by now, at a rate.
pub(super) async fn begin(
    State(operations): State<Operations>,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let rate = parameters.take("rate", "a rate, for example `100/s`")?.unwrap_or(RATE);
    let filter = parameters.filter()?;
    let begin = async {
        let transaction = operations.store.begin().await?;
        let id =
            replays::begin(&transaction, &filter, (rate.count, rate.per), operations.clock.now()).await?;
        transaction.commit().await?;
        Ok(id)
    };
    let id = begin.await.map_err(|error: StoreError| failed(&error))?;
    let id = id.ok_or(Problem::TooManyReplays { most: replays::MOST_RUNNING })?;
    tracing::info!(event = "replay.started", replay_id = id, ?filter, %rate, "a replay has begun");
    operations.wake_replayer();
    let location = [(LOCATION, format!("/v1/replays/{id}"))];
    Ok((StatusCode::ACCEPTED, location, progress(&operations.store, id).await?).into_response())
}

/// `GET /v1/replays/{id}`: returns the progress of a replay.
pub(super) async fn replay(
    State(operations): State<Operations>,
    Path(id): Path<String>,
) -> Result<Json<Progress>, Problem> {
    progress(&operations.store, replay_id(&id)?).await
}

/// `POST /v1/replays/{id}/stop`: the replay takes no more dead letters; deliveries that it took continue.
pub(super) async fn stop(
    State(operations): State<Operations>,
    Path(id): Path<String>,
) -> Result<Json<Progress>, Problem> {
    let id = replay_id(&id)?;
    replays::stop(operations.store.connection(), id, operations.clock.now())
        .await
        .map_err(|error| failed(&error))?;
    progress(&operations.store, id).await
}

fn replay_id(id: &str) -> Result<i64, Problem> {
    id.parse().map_err(|_| Problem::ReplayUnknown)
}

async fn progress(store: &Store, id: i64) -> Result<Json<Progress>, Problem> {
    let found = replays::find(store.connection(), id).await.map_err(|error| failed(&error))?;
    found.map(|replay| Json(replay.into())).ok_or(Problem::ReplayUnknown)
}

impl From<Replay> for Progress {
    fn from(Replay { id, filter, rate: (count, per), state, replayed }: Replay) -> Self {
        Self {
            replay_id: id,
            state,
            replayed,
            rate: Rate { count, per }.to_string(),
            route: filter.route,
            destination: filter.destination,
            reason: filter.reason,
            error_class: filter.error_class,
            since: filter.died_since,
            before: filter.died_before,
        }
    }
}

impl From<DeadLetter> for Letter {
    fn from(letter: DeadLetter) -> Self {
        Self {
            request_id: letter.request_id,
            destination: letter.destination,
            route: letter.route,
            accepted_at: letter.accepted_at,
            died_at: letter.died_at,
            reason: letter.reason,
            attempts: letter.attempts,
            error_class: letter.error_class,
            error: letter.error,
            status: letter.status,
            response_excerpt: letter.response_excerpt,
            trace_id: letter.trace_id,
        }
    }
}

fn failed(error: &StoreError) -> Problem {
    if error.is_unavailable() {
        return Problem::Unavailable(status::NO_ANSWER);
    }
    tracing::error!(event = "dead_letters.access_failed", %error, "dead letters cannot be read or changed");
    Problem::Internal
}
