//! Wires the parts of the service together.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_destination::http::token_client;
use throughline_kafka::{Bounds, Claim, Consumer, KafkaError, Pool, Producer, Record, ensure_topics};
use throughline_lifecycle::{Shutdown, TaskFailed, Tasks};
use throughline_messages::{Keys, Topics};
use throughline_settings::Settings;
use throughline_token::Tokens;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::error::StartError;
use crate::fair_share::{Budget, Budgets};
use crate::health::{self, Readiness};
use crate::metrics::{self, Metrics};
use crate::processor::Processor;
use crate::pulse::Pulse;
use crate::recent::Recent;
use crate::reporter::Reporter;
use crate::routing::Routing;

/// Records in memory for each call that may be in progress: most of them wait for others of their key.
const RECORDS_PER_CALL: usize = 16;

/// Bytes of records in memory, shared by all destinations: enough for many records of common size and for some of the
/// largest.
const RECORD_BYTES: usize = 64 * 1024 * 1024;

/// Time that a record in progress takes in addition to its call: for its filter, and for the acknowledgement of its
/// outcome.
const BESIDES_CALL: Duration = Duration::from_secs(10);

/// How long the broker may take to list and create topics before the start fails.
const TOPICS_DEADLINE: Duration = Duration::from_secs(30);

/// Deadline of the final flush. Every outcome was acknowledged before its record was finished, so only the disconnect
/// from the broker remains.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// A running dispatch.
pub struct Dispatch {
    address: SocketAddr,
    tasks: Tasks,
}

impl Dispatch {
    /// Returns the address on which `/healthz` and `/readyz` answer.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until dispatch has ended: records in progress are finished and reported, offsets are committed, and the
    /// consumer has left the group.
    ///
    /// # Errors
    /// If a part of the service failed, or did not end before it was forced to.
    pub async fn join(self) -> Result<(), TaskFailed> {
        self.tasks.join().await
    }
}

/// Starts dispatch, which processes records until `shutdown` begins. Its metrics are recorded with `meter`.
///
/// # Errors
/// [`StartError`] if the configuration, the address or the broker cannot be used.
pub async fn start(
    settings: Settings,
    clock: Clock,
    shutdown: Shutdown,
    meter: &Meter,
) -> Result<Dispatch, StartError> {
    let topics = Topics::new(&settings.kafka.prefix);
    let group = format!("{}-dispatch", settings.kafka.prefix);
    let calls = usize::try_from(settings.dispatch.concurrency.get()).unwrap_or(usize::MAX);
    let records = calls.saturating_mul(RECORDS_PER_CALL);
    let budgets = Budgets {
        work: Budget::new(calls),
        // The remainder is for deliveries that wait; those in work have their own budget.
        waiting: Budget::new(records.saturating_sub(calls)),
        bytes: Budget::new(RECORD_BYTES),
    };
    let pulse = Arc::<Pulse>::default();
    let tokens = Tokens::new(token_client().map_err(StartError::TokenClient)?);
    let routing = Routing::new(&settings, (&budgets, &pulse), &tokens, &clock, meter)?;
    metrics::observe(meter, &routing);

    let configured = settings.dispatch.address;
    let listen_error = |source| StartError::Listen { address: configured, source };
    let listener = TcpListener::bind(configured).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;

    let name = format!("{}-dispatch-producer", settings.kafka.prefix);
    let producer = Producer::new(&settings.kafka, &name, meter)?;
    let consumer = subscribe(&settings, &topics, &group, calls, meter).await?;
    let keys = Keys::new(settings.kafka.signing_key(), settings.kafka.accepted_key());
    let readiness = Readiness::new(producer.clone(), shutdown.soft().clone());
    let processor = Processor {
        routing,
        reporter: Reporter::new(producer.clone(), topics.clone(), keys.clone()),
        keys,
        metrics: Metrics::new(meter),
        recent: Recent::default(),
        clock,
        retries: topics.retries,
        group,
    };

    let mut tasks = Tasks::new(shutdown.clone());
    // The health endpoints answer until the consumer has ended, whether it succeeds or fails.
    let finished = CancellationToken::new();
    let finishing = finished.clone().drop_guard();
    tasks.spawn("consumer", async move {
        let _finishing = finishing;
        work_off(consumer, Pool::new(records), processor, &shutdown).await?;
        producer.flush(FLUSH_DEADLINE).await
    });
    tasks.spawn("pulse", {
        let finished = finished.clone();
        async move {
            finished.run_until_cancelled(pulse.beat()).await;
            Ok::<_, Infallible>(())
        }
    });
    tasks.spawn("health", async move {
        axum::serve(listener, health::router(readiness))
            .with_graceful_shutdown(finished.cancelled_owned())
            .await
    });
    info!(event = "program.started", %address, "listening");
    Ok(Dispatch { address, tasks })
}

/// Ensures that all topics exist, and joins the group that consumes the routes' topics and the retries topic.
async fn subscribe(
    settings: &Settings,
    topics: &Topics,
    group: &str,
    buffer: usize,
    meter: &Meter,
) -> Result<Consumer, KafkaError> {
    let mut subscribed: BTreeSet<&str> = settings.routes.values().map(|route| route.topic.as_str()).collect();
    subscribed.insert(&topics.retries);
    let needed: BTreeSet<&str> = subscribed.iter().copied().chain(topics.all()).collect();
    ensure_topics(&settings.kafka, &Vec::from_iter(needed), TOPICS_DEADLINE).await?;
    let longest_call = settings.destinations.values().map(|destination| destination.timeout).max();
    let bounds = Bounds::records(buffer)
        .bytes(RECORD_BYTES)
        .drain(longest_call.unwrap_or_default().saturating_add(BESIDES_CALL));
    Consumer::subscribe(&settings.kafka, group, &Vec::from_iter(subscribed), bounds, meter)
}

/// Processes records until shutdown begins, then finishes those in progress and leaves the group.
async fn work_off(
    consumer: Consumer,
    pool: Pool,
    processor: Processor,
    shutdown: &Shutdown,
) -> Result<(), KafkaError> {
    let processor = Arc::new(processor);
    let handler = |record: Record, claim: Claim| {
        let task = processor.admit(record, claim);
        let processor = Arc::clone(&processor);
        async move { processor.process(task).await }
    };
    pool.run(consumer, handler, shutdown.soft(), shutdown.hard()).await
}
