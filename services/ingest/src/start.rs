//! The composition root: builds every part of ingest and starts it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::TryFutureExt as _;
use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_config::Settings;
use throughline_kafka::{Bounds as ConsumerBounds, Consumer, Producer};
use throughline_lifecycle::{Shutdown, TaskFailed, Tasks};
use throughline_messages::{Keys, Topics};
use throughline_store::{Store, deliveries};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::Broker;
use crate::adopter::{self, Adopter};
use crate::error::StartError;
use crate::expired_keys::ExpiredKeys;
use crate::http::{Bounds, Health, health_router, router, serve};
use crate::intake::intakes;
use crate::listener::{Groups, Listener};
use crate::liveness::{Liveness, Pulse};
use crate::metrics::Metrics;
use crate::node::{self, Keeper};
use crate::publisher::{self, Window, publisher};
use crate::recorder::Recorder;
use crate::refusals::DeadLetters;
use crate::sampler::{self, Sampler};
use crate::sweeper::{Alarm, Desk, Expirer, Replayer, Resender, Seeker, Sweeper};
use crate::topics::{self, Unseen};
use crate::writer::{self, Writer};

/// Rows of one page of the outbox, and bytes of bodies that it may bring into memory.
const PAGE_ROWS: u64 = 512;
const PAGE_BYTES: u64 = 16 << 20;
/// Most outcomes that wait in memory: two batches.
const OUTCOMES: usize = 1024;
/// Most bytes of outcomes, and as many of foreign records, that are in memory: some of the largest ones.
const HELD_BYTES: usize = 32 << 20;
/// Connections for all that is asked over `/v1`, and how long each statement may take: they serve people and scripts,
/// and must never keep a request or an outcome waiting.
const MANAGEMENT: (u32, Duration) = (4, Duration::from_secs(5));

/// Connections that may wait to be accepted: as many as Linux lets wait (`net.core.somaxconn`). Beyond, it drops what
/// clients send, who try again a second later at the soonest.
const BACKLOG: u32 = 4096;

/// A running ingest.
#[derive(Debug)]
pub struct Ingest {
    address: SocketAddr,
    health_address: SocketAddr,
    tasks: Tasks,
}

impl Ingest {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where health checks are answered, apart from clients.
    #[must_use]
    pub fn health_address(&self) -> SocketAddr {
        self.health_address
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If a part of it failed, or did not end within the shut-down's deadline.
    pub async fn join(self) -> Result<(), TaskFailed> {
        self.tasks.join().await
    }
}

/// Starts ingest and returns once it listens. What it does is measured with `meter`.
///
/// # Errors
/// [`StartError`], which says what to change.
pub async fn start(
    settings: Settings,
    broker: Broker,
    clock: Clock,
    shutdown: Shutdown,
    meter: &Meter,
) -> Result<Ingest, StartError> {
    let (address, health_address) = (settings.http.address, settings.http.health_address);
    let clients = listen(address).map_err(|source| StartError::Listen { address, source })?;
    let health_checks = listen(health_address)
        .map_err(|source| StartError::ListenForHealthChecks { address: health_address, source })?;
    let (address, health_address) = (clients.1, health_checks.1);
    say_who_may_call(&settings);
    let parts = Parts::connect(settings, broker, clock, shutdown, meter).await?;
    let tasks = parts.assemble(clients.0, health_checks.0).await?;
    tracing::info!(%address, %health_address, "listening");
    Ok(Ingest { address, health_address, tasks })
}

fn say_who_may_call(settings: &Settings) {
    if settings.insecure && settings.clients.is_empty() {
        tracing::warn!(
            event = "insecure",
            "insecure: without a key, everybody who reaches ingest may post, read bodies, cancel, replay and purge"
        );
    } else if settings.clients.is_empty() {
        tracing::info!(
            "no client is configured: everybody who reaches ingest may post, and this machine may manage"
        );
    }
}

/// Listens, and says where: the port may be any.
fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As `TcpListener::bind` does: a restart does not wait for connections of the last run to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// What all parts stand on.
struct Parts {
    settings: Settings,
    topics: Topics,
    keys: Keys,
    unseen: Option<Unseen>,
    store: Store,
    /// The same database, apart.
    management: Store,
    producer: Producer,
    window: Arc<Window>,
    alarm: Arc<Alarm>,
    recording: Pulse,
    broker: Broker,
    clock: Clock,
    shutdown: Shutdown,
    meter: Meter,
    metrics: Metrics,
}

impl Parts {
    async fn connect(
        settings: Settings,
        broker: Broker,
        clock: Clock,
        shutdown: Shutdown,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let topics = Topics::new(&settings.kafka.prefix);
        let keys = Keys::new(settings.kafka.signing_key(), settings.kafka.accepted_key());
        let routes = settings.routes.values().map(|route| route.topic.as_str());
        let names = routes.chain(topics.all()).map(ToOwned::to_owned).collect();
        let topics_are_there = topics::see_to(settings.kafka.clone(), names).map_err(StartError::from);
        let (store, unseen) = tokio::try_join!(store(&settings, meter), topics_are_there)?;
        if broker == Broker::Forgetful {
            deliveries::make_published_due(store.connection(), clock.now()).await?;
        }
        let name = format!("{}-ingest-producer", settings.kafka.prefix);
        let producer = Producer::new(&settings.kafka, &name, meter)?;
        let unacknowledged = settings.ingest.unacknowledged.get() as usize;
        let window = Window::within(producer.queue(), unacknowledged, broker, settings.ingest.patience);
        let alarm = Arc::default();
        let (connections, longest) = MANAGEMENT;
        let management = store.apart("throughline.management", connections, longest);
        let (meter, metrics) = (meter.clone(), Metrics::new(meter));
        Ok(Self {
            settings,
            topics,
            keys,
            unseen,
            store,
            management,
            producer,
            window: Arc::new(window),
            alarm,
            recording: Pulse::default(),
            broker,
            clock,
            shutdown,
            meter,
            metrics,
        })
    }

    async fn assemble(self, clients: TcpListener, health_checks: TcpListener) -> Result<Tasks, StartError> {
        let holder = holder(&self.clock);
        let term = self.settings.ingest.node_lease;
        // It is asked three times in a term.
        let renewals = self.store.apart("throughline.lease", 1, term / 3);
        let lease = node::acquire(&renewals, &self.settings, &holder).await?;
        let all_is_out = CancellationToken::new();

        let (publisher, remover, handover) = publisher(
            self.publisher_terms(&lease),
            self.store.clone(),
            self.dead_letters(),
            Arc::clone(&self.window),
        );
        let gate = publisher.gate();
        let terms = self.writer_terms();
        let (writer, recorder) = (terms.pulse.clone(), self.recording.clone());
        let liveness = Liveness { lease: lease.clone(), writer, recorder };
        let (queue, writer) =
            Writer::new(self.store.clone(), lease.clone(), self.clock.clone(), terms, handover);
        let intakes = intakes(&self.settings, &queue)?;
        drop(queue);

        let health = Arc::new(self.health(liveness));
        let router = router(&self.settings, &intakes, &self.desk(), Arc::clone(&health), &self.meter);
        let adopter = self.adopter(intakes)?;
        let recorder = self.recorder()?;
        let seeker = self.seeker()?;
        let (sweeper, expirer, replayer) = (self.sweeper(), self.expirer(), self.replayer());
        let sampler = self.sampler(&lease);

        // Everything is there: from here on nothing fails.
        let mut tasks = Tasks::new(self.shutdown.clone());
        let http = &self.settings.http;
        let bounds = Bounds::of_clients(http.connections_per_address.get() as usize, 2 * http.timeout);
        let all_answered = CancellationToken::new();
        let answering = all_answered.clone().drop_guard();
        let server = serve(bounds, clients, router, self.shutdown.soft().clone());
        // Answered until all that was accepted is published, or left to the next one.
        let health = health_router(health);
        tasks.spawn("health", serve(Bounds::of_health_checks(), health_checks, health, all_is_out.clone()));
        tasks.spawn("http server", async move {
            let _answering = answering;
            server.await
        });
        tasks.spawn("adopter", adopter.run());
        tasks.spawn("writer", writer.run(all_answered));
        tasks.spawn("publisher", publisher.run());
        let done = all_is_out.clone().drop_guard();
        tasks.spawn("outbox remover", async move {
            let _done = done;
            remover.await
        });
        tasks.spawn("recorder", recorder.run());
        tasks.spawn("sweeper", sweeper.run());
        tasks.spawn("seeker of what is lost", seeker.run());
        tasks.spawn("expirer", expirer.run());
        tasks.spawn("replayer", replayer.run());
        tasks.spawn("sampler", sampler.run());
        if let Some(unseen) = self.unseen {
            tasks.spawn("topics", unseen.run(self.shutdown.soft().clone()));
        }
        let (store, clock, stop) = (self.store.clone(), self.clock, self.shutdown.soft().clone());
        tasks.spawn("expired keys", ExpiredKeys { store, clock, stop }.run());
        let keeper = Keeper { store: self.store, renewals, lease, holder, term, gate, done: all_is_out };
        tasks.spawn("node lease", keeper.run());
        Ok(tasks)
    }

    /// Readiness asks on the connections of the writer: it says whether that can commit.
    fn health(&self, liveness: Liveness) -> Health {
        let (store, producer) = (self.store.clone(), self.producer.clone());
        Health::new(store, producer, liveness, self.clock.clone(), self.shutdown.soft().clone())
    }

    fn desk(&self) -> Desk {
        Desk {
            store: self.management.clone(),
            clock: self.clock.clone(),
            alarm: Arc::clone(&self.alarm),
            metrics: self.metrics.clone(),
        }
    }

    fn publisher_terms(&self, lease: &node::Lease) -> publisher::Terms {
        let routes = self.settings.routes.iter();
        let topics: BTreeMap<_, _> =
            routes.map(|(name, route)| (name.clone(), route.topic.clone())).collect();
        publisher::Terms {
            lease: lease.clone(),
            topics,
            keys: self.keys.clone(),
            page_rows: PAGE_ROWS,
            page_bytes: PAGE_BYTES,
            patience: delta(self.settings.ingest.patience),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            hard: self.shutdown.hard().clone(),
        }
    }

    fn writer_terms(&self) -> writer::Terms {
        let ingest = &self.settings.ingest;
        writer::Terms {
            batch: ingest.batch.get() as usize,
            queue: ingest.queue.get() as usize,
            body_limit: self.settings.http.body_limit.as_u64(),
            deadline: self.settings.http.timeout,
            idempotency_window: delta(ingest.idempotency_window),
            patience: delta(ingest.patience),
            metrics: self.metrics.clone(),
            pulse: Pulse::default(),
        }
    }

    fn consumer(&self, role: &str, topic: &str, records: usize) -> Result<Consumer, StartError> {
        let group = format!("{}-{role}", self.settings.kafka.prefix);
        let bounds = ConsumerBounds::records(records).bytes(HELD_BYTES);
        Ok(Consumer::subscribe(&self.settings.kafka, &group, &[topic], bounds, &self.meter)?)
    }

    fn dead_letters(&self) -> DeadLetters {
        DeadLetters {
            producer: self.producer.clone(),
            topics: self.topics.clone(),
            metrics: self.metrics.clone(),
            hard: self.shutdown.hard().clone(),
        }
    }

    fn adopter(&self, intakes: crate::intake::Intakes) -> Result<Adopter, StartError> {
        Ok(Adopter {
            consumer: self.consumer("adopter", &self.topics.adoptions, adopter::BATCH)?,
            intakes,
            dead_letters: self.dead_letters(),
            keys: self.keys.clone(),
            shutdown: self.shutdown.clone(),
        })
    }

    fn recorder(&self) -> Result<Recorder, StartError> {
        Ok(Recorder {
            consumer: self.consumer("recorder", &self.topics.outcomes, OUTCOMES)?,
            store: self.store.clone(),
            clock: self.clock.clone(),
            window: Arc::clone(&self.window),
            alarm: Arc::clone(&self.alarm),
            metrics: self.metrics.clone(),
            dead_letters: self.dead_letters(),
            keys: self.keys.clone(),
            broker: self.broker,
            pulse: self.recording.clone(),
            shutdown: self.shutdown.clone(),
        })
    }

    fn sampler(&self, lease: &node::Lease) -> Sampler {
        let destinations = self.settings.destinations.keys().cloned().collect();
        // A connection of its own: samples wait for nothing else, and nothing else waits for them.
        let store = self.store.apart("throughline.sampling", 1, sampler::LONGEST);
        let clock = self.clock.clone();
        let (node, ids) = (lease.node(), self.settings.ingest.node_ids);
        Sampler::new(store, clock, node, ids, destinations, self.shutdown.clone(), &self.meter)
    }

    fn resender(&self) -> Resender {
        Resender {
            store: self.store.clone(),
            dead_letters: self.dead_letters(),
            keys: self.keys.clone(),
            clock: self.clock.clone(),
            patience: delta(self.settings.ingest.patience),
            window: Arc::clone(&self.window),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper { resender: self.resender(), alarm: Arc::clone(&self.alarm) }
    }

    fn seeker(&self) -> Result<Seeker, StartError> {
        let Settings { kafka, routes, .. } = &self.settings;
        let groups = match self.broker {
            Broker::Durable => {
                let routes = routes.values().map(|route| route.topic.clone());
                let published = routes.chain([self.topics.retries.clone()]).collect();
                Some(Groups::new(kafka, published, self.topics.outcomes.clone())?)
            }
            Broker::Forgetful => None,
        };
        Ok(Seeker { resender: self.resender(), listener: Listener::new(groups, self.clock.clone()) })
    }

    fn expirer(&self) -> Expirer {
        let destinations = self.settings.destinations.iter();
        Expirer {
            store: self.store.clone(),
            dead_letters: self.dead_letters(),
            clock: self.clock.clone(),
            windows: destinations.map(|(name, it)| (name.clone(), it.retry.window)).collect(),
            alarm: Arc::clone(&self.alarm),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn replayer(&self) -> Replayer {
        Replayer {
            store: self.store.clone(),
            clock: self.clock.clone(),
            alarm: Arc::clone(&self.alarm),
            shutdown: self.shutdown.clone(),
        }
    }
}

/// The database, with a schema that fits.
async fn store(settings: &Settings, meter: &Meter) -> Result<Store, StartError> {
    let store = Store::connect(&settings.database, meter).await?;
    if settings.database.migrate {
        store.migrate().await?;
    }
    store.check_schema().await?;
    Ok(store)
}

/// Names this process among the holders of node ids.
fn holder(clock: &Clock) -> String {
    let host = gethostname::gethostname();
    format!("{}/{}/{}", host.to_string_lossy(), std::process::id(), clock.now().timestamp_micros())
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
