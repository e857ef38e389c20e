//! `/v1/replays`: replays all dead letters that match a filter, at a rate.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::LOCATION;
use throughline_api::{DeadLetterFilter, NewReplay, Replay, ReplayPath};
use throughline_config::Rate;
use throughline_store::{Store, StoreError, replays};

use super::dead_letters::failed;
use crate::http::extract::{Path, Query};
use crate::http::openapi::{Operation, Output};
use crate::http::{Problem, Resource};
use crate::sweeper::Operations;

/// Default rate of a replay: any third party can take it.
const RATE: Rate = Rate { count: NonZeroU32::new(100).unwrap(), per: Duration::from_secs(1) };

/// Returns the resources.
pub(super) fn resources() -> [Resource<Operations>; 3] {
    let id = &[("id", "$response.body#/replay_id")];
    let begin_replay = Operation::management(
        "begin-replay",
        "Replay all current dead letters matching a filter, at a given rate",
        "The replay has started.",
    )
    .problems(&[409])
    .link("progress", "get-replay", id)
    .link("stop", "stop-replay", id);
    let of_a_replay = |id: &str, summary: &str| {
        Operation::management(id, summary, "The progress of the replay.").problems(&[404])
    };
    let get_replay = of_a_replay("get-replay", "Get the progress of a replay");
    let stop_replay =
        of_a_replay("stop-replay", "Stop a replay; deliveries that it has already taken continue");
    [
        Resource::at("/v1/replays").post(begin, begin_replay),
        Resource::at("/v1/replays/{id}").get(get, get_replay),
        Resource::at("/v1/replays/{id}/stop").post(stop, stop_replay),
    ]
}

/// A replay that has started.
struct Started(Replay);

impl IntoResponse for Started {
    fn into_response(self) -> Response {
        let location = [(LOCATION, format!("/v1/replays/{}", self.0.replay_id))];
        (StatusCode::ACCEPTED, location, Json(self.0)).into_response()
    }
}

impl Output for Started {
    fn describe(operation: &mut Operation) {
        operation.status(StatusCode::ACCEPTED);
        operation.header("Location", "URL of the replay.");
        Json::<Replay>::describe(operation);
    }
}

/// `POST /v1/replays`: replays all deliveries that match the filter and are dead by now, at a rate.
async fn begin(
    State(operations): State<Operations>,
    Query(filter, NewReplay { rate }): Query<DeadLetterFilter, NewReplay>,
) -> Result<Started, Problem> {
    let rate = rate.as_deref().map_or(Ok(RATE), parse_rate)?;
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
    Ok(Started(find(&operations.store, id).await?))
}

fn parse_rate(text: &str) -> Result<Rate, Problem> {
    let problem =
        || Problem::QueryInvalid(format!("`rate` must be a rate, for example `100/s`; received `{text}`"));
    text.parse().map_err(|()| problem())
}

/// `GET /v1/replays/{id}`: returns the progress of a replay.
async fn get(
    State(operations): State<Operations>,
    Path(ReplayPath { id }): Path<ReplayPath>,
) -> Result<Json<Replay>, Problem> {
    find(&operations.store, id).await.map(Json)
}

/// `POST /v1/replays/{id}/stop`: the replay takes no more dead letters; deliveries that it took continue.
async fn stop(
    State(operations): State<Operations>,
    Path(ReplayPath { id }): Path<ReplayPath>,
) -> Result<Json<Replay>, Problem> {
    let stopped = replays::stop(operations.store.connection(), id, operations.clock.now()).await;
    stopped.map_err(|error| failed(&error))?;
    find(&operations.store, id).await.map(Json)
}

async fn find(store: &Store, id: i64) -> Result<Replay, Problem> {
    let found = replays::find(store.connection(), id).await.map_err(|error| failed(&error))?;
    let replays::Replay { id, filter, rate: (count, per), state, replayed } =
        found.ok_or(Problem::ReplayUnknown)?;
    Ok(Replay { replay_id: id, state, replayed, rate: Rate { count, per }.to_string(), filter })
}
