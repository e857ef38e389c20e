//! Samples the database for metrics: how many rows wait there, and for how long.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_settings::NodeIds;
use throughline_snowflake::NodeId;
use throughline_store::backlog::{self, Due, Open};
use throughline_store::outbox::{self, Lag};
use throughline_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::metrics::DESTINATION;

/// Minimum time between two rounds of samples.
const GAP: Duration = Duration::from_secs(5);
/// Timeout of a sample: PostgreSQL takes some 0.2 s for `MOST` rows.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);
/// Maximum number of rows that a count reads. Above it, the age of the oldest row tells more than the number of rows.
const MOST: u64 = 100_000;

/// Samples the database after each collection of metrics, for the next one: a collection never waits, and a replica
/// without collections takes no samples.
///
/// Each replica samples its own outbox and the leases. Only the replica with the lowest leased node id takes the other
/// samples, which are the same for all replicas; the others do not export them. So no two replicas scan the database at
/// once, and the maximum over the replicas is right.
pub(crate) struct Sampler {
    store: Store,
    clock: Clock,
    node: NodeId,
    destinations: Vec<String>,
    snapshot: Arc<Snapshot>,
    shutdown: Shutdown,
}

/// The latest samples.
#[derive(Debug)]
struct Snapshot {
    seen: Mutex<Seen>,
    /// Notified when a collection has read the samples.
    read: Notify,
}

/// One field for each sample; `None` while the sample fails, or while another replica takes it: an old value would look
/// current.
#[derive(Debug, Clone, Default)]
struct Seen {
    outbox: Option<Lag>,
    nodes_leased: Option<u64>,
    due: Option<Due>,
    open: Option<BTreeMap<String, Open>>,
    dead_letters: Option<BTreeMap<String, u64>>,
    /// The number of configured node ids.
    nodes: u64,
}

/// A gauge: name, unit, description, and the values that it shows of the samples.
type Gauge = (&'static str, &'static str, &'static str, fn(&Seen) -> Vec<Value>);

/// A value and its attributes.
type Value = (f64, Vec<KeyValue>);

const GAUGES: [Gauge; 9] = [
    (
        "throughline.publisher.lag",
        "{request}",
        "Requests that this replica has committed and Kafka has not acknowledged; 100,000 means that many or more.",
        |seen| one(seen.outbox.map(|lag| count(lag.requests))),
    ),
    (
        "throughline.publisher.lag.age",
        "s",
        "Age of the oldest request that Kafka has not acknowledged.",
        |seen| one(seen.outbox.map(|lag| lag.age.as_secs_f64())),
    ),
    (
        "throughline.deliveries.due",
        "{delivery}",
        "Deliveries that are due and not published; 100,000 means that many or more.",
        |seen| one(seen.due.map(|due| count(due.deliveries))),
    ),
    ("throughline.deliveries.due.age", "s", "Time for which the oldest due delivery has been due.", |seen| {
        one(seen.due.map(|due| due.age.as_secs_f64()))
    }),
    (
        "throughline.deliveries.open",
        "{delivery}",
        "Deliveries that have not ended: pending or retrying; counted up to 100,000 for each kind of wait.",
        |seen| {
            let states = |of: &Open| [("pending", of.pending), ("retrying", of.retrying)];
            let values = seen.open.iter().flatten().flat_map(|(destination, open)| {
                states(open).map(|(state, deliveries)| {
                    (count(deliveries), vec![at(destination), KeyValue::new("throughline.state", state)])
                })
            });
            values.collect()
        },
    ),
    ("throughline.deliveries.open.age", "s", "Age of the oldest delivery that has not ended.", |seen| {
        each(seen.open.as_ref(), |open| open.age.as_secs_f64())
    }),
    (
        "throughline.dead_letters.waiting",
        "{dead_letter}",
        "Dead letters that are neither replayed nor purged; 100,000 means that many or more.",
        |seen| each(seen.dead_letters.as_ref(), |&waiting| count(waiting)),
    ),
    ("throughline.nodes.leased", "{node}", "Node ids that are leased.", |seen| {
        one(seen.nodes_leased.map(count))
    }),
    ("throughline.nodes.limit", "{node}", "Node ids in the configured range (`ingest.node_ids`).", |seen| {
        one(Some(count(seen.nodes)))
    }),
];

impl Sampler {
    /// `destinations` are the configured ones: a destination without waiting deliveries is measured as zero.
    pub(crate) fn new(
        store: Store,
        clock: Clock,
        node: NodeId,
        ids: NodeIds,
        destinations: Vec<String>,
        shutdown: Shutdown,
        meter: &Meter,
    ) -> Self {
        let seen = Mutex::new(Seen { nodes: ids.count().into(), ..Seen::default() });
        let snapshot = Arc::new(Snapshot { seen, read: Notify::new() });
        snapshot.show(meter);
        Self { store, clock, node, destinations, snapshot, shutdown }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(self) -> Result<(), Infallible> {
        let look = async {
            let mut is_first = false;
            loop {
                self.snapshot.read.notified().await;
                self.look(&mut is_first).await;
                sleep(GAP).await;
            }
        };
        self.shutdown.soft().run_until_cancelled(look).await;
        Ok(())
    }

    /// Takes each sample separately: a sample that fails leaves the others unchanged. `is_first` is whether this
    /// replica takes the samples that are the same for all; it stays unchanged if the leases cannot be read.
    async fn look(&self, is_first: &mut bool) {
        let (connection, now) = (self.store.connection(), self.clock.now());
        // The cheapest and most urgent sample comes first: each must be visible even if the next one hangs.
        let outbox = within("outbox", outbox::lag(connection, self.node, now, MOST)).await;
        self.snapshot.seen().outbox = outbox;
        let leases = within("leases", backlog::leases(connection)).await;
        self.snapshot.seen().nodes_leased = leases.map(|leases| leases.nodes);
        if let Some(leases) = leases {
            *is_first = leases.first == Some(self.node);
        }
        if !*is_first {
            self.snapshot.seen().forget_the_common();
            return;
        }
        let due = within("due", backlog::due(connection, now, MOST)).await;
        self.snapshot.seen().due = due;
        let open = within("open", backlog::open(connection, now, MOST)).await;
        self.snapshot.seen().open = open.map(|open| self.with_all_destinations(open));
        let dead = within("dead_letters", backlog::dead_letters(connection, MOST)).await;
        self.snapshot.seen().dead_letters = dead.map(|dead| self.with_all_destinations(dead));
    }

    fn with_all_destinations<T: Default>(&self, mut of: BTreeMap<String, T>) -> BTreeMap<String, T> {
        for destination in &self.destinations {
            of.entry(destination.clone()).or_default();
        }
        of
    }
}

/// Returns a sample, if it arrives in time. The parts that need the database log its failures, at a higher level.
async fn within<T>(name: &str, sample: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    match timeout(LONGEST, sample).await {
        Ok(Ok(sample)) => Some(sample),
        Ok(Err(error)) => {
            tracing::debug!(sample = name, %error, "a sample of the database failed");
            None
        }
        Err(_) => {
            tracing::debug!(sample = name, longest = ?LONGEST, "a sample of the database took too long");
            None
        }
    }
}

impl Seen {
    fn forget_the_common(&mut self) {
        (self.due, self.open, self.dead_letters) = (None, None, None);
    }
}

impl Snapshot {
    /// Registers gauges that read the samples whenever metrics are collected.
    fn show(self: &Arc<Self>, meter: &Meter) {
        for (name, unit, description, values) in GAUGES {
            let snapshot = Arc::clone(self);
            let observe = move |gauge: &dyn AsyncInstrument<f64>| {
                snapshot.read.notify_one();
                for (value, attributes) in values(&snapshot.seen()) {
                    gauge.observe(value, &attributes);
                }
            };
            let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
            // The meter keeps the callback.
            let _ = gauge.with_callback(observe).build();
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Every change is complete in itself: a panic leaves no partial change.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn one(value: Option<f64>) -> Vec<Value> {
    value.map(|value| (value, Vec::new())).into_iter().collect()
}

fn each<T>(of: Option<&BTreeMap<String, T>>, value: fn(&T) -> f64) -> Vec<Value> {
    let destinations = of.into_iter().flatten();
    destinations.map(|(destination, of)| (value(of), vec![at(destination)])).collect()
}

fn at(destination: &str) -> KeyValue {
    KeyValue::new(DESTINATION, destination.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "the last digit of such numbers does not matter")]
fn count(number: u64) -> f64 {
    number as f64
}
