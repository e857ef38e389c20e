//! The sweeper alone, step by step, with an ingest and a dispatch that the test plays.

use anyhow::ensure;
use chrono::TimeDelta;
use throughline_config::{Database, Kafka, Secret};
use throughline_kafka::{Consumer, EmbeddedBroker, Producer};
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, ErrorClass, Failure, Keys, Kind, Outcome, Topics};
use throughline_snowflake::{Generator, NodeId, RequestId};
use throughline_store::{claims, outbox, outcomes, requests};
use throughline_testkit::{eventually, new_request, unmeasured};

use super::resend::BATCH;
use super::*;
use crate::Broker;
use crate::listener::{Groups, Listener};
use crate::publisher::{Window, outgoing};
use crate::refusals::DeadLetters;

/// For whatever is to happen; it happens within a second, but for a group's first member, who waits three.
const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "one-requests";
/// Fewer than are claimed at once.
const WINDOW: usize = 9;
const PATIENCE: TimeDelta = TimeDelta::minutes(15);

struct Floor {
    _folder: tempfile::TempDir,
    _broker: EmbeddedBroker,
    kafka: Kafka,
    clock: Clock,
    ids: Generator,
    sweeper: Sweeper,
    seeker: Seeker,
}

impl Floor {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Secret::from(format!("sqlite://{}", folder.path().join("throughline.db").display()));
        let store = Store::connect(&Database { url, ..Database::default() }, &unmeasured()).await.unwrap();
        store.migrate().await.unwrap();
        let broker = EmbeddedBroker::start(1).unwrap();
        let topics = Topics::new("throughline");
        broker.create_topics(&[TOPIC, &topics.retries, &topics.outcomes]).unwrap();
        let mut kafka = Kafka { bootstrap_servers: broker.bootstrap_servers(), ..Kafka::default() };
        // The embedded broker has a group whose last member left wait that long for another one.
        for (name, value) in [("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "500")] {
            kafka.properties.insert(name.to_owned(), Secret::from(value));
        }
        let clock = Clock::manual(Clock::system().now());
        let published = vec![TOPIC.to_owned(), topics.retries.clone()];
        let groups = Groups::new(&kafka, published, topics.outcomes.clone()).unwrap();
        let shutdown = Shutdown::new();
        let producer = Producer::new(&kafka, "test", &unmeasured()).unwrap();
        let metrics = Metrics::new(&unmeasured());
        let resender = Resender {
            store,
            dead_letters: DeadLetters {
                producer,
                topics,
                metrics: metrics.clone(),
                hard: shutdown.hard().clone(),
            },
            keys: Keys::new("key", None),
            clock: clock.clone(),
            patience: PATIENCE,
            window: Arc::new(Window::new(WINDOW, 1 << 20, Broker::Durable, SOON)),
            metrics,
            shutdown,
        };
        let sweeper = Sweeper { resender: resender.clone(), alarm: Arc::default() };
        let seeker = Seeker { resender, listener: Listener::new(Some(groups), clock.clone()) };
        let ids = Generator::new(NodeId::try_from(7).unwrap(), clock.clone(), DateTime::UNIX_EPOCH);
        Self { _folder: folder, _broker: broker, kafka, clock, ids, sweeper, seeker }
    }

    /// Accepts a request, and publishes it.
    async fn publish(&self) -> RequestId {
        let request = new_request(self.ids.generate(), self.clock.now());
        let id = request.id;
        let store = &self.sweeper.resender.store;
        let lease = throughline_testkit::leased(store, id.node()).await.unwrap();
        let transaction = store.begin().await.unwrap();
        requests::insert(&transaction, &lease, std::slice::from_ref(&request)).await.unwrap();
        transaction.commit().await.unwrap();
        let signature = (&self.sweeper.resender.keys, Kind::Request);
        let (record, _span) = outgoing(TOPIC, request.into(), signature, |record| record.to_headers());
        self.sweeper.resender.dead_letters.producer.send(&record).await.unwrap();
        outbox::remove(store.connection(), &[id]).await.unwrap();
        id
    }

    /// Has dispatch say of a request that its delivery is to be tried again now.
    async fn fail(&self, request_id: RequestId) {
        let now = self.clock.now();
        let failure = Failure { class: ErrorClass::ServerError, error: String::new() };
        let report = AttemptReport {
            request_id,
            destination: "three".to_owned(),
            attempt: 1,
            called: true,
            spent: 1,
            started_at: now,
            duration_ms: 0,
            trace_id: None,
            origin: None,
            status: Some(503),
            response_excerpt: None,
            outcome: Outcome::Retry { due_at: Some(now), failure },
        };
        outcomes::record(self.sweeper.resender.store.connection(), &[report], now).await.unwrap();
    }

    /// Finishes so many records as dispatch does, without a word about them.
    async fn dispatch(&self, count: usize) {
        let topics = [TOPIC, &self.sweeper.resender.dead_letters.topics.retries];
        let mut dispatch =
            Consumer::subscribe(&self.kafka, "throughline-dispatch", &topics, 9, &unmeasured()).unwrap();
        for _ in 0..count {
            let received = timeout(SOON, dispatch.recv()).await.expect("a record soon");
            received.expect("the consumer goes on").receipt.done();
        }
        dispatch.close(SOON).await.unwrap();
    }

    /// How many are published, all that is silent included.
    async fn sweep(&mut self) -> usize {
        self.sweeper.step(false).await.unwrap() + self.seeker.step(false).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dispatch_has_not_come_to_is_not_lost_when_the_clock_steps_forward() {
    let mut floor = Floor::new().await;
    floor.publish().await;
    floor.clock.advance(TimeDelta::hours(1));
    assert_eq!(floor.sweep().await, 0);
    floor.dispatch(1).await;
    assert_eq!(floor.sweep().await, 1, "nobody spoke of it");
    assert_eq!(floor.sweep().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_after_the_clock_stepped_back_is_not_lost() {
    let mut floor = Floor::new().await;
    for _ in 0..=BATCH {
        floor.publish().await;
    }
    floor.dispatch(65).await;
    floor.clock.advance(TimeDelta::hours(1));
    assert_eq!(floor.sweep().await, 64, "there is one more");
    floor.clock.advance(TimeDelta::hours(-1));
    floor.publish().await;
    floor.clock.advance(TimeDelta::minutes(20));
    // By now both are due, and only one was before the step.
    assert_eq!(floor.sweep().await, 0);
    floor.dispatch(64 + 1).await;
    assert_eq!(floor.sweep().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_published_when_it_is_told_to_stop_is_seen_through() {
    let floor = Floor::new().await;
    floor.fail(floor.publish().await).await;
    let Floor { _folder, _broker: broker, clock, sweeper, .. } = floor;
    let Resender { store, window, shutdown, .. } = sweeper.resender.clone();
    broker.down().unwrap();
    let running = tokio::spawn(sweeper.run());
    let is_under_way = async || {
        ensure!(!window.is_free());
        Ok(())
    };
    eventually("a delivery to be on its way", SOON, is_under_way).await.unwrap();
    shutdown.begin();
    broker.up().unwrap();
    let Ok(()) = timeout(SOON, running).await.expect("it ends").unwrap();
    let left = claims::claim_due(&store, Due::Planned, clock.now(), BATCH).await.unwrap().take();
    assert!(left.is_empty(), "whoever comes next publishes again: {left:?}");
}
