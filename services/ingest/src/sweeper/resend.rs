//! Publishes deliveries again, and records it in the database.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use throughline_clock::Clock;
use throughline_kafka::{Outgoing, Position, SendError};
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass, Headers, Keys, Kind, RetryRecord, RouteRecord};
use throughline_store::claims::{self, Claim, Due, DueDelivery};
use throughline_store::{DeliveryKey, OutboxRequest, Refusal, Store};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::{SweepError, unless_stopped};
use crate::metrics::Metrics;
use crate::publisher::{InFlightLimit, note, outgoing, size_of};
use crate::refusals::{DeadLetters, Stub};

/// Maximum number of deliveries claimed at once: with bodies of 1 MiB, as many as the in-flight limit allows.
pub(super) const BATCH: u64 = 64;
/// How long the broker may take to acknowledge a batch before its claim is given up.
pub(super) const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);

/// How long the broker may take to answer a probe.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Publishes due deliveries to the topic of retries.
#[derive(Clone)]
pub(crate) struct Resender {
    pub(crate) store: Store,
    /// The resender shares the producer and the topics of the dead letters.
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) clock: Clock,
    pub(crate) redelivery_timeout: TimeDelta,
    pub(crate) in_flight: Arc<InFlightLimit>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

impl Resender {
    /// Waits for an answer of the broker, so that no delivery is claimed while it is unreachable.
    pub(super) async fn probe(&self) -> Result<(), SweepError> {
        unless_stopped(self.shutdown.soft(), self.dead_letters.producer.probe(PROBE_DEADLINE)).await
    }

    /// Claims the deliveries that were due by `by`, publishes them, and moves their `due_at` once they are
    /// acknowledged, or late but still in the producer's queue. A crash before that leaves them due.
    pub(super) async fn sweep(&self, due: Due, by: DateTime<Utc>) -> Result<usize, SweepError> {
        let claim = claims::claim_due(&self.store, due, by, BATCH);
        let mut claim = unless_stopped(self.shutdown.soft(), claim).await?;
        let claimed = claim.take();
        if claimed.is_empty() {
            return Ok(0);
        }
        match due {
            Due::Planned => tracing::debug!(deliveries = claimed.len(), "deliveries are due"),
            Due::Silent => {
                tracing::warn!(
                    event = "delivery.republished",
                    deliveries = claimed.len(),
                    "no outcome arrived in time; publishing deliveries again"
                );
            }
        }
        // Completes during shutdown too, until the hard stop: a record that is published but not known to be is
        // published again by the next ingest that claims it.
        let seen_through = self.see_through(due, claim, claimed);
        self.shutdown.hard().run_until_cancelled(seen_through).await.unwrap_or(Err(SweepError::Stopped))
    }

    async fn see_through(
        &self,
        due: Due,
        claim: Claim,
        claimed: Vec<DueDelivery>,
    ) -> Result<usize, SweepError> {
        let deadline = Instant::now() + PUBLISH_DEADLINE;
        let Sent { published, refused, failure } = self.publish(claimed, deadline).await;
        let refused = self.publish_dead_letters(refused, deadline).await;
        let now = self.clock.now();
        let ended = claim.published(&published, &refused, now, now + self.redelivery_timeout).await?;
        self.metrics.swept(due, published.len());
        self.metrics.ended(&ended);
        match failure {
            Some(failure) => Err(failure),
            None => Ok(published.len() + refused.len()),
        }
    }

    /// Publishes dead letters for the deliveries that the broker refuses, and returns those that were published. The
    /// rest stay due.
    async fn publish_dead_letters(&self, refused: Vec<(Refusal, Stub)>, deadline: Instant) -> Vec<Refusal> {
        let mut published = Vec::with_capacity(refused.len());
        for (refusal, stub) in refused {
            let destination = refusal.destination.clone();
            let put = self.dead_letters.put_stub(stub, destination, refusal.reason, &refusal.error);
            if timeout_at(deadline, put).await == Ok(true) {
                published.push(refusal);
            }
        }
        published
    }

    /// Passes all deliveries to the producer, and waits for the acknowledgements.
    async fn publish(&self, claimed: Vec<DueDelivery>, deadline: Instant) -> Sent {
        let mut sent = Sent::default();
        let mut under_way = FuturesUnordered::new();
        for delivery in claimed {
            let key =
                DeliveryKey { request_id: delivery.request.id, destination: delivery.destination.clone() };
            let size = size_of(&delivery.request);
            let mut permit = pin!(timeout_at(deadline, self.in_flight.acquire(key.request_id, size)));
            let permit = loop {
                tokio::select! {
                    permit = &mut permit => break permit,
                    // Releases an in-flight permit.
                    Some(answered) = under_way.next(), if !under_way.is_empty() => sent.answered(answered),
                }
            };
            let Ok(permit) = permit else {
                sent.failure = Some(SweepError::Late);
                break;
            };
            let (record, span) = self.record(delivery);
            match self.dead_letters.producer.enqueue(&record) {
                Ok(acknowledgement) => {
                    let acknowledged = timeout_at(deadline, acknowledgement).inspect(move |in_time| {
                        if let Ok(result) = in_time {
                            note(&span, result);
                        }
                    });
                    let stub = record.into();
                    under_way.push(acknowledged.map(move |in_time| {
                        drop(permit);
                        Answered { key, stub, in_time }
                    }));
                }
                Err(error) => sent.failed(key, record.into(), error),
            }
        }
        while let Some(answered) = under_way.next().await {
            sent.answered(answered);
        }
        sent
    }

    fn record(&self, due: DueDelivery) -> (Outgoing, Span) {
        let (request, headers) = retry(due);
        outgoing(&self.dead_letters.topics.retries, request, (&self.keys, Kind::Retry), headers)
    }
}

/// Splits a due delivery into its request, and a function that returns the headers of its retry.
pub(super) fn retry(due: DueDelivery) -> (OutboxRequest, impl FnOnce(RouteRecord) -> Headers) {
    let DueDelivery { request, destination, attempts, counted_attempts, window_started_at } = due;
    let headers = move |record: RouteRecord| {
        RetryRecord {
            request: record.request,
            destination,
            attempt: attempts + 1,
            counted_attempts,
            window_started_at,
        }
        .to_headers()
    };
    (request, headers)
}

/// A record that the broker has answered, or has not answered in time.
struct Answered {
    key: DeliveryKey,
    stub: Stub,
    in_time: Result<Result<Position, SendError>, Elapsed>,
}

/// The result of publishing a batch.
#[derive(Default)]
struct Sent {
    published: Vec<DeliveryKey>,
    refused: Vec<(Refusal, Stub)>,
    /// Why the remaining deliveries are not published and stay due.
    failure: Option<SweepError>,
}

impl Sent {
    fn answered(&mut self, Answered { key, stub, in_time }: Answered) {
        match in_time {
            Ok(Ok(_)) => self.published.push(key),
            Ok(Err(error)) => self.failed(key, stub, error),
            // The record is in the producer's queue and is sent when the broker is back. No other ingest should publish
            // it too meanwhile; if this process ends first, the delivery is silent and is found as such.
            Err(_) => {
                self.published.push(key);
                self.failure = Some(SweepError::Late);
            }
        }
    }

    fn failed(&mut self, key: DeliveryKey, stub: Stub, error: SendError) {
        let DeliveryKey { request_id, destination } = key;
        if !error.is_refusal() {
            self.failure = Some(error.into());
            return;
        }
        tracing::error!(
            event = "delivery.refused", %request_id, destination, %error,
            "cannot publish a delivery; it ends dead"
        );
        let refusal = Refusal {
            request_id,
            destination: Some(destination),
            reason: DeadReason::Unpublishable,
            class: ErrorClass::Broker,
            error: error.to_string(),
        };
        self.refused.push((refusal, stub));
    }
}
