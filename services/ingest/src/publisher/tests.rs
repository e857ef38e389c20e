//! The publisher alone, with a writer that the test plays.

use std::time::Duration;

use chrono::DateTime;
use throughline_config::{Database, Kafka, Secret};
use throughline_kafka::{Consumer, EmbeddedBroker, KafkaError, Outgoing};
use throughline_messages::{Keys, RequestRecord, Topics, name};
use throughline_snowflake::{Generator, NodeId};
use throughline_store::deliveries::DeliveryState;
use throughline_store::{NewRequest, OutboxRequest, requests};
use throughline_testkit::{new_request, unmeasured};
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::Broker;
use crate::node::{self, Moment};

/// For whatever is to happen; it happens within a second.
const SOON: Duration = Duration::from_secs(30);
const TOPIC: &str = "one-requests";
/// Ends what a test reads of the topic.
const LAST: &str = "last";

struct Press {
    _folder: tempfile::TempDir,
    broker: Arc<EmbeddedBroker>,
    kafka: Kafka,
    producer: Producer,
    store: Store,
    ids: Generator,
    node: NodeId,
    lease: Lease,
    window: Arc<Window>,
    gate: Arc<Gate>,
    handover: Handover,
    running: JoinHandle<Result<(), StoreError>>,
    emptying: JoinHandle<Result<(), StoreError>>,
}

impl Press {
    /// A publisher that follows the writer, with a window for so many requests.
    async fn start(window: usize, properties: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Secret::from(format!("sqlite://{}", folder.path().join("throughline.db").display()));
        let store = Store::connect(&Database { url, ..Database::default() }, &unmeasured()).await.unwrap();
        store.migrate().await.unwrap();
        let broker = EmbeddedBroker::start(1).unwrap();
        let topics = Topics::new("throughline");
        broker.create_topics(&[TOPIC, &topics.dead_letters]).unwrap();
        let mut kafka = Kafka { bootstrap_servers: broker.bootstrap_servers(), ..Kafka::default() };
        let properties = properties.iter().map(|&(name, value)| (name.to_owned(), Secret::from(value)));
        kafka.properties.extend(properties);
        let lease = node::tests::lease();
        let node = lease.node();
        throughline_testkit::leased(&store, node).await.unwrap();
        lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
        let terms = Terms {
            lease: lease.clone(),
            topics: BTreeMap::from([("one".to_owned(), TOPIC.to_owned())]),
            keys: Keys::new("key", None),
            page_rows: 4,
            page_bytes: 1 << 20,
            patience: TimeDelta::minutes(15),
            clock: Clock::system(),
            metrics: Metrics::new(&unmeasured()),
            hard: CancellationToken::new(),
        };
        let window = Arc::new(Window::new(window, 1 << 20, Broker::Durable, SOON));
        let (producer, hard) = (Producer::new(&kafka, "test", &unmeasured()).unwrap(), terms.hard.clone());
        let metrics = terms.metrics.clone();
        let dead_letters = DeadLetters { producer: producer.clone(), topics, metrics, hard };
        let (publisher, remover, handover) =
            publisher(terms, store.clone(), dead_letters, Arc::clone(&window));
        let press = Self {
            _folder: folder,
            broker: Arc::new(broker),
            kafka,
            producer,
            store,
            ids: Generator::new(node, Clock::system(), DateTime::UNIX_EPOCH),
            node,
            lease,
            window,
            gate: publisher.gate(),
            handover,
            running: tokio::spawn(publisher.run()),
            emptying: tokio::spawn(remover),
        };
        press.follows_the_writer().await;
        press
    }

    async fn follows_the_writer(&self) {
        let follows = async {
            while *self.gate.source().await != Source::Memory {
                yield_now().await;
            }
        };
        timeout(SOON, follows).await.expect("the publisher finds the table empty");
    }

    /// Waits until something is on its way to the broker.
    async fn published_something(&self) {
        let published = async {
            while self.window.is_free() {
                yield_now().await;
            }
        };
        timeout(SOON, published).await.expect("the publisher looks into the table");
    }

    async fn all_is_acknowledged(&self) {
        let acknowledged = async {
            while !self.window.is_free() {
                yield_now().await;
            }
        };
        timeout(SOON, acknowledged).await.expect("the broker acknowledges all");
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
        let mut turn = self.handover.turn().await;
        let requests: Vec<_> = (0..count).map(|_| self.request(route)).collect();
        self.insert(&requests).await;
        let ids = requests.iter().map(|request| request.id).collect();
        turn.committed(requests.into_iter().map(OutboxRequest::from).collect());
        ids
    }

    /// The writer goes. What the publisher has published by its own end, in order; the table is empty then.
    async fn end(self) -> Vec<RequestId> {
        drop(self.handover);
        timeout(SOON, self.running).await.expect("the publisher ends").unwrap().unwrap();
        timeout(SOON, self.emptying).await.expect("the remover ends").unwrap().unwrap();
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
async fn what_memory_has_no_room_for_is_published_though_the_writer_goes_at_once() {
    let press = Press::start(1, &[]).await;
    let request = press.request("one");
    let id = request.id;
    press.insert(std::slice::from_ref(&request)).await;
    let taken = press.window.try_hold(press.ids.generate(), 1).unwrap();
    let mut turn = press.handover.turn().await;
    turn.committed(vec![request.into()]);
    drop(turn);
    drop(taken);
    // Nothing has waited since, so the publisher learns of both at once.
    assert_eq!(press.end().await, [id]);
}

#[tokio::test]
async fn what_comes_after_a_full_memory_does_not_overtake() {
    let press = Press::start(2, &[]).await;
    let mut committed = press.commit(5).await;
    committed.extend(press.commit(1).await);
    press.follows_the_writer().await;
    committed.extend(press.commit(1).await);
    assert_eq!(press.end().await, committed);
}

#[tokio::test]
async fn it_returns_to_memory_while_the_writer_commits_without_a_pause() {
    // Many times what it takes.
    const MOST_COMMITS: usize = 300;
    let press = Press::start(10, &[]).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        press.all_is_acknowledged().await;
        let taken: Vec<_> = iter::from_fn(|| press.window.try_hold(press.ids.generate(), 1)).collect();
        let mut committed = press.commit(1).await;
        assert_eq!(*press.gate.source().await, Source::Table, "the window is full");
        drop(taken);
        while *press.gate.source().await == Source::Table {
            assert!(committed.len() < MOST_COMMITS, "still in the table");
            committed.extend(press.commit(1).await);
        }
        all.append(&mut committed);
    }
    assert_eq!(press.end().await, all);
}

#[tokio::test]
async fn what_is_committed_while_the_table_is_published_is_not_published_from_memory_too() {
    let press = Press::start(10, &[]).await;
    press.broker.down().unwrap();
    let unspoken = press.request("one");
    let mut expected = vec![unspoken.id];
    press.insert(&[unspoken]).await;
    press.gate.look_in_the_table();
    press.published_something().await;
    expected.extend(press.commit(3).await);
    press.broker.up().unwrap();
    assert_eq!(press.end().await, expected);
}

#[tokio::test]
async fn what_is_committed_before_the_last_look_into_the_table_is_seen_by_it() {
    let press = Press::start(10, &[]).await;
    press.broker.down().unwrap();
    let unspoken = press.request("one");
    let first = unspoken.id;
    press.insert(&[unspoken]).await;
    press.gate.look_in_the_table();
    press.published_something().await;
    // The publisher waits for the broker; and then for this commit to end, before it looks for the last time.
    let mut turn = press.handover.turn().await;
    press.broker.up().unwrap();
    let published =
        async { while outbox::oldest(press.store.connection(), press.node).await.unwrap().is_some() {} };
    timeout(SOON, published).await.expect("the first is published");
    // There is one connection: the publisher's own look, if there is one, comes before the last of these.
    for _ in 0..10 {
        outbox::oldest(press.store.connection(), press.node).await.unwrap();
    }
    let request = press.request("one");
    let second = request.id;
    press.insert(std::slice::from_ref(&request)).await;
    turn.committed(vec![request.into()]);
    drop(turn);
    assert_eq!(press.end().await, [first, second]);
}

#[tokio::test]
async fn a_record_that_is_not_taken_now_is_overtaken_by_none() {
    let press = Press::start(1000, &[("queue.buffering.max.messages", "3")]).await;
    let mut committed = press.commit(8).await;
    committed.extend(press.commit(3).await);
    assert_eq!(press.end().await, committed);
}

#[tokio::test]
async fn what_can_never_be_published_ends_dead_and_holds_nothing_up() {
    let press = Press::start(10, &[]).await;
    let gone = press.request("gone");
    let id = gone.id;
    press.insert(std::slice::from_ref(&gone)).await;
    press.handover.turn().await.committed(vec![gone.into()]);
    let committed = press.commit(1).await;
    let (store, kafka) = (press.store.clone(), press.kafka.clone());
    let _broker = Arc::clone(&press.broker);
    assert_eq!(press.end().await, committed);
    let status = requests::find(store.connection(), id).await.unwrap().unwrap();
    let delivery = &status.deliveries[0];
    assert_eq!((delivery.state, delivery.reason.as_deref()), (DeliveryState::Dead, Some("unroutable")));

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
    // Fewer than the publisher hands on before another task has its turn.
    const REFUSED: usize = 20;
    let press = Press::start(1000, &[]).await;
    press.broker.down().unwrap();
    let refused = press.commit_to("gone", REFUSED).await;
    let all_wait_for_the_broker = async {
        let enough = async || match press.producer.flush(Duration::ZERO).await {
            Err(KafkaError::Unflushed { records, .. }) => records >= REFUSED,
            _ => false,
        };
        while !enough().await {
            yield_now().await;
        }
    };
    timeout(SOON, all_wait_for_the_broker).await.expect("all dead letters are under way at once");
    press.broker.up().unwrap();
    let store = press.store.clone();
    assert_eq!(press.end().await, []);
    for id in refused {
        let status = requests::find(store.connection(), id).await.unwrap().unwrap();
        assert_eq!(status.deliveries[0].state, DeliveryState::Dead);
    }
}
