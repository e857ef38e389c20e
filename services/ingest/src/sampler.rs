//! What is asked of the database for metrics: how much waits there, and for how long.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use throughline_clock::Clock;
use throughline_config::NodeIds;
use throughline_lifecycle::Shutdown;
use throughline_snowflake::NodeId;
use throughline_store::backlog::{self, Due, Unended};
use throughline_store::outbox::{self, Lag};
use throughline_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::metrics::DESTINATION;

/// Least time from one look to the next.
const GAP: Duration = Duration::from_secs(5);
/// A sample that takes longer is given up: `MOST` rows take PostgreSQL some 0.2 s.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);
/// Most rows that a count reads. Beyond, how long the oldest has waited tells more than how many do.
const MOST: u64 = 100_000;

/// Looks into the database after each collection of metrics, for the next one: a collection never waits, and a replica
/// whose metrics are not collected does not look.
///
/// Each replica samples its own outbox and the leases. Of the replicas the one with the lowest leased node id samples the
/// rest, which is the same for all, and the others export nothing of it: the database is never scanned by two at once,
/// and the maximum over the replicas is right.
pub(crate) struct Sampler {
    store: Store,
    clock: Clock,
    node: NodeId,
    destinations: Vec<String>,
    board: Arc<Board>,
    shutdown: Shutdown,
}

/// What was seen last.
#[derive(Debug)]
struct Board {
    seen: Mutex<Seen>,
    /// A collection has read it.
    read: Notify,
}

/// One field for each sample; `None` while it fails, or is another replica's to take: what was seen before would look
/// like all is as it was.
#[derive(Debug, Clone, Default)]
struct Seen {
    outbox: Option<Lag>,
    nodes_leased: Option<u64>,
    due: Option<Due>,
    unended: Option<BTreeMap<String, Unended>>,
    dead_letters: Option<BTreeMap<String, u64>>,
    /// How many node ids are configured.
    nodes: u64,
}

/// A gauge: name, unit, description, and what it shows of what was seen.
type Gauge = (&'static str, &'static str, &'static str, fn(&Seen) -> Vec<Value>);

/// A value and its attributes.
type Value = (f64, Vec<KeyValue>);

const GAUGES: [Gauge; 9] = [
    (
        "throughline.publisher.lag",
        "{request}",
        "Requests that this replica has committed and Kafka has not acknowledged; 100,000 are that many or more.",
        |seen| one(seen.outbox.map(|lag| count(lag.requests))),
    ),
    ("throughline.publisher.lag.age", "s", "Age of the oldest of those.", |seen| {
        one(seen.outbox.map(|lag| lag.age.as_secs_f64()))
    }),
    (
        "throughline.deliveries.due",
        "{delivery}",
        "Deliveries whose time has come, and that no sweeper has published; 100,000 are that many or more.",
        |seen| one(seen.due.map(|due| count(due.deliveries))),
    ),
    ("throughline.deliveries.due.age", "s", "For how long the oldest of those has been due.", |seen| {
        one(seen.due.map(|due| due.age.as_secs_f64()))
    }),
    (
        "throughline.deliveries.unended",
        "{delivery}",
        "Deliveries that have not ended: not tried yet, or to be tried again; counted up to 100,000 for each way to wait.",
        |seen| {
            let states = |of: &Unended| [("pending", of.pending), ("retrying", of.retrying)];
            let values = seen.unended.iter().flatten().flat_map(|(destination, unended)| {
                states(unended).map(|(state, deliveries)| {
                    (count(deliveries), vec![at(destination), KeyValue::new("throughline.state", state)])
                })
            });
            values.collect()
        },
    ),
    ("throughline.deliveries.unended.age", "s", "Age of the oldest delivery that has not ended.", |seen| {
        each(seen.unended.as_ref(), |unended| unended.age.as_secs_f64())
    }),
    (
        "throughline.dead_letters.waiting",
        "{dead_letter}",
        "Dead letters that are neither replayed nor purged; 100,000 are that many or more.",
        |seen| each(seen.dead_letters.as_ref(), |&waiting| count(waiting)),
    ),
    ("throughline.nodes.leased", "{node}", "Node ids that are leased.", |seen| {
        one(seen.nodes_leased.map(count))
    }),
    ("throughline.nodes.limit", "{node}", "Node ids that may be leased (`ingest.node_ids`).", |seen| {
        one(Some(count(seen.nodes)))
    }),
];

impl Sampler {
    /// `destinations` are those that are configured: one for which nothing waits is measured as zero.
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
        let board = Arc::new(Board { seen, read: Notify::new() });
        board.show(meter);
        Self { store, clock, node, destinations, board, shutdown }
    }

    /// Runs until told to stop.
    pub(crate) async fn run(self) -> Result<(), Infallible> {
        let look = async {
            let mut is_first = false;
            loop {
                self.board.read.notified().await;
                self.look(&mut is_first).await;
                sleep(GAP).await;
            }
        };
        self.shutdown.soft().run_until_cancelled(look).await;
        Ok(())
    }

    /// Takes each sample by itself: one that fails leaves the others as they are. `is_first` says whether this replica
    /// takes those that are the same for all, and stays as it was if the leases cannot be read.
    async fn look(&self, is_first: &mut bool) {
        let (connection, now) = (self.store.connection(), self.clock.now());
        // The cheapest and most urgent first: each is to be seen though the next one hangs.
        let outbox = within("outbox", outbox::lag(connection, self.node, now, MOST)).await;
        self.board.seen().outbox = outbox;
        let leases = within("leases", backlog::leases(connection)).await;
        self.board.seen().nodes_leased = leases.map(|leases| leases.nodes);
        if let Some(leases) = leases {
            *is_first = leases.first == Some(self.node);
        }
        if !*is_first {
            self.board.seen().forget_the_common();
            return;
        }
        let due = within("due", backlog::due(connection, now, MOST)).await;
        self.board.seen().due = due;
        let unended = within("unended", backlog::unended(connection, now, MOST)).await;
        self.board.seen().unended = unended.map(|unended| self.with_all_destinations(unended));
        let dead = within("dead_letters", backlog::dead_letters(connection, MOST)).await;
        self.board.seen().dead_letters = dead.map(|dead| self.with_all_destinations(dead));
    }

    fn with_all_destinations<T: Default>(&self, mut of: BTreeMap<String, T>) -> BTreeMap<String, T> {
        for destination in &self.destinations {
            of.entry(destination.clone()).or_default();
        }
        of
    }
}

/// Gives a sample, if it is there in time. A database that does not answer is logged by the parts that need it.
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
        (self.due, self.unended, self.dead_letters) = (None, None, None);
    }
}

impl Board {
    /// Has it read whenever metrics are collected.
    fn show(self: &Arc<Self>, meter: &Meter) {
        for (name, unit, description, values) in GAUGES {
            let board = Arc::clone(self);
            let observe = move |gauge: &dyn AsyncInstrument<f64>| {
                board.read.notify_one();
                for (value, attributes) in values(&board.seen()) {
                    gauge.observe(value, &attributes);
                }
            };
            let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
            // The callback stays with the meter.
            let _ = gauge.with_callback(observe).build();
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Every change is complete in itself: a panic leaves nothing half done.
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
