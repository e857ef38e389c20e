//! How much may be published and not yet be off our hands.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_kafka::QueueLimits;
use throughline_snowflake::RequestId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::Broker;

/// The embedded broker keeps some 5 MB a partition and forgets what is older; all may fall into one.
const FORGETFUL_BYTES: usize = 4 << 20;
const UNIT: usize = 1 << 10;
/// How often a full window is looked at for shares whose patience has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Bounds requests that are published and not yet acknowledged, or, where the broker forgets, not
/// yet heard of again.
#[derive(Debug)]
pub(crate) struct Window {
    requests: Arc<Semaphore>,
    units: Arc<Semaphore>,
    most_units: usize,
    forgetful: Option<Forgetful>,
}

/// Shares of requests that a broker which forgets may have: held until an outcome is recorded, or
/// until the sweeper will publish them again anyway.
#[derive(Debug)]
struct Forgetful {
    published: Mutex<HashMap<RequestId, (Instant, Share)>>,
    patience: Duration,
}

/// A share of the window; dropping it gives it back.
#[derive(Debug)]
struct Share {
    _request: OwnedSemaphorePermit,
    _units: OwnedSemaphorePermit,
}

/// What a request that is on its way to the broker holds of the window.
///
/// Where the broker forgets, the window itself keeps the share, from before the record is sent: its
/// outcome may be recorded before its acknowledgement is seen.
#[derive(Debug)]
pub(crate) struct Hold {
    _until_acknowledged: Option<Share>,
}

impl Window {
    /// A window for so many requests, and so many bytes of them.
    pub(crate) fn new(requests: usize, bytes: usize, broker: Broker, patience: Duration) -> Self {
        let (bytes, forgetful) = match broker {
            Broker::Durable => (bytes, None),
            Broker::Forgetful => {
                (bytes.min(FORGETFUL_BYTES), Some(Forgetful { published: Mutex::default(), patience }))
            }
        };
        let most_units = (bytes / UNIT).max(1);
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            units: Arc::new(Semaphore::new(most_units)),
            most_units,
            forgetful,
        }
    }

    /// A window that fits into the producer's queue and leaves a quarter of it to records that no window bounds (dead
    /// letters): a full window makes the publisher wait, and the queue never refuses a record for want of room.
    pub(crate) fn within(queue: QueueLimits, requests: usize, broker: Broker, patience: Duration) -> Self {
        let QueueLimits { records, bytes } = queue;
        Self::new(requests.min(records - records / 4), bytes - bytes / 4, broker, patience)
    }

    /// Takes a share for a request, if there is one now.
    pub(crate) fn try_hold(&self, id: RequestId, bytes: usize) -> Option<Hold> {
        self.give_up_the_overdue();
        let units = Arc::clone(&self.units).try_acquire_many_owned(self.units_of(bytes)).ok()?;
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        Some(self.register(id, Share { _request: request, _units: units }))
    }

    /// Takes a share for a request as soon as there is one.
    pub(crate) async fn hold(&self, id: RequestId, bytes: usize) -> Option<Hold> {
        loop {
            self.give_up_the_overdue();
            let share = async {
                let units = Arc::clone(&self.units).acquire_many_owned(self.units_of(bytes)).await.ok()?;
                let request = Arc::clone(&self.requests).acquire_owned().await.ok()?;
                Some(Share { _request: request, _units: units })
            };
            // Nobody says when patience ends: look again.
            if let Ok(share) = timeout(LOOK_AGAIN, share).await {
                return Some(self.register(id, share?));
            }
        }
    }

    /// An outcome of the request is recorded.
    pub(crate) fn heard_of(&self, id: RequestId) {
        if let Some(forgetful) = &self.forgetful {
            forgetful.lock().remove(&id);
        }
    }

    /// Whether nobody holds a share.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.units.available_permits() == self.most_units
    }

    fn register(&self, id: RequestId, share: Share) -> Hold {
        let Some(forgetful) = &self.forgetful else { return Hold { _until_acknowledged: Some(share) } };
        forgetful.lock().insert(id, (Instant::now(), share));
        Hold { _until_acknowledged: None }
    }

    fn give_up_the_overdue(&self) {
        if let Some(forgetful) = &self.forgetful {
            forgetful.lock().retain(|_, (since, _)| since.elapsed() < forgetful.patience);
        }
    }

    /// A body larger than the whole window takes all of it, alone.
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
    use throughline_config::{Kafka, Secret};
    use throughline_kafka::Producer;
    use throughline_messages::{Keys, Kind};
    use throughline_store::NewRequest;
    use throughline_testkit::{new_request, unmeasured};

    use super::super::send::{outgoing, size_of};
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);
    const BYTES: usize = 1 << 20;

    fn id(n: i64) -> RequestId {
        RequestId::from_i64(n).unwrap()
    }

    #[test]
    fn where_the_broker_keeps_what_it_takes_the_hold_is_all() {
        let window = Window::new(1, BYTES, Broker::Durable, PATIENCE);
        let hold = window.try_hold(id(1), 10).unwrap();
        assert!(window.try_hold(id(2), 10).is_none());
        drop(hold);
        assert!(window.try_hold(id(2), 10).is_some());
    }

    #[test]
    fn where_the_broker_forgets_only_an_outcome_frees_the_share_whatever_comes_first() {
        let window = Window::new(1, BYTES, Broker::Forgetful, PATIENCE);
        drop(window.try_hold(id(1), 10).unwrap());
        assert!(window.try_hold(id(2), 10).is_none(), "acknowledged, and not heard of");
        window.heard_of(id(1));
        let hold = window.try_hold(id(2), 10).unwrap();
        window.heard_of(id(2));
        drop(hold);
        assert!(window.try_hold(id(3), 10).is_some(), "heard of before its acknowledgement was seen");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_window_gives_up_what_patience_has_given_up() {
        let window = Window::new(1, BYTES, Broker::Forgetful, PATIENCE);
        window.try_hold(id(1), 10).unwrap();
        let began = Instant::now();
        assert!(window.hold(id(2), 10).await.is_some());
        assert!(began.elapsed() >= PATIENCE && began.elapsed() < PATIENCE + 2 * LOOK_AGAIN);
    }

    #[tokio::test]
    async fn a_full_window_of_large_bodies_fits_into_the_producers_queue() {
        for (name, limit) in [("queue.buffering.max.kbytes", "1024"), ("queue.buffering.max.messages", "8")] {
            let properties = [(name.to_owned(), Secret::from(limit))].into();
            // No broker is there: whatever is taken stays in the queue.
            let kafka = Kafka { bootstrap_servers: "localhost:1".to_owned(), properties, ..Kafka::default() };
            let producer = Producer::new(&kafka, "test", &unmeasured()).unwrap();
            let window = Window::within(producer.queue(), 10_000, Broker::Durable, PATIENCE);
            let mut under_way = Vec::new();
            for number in 1.. {
                let body = vec![b'x'; 50 << 10].into();
                let request = NewRequest { body, ..new_request(id(number), DateTime::UNIX_EPOCH) }.into();
                let Some(hold) = window.try_hold(id(number), size_of(&request)) else { break };
                let keys = Keys::new("key", None);
                let (record, _span) =
                    outgoing("topic", request, (&keys, Kind::Request), |record| record.to_headers());
                under_way.push((hold, producer.enqueue(&record).unwrap()));
            }
            assert!(under_way.len() > 5, "{}", under_way.len());
        }
    }

    #[test]
    fn a_body_larger_than_the_window_goes_alone() {
        let window = Window::new(10, BYTES, Broker::Durable, PATIENCE);
        let hold = window.try_hold(id(1), 1 << 30).unwrap();
        assert!(window.try_hold(id(2), 1).is_none());
        drop(hold);
        assert!(window.try_hold(id(2), 1).is_some());
    }
}
