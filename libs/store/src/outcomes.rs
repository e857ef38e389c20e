//! Records the outcomes of attempts.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;
use throughline_messages::{AttemptReport, DeadReason, Outcome};
use throughline_snowflake::RequestId;

use crate::deliveries::Ended;
use crate::dialect::{self, Dialect};
use crate::entity::{columns, delivery};
use crate::error::StoreError;
use crate::operation::{Operation, Session};
use crate::order::{self, Group};
use crate::rows::Rows;
use crate::slow_starts::{self, Signals};
use crate::transition::advance;

/// The result of a batch of reports.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Requests that are not in the database. Their reports are ignored.
    pub unknown: Vec<RequestId>,
    /// The earliest time at which one of the changed deliveries is due.
    pub earliest: Option<DateTime<Utc>>,
    /// The deliveries that the reports ended.
    pub ended: Vec<Ended>,
}

/// Stores attempts and updates their deliveries. A delivery that ended without a call has no attempt to store.
///
/// A repeated report changes nothing, and a late report counts by its content (see `transition.rs`). A delivery that is
/// not there (it was purged meanwhile, and its request was not) is added: the call was made, and an auditor must find
/// it.
///
/// Must run in a transaction, because it decides on the rows that it has read.
///
/// # Errors
/// If the database is unreachable or a statement fails.
pub async fn record(
    session: &impl Session,
    reports: &[AttemptReport],
    now: DateTime<Utc>,
) -> Result<Recorded, StoreError> {
    let connection = &Operation::new(session, "record_outcomes");
    let requests: Vec<_> = reports.iter().map(|report| report.request_id).collect();
    order::enter(connection, &requests).await?;
    let keys: BTreeSet<Key> = reports.iter().map(key).collect();
    let mut deliveries = lock(connection, &keys).await?;
    let missing: BTreeSet<Key> = keys.iter().filter(|key| !deliveries.contains_key(*key)).cloned().collect();
    if !missing.is_empty() {
        add(connection, &missing, now).await?;
        deliveries.extend(lock(connection, &missing).await?);
    }
    let (known, unknown): (Vec<_>, Vec<_>) =
        reports.iter().partition(|report| deliveries.contains_key(&key(report)));
    keep_attempts(connection, &known).await?;

    let before = deliveries.clone();
    let mut signals = Signals::default();
    for report in known {
        let Some(delivery) = deliveries.get_mut(&key(report)) else { continue };
        if advance(delivery, report, now) {
            match &report.outcome {
                Outcome::Deferred { due_at, cause } => {
                    signals.deferred(&delivery.destination, *cause, delivery.due_at.unwrap_or(*due_at));
                }
                Outcome::Delivered | Outcome::Dead { reason: DeadReason::Rejected, .. } => {
                    signals.answered(&delivery.destination);
                }
                Outcome::Dead { .. } if !report.is_of_a_call() => {
                    signals.ended_without_a_call(&delivery.destination);
                }
                Outcome::Retry { .. } | Outcome::Dead { .. } => {}
            }
        }
    }
    deliveries.retain(|key, delivery| before.get(key) != Some(delivery));
    let changed: Vec<_> = deliveries.into_values().collect();
    update(connection, &changed).await?;
    if !signals.is_empty() {
        slow_starts::apply(connection, &signals).await?;
    }
    let mut earliest = changed.iter().filter_map(|delivery| delivery.due_at).min();
    if order::move_up(connection, &groups_left(&changed), now).await? {
        earliest = Some(now);
    }
    let unknown = unknown.into_iter().map(|report| report.request_id).collect();
    Ok(Recorded { unknown, earliest, ended: ended(&changed, &before) })
}

/// Returns the deliveries that have ended in a new state. A dead delivery that is reported as delivered ends a second
/// time.
fn ended(changed: &[delivery::Model], before: &BTreeMap<Key, delivery::Model>) -> Vec<Ended> {
    let has_ended = |delivery: &&delivery::Model| {
        let known = before.get(&(delivery.request_id, delivery.destination.clone()));
        delivery.due_at.is_none() && known.is_none_or(|known| known.state != delivery.state)
    };
    let end = |delivery: &delivery::Model| Ended {
        destination: delivery.destination.clone(),
        reason: delivery.reason.clone(),
        error_class: delivery.last_error_class.clone(),
    };
    changed.iter().filter(has_ended).map(end).collect()
}

/// Returns the ordering groups in which a delivery has ended.
fn groups_left(changed: &[delivery::Model]) -> Vec<Group> {
    let ended = changed.iter().filter(|delivery| delivery.due_at.is_none());
    let group = |delivery: &delivery::Model| {
        Some(Group {
            ordering_group: delivery.ordering_group.clone()?,
            destination: delivery.destination.clone(),
        })
    };
    ended.filter_map(group).collect()
}

type Key = (i64, String);

fn key(report: &AttemptReport) -> Key {
    (report.request_id.as_i64(), dialect::text(&report.destination))
}

/// Reads deliveries and locks them. Every transaction locks them in the same order, which prevents deadlocks.
async fn lock(
    connection: &impl ConnectionTrait,
    keys: &BTreeSet<Key>,
) -> Result<BTreeMap<Key, delivery::Model>, StoreError> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT {} FROM deliveries JOIN r \
         ON deliveries.request_id = r.request_id AND deliveries.destination = r.destination \
         ORDER BY deliveries.request_id, deliveries.destination {}",
        columns::<delivery::Entity>("deliveries"),
        Dialect::of(connection).lock_rows_of("deliveries")
    );
    let keys: Vec<_> = keys.iter().collect();
    let found: Vec<delivery::Model> = Rows::of(&keys)
        .column("request_id", |(id, _)| *id)
        .column("destination", |(_, destination)| destination.as_str())
        .query(connection, Vec::new(), &sql)
        .await?;
    Ok(found.into_iter().map(|row| ((row.request_id, row.destination.clone()), row)).collect())
}

/// Adds deliveries to requests that exist.
async fn add(
    connection: &impl ConnectionTrait,
    keys: &BTreeSet<Key>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO deliveries (request_id, destination, state, attempts, window_started_at, due_at, \
             updated_at) \
         SELECT request_id, destination, 'pending', 0, accepted_at, now, now \
         FROM r JOIN requests ON requests.id = r.request_id WHERE true \
         ON CONFLICT DO NOTHING";
    let keys: Vec<_> = keys.iter().collect();
    Rows::of(&keys)
        .column("request_id", |(id, _)| *id)
        .column("destination", |(_, destination)| destination.as_str())
        .column("now", |_| now)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}

async fn keep_attempts(
    connection: &impl ConnectionTrait,
    reports: &[&AttemptReport],
) -> Result<(), StoreError> {
    let calls: Vec<_> = reports.iter().filter(|report| report.is_of_a_call()).collect();
    if calls.is_empty() {
        return Ok(());
    }
    Rows::of(&calls)
        .column("request_id", |report| report.request_id)
        .column("destination", |report| report.destination.as_str())
        .column("number", |report| i64::from(report.attempt))
        .column("started_at", |report| report.started_at)
        .column("duration_ms", |report| i64::try_from(report.duration_ms).unwrap_or(i64::MAX))
        .column("outcome", |report| report.outcome.as_str())
        .column("status", |report| report.status.map(i32::from))
        .column("error_class", |report| report.outcome.failure().map(|failure| failure.class.as_str()))
        .column("error", |report| report.outcome.failure().map(|failure| failure.error.as_str()))
        .column("response_excerpt", |report| report.response_excerpt.as_deref())
        .column("trace_id", |report| report.trace_id.as_deref())
        .column("origin", |report| report.origin.as_ref())
        .insert(connection, "attempts", "ON CONFLICT DO NOTHING")
        .await
}

async fn update(connection: &impl ConnectionTrait, deliveries: &[delivery::Model]) -> Result<(), StoreError> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE deliveries SET state = r.state, attempts = r.attempts, counted_attempts = r.counted_attempts, \
         due_at = r.due_at, published_at = r.published_at, claimed_until = r.claimed_until, \
         deferred_by = r.deferred_by, \
         reported_at = r.reported_at, \
         last_status = r.last_status, last_error_class = r.last_error_class, last_error = r.last_error, \
         reason = r.reason, updated_at = r.updated_at \
         FROM r WHERE deliveries.request_id = r.request_id AND deliveries.destination = r.destination";
    Rows::of(deliveries)
        .column("request_id", |delivery| delivery.request_id)
        .column("destination", |delivery| delivery.destination.as_str())
        .column("state", |delivery| delivery.state)
        .column("attempts", |delivery| delivery.attempts)
        .column("counted_attempts", |delivery| delivery.counted_attempts)
        .column("due_at", |delivery| delivery.due_at)
        .column("published_at", |delivery| delivery.published_at)
        .column("claimed_until", |delivery| delivery.claimed_until)
        .column("deferred_by", |delivery| delivery.deferred_by.as_deref())
        .column("reported_at", |delivery| delivery.reported_at)
        .column("last_status", |delivery| delivery.last_status)
        .column("last_error_class", |delivery| delivery.last_error_class.as_deref())
        .column("last_error", |delivery| delivery.last_error.as_deref())
        .column("reason", |delivery| delivery.reason.as_deref())
        .column("updated_at", |delivery| delivery.updated_at)
        .execute(connection, Vec::new(), sql)
        .await?;
    Ok(())
}
