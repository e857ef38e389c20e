//! The parts of ingest, and their shared dependencies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::TryFutureExt as _;
use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_kafka::{Bounds as ConsumerBounds, Consumer, Producer};
use throughline_lifecycle::{Shutdown, Tasks};
use throughline_messages::{Keys, Topics};
use throughline_settings::Settings;
use throughline_store::{Store, deliveries};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Broker;
use crate::accept::{Acceptors, Clients, acceptors};
use crate::error::StartError;
use crate::expired_keys::ExpiredKeys;
use crate::http::{Bounds, Health, health_router, router, serve};
use crate::liveness::{Liveness, Pulse};
use crate::loss_detector::{ConsumerProgress, LossDetector};
use crate::management;
use crate::metrics::Metrics;
use crate::node::{self, LeaseKeeper};
use crate::publisher::{self, InFlightLimit, publisher};
use crate::recorder::Recorder;
use crate::refusals::DeadLetters;
use crate::sampler::{self, Sampler};
use crate::sources::adoption::{self, Adopter};
use crate::sources::http::endpoints;
use crate::sweeper::{Expirer, Operations, Replayer, Republisher, Resender, Sweeper, Wake};
use crate::topics::{self, PendingTopics};
use crate::writer::{self, Writer};

/// Maximum number of rows in one page of the outbox, and of bytes of bodies that the page brings into memory.
const PAGE_ROWS: u64 = 512;
const PAGE_BYTES: u64 = 16 << 20;
/// Maximum number of outcomes that wait in memory: two batches.
const OUTCOMES: usize = 1024;
/// Maximum number of bytes of outcomes in memory, and of foreign records: enough for some of the largest ones.
const HELD_BYTES: usize = 32 << 20;
/// The number of connections for queries from `/v1`, and the timeout of each statement: they serve operators and
/// scripts, and must never delay a request or an outcome.
const MANAGEMENT: (u32, Duration) = (4, Duration::from_secs(5));

/// The dependencies that all parts share.
pub(crate) struct Parts {
    settings: Settings,
    topics: Topics,
    keys: Keys,
    unseen: Option<PendingTopics>,
    store: Store,
    /// The same database, on separate connections.
    management: Store,
    producer: Producer,
    in_flight: Arc<InFlightLimit>,
    wake: Arc<Wake>,
    recording: Pulse,
    broker: Broker,
    /// The clock of this machine; once there is a lease, never ahead of the database's clock. It decides about the
    /// deliveries, slow starts and keys of all ingests: an ingest with a clock that is ahead ends none of them early.
    clock: Clock,
    shutdown: Shutdown,
    meter: Meter,
    metrics: Metrics,
}

impl Parts {
    /// Connects to the database and to Kafka.
    ///
    /// # Errors
    /// [`StartError`], which names the change to make.
    pub(crate) async fn connect(
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
        let topics_are_there = topics::ensure(settings.kafka.clone(), names).map_err(StartError::from);
        let (store, unseen) = tokio::try_join!(store(&settings, meter), topics_are_there)?;
        if broker == Broker::Forgetful {
            deliveries::make_published_due(store.connection(), clock.now()).await?;
        }
        let name = format!("{}-ingest-producer", settings.kafka.prefix);
        let producer = Producer::new(&settings.kafka, &name, meter)?;
        let unacknowledged = settings.ingest.unacknowledged.get() as usize;
        let in_flight = InFlightLimit::within(
            producer.queue(),
            unacknowledged,
            broker,
            settings.ingest.redelivery_timeout,
        );
        let wake = Arc::default();
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
            in_flight: Arc::new(in_flight),
            wake,
            recording: Pulse::default(),
            broker,
            clock,
            shutdown,
            meter,
            metrics,
        })
    }

    /// Builds the parts and starts them.
    ///
    /// # Errors
    /// [`StartError`], which names the change to make.
    pub(crate) async fn assemble(
        mut self,
        clients: TcpListener,
        health_checks: TcpListener,
    ) -> Result<Tasks, StartError> {
        let holder = holder(&self.clock);
        let term = self.settings.ingest.node_lease;
        // The lease is renewed three times in a term.
        let renewals = self.store.apart("throughline.lease", 1, term / 3);
        let lease = node::acquire(&renewals, &self.settings, &holder).await?;
        // Request ids use the clock of this machine; the writer and the readiness check reject a clock that is too far
        // ahead.
        let local = self.clock.clone();
        self.clock = local.clone().bounded(lease.clone());
        let all_is_out = CancellationToken::new();

        let (publisher, outbox_cleaner, publish_queue) = publisher(
            self.publisher_context(&lease),
            self.store.clone(),
            self.dead_letters(),
            Arc::clone(&self.in_flight),
        );
        let queue_state = publisher.queue_state();
        let context = self.writer_context();
        let (writer, recorder) = (context.pulse.clone(), self.recording.clone());
        let liveness = Liveness { lease: lease.clone(), writer, recorder };
        let (queue, writer) =
            Writer::new(self.store.clone(), lease.clone(), local.clone(), context, publish_queue);
        let known = Clients::new(&self.settings);
        let acceptors = acceptors(&self.settings, known.as_ref(), &queue)?;
        // The writer ends after the last source, so only the sources may submit.
        drop(queue);

        let health = Arc::new(self.health(liveness, local));
        let endpoints = endpoints(&self.settings, &acceptors);
        let resources = management::resources(&self.settings, &self.operations());
        let router =
            router(&self.settings, known.as_ref(), endpoints, resources, Arc::clone(&health), &self.meter);
        let adopter = self.adopter(acceptors)?;
        let recorder = self.recorder()?;
        let republisher = self.republisher()?;
        let (sweeper, expirer, replayer) = (self.sweeper(), self.expirer(), self.replayer());
        let sampler = self.sampler(&lease);

        // All parts exist: from here on, no step can fail.
        let mut tasks = Tasks::new(self.shutdown.clone());
        let http = &self.settings.http;
        let bounds = Bounds::of_clients(http.connections_per_address.get() as usize, 2 * http.timeout);
        let server = serve(bounds, clients, router, self.shutdown.soft().clone());
        // Health checks are answered until all accepted requests are published or left to the next owner.
        let health = health_router(health);
        tasks.spawn("health", serve(Bounds::of_health_checks(), health_checks, health, all_is_out.clone()));
        tasks.spawn("http server", server);
        tasks.spawn("adopter", adopter.run());
        tasks.spawn("writer", writer.run());
        tasks.spawn("publisher", publisher.run());
        let done = all_is_out.clone().drop_guard();
        tasks.spawn("outbox cleaner", async move {
            let _done = done;
            outbox_cleaner.await
        });
        tasks.spawn("recorder", recorder.run());
        tasks.spawn("sweeper", sweeper.run());
        tasks.spawn("republisher", republisher.run());
        tasks.spawn("expirer", expirer.run());
        tasks.spawn("replayer", replayer.run());
        tasks.spawn("sampler", sampler.run());
        if let Some(unseen) = self.unseen {
            tasks.spawn("topics", unseen.run(self.shutdown.soft().clone()));
        }
        let (store, clock, stop) = (self.store.clone(), self.clock, self.shutdown.soft().clone());
        tasks.spawn("expired keys", ExpiredKeys { store, clock, stop }.run());
        let lease_keeper =
            LeaseKeeper { store: self.store, renewals, lease, holder, term, queue_state, done: all_is_out };
        tasks.spawn("node lease", lease_keeper.run());
        Ok(tasks)
    }

    /// The readiness check uses the writer's connections, so it reports whether the writer can commit.
    fn health(&self, liveness: Liveness, local: Clock) -> Health {
        let (store, producer) = (self.store.clone(), self.producer.clone());
        Health::new(store, producer, liveness, local, self.shutdown.soft().clone())
    }

    fn operations(&self) -> Operations {
        Operations {
            store: self.management.clone(),
            clock: self.clock.clone(),
            wake: Arc::clone(&self.wake),
            metrics: self.metrics.clone(),
        }
    }

    fn publisher_context(&self, lease: &node::Lease) -> publisher::Context {
        let routes = self.settings.routes.iter();
        let topics: BTreeMap<_, _> =
            routes.map(|(name, route)| (name.clone(), route.topic.clone())).collect();
        publisher::Context {
            lease: lease.clone(),
            topics,
            keys: self.keys.clone(),
            page_rows: PAGE_ROWS,
            page_bytes: PAGE_BYTES,
            redelivery_timeout: delta(self.settings.ingest.redelivery_timeout),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            hard: self.shutdown.hard().clone(),
        }
    }

    fn writer_context(&self) -> writer::Context {
        let ingest = &self.settings.ingest;
        writer::Context {
            batch: ingest.batch.get() as usize,
            queue: ingest.queue.get() as usize,
            body_limit: self.settings.http.body_limit.as_u64(),
            deadline: self.settings.http.timeout,
            idempotency_window: delta(ingest.idempotency_window),
            redelivery_timeout: delta(ingest.redelivery_timeout),
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

    fn adopter(&self, acceptors: Acceptors) -> Result<Adopter, StartError> {
        Ok(Adopter {
            consumer: self.consumer("adopter", &self.topics.adoptions, adoption::BATCH)?,
            acceptors,
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
            in_flight: Arc::clone(&self.in_flight),
            wake: Arc::clone(&self.wake),
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
        // A separate connection: samples and other statements never wait for each other.
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
            redelivery_timeout: delta(self.settings.ingest.redelivery_timeout),
            in_flight: Arc::clone(&self.in_flight),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper { resender: self.resender(), wake: Arc::clone(&self.wake) }
    }

    fn republisher(&self) -> Result<Republisher, StartError> {
        let Settings { kafka, routes, .. } = &self.settings;
        let groups = match self.broker {
            Broker::Durable => {
                let routes = routes.values().map(|route| route.topic.clone());
                let published = routes.chain([self.topics.retries.clone()]).collect();
                Some(ConsumerProgress::new(kafka, published, self.topics.outcomes.clone())?)
            }
            Broker::Forgetful => None,
        };
        Ok(Republisher {
            resender: self.resender(),
            loss_detector: LossDetector::new(groups, self.clock.clone()),
        })
    }

    fn expirer(&self) -> Expirer {
        let destinations = self.settings.destinations.iter();
        Expirer {
            store: self.store.clone(),
            dead_letters: self.dead_letters(),
            clock: self.clock.clone(),
            windows: destinations.map(|(name, it)| (name.clone(), it.retry.window)).collect(),
            wake: Arc::clone(&self.wake),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn replayer(&self) -> Replayer {
        Replayer {
            store: self.store.clone(),
            clock: self.clock.clone(),
            wake: Arc::clone(&self.wake),
            shutdown: self.shutdown.clone(),
        }
    }
}

/// Connects to the database and checks that its schema fits.
async fn store(settings: &Settings, meter: &Meter) -> Result<Store, StartError> {
    let store = Store::connect(&settings.database, meter).await?;
    if settings.database.migrate {
        store.migrate().await?;
    }
    store.check_schema().await?;
    Ok(store)
}

/// Returns the name of this process among the holders of node ids.
fn holder(clock: &Clock) -> String {
    let host = gethostname::gethostname();
    format!("{}/{}/{}", host.to_string_lossy(), std::process::id(), clock.now().timestamp_micros())
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}
