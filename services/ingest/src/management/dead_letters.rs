//! `/v1/dead-letters`: lists, purges and replays deliveries that ended without success.

use axum::Json;
use axum::extract::State;
use throughline_api::{DeadLetterFilter, DeadLetters, DeliveryPath, Page, Position, Purged, Request};
use throughline_store::dead_letters::{self, Replayed};
use throughline_store::{DeliveryKey, Store, StoreError};

use super::requests;
use crate::http::extract::{Path, Query};
use crate::http::openapi::Operation;
use crate::http::{Problem, Resource};
use crate::sweeper::Operations;

/// Default number of dead letters on a page.
const PAGE: u16 = 50;
/// Maximum number of steps of a walk for one answer: some ten thousand dead letters, among which few may match the
/// filter.
const STEPS: usize = 10;
/// Maximum number of dead letters purged in one transaction.
const PURGE_BATCH: u64 = 500;
/// Maximum number of transactions for one answer.
const PURGE_BATCHES: u64 = 20;

/// Returns the resources.
pub(super) fn resources() -> [Resource<Operations>; 2] {
    let list_dead_letters = Operation::management(
        "list-dead-letters",
        "List dead letters: deliveries that ended without success, newest requests first",
        "A page of dead letters.",
    )
    .link("next", "list-dead-letters", &[("cursor", "$response.body#/next")])
    .link(
        "replay",
        "replay-dead-letter",
        &[
            ("id", "$response.body#/dead_letters/0/request_id"),
            ("destination", "$response.body#/dead_letters/0/destination"),
        ],
    );
    let purge_dead_letters = Operation::management(
        "purge-dead-letters",
        "Permanently delete dead letters that died before a given time",
        "The number of purged dead letters.",
    )
    .require("before")
    .link("next", "purge-dead-letters", &[("cursor", "$response.body#/next")]);
    let replay_dead_letter = Operation::management(
        "replay-dead-letter",
        "Replay one dead delivery now",
        "The request after the replay.",
    )
    .problems(&[404, 409]);
    [
        Resource::at("/v1/dead-letters").get(list, list_dead_letters).delete(purge, purge_dead_letters),
        Resource::at("/v1/dead-letters/{id}/{destination}/replay").post(replay, replay_dead_letter),
    ]
}

/// `GET /v1/dead-letters`: returns a page, the youngest requests first.
async fn list(
    State(operations): State<Operations>,
    Query(filter, page): Query<DeadLetterFilter, Page>,
) -> Result<Json<DeadLetters>, Problem> {
    let after = page.cursor.as_deref().map(parse_cursor).transpose()?;
    let limit = page.limit.unwrap_or(PAGE).into();
    let found = walk(&operations.store, &filter, after, limit).await.map_err(|error| failed(&error))?;
    Ok(Json(DeadLetters { dead_letters: found.letters, next: found.next.map(to_cursor) }))
}

/// Walks until the page is full, or until the maximum number of steps for one answer.
async fn walk(
    store: &Store,
    filter: &DeadLetterFilter,
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

fn to_cursor(DeliveryKey { request_id, destination }: DeliveryKey) -> String {
    format!("{request_id}.{destination}")
}

fn parse_cursor(text: &str) -> Result<DeliveryKey, Problem> {
    let key = || {
        let (id, destination) = text.split_once('.')?;
        Some(DeliveryKey::new(id.parse().ok()?, destination))
    };
    let expected = "`cursor` must be the `next` of the previous response";
    key().ok_or_else(|| Problem::QueryInvalid(format!("{expected}; received `{text}`")))
}

/// `DELETE /v1/dead-letters`: deletes the dead letters that match the filter. The filter must name a time before which
/// they died, so that no delivery is deleted that died after the operator looked.
async fn purge(
    State(operations): State<Operations>,
    Query(filter, position): Query<DeadLetterFilter, Position>,
) -> Result<Json<Purged>, Problem> {
    let mut next = position.cursor.as_deref().map(parse_cursor).transpose()?;
    if filter.before.is_none() {
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
        let batch = match batch(next.as_ref()).await {
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
    Ok(Json(Purged { purged, next: next.map(to_cursor) }))
}

/// `POST /v1/dead-letters/{id}/{destination}/replay`: retries one delivery now.
async fn replay(
    State(operations): State<Operations>,
    Path(DeliveryPath { id, destination }): Path<DeliveryPath>,
) -> Result<Json<Request>, Problem> {
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
            requests::find(&operations.store, id).await
        }
        Replayed::NotDead => Err(Problem::NotDead(id)),
        Replayed::Unknown => Err(Problem::RequestUnknown(id)),
    }
}

/// Returns the problem of a client whose dead letters cannot be read or changed.
pub(super) fn failed(error: &StoreError) -> Problem {
    if error.is_unavailable() {
        return Problem::Unavailable(requests::NO_ANSWER);
    }
    tracing::error!(event = "dead_letters.access_failed", %error, "dead letters cannot be read or changed");
    Problem::Internal
}
