//! `/v1/dead-letters` and `/v1/replays`: what ended without success, and sending it on its way again.

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
use throughline_store::{Store, StoreError};

use super::problem::Problem;
use super::status;
use crate::sweeper::Desk;

/// Dead letters of one page, unless a client asks for another number.
const PAGE: u64 = 50;
/// Most of one page.
pub(super) const MOST: u64 = 500;
/// Most steps of a walk for one answer: some ten thousand dead letters, of which the filter may mean few.
const STEPS: usize = 10;
/// Most that are thrown away in one transaction.
const PURGE_BATCH: u64 = 500;
/// Most transactions for one answer.
const PURGE_BATCHES: u64 = 20;
/// As fast as dead letters are replayed, unless a client asks for another rate: what any third party takes.
const RATE: Rate = Rate { count: NonZeroU32::new(100).unwrap(), per: Duration::from_secs(1) };

/// The parameters of a query. Each handler takes what it knows; what is left over is a problem, since a filter
/// that is misspelt must not mean everything.
pub(super) struct Asked(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri);
        let Query(query): Query<BTreeMap<String, String>> =
            query.map_err(|error| Problem::QueryInvalid(error.body_text()))?;
        // PostgreSQL's texts have none.
        match query.iter().find(|(_, value)| value.contains('\0')) {
            Some((name, _)) => Err(Problem::QueryInvalid(format!("`{name}` has a NUL character"))),
            None => Ok(Self(query)),
        }
    }
}

impl Asked {
    fn take<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let parse = |text: String| {
            text.parse().map_err(|_| Problem::QueryInvalid(format!("`{name}` is not {expected}: `{text}`")))
        };
        self.0.remove(name).map(parse).transpose()
    }

    /// What is left over, as a filter.
    fn filter(mut self) -> Result<Filter, Problem> {
        const TIME: &str = "a time, such as `2026-01-01T00:00:00Z`";
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

    /// Nothing is left over.
    pub(super) fn finish(self) -> Result<(), Problem> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(Problem::QueryInvalid(format!("`{name}` is no parameter here"))),
        }
    }

    /// A text, if it is there.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }
}

/// Some of the deliveries that ended without success.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadLetters")]
pub(super) struct Page {
    /// May be fewer than asked for, or none, although there are more: then the filter has left out very many.
    dead_letters: Vec<Letter>,
    /// Where the next page begins; none if this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A delivery that ended without success.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
struct Letter {
    /// 20 digits.
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

/// `GET /v1/dead-letters`: a page, the youngest requests first.
pub(super) async fn list(State(desk): State<Desk>, mut asked: Asked) -> Result<Json<Page>, Problem> {
    let Place(after) = asked.take("cursor", "the `next` of the page before")?.unwrap_or_default();
    let Limit(limit) = asked.take("limit", "a number from 1 to 500")?.unwrap_or_default();
    let filter = asked.filter()?;
    let found = walk(&desk.store, &filter, after, limit).await.map_err(|error| failed(&error))?;
    let next = found.next.map(|(id, destination)| format!("{id}.{destination}"));
    Ok(Json(Page { dead_letters: found.letters.into_iter().map(Letter::from).collect(), next }))
}

/// Walks on until there are enough, or enough was looked at for one answer.
async fn walk(
    store: &Store,
    filter: &Filter,
    after: Option<dead_letters::Place>,
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

/// The number of dead letters of a page.
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

/// A place in the list; the default is its beginning.
#[derive(Default)]
struct Place(Option<dead_letters::Place>);

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, destination) = text.split_once('.').ok_or(())?;
        Ok(Self(Some((id.parse().map_err(|_| ())?, destination.to_owned()))))
    }
}

/// What was thrown away.
#[derive(Serialize, JsonSchema)]
pub(super) struct Purged {
    purged: u64,
    /// Whether there is more to purge: ask again.
    more: bool,
}

/// `DELETE /v1/dead-letters`: deletes the dead letters that the filter means. The filter must name a time before
/// which they died, so that none is deleted that died after the operator has looked.
pub(super) async fn purge(State(desk): State<Desk>, asked: Asked) -> Result<Json<Purged>, Problem> {
    let filter = asked.filter()?;
    if filter.died_before.is_none() {
        return Err(Problem::QueryInvalid("`before` is missing: what died before that is purged".to_owned()));
    }
    let batch = async || {
        let transaction = desk.store.begin().await?;
        let purged = dead_letters::purge(&transaction, &filter, PURGE_BATCH, desk.clock.now()).await?;
        transaction.commit().await?;
        Ok(purged)
    };
    let mut answer = Purged { purged: 0, more: true };
    for _ in 0..PURGE_BATCHES {
        let batch: u64 = batch().await.map_err(|error| failed(&error))?;
        answer.purged += batch;
        if batch < PURGE_BATCH {
            answer.more = false;
            break;
        }
    }
    tracing::info!(dead_letters = answer.purged, ?filter, "dead letters were purged");
    Ok(Json(answer))
}

/// `POST /v1/dead-letters/{request id}/{destination}/replay`: one is tried again now.
pub(super) async fn replay_one(
    State(desk): State<Desk>,
    Path((id, destination)): Path<(String, String)>,
) -> Result<Json<status::Status>, Problem> {
    let id = status::parse(id)?;
    if destination.contains('\0') {
        return Err(Problem::RequestUnknown(id));
    }
    let replay = async {
        let transaction = desk.store.begin().await?;
        let replayed = dead_letters::replay(&transaction, id, &destination, desk.clock.now()).await?;
        transaction.commit().await?;
        Ok(replayed)
    };
    match replay.await.map_err(|error| failed(&error))? {
        Replayed::Yes => {
            tracing::info!(request_id = %id, destination, "a dead letter is replayed");
            desk.ring();
            status::status(&desk.store, id).await
        }
        Replayed::NotDead => Err(Problem::NotDead(id)),
        Replayed::Unknown => Err(Problem::RequestUnknown(id)),
    }
}

/// How far a replay is, and which dead letters it means.
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

/// `POST /v1/replays`: all that are meant and dead by now are tried again, at a rate.
pub(super) async fn begin(State(desk): State<Desk>, mut asked: Asked) -> Result<Response, Problem> {
    let rate = asked.take("rate", "so many in a time, such as `100/s`")?.unwrap_or(RATE);
    let filter = asked.filter()?;
    let begin = async {
        let transaction = desk.store.begin().await?;
        let id = replays::begin(&transaction, &filter, (rate.count, rate.per), desk.clock.now()).await?;
        transaction.commit().await?;
        Ok(id)
    };
    let id = begin.await.map_err(|error: StoreError| failed(&error))?;
    let id = id.ok_or(Problem::TooManyReplays { most: replays::MOST_RUNNING })?;
    tracing::info!(replay_id = id, ?filter, %rate, "a replay has begun");
    desk.replay();
    let location = [(LOCATION, format!("/v1/replays/{id}"))];
    Ok((StatusCode::ACCEPTED, location, progress(&desk.store, id).await?).into_response())
}

/// `GET /v1/replays/{id}`: how far it has come.
pub(super) async fn replay(
    State(desk): State<Desk>,
    Path(id): Path<String>,
) -> Result<Json<Progress>, Problem> {
    progress(&desk.store, replay_id(&id)?).await
}

/// `POST /v1/replays/{id}/stop`: it takes no more dead letters; what it took is on its way.
pub(super) async fn stop(
    State(desk): State<Desk>,
    Path(id): Path<String>,
) -> Result<Json<Progress>, Problem> {
    let id = replay_id(&id)?;
    replays::stop(desk.store.connection(), id, desk.clock.now()).await.map_err(|error| failed(&error))?;
    progress(&desk.store, id).await
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
        return Problem::Unavailable(status::AWAY);
    }
    tracing::error!(%error, "dead letters cannot be read or changed");
    Problem::Internal
}
