//! The publisher alone, with a writer that the test simulates.

use std::time::Duration;

use chrono::DateTime;
use throughline_api::DeliveryState;
use throughline_config::Secret;
use throughline_kafka as kafka;
use throughline_kafka::{Consumer, EmbeddedBroker, KafkaError, Outgoing};
use throughline_messages::{Keys, Kind, RequestRecord, Topics, name};
use throughline_snowflake::{Generator, NodeId};
use throughline_store::{NewRequest, OutboxRequest, requests};
use throughline_testkit::{Measured, new_request, sqlite, unmeasured};
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::Broker;
use crate::node::{self, Moment};

/// Maximum time to wait for any condition, which holds within a second.
const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "one-requests";
/// The last record that a test reads from the topic.
const LAST: &str = "last";

struct Harness {
    _folder: tempfile::TempDir,
    broker: Arc<EmbeddedBroker>,
    kafka: kafka::Settings,
    producer: Producer,
    store: Store,
    ids: Generator,
    node: NodeId,
    lease: Lease,
    in_flight: Arc<InFlightLimit>,
    queue_state: Arc<QueueState>,
    publish_queue: PublishQueue,
    measured: Measured,
    running: JoinHandle<Result<(), StoreError>>,
    emptying: JoinHandle<Result<(), StoreError>>,
}

impl Harness {
    /// Starts a publisher that follows the writer, with an in-flight limit of `in_flight` requests.
    async fn start(in_flight: usize, properties: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
        let broker = EmbeddedBroker::start(1).unwrap();
        let topics = Topics::new("throughline");
        broker.create_topics(&[TOPIC, &topics.dead_letters]).unwrap();
        let mut kafka =
            kafka::Settings { bootstrap_servers: broker.bootstrap_servers(), ..kafka::Settings::default() };
        let properties = properties.iter().map(|&(name, value)| (name.to_owned(), Secret::from(value)));
        kafka.properties.extend(properties);
        let lease = node::tests::lease();
        let node = lease.node();
        let measured = Measured::new();
        throughline_testkit::leased(&store, node).await.unwrap();
        lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
        let context = Context {
            lease: lease.clone(),
            topics: BTreeMap::from([("one".to_owned(), TOPIC.to_owned())]),
            keys: Keys::new("key", None),
            page_rows: 4,
            page_bytes: 1 << 20,
            redelivery_timeout: TimeDelta::minutes(15),
            clock: Clock::system(),
            metrics: Metrics::new(&measured.meter()),
            hard: CancellationToken::new(),
        };
        let in_flight = Arc::new(InFlightLimit::new(in_flight, 1 << 20, Broker::Durable, SOON));
        let (producer, hard) = (Producer::new(&kafka, "test", &unmeasured()).unwrap(), context.hard.clone());
        let metrics = context.metrics.clone();
        let dead_letters = DeadLetters { producer: producer.clone(), topics, metrics, hard };
        let (publisher, outbox_cleaner, publish_queue) =
            publisher(context, store.clone(), dead_letters, Arc::clone(&in_flight));
        let harness = Self {
            _folder: folder,
            broker: Arc::new(broker),
            kafka,
            producer,
            store,
            ids: Generator::new(node, Clock::system(), DateTime::UNIX_EPOCH),
            node,
            lease,
            in_flight,
            queue_state: publisher.queue_state(),
            publish_queue,
            measured,
            running: tokio::spawn(publisher.run()),
            emptying: tokio::spawn(outbox_cleaner),
        };
        harness.follows_the_writer().await;
        harness
    }

    async fn follows_the_writer(&self) {
        let follows = async {
            while *self.queue_state.source().await != ReadFrom::Memory {
                yield_now().await;
            }
        };
        timeout(SOON, follows).await.expect("the publisher finds the table empty");
    }

    /// Waits until a record is on its way to the broker.
    async fn published_something(&self) {
        let published = async {
            while self.in_flight.is_free() {
                yield_now().await;
            }
        };
        timeout(SOON, published).await.expect("the publisher looks into the table");
    }

    async fn all_is_acknowledged(&self) {
        let acknowledged = async {
            while !self.in_flight.is_free() {
                yield_now().await;
            }
        };
        timeout(SOON, acknowledged).await.expect("the broker acknowledges all");
    }

    /// Waits until the publisher has reported this source.
    async fn reports(&self, source: ReadFrom) {
        let reported = async {
            let mode = i32::from(source == ReadFrom::Table);
            while self.measured.value("throughline.publisher.mode", &[]).unwrap() != mode {
                yield_now().await;
            }
        };
        timeout(SOON, reported).await.unwrap_or_else(|_| panic!("the publisher reports {source:?}"));
    }

    fn request(&self, route: &str) -> NewRequest {
        let request = new_request(self.ids.generate(), Clock::system().now());
        NewRequest { route: route.to_owned(), ordering_key: Some("key".to_owned()), ..request }
    }

    async fn insert(&self, requests: &[NewRequest]) {
        let transaction = self.store.begin().await.unwrap();
        requests::insert(&transaction, self.lease.row(), requests).await.unwrap();
        transaction.commit().await.unwrap();
    }

    /// Commits as the writer does.
    async fn commit(&self, count: usize) -> Vec<RequestId> {
        self.commit_to("one", count).await
    }

    async fn commit_to(&self, route: &str, count: usize) -> Vec<RequestId> {
        let mut commit_guard = self.publish_queue.commit_guard().await;
        let requests: Vec<_> = (0..count).map(|_| self.request(route)).collect();
        self.insert(&requests).await;
        let ids = requests.iter().map(|request| request.id).collect();
        commit_guard.committed(requests.into_iter().map(OutboxRequest::from).collect());
        ids
    }

    /// Ends the writer; returns the requests that the publisher has published by its own end, in order. The table is
    /// empty then.
    async fn end(self) -> Vec<RequestId> {
        drop(self.publish_queue);
        timeout(SOON, self.running).await.expect("the publisher ends").unwrap().unwrap();
        timeout(SOON, self.emptying).await.expect("the outbox cleaner ends").unwrap().unwrap();
        let left = outbox::oldest(self.store.connection(), self.node).await.unwrap();
        assert_eq!(left, None, "left in the outbox");
        let headers = Vec::new();
        let last = Outgoing { topic: TOPIC.to_owned(), key: None, headers, payload: LAST.into() };
        Producer::new(&self.kafka, "test", &unmeasured()).unwrap().send(&last).await.unwrap();
        let mut consumer = Consumer::subscribe(&self.kafka, "test", &[TOPIC], 64, &unmeasured()).unwrap();
        let mut published = Vec::new();
        loop {
            let record = timeout(SOON, consumer.recv()).await.expect("a record").unwrap().record;
            if record.payload == LAST {
                return published;
            }
            published.push(RequestRecord::from_headers(&record.headers).unwrap().id);
        }
    }
}

#[tokio::test]
async fn requests_beyond_the_memory_are_published_even_if_the_writer_ends_immediately() {
    let harness = Harness::start(1, &[]).await;
    let request = harness.request("one");
    let id = request.id;
    harness.insert(std::slice::from_ref(&request)).await;
    let taken = harness.in_flight.try_acquire(harness.ids.generate(), 1).unwrap();
    let mut commit_guard = harness.publish_queue.commit_guard().await;
    commit_guard.committed(vec![request.into()]);
    drop(commit_guard);
    drop(taken);
    // No task has waited meanwhile, so the publisher learns of both at the same time.
    assert_eq!(harness.end().await, [id]);
}

#[tokio::test]
async fn requests_after_a_full_memory_do_not_overtake() {
    let harness = Harness::start(2, &[]).await;
    let mut committed = harness.commit(5).await;
    committed.extend(harness.commit(1).await);
    harness.follows_the_writer().await;
    committed.extend(harness.commit(1).await);
    assert_eq!(harness.end().await, committed);
}

#[tokio::test]
async fn it_returns_to_memory_while_the_writer_commits_continuously() {
    // Many times the number that it takes.
    const MOST_COMMITS: usize = 300;
    let harness = Harness::start(10, &[]).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        harness.all_is_acknowledged().await;
        let taken: Vec<_> =
            iter::from_fn(|| harness.in_flight.try_acquire(harness.ids.generate(), 1)).collect();
        let mut committed = harness.commit(1).await;
        assert_eq!(*harness.queue_state.source().await, ReadFrom::Table, "the in-flight limit is reached");
        drop(taken);
        while *harness.queue_state.source().await == ReadFrom::Table {
            assert!(committed.len() < MOST_COMMITS, "still in the table");
            committed.extend(harness.commit(1).await);
        }
        all.append(&mut committed);
    }
    assert_eq!(harness.end().await, all);
}

#[tokio::test]
async fn the_publisher_reports_its_source_of_commits() {
    let harness = Harness::start(10, &[]).await;
    harness.reports(ReadFrom::Memory).await;
    harness.lease.extend(Moment::now(), Duration::ZERO, Clock::system().now());
    let committed = harness.commit(1).await;
    harness.reports(ReadFrom::Table).await;
    harness.lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
    harness.reports(ReadFrom::Memory).await;
    assert_eq!(harness.end().await, committed);
}

#[tokio::test]
async fn requests_published_from_the_table_are_not_published_from_memory_too() {
    let harness = Harness::start(10, &[]).await;
    harness.broker.down().unwrap();
    let unspoken = harness.request("one");
    let mut expected = vec![unspoken.id];
    harness.insert(&[unspoken]).await;
    harness.queue_state.look_in_the_table();
    harness.published_something().await;
    expected.extend(harness.commit(3).await);
    harness.broker.up().unwrap();
    assert_eq!(harness.end().await, expected);
}

#[tokio::test]
async fn requests_committed_before_the_last_read_of_the_table_are_in_it() {
    let harness = Harness::start(10, &[]).await;
    harness.broker.down().unwrap();
    let unspoken = harness.request("one");
    let first = unspoken.id;
    harness.insert(&[unspoken]).await;
    harness.queue_state.look_in_the_table();
    harness.published_something().await;
    // The publisher waits for the broker, and then for this commit to end, before it reads the table for the last time.
    let mut commit_guard = harness.publish_queue.commit_guard().await;
    harness.broker.up().unwrap();
    let published =
        async { while outbox::oldest(harness.store.connection(), harness.node).await.unwrap().is_some() {} };
    timeout(SOON, published).await.expect("the first is published");
    // There is one connection: the publisher's own read, if there is one, comes before the last of these.
    for _ in 0..10 {
        outbox::oldest(harness.store.connection(), harness.node).await.unwrap();
    }
    let request = harness.request("one");
    let second = request.id;
    harness.insert(std::slice::from_ref(&request)).await;
    commit_guard.committed(vec![request.into()]);
    drop(commit_guard);
    assert_eq!(harness.end().await, [first, second]);
}

#[tokio::test]
async fn a_record_that_is_not_accepted_yet_is_not_overtaken() {
    let harness = Harness::start(1000, &[("queue.buffering.max.messages", "3")]).await;
    let mut committed = harness.commit(8).await;
    committed.extend(harness.commit(3).await);
    assert_eq!(harness.end().await, committed);
}

#[tokio::test]
async fn an_unpublishable_request_ends_dead_and_blocks_no_other() {
    let harness = Harness::start(10, &[]).await;
    let gone = harness.request("gone");
    let id = gone.id;
    harness.insert(std::slice::from_ref(&gone)).await;
    harness.publish_queue.commit_guard().await.committed(vec![gone.into()]);
    let committed = harness.commit(1).await;
    let (store, kafka) = (harness.store.clone(), harness.kafka.clone());
    let _broker = Arc::clone(&harness.broker);
    assert_eq!(harness.end().await, committed);
    let status = requests::find(store.connection(), id).await.unwrap().unwrap();
    let delivery = &status.deliveries[0];
    assert_eq!((delivery.state, delivery.reason), (DeliveryState::Dead, Some(DeadReason::Unroutable)));

    let mut letters =
        Consumer::subscribe(&kafka, "letters", &["throughline.dead-letters"], 1, &unmeasured()).unwrap();
    let letter = timeout(SOON, letters.recv()).await.expect("a letter").unwrap().record;
    assert_eq!(RequestRecord::from_headers(&letter.headers).unwrap().id, id);
    let header = |wanted| letter.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| &value[..]);
    assert_eq!(header(name::REASON), Some(&b"unroutable"[..]));
    assert_eq!((header(name::LEFT_OUT), letter.payload.len()), (Some(&b"value"[..]), 0));
}

#[tokio::test]
async fn refused_requests_do_not_wait_for_each_others_dead_letters() {
    // Fewer than the publisher passes on before another task runs.
    const REFUSED: usize = 20;
    let harness = Harness::start(1000, &[]).await;
    harness.broker.down().unwrap();
    let refused = harness.commit_to("gone", REFUSED).await;
    let all_wait_for_the_broker = async {
        let enough = async || match harness.producer.flush(Duration::ZERO).await {
            Err(KafkaError::Unflushed { records, .. }) => records >= REFUSED,
            _ => false,
        };
        while !enough().await {
            yield_now().await;
        }
    };
    timeout(SOON, all_wait_for_the_broker).await.expect("all dead letters are in flight at the same time");
    harness.broker.up().unwrap();
    let store = harness.store.clone();
    assert_eq!(harness.end().await, []);
    for id in refused {
        let status = requests::find(store.connection(), id).await.unwrap().unwrap();
        assert_eq!(status.deliveries[0].state, DeliveryState::Dead);
    }
}

#[tokio::test]
async fn a_dead_letter_whose_partition_has_no_leader_delays_no_other_request() {
    let harness = Harness::start(10, &[]).await;
    harness.broker.lead("throughline.dead-letters", 0, false).unwrap();
    let refused = harness.commit_to("gone", 1).await.remove(0);
    let waits = async {
        while !matches!(harness.producer.flush(Duration::ZERO).await, Err(KafkaError::Unflushed { .. })) {
            yield_now().await;
        }
    };
    timeout(SOON, waits).await.expect("the dead letter is in the producer's queue");
    let other = harness.commit(1).await;
    let connection = harness.store.connection();
    let removed = async { while outbox::node_of(connection, other[0]).await.unwrap().is_some() {} };
    timeout(SOON, removed).await.expect("the other request is removed from the outbox");
    assert_eq!(outbox::node_of(connection, refused).await.unwrap(), Some(harness.node));
    harness.broker.lead("throughline.dead-letters", 0, true).unwrap();
    assert_eq!(harness.end().await, other);
}

#[tokio::test]
async fn a_publisher_with_an_expired_lease_publishes_nothing_until_its_renewal() {
    let harness = Harness::start(10, &[]).await;
    harness.lease.extend(Moment::now(), Duration::ZERO, Clock::system().now());
    let committed = harness.commit(3).await;
    let refused = async { while *harness.queue_state.source().await == ReadFrom::Memory {} };
    timeout(SOON, refused).await.expect("the publisher stops following the writer");

    let between = harness.request("one");
    let mut expected = vec![between.id];
    let (record, _) = outgoing(TOPIC, between.into(), (&Keys::new("key", None), Kind::Request), |record| {
        record.to_headers()
    });
    harness.producer.send(&record).await.unwrap();
    harness.lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
    expected.extend(committed);
    assert_eq!(harness.end().await, expected);
}
