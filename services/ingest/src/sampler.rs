//! What is asked of the database for metrics: how much waits there, and for how long.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use throughline_clock::Clock;
use throughline_config::NodeIds;
use throughline_lifecycle::Shutdown;
use throughline_snowflake::NodeId;
use throughline_store::backlog::{self, Backlog, Waiting};
use throughline_store::outbox::{self, Lag};
use throughline_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::metrics::DESTINATION;

/// Least time from one look to the next.
const GAP: Duration = Duration::from_secs(5);

/// Looks into the database after each collection of metrics, for the next one: a collection never waits, and
/// where nobody collects, nobody looks.
pub(crate) struct Sampler {
    store: Store,
    clock: Clock,
    node: NodeId,
    ids: NodeIds,
    destinations: Vec<String>,
    board: Arc<Board>,
    shutdown: Shutdown,
}

/// What was seen last.
#[derive(Debug, Default)]
struct Board {
    seen: Mutex<Option<Seen>>,
    /// Somebody has read it.
    read: Notify,
}

#[derive(Debug, Clone, Default)]
struct Seen {
    backlog: Backlog,
    outbox: Lag,
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
        "Requests that this replica has committed and Kafka has not acknowledged.",
        |seen| one(count(seen.outbox.requests)),
    ),
    ("throughline.publisher.lag.age", "s", "Age of the oldest of those.", |seen| {
        one(seen.outbox.age.as_secs_f64())
    }),
    (
        "throughline.deliveries.due",
        "{delivery}",
        "Deliveries whose time has come, and that no sweeper has published.",
        |seen| one(count(seen.backlog.due)),
    ),
    ("throughline.deliveries.due.age", "s", "For how long the oldest of those has been due.", |seen| {
        one(seen.backlog.due_for.as_secs_f64())
    }),
    (
        "throughline.deliveries.unended",
        "{delivery}",
        "Deliveries that have not ended: not tried yet, or to be tried again.",
        |seen| {
            let states = |waiting: &Waiting| [("pending", waiting.pending), ("retrying", waiting.retrying)];
            let values = seen.backlog.destinations.iter().flat_map(|(destination, waiting)| {
                states(waiting).map(|(state, deliveries)| {
                    (count(deliveries), vec![at(destination), KeyValue::new("throughline.state", state)])
                })
            });
            values.collect()
        },
    ),
    ("throughline.deliveries.unended.age", "s", "Age of the oldest delivery that has not ended.", |seen| {
        each(seen, |waiting| waiting.age.as_secs_f64())
    }),
    (
        "throughline.dead_letters.waiting",
        "{dead_letter}",
        "Dead letters that are neither replayed nor purged.",
        |seen| each(seen, |waiting| count(waiting.dead_letters)),
    ),
    ("throughline.nodes.leased", "{node}", "Node ids that are leased.", |seen| {
        one(count(seen.backlog.nodes_leased))
    }),
    ("throughline.nodes.limit", "{node}", "Node ids that may be leased (`ingest.node_ids`).", |seen| {
        one(count(seen.nodes))
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
        let board = Arc::<Board>::default();
        board.show(meter);
        Self { store, clock, node, ids, destinations, board, shutdown }
    }

    /// Runs until told to stop.
    pub(crate) async fn run(self) -> Result<(), Infallible> {
        let look = async {
            loop {
                self.board.read.notified().await;
                match self.look().await {
                    Ok(seen) => *self.board.seen() = Some(seen),
                    // Those for whom it matters say so. What was seen last would look like all is as it was.
                    Err(error) => {
                        tracing::debug!(%error, "the database does not say what waits");
                        *self.board.seen() = None;
                    }
                }
                sleep(GAP).await;
            }
        };
        self.shutdown.soft().run_until_cancelled(look).await;
        Ok(())
    }

    async fn look(&self) -> Result<Seen, StoreError> {
        let now = self.clock.now();
        let mut backlog = backlog::sample(self.store.connection(), now).await?;
        for destination in &self.destinations {
            backlog.destinations.entry(destination.clone()).or_default();
        }
        let outbox = outbox::lag(self.store.connection(), self.node, now).await?;
        Ok(Seen { backlog, outbox, nodes: self.ids.count().into() })
    }
}

impl Board {
    /// Has it read whenever metrics are collected.
    fn show(self: &Arc<Self>, meter: &Meter) {
        for (name, unit, description, values) in GAUGES {
            let board = Arc::clone(self);
            let observe = move |gauge: &dyn AsyncInstrument<f64>| {
                board.read.notify_one();
                for (value, attributes) in board.seen().as_ref().map(values).unwrap_or_default() {
                    gauge.observe(value, &attributes);
                }
            };
            let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
            // The callback stays with the meter.
            let _ = gauge.with_callback(observe).build();
        }
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn one(value: f64) -> Vec<Value> {
    vec![(value, Vec::new())]
}

fn each(seen: &Seen, value: fn(&Waiting) -> f64) -> Vec<Value> {
    let destinations = seen.backlog.destinations.iter();
    destinations.map(|(destination, waiting)| (value(waiting), vec![at(destination)])).collect()
}

fn at(destination: &str) -> KeyValue {
    KeyValue::new(DESTINATION, destination.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "nobody looks at the last digit of so many")]
fn count(number: u64) -> f64 {
    number as f64
}
