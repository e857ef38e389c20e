//! The sweeper alone, step by step, with an ingest and a dispatch that the test simulates.

use anyhow::ensure;
use chrono::TimeDelta;
use throughline_config::Secret;
use throughline_kafka as kafka;
use throughline_kafka::{Consumer, EmbeddedBroker, Outgoing, Producer};
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, DeferralCause, ErrorClass, Failure, Keys, Kind, Outcome, Topics};
use throughline_snowflake::{Generator, NodeId, RequestId};
use throughline_store::{ConnectionTrait as _, claims, outbox, outcomes, requests};
use throughline_testkit::{eventually, new_request, sqlite, unmeasured};

use super::resend::BATCH;
use super::*;
use crate::Broker;
use crate::loss_detector::{ConsumerProgress, LossDetector};
use crate::publisher::{InFlightLimit, outgoing};
use crate::refusals::DeadLetters;

/// Maximum time to wait for any condition, which holds within a second; the first member of a group waits three.
const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "one-requests";
/// Fewer than are claimed at once.
const IN_FLIGHT_LIMIT: usize = 9;
const REDELIVERY_TIMEOUT: TimeDelta = TimeDelta::minutes(15);

struct Harness {
    _folder: tempfile::TempDir,
    broker: EmbeddedBroker,
    kafka: kafka::Settings,
    clock: Clock,
    ids: Generator,
    sweeper: Sweeper,
    republisher: Republisher,
}

impl Harness {
    async fn new() -> Self {
        Self::with(1).await
    }

    /// Starts with this number of partitions per topic.
    async fn with(partitions: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
        let broker = EmbeddedBroker::start(partitions).unwrap();
        let topics = Topics::new("throughline");
        broker.create_topics(&[TOPIC, &topics.retries, &topics.outcomes, &topics.dead_letters]).unwrap();
        let mut kafka =
            kafka::Settings { bootstrap_servers: broker.bootstrap_servers(), ..kafka::Settings::default() };
        // After the last member of a group has left, the embedded broker makes the next member wait for this time.
        for (name, value) in [("session.timeout.ms", "3000"), ("heartbeat.interval.ms", "500")] {
            kafka.properties.insert(name.to_owned(), Secret::from(value));
        }
        let clock = Clock::manual(Clock::system().now());
        let published = vec![TOPIC.to_owned(), topics.retries.clone()];
        let groups = ConsumerProgress::new(&kafka, published, topics.outcomes.clone()).unwrap();
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
            redelivery_timeout: REDELIVERY_TIMEOUT,
            in_flight: Arc::new(InFlightLimit::new(IN_FLIGHT_LIMIT, 1 << 20, Broker::Durable, SOON)),
            metrics,
            shutdown,
        };
        let sweeper = Sweeper { resender: resender.clone(), wake: Arc::default() };
        let republisher =
            Republisher { resender, loss_detector: LossDetector::new(Some(groups), clock.clone()) };
        let ids = Generator::new(NodeId::try_from(7).unwrap(), clock.clone(), DateTime::UNIX_EPOCH);
        Self { _folder: folder, broker, kafka, clock, ids, sweeper, republisher }
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

    /// Records, as dispatch reports it, that a request's delivery is to be retried now.
    async fn fail(&self, request_id: RequestId) {
        let failure = Failure { class: ErrorClass::ServerError, error: String::new() };
        self.report(request_id, Outcome::Retry { due_at: Some(self.clock.now()), failure }).await;
    }

    /// Records an outcome of a request's delivery, as dispatch reports it.
    async fn report(&self, request_id: RequestId, outcome: Outcome) {
        let now = self.clock.now();
        let report = AttemptReport {
            request_id,
            destination: "three".to_owned(),
            attempt: 1,
            called: true,
            counted_attempts: 1,
            started_at: now,
            duration_ms: 0,
            trace_id: None,
            origin: None,
            status: Some(503),
            response_excerpt: None,
            outcome,
        };
        outcomes::record(self.sweeper.resender.store.connection(), &[report], now).await.unwrap();
    }

    /// Finishes `count` records as dispatch does, without reporting outcomes.
    async fn dispatch(&self, count: usize) {
        let topics = [TOPIC, &self.sweeper.resender.dead_letters.topics.retries];
        let mut dispatch =
            Consumer::subscribe(&self.kafka, "throughline-dispatch", &topics, 9, &unmeasured()).unwrap();
        for _ in 0..count {
            let received = timeout(SOON, dispatch.recv()).await.expect("a record soon");
            received.expect("the consumer continues").receipt.done();
        }
        dispatch.close(SOON).await.unwrap();
    }

    /// An expirer that gives each delivery a minute.
    fn expirer(&self) -> Expirer {
        let Resender { store, dead_letters, clock, metrics, shutdown, .. } = self.sweeper.resender.clone();
        let windows = [("three".to_owned(), Duration::from_mins(1))].into();
        Expirer { store, dead_letters, clock, windows, wake: Arc::default(), metrics, shutdown }
    }

    /// Accepts deliveries that wait for their destination, and advances the clock past their time window.
    async fn expire(&self, count: u64) {
        for _ in 0..count {
            let id = self.publish().await;
            let deferred = Outcome::Deferred { due_at: self.clock.now(), cause: DeferralCause::BreakerOpen };
            self.report(id, deferred).await;
        }
        self.clock.advance(TimeDelta::hours(1));
    }

    /// The number of deliveries that match a condition in SQL.
    async fn deliveries(&self, condition: &str) -> anyhow::Result<u64> {
        let sql = format!("UPDATE deliveries SET attempts = attempts WHERE {condition}");
        Ok(self.sweeper.resender.store.connection().execute_unprepared(&sql).await?.rows_affected())
    }

    /// The number of dead letters that the broker has accepted.
    async fn dead_letters(&self) -> i64 {
        let DeadLetters { topics, producer, .. } = &self.sweeper.resender.dead_letters;
        let topic = topics.dead_letters.clone();
        let next = Outgoing { topic, key: None, headers: Vec::new(), payload: "next".into() };
        producer.send(&next).await.unwrap().offset
    }

    /// Returns the number of published deliveries, including silent ones.
    async fn sweep(&mut self) -> usize {
        self.sweeper.step(false).await.unwrap() + self.republisher.step(false).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_dispatch_has_not_reached_is_not_lost_when_the_clock_steps_forward() {
    let mut harness = Harness::new().await;
    harness.publish().await;
    harness.clock.advance(TimeDelta::hours(1));
    assert_eq!(harness.sweep().await, 0);
    harness.dispatch(1).await;
    assert_eq!(harness.sweep().await, 1, "no outcome was reported");
    assert_eq!(harness.sweep().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_published_after_the_clock_stepped_back_is_not_lost() {
    let mut harness = Harness::new().await;
    for _ in 0..=BATCH {
        harness.publish().await;
    }
    harness.dispatch(65).await;
    harness.clock.advance(TimeDelta::hours(1));
    assert_eq!(harness.sweep().await, 64, "there is one more");
    harness.clock.advance(TimeDelta::hours(-1));
    harness.publish().await;
    harness.clock.advance(TimeDelta::minutes(20));
    // Both are due now, and only one was due before the step.
    assert_eq!(harness.sweep().await, 0);
    harness.dispatch(64 + 1).await;
    assert_eq!(harness.sweep().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_in_progress_complete_during_shutdown() {
    let harness = Harness::new().await;
    harness.fail(harness.publish().await).await;
    let Harness { _folder, broker, clock, sweeper, .. } = harness;
    let Resender { store, in_flight, shutdown, .. } = sweeper.resender.clone();
    broker.down().unwrap();
    let running = tokio::spawn(sweeper.run());
    let is_under_way = async || {
        ensure!(!in_flight.is_free());
        Ok(())
    };
    eventually("a delivery to be on its way", SOON, is_under_way).await.unwrap();
    shutdown.begin();
    broker.up().unwrap();
    let Ok(()) = timeout(SOON, running).await.expect("it ends").unwrap();
    let left = claims::claim_due(&store, Due::Planned, clock.now(), BATCH).await.unwrap().take();
    assert!(left.is_empty(), "the next ingest publishes again: {left:?}");
}

#[tokio::test]
async fn a_delivery_that_expires_while_the_broker_is_unreachable_has_one_dead_letter() {
    const EXPIRED: u64 = 3;
    let harness = Harness::new().await;
    harness.expire(EXPIRED).await;
    harness.broker.down().unwrap();
    let expirer = harness.expirer();
    let shutdown = expirer.shutdown.clone();
    let running = tokio::spawn(expirer.run());
    // Several times longer than a deadline of the broker and a rest of the expirer together.
    for _ in 0..3 {
        eventually("a claim", SOON, async || {
            ensure!(harness.deliveries("claimed_until IS NOT NULL").await? == EXPIRED);
            Ok(())
        })
        .await
        .unwrap();
        tokio::time::pause();
        tokio::time::advance(PUBLISH_DEADLINE + LONGEST_SLEEP).await;
        tokio::time::resume();
    }
    // The claim is renewed while the broker is down, so that no other ingest publishes the dead letters too.
    let first = "CREATE TABLE first AS SELECT max(claimed_until) AS until FROM deliveries";
    harness.sweeper.resender.store.connection().execute_unprepared(first).await.unwrap();
    eventually("a renewed claim", SOON, async || {
        ensure!(harness.deliveries("claimed_until > (SELECT until FROM first)").await? == EXPIRED);
        Ok(())
    })
    .await
    .unwrap();
    harness.broker.up().unwrap();
    eventually("an end", SOON, async || {
        ensure!(harness.deliveries("state = 'dead' AND reason = 'expired'").await? == EXPIRED);
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(harness.dead_letters().await, i64::try_from(EXPIRED).unwrap());
    shutdown.begin();
    let Ok(()) = running.await.unwrap();
}

#[tokio::test]
async fn dead_letters_whose_partition_has_no_leader_delay_no_other_deliveries() {
    // So that each partition has some of them.
    const EXPIRED: u64 = 12;
    let harness = Harness::with(2).await;
    let dead_letters = harness.sweeper.resender.dead_letters.topics.dead_letters.clone();
    harness.broker.lead(&dead_letters, 0, false).unwrap();
    harness.expire(EXPIRED).await;
    let expirer = harness.expirer();
    let shutdown = expirer.shutdown.clone();
    let running = tokio::spawn(expirer.run());
    let dead = async || harness.deliveries("state = 'dead' AND reason = 'expired'").await;
    let some_end = async |before: u64| {
        eventually("an end of some deliveries", SOON, async || {
            let dead = dead().await?;
            ensure!(dead > before, "{dead}");
            Ok(dead)
        })
        .await
        .unwrap()
    };
    let first = some_end(0).await;
    assert!(first < EXPIRED, "some wait for a leader");
    harness.expire(EXPIRED).await;
    let second = some_end(first).await;
    assert!(second < 2 * EXPIRED);
    harness.broker.lead(&dead_letters, 0, true).unwrap();
    eventually("an end of all deliveries", SOON, async || {
        ensure!(dead().await? == 2 * EXPIRED);
        Ok(())
    })
    .await
    .unwrap();
    shutdown.begin();
    let Ok(()) = running.await.unwrap();
}
