//! Limits the requests that are published and not yet settled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_kafka::QueueLimits;
use throughline_snowflake::RequestId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::Broker;

/// The embedded broker keeps some 5 MB per partition and drops older records; all records may go to one partition.
const FORGETFUL_BYTES: usize = 4 << 20;
const UNIT: usize = 1 << 10;
/// Interval of the checks of a full limit for permits that have reached the redelivery timeout.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Limits requests that are published and not yet acknowledged or, with a forgetful broker, still without an outcome.
#[derive(Debug)]
pub(crate) struct InFlightLimit {
    requests: Arc<Semaphore>,
    units: Arc<Semaphore>,
    most_units: usize,
    forgetful: Option<Forgetful>,
}

/// Shares of requests that a forgetful broker may have: kept until an outcome is recorded, or until the redelivery
/// timeout has passed and the republisher publishes the requests again.
#[derive(Debug)]
struct Forgetful {
    published: Mutex<HashMap<RequestId, (Instant, Share)>>,
    redelivery_timeout: Duration,
}

/// A share of the limit; dropping it releases the share.
#[derive(Debug)]
struct Share {
    _request: OwnedSemaphorePermit,
    _units: OwnedSemaphorePermit,
}

/// The permit of a request on its way to the broker.
///
/// With a forgetful broker, [`InFlightLimit`] keeps the share, from before the record is sent: the outcome may be
/// recorded before the acknowledgement arrives.
#[derive(Debug)]
pub(crate) struct InFlightPermit {
    _until_acknowledged: Option<Share>,
}

impl InFlightLimit {
    /// Creates a limit of this number of requests and of their bytes.
    pub(crate) fn new(requests: usize, bytes: usize, broker: Broker, redelivery_timeout: Duration) -> Self {
        let (bytes, forgetful) = match broker {
            Broker::Durable => (bytes, None),
            Broker::Forgetful => (
                bytes.min(FORGETFUL_BYTES),
                Some(Forgetful { published: Mutex::default(), redelivery_timeout }),
            ),
        };
        let most_units = (bytes / UNIT).max(1);
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            units: Arc::new(Semaphore::new(most_units)),
            most_units,
            forgetful,
        }
    }

    /// Creates a limit that fits into the producer's queue and leaves a quarter of it to records without a limit (dead
    /// letters): at the limit, the publisher waits, so the queue is never full and refuses no record.
    pub(crate) fn within(
        queue: QueueLimits,
        requests: usize,
        broker: Broker,
        redelivery_timeout: Duration,
    ) -> Self {
        let QueueLimits { records, bytes } = queue;
        Self::new(requests.min(records - records / 4), bytes - bytes / 4, broker, redelivery_timeout)
    }

    /// Acquires a permit for a request, if one is free now.
    pub(crate) fn try_acquire(&self, id: RequestId, bytes: usize) -> Option<InFlightPermit> {
        self.release_overdue();
        let units = Arc::clone(&self.units).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        Some(self.register(id, Share { _request: request, _units: units }))
    }

    /// Acquires a permit for a request as soon as one is free.
    pub(crate) async fn acquire(&self, id: RequestId, bytes: usize) -> Option<InFlightPermit> {
        loop {
            self.release_overdue();
            let share = async {
                let units = Arc::clone(&self.units).acquire_many_owned(self.units_of(bytes)).await.ok()?;
                let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
                Some(Share { _request: request, _units: units })
            };
            // No task signals that a redelivery timeout has passed, so check again.
            if let Ok(share) = timeout(LOOK_AGAIN, share).await {
                return Some(self.register(id, share?));
            }
        }
    }

    /// Releases the share of a request after its outcome is recorded.
    pub(crate) fn outcome_recorded(&self, id: RequestId) {
        if let Some(forgetful) = &self.forgetful {
            forgetful.lock().remove(&id);
        }
    }

    /// Returns whether no request has a permit.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.units.available_permits() == self.most_units
    }

    fn register(&self, id: RequestId, share: Share) -> InFlightPermit {
        let Some(forgetful) = &self.forgetful else {
            return InFlightPermit { _until_acknowledged: Some(share) };
        };
        forgetful.lock().insert(id, (Instant::now(), share));
        InFlightPermit { _until_acknowledged: None }
    }

    fn release_overdue(&self) {
        if let Some(forgetful) = &self.forgetful {
            forgetful
                .lock()
                .retain(|_, (published_at, _)| published_at.elapsed() < forgetful.redelivery_timeout);
        }
    }

    /// Returns the units for this number of bytes. A body larger than the whole limit takes all of it, alone.
    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).max(1).min(self.most_units)).unwrap_or(u32::MAX)
    }
}

impl Forgetful {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, (Instant, Share)>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use throughline_config::Secret;
    use throughline_kafka as kafka;
    use throughline_kafka::Producer;
    use throughline_messages::{Keys, Kind};
    use throughline_store::NewRequest;
    use throughline_testkit::{new_request, unmeasured};

    use super::super::send::{outgoing, size_of};
    use super::*;

    const REDELIVERY_TIMEOUT: Duration = Duration::from_mins(1);
    const BYTES: usize = 1 << 20;

    fn id(n: i64) -> RequestId {
        RequestId::from_i64(n).unwrap()
    }

    #[test]
    fn with_a_durable_broker_the_permit_is_the_whole_share() {
        let in_flight = InFlightLimit::new(1, BYTES, Broker::Durable, REDELIVERY_TIMEOUT);
        let permit = in_flight.try_acquire(id(1), 10).unwrap();
        assert!(in_flight.try_acquire(id(2), 10).is_none());
        drop(permit);
        assert!(in_flight.try_acquire(id(2), 10).is_some());
    }

    #[test]
    fn with_a_volatile_broker_only_an_outcome_frees_the_share() {
        let in_flight = InFlightLimit::new(1, BYTES, Broker::Forgetful, REDELIVERY_TIMEOUT);
        drop(in_flight.try_acquire(id(1), 10).unwrap());
        assert!(in_flight.try_acquire(id(2), 10).is_none(), "acknowledged, without an outcome");
        in_flight.outcome_recorded(id(1));
        let permit = in_flight.try_acquire(id(2), 10).unwrap();
        in_flight.outcome_recorded(id(2));
        drop(permit);
        assert!(in_flight.try_acquire(id(3), 10).is_some(), "its outcome arrived before its acknowledgement");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_limit_releases_the_permits_of_overdue_requests() {
        let in_flight = InFlightLimit::new(1, BYTES, Broker::Forgetful, REDELIVERY_TIMEOUT);
        in_flight.try_acquire(id(1), 10).unwrap();
        let began = Instant::now();
        assert!(in_flight.acquire(id(2), 10).await.is_some());
        assert!(
            began.elapsed() >= REDELIVERY_TIMEOUT && began.elapsed() < REDELIVERY_TIMEOUT + 2 * LOOK_AGAIN
        );
    }

    #[tokio::test]
    async fn a_full_limit_of_large_bodies_fits_into_the_producers_queue() {
        for (name, limit) in [("queue.buffering.max.kbytes", "1024"), ("queue.buffering.max.messages", "8")] {
            let properties = [(name.to_owned(), Secret::from(limit))].into();
            // No broker runs, so all accepted records stay in the queue.
            let kafka = kafka::Settings {
                bootstrap_servers: "localhost:1".to_owned(),
                properties,
                ..kafka::Settings::default()
            };
            let producer = Producer::new(&kafka, "test", &unmeasured()).unwrap();
            let in_flight =
                InFlightLimit::within(producer.queue(), 10_000, Broker::Durable, REDELIVERY_TIMEOUT);
            let mut under_way = Vec::new();
            for number in 1.. {
                let body = vec![b'x'; 50 << 10].into();
                let request = NewRequest { body, ..new_request(id(number), DateTime::UNIX_EPOCH) }.into();
                let Some(permit) = in_flight.try_acquire(id(number), size_of(&request)) else { break };
                let keys = Keys::new("key", None);
                let (record, _span) =
                    outgoing("topic", request, (&keys, Kind::Request), |record| record.to_headers());
                under_way.push((permit, producer.enqueue(&record).unwrap()));
            }
            assert!(under_way.len() > 5, "{}", under_way.len());
        }
    }

    #[test]
    fn a_body_larger_than_the_limit_is_published_alone() {
        let in_flight = InFlightLimit::new(10, BYTES, Broker::Durable, REDELIVERY_TIMEOUT);
        let permit = in_flight.try_acquire(id(1), 1 << 30).unwrap();
        assert!(in_flight.try_acquire(id(2), 1).is_none());
        drop(permit);
        assert!(in_flight.try_acquire(id(2), 1).is_some());
    }
}
