//! The writer alone, with a lease that the test controls.

use std::io::Read as _;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use throughline_store::{ConnectionTrait as _, outbox};
use throughline_testkit::{Measured, eventually, new_request, sqlite, unmeasured};

use super::*;
use crate::node::{self, Moment};

/// Maximum time to wait for any condition, which holds within milliseconds.
const SOON: Duration = Duration::from_secs(30);

pub(super) fn context() -> Context {
    Context {
        batch: 8,
        queue: 8,
        body_limit: 1 << 20,
        deadline: Duration::from_secs(5),
        idempotency_window: TimeDelta::hours(24),
        redelivery_timeout: TimeDelta::minutes(15),
        metrics: Metrics::new(&unmeasured()),
        pulse: Pulse::default(),
    }
}

pub(super) fn submission(queue: &Queue) -> Submission {
    submission_of("application/json", queue)
}

fn submission_of(content_type: &str, queue: &Queue) -> Submission {
    let route = Route { name: "one".to_owned(), destinations: vec!["three".to_owned()], keeps_order: false };
    Submission {
        route: route.into(),
        payload: Payload {
            body: "{}".into(),
            content_type: content_type.to_owned(),
            headers: Vec::new(),
            trace: None,
            origin: None,
            permit: queue.reserve(1).unwrap(),
        },
        client: None,
        ordering_key: None,
        idempotency: None,
    }
}

/// A lease that lasts longer than any test.
async fn valid_lease(store: &Store) -> Lease {
    let lease = node::tests::lease();
    throughline_testkit::leased(store, lease.node()).await.unwrap();
    lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
    lease
}

/// Runs the writer until `awaited` completes, and drops the queue then.
async fn while_writing<T>(writer: Writer, queue: Queue, awaited: impl AsyncFnOnce(&Queue) -> T) -> T {
    let awaited = async move { awaited(&queue).await };
    let (output, _) = tokio::join!(awaited, writer.run());
    output
}

/// Returns the number of committed requests. The requests are not published.
async fn committed(store: &Store) -> usize {
    let node = node::tests::lease().node();
    outbox::pending(store.connection(), node, None, 100, 1 << 20).await.unwrap().len()
}

#[tokio::test]
async fn a_bad_request_is_found_by_halves_and_the_others_are_published_from_memory() {
    const GOOD: u64 = 63;
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = sqlite(folder.path(), &measured.meter()).await.unwrap();
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON requests WHEN NEW.content_type = 'poison' \
                  BEGIN SELECT RAISE(ABORT, 'bad'); END";
    store.connection().execute_unprepared(poison).await.unwrap();
    let (publish_queue, mut published) = PublishQueue::read_from_memory().await;
    let context = Context { batch: 64, queue: 64, metrics: Metrics::new(&measured.meter()), ..context() };
    let (queue, writer) =
        Writer::new(store.clone(), valid_lease(&store).await, Clock::system(), context, publish_queue);
    let results = while_writing(writer, queue, async |queue| {
        let content_type = |number| if number == 17 { "poison" } else { "application/json" };
        join_all((0..=GOOD).map(|number| queue.submit(submission_of(content_type(number), queue)))).await
    })
    .await;

    let results: Vec<_> = results.into_iter().map(Option::unwrap).collect();
    let mut accepted = Vec::new();
    for (number, result) in results.iter().enumerate() {
        match result {
            CommitResult::Accepted(id) => accepted.push(*id),
            other => assert_eq!((number, *other), (17, CommitResult::Failed)),
        }
    }
    assert_eq!(accepted.len() as u64, GOOD);
    assert!(accepted.is_sorted());
    let from_memory: Vec<_> = std::iter::from_fn(|| Some(published()?.id)).collect();
    assert_eq!(from_memory, accepted, "all of them, in order");
    // 64, 32, 16, 8, 4, 2, 1: each is halved once, and the half without the bad one is committed.
    let count =
        |operation| measured.count("db.client.operation.duration", &[("db.operation.name", operation)]);
    assert_eq!((count("begin").unwrap(), count("commit").unwrap()), (13, 6));
    assert_eq!(measured.value("throughline.requests.accepted", &[]).unwrap(), 63);
}

#[tokio::test]
async fn an_error_that_all_requests_of_a_batch_meet_costs_one_transaction() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = sqlite(folder.path(), &measured.meter()).await.unwrap();
    let context = Context { metrics: Metrics::new(&measured.meter()), ..context() };
    let (queue, writer) = Writer::new(
        store.clone(),
        valid_lease(&store).await,
        Clock::system(),
        context,
        PublishQueue::unread(),
    );
    store.connection().execute_unprepared("ALTER TABLE requests RENAME TO others").await.unwrap();
    let results = while_writing(writer, queue, async |queue| {
        join_all((0..8).map(|_| queue.submit(submission(queue)))).await
    })
    .await;
    assert_eq!(results, [Some(CommitResult::Misconfigured); 8]);
    let begun = measured.count("db.client.operation.duration", &[("db.operation.name", "begin")]);
    assert_eq!(begun.unwrap(), 1);
}

#[tokio::test]
async fn a_request_whose_client_disconnects_before_its_commit_is_not_committed() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
    let context = Context { metrics: Metrics::new(&measured.meter()), ..context() };
    let (queue, writer) = Writer::new(
        store.clone(),
        valid_lease(&store).await,
        Clock::system(),
        context,
        PublishQueue::unread(),
    );
    for _ in 0..3 {
        assert_eq!(queue.submit(submission(&queue)).now_or_never(), None, "it waits");
    }
    let result = while_writing(writer, queue, async |queue| queue.submit(submission(queue)).await).await;
    assert!(matches!(result, Some(CommitResult::Accepted(_))), "{result:?}");
    assert_eq!(committed(&store).await, 1);
    assert_eq!(measured.value("throughline.requests.accepted", &[]).unwrap(), 1);
}

#[tokio::test]
async fn a_request_whose_client_disconnects_during_its_commit_is_counted_as_accepted() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
    let context = Context { metrics: Metrics::new(&measured.meter()), ..context() };
    let (queue, writer) = Writer::new(
        store.clone(),
        valid_lease(&store).await,
        Clock::system(),
        context,
        PublishQueue::unread(),
    );
    let held = store.begin().await.unwrap();
    while_writing(writer, queue, async |queue| {
        let gone = tokio::time::timeout(Duration::from_millis(50), queue.submit(submission(queue))).await;
        assert!(gone.is_err(), "the commit waits for the database");
        drop(held);
    })
    .await;
    assert_eq!(committed(&store).await, 1);
    assert_eq!(measured.value("throughline.requests.accepted", &[]).unwrap(), 1);
}

#[tokio::test]
async fn a_commit_counts_as_answered_for_liveness_also_by_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
    let context = Context { deadline: Duration::from_millis(50), ..context() };
    let pulse = context.pulse.clone();
    let (queue, writer) = Writer::new(
        store.clone(),
        valid_lease(&store).await,
        Clock::system(),
        context,
        PublishQueue::unread(),
    );
    let writing = tokio::spawn(writer.run());
    let submit = async || queue.submit(submission(&queue)).await.unwrap();
    for refuses in [false, true] {
        let held = store.begin().await.unwrap();
        assert_eq!(submit().await, CommitResult::Unavailable);
        assert!(pulse.is_unanswered());
        drop(held);
        if refuses {
            store.connection().execute_unprepared("DROP TABLE outbox").await.unwrap();
        }
        let in_time = async || {
            let result = submit().await;
            anyhow::ensure!(result != CommitResult::Unavailable, "the database is slow");
            Ok(result)
        };
        let result = eventually("an answer of the database", SOON, in_time).await.unwrap();
        assert_eq!(result == CommitResult::Misconfigured, refuses, "{result:?}");
        assert!(!pulse.is_unanswered(), "{result:?}");
    }
    drop(queue);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_rest_of_a_batch_is_not_tried_once_the_database_does_not_respond() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = sqlite(folder.path(), &measured.meter()).await.unwrap();
    // The batch is refused, so is its first half; the lease is over once the first of all is alone in the table.
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON outbox \
                  WHEN (SELECT content_type FROM requests WHERE id = NEW.request_id) = 'poison' \
                  BEGIN SELECT RAISE(ABORT, 'bad'); END";
    let over = "CREATE TRIGGER over AFTER INSERT ON outbox WHEN (SELECT count(*) FROM requests) = 1 \
                BEGIN UPDATE nodes SET expires_at = '2000-01-01T00:00:00.000000+00:00'; END";
    for sql in [poison, over] {
        store.connection().execute_unprepared(sql).await.unwrap();
    }
    let (queue, writer) = Writer::new(
        store.clone(),
        valid_lease(&store).await,
        Clock::system(),
        context(),
        PublishQueue::unread(),
    );
    let types = ["application/json", "poison", "application/json", "application/json"];
    let results = while_writing(writer, queue, async |queue| {
        join_all(types.map(|content_type| queue.submit(submission_of(content_type, queue)))).await
    })
    .await;
    assert!(matches!(results[0], Some(CommitResult::Accepted(_))), "{results:?}");
    assert_eq!(results[1..], [Some(CommitResult::Unavailable); 3]);
    // All four, the first half, and each of its two.
    let begun = measured.count("db.client.operation.duration", &[("db.operation.name", "begin")]);
    assert_eq!(begun.unwrap(), 4);
}

#[tokio::test]
async fn without_a_valid_lease_requests_are_refused_and_the_change_is_logged_once() {
    let (mut log, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
    let lease = node::tests::lease();
    throughline_testkit::leased(&store, lease.node()).await.unwrap();
    let (clock, publish_queue) = (Clock::system(), PublishQueue::unread());
    let (queue, writer) = Writer::new(store.clone(), lease.clone(), clock, context(), publish_queue);
    let writing = tokio::spawn(writer.run());
    let submit = async || queue.submit(submission(&queue)).await.unwrap();

    for _ in 0..2 {
        lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
        for _ in 0..2 {
            let CommitResult::Accepted(id) = submit().await else { panic!("it has its lease") };
            assert!(requests::find(store.connection(), id).await.unwrap().is_some());
        }
        lease.extend(Moment::now(), Duration::ZERO, Clock::system().now());
        for _ in 0..3 {
            assert_eq!(submit().await, CommitResult::Unavailable);
        }
    }

    drop((queue, logging));
    writing.await.unwrap().unwrap();
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    let events = ["lease.expired", "writer.resumed"];
    let event = |line: &str| events.into_iter().find(|event| line.contains(&format!("event=\"{event}\"")));
    let logged: Vec<_> = lines.lines().filter_map(event).collect();
    assert_eq!(logged, ["lease.expired", "writer.resumed", "lease.expired"], "{lines}");
}

#[test]
fn new_requests_are_copied_only_if_others_are_not_new() {
    let id = |number| RequestId::from_i64(number).unwrap();
    let requests = [1, 2].map(|number| new_request(id(number), DateTime::UNIX_EPOCH));
    let of = |results: [CommitResult; 2]| new_of(&requests, &results);
    let all = of([1, 2].map(|number| CommitResult::Accepted(id(number))));
    assert!(matches!(all, Cow::Borrowed(all) if all == requests));
    for other in [CommitResult::Repeated(id(3)), CommitResult::KeyReused] {
        assert_eq!(*of([other, CommitResult::Accepted(id(2))]), requests[1..]);
    }
}

#[tokio::test]
async fn the_writer_ends_after_the_last_source_and_answers_the_queued_requests_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
    let (lease, publish_queue) = (valid_lease(&store).await, PublishQueue::unread());
    let (first, writer) = Writer::new(store.clone(), lease, Clock::system(), context(), publish_queue);
    let second = first.clone();
    let mut writing = tokio::spawn(writer.run());
    assert!(matches!(first.submit(submission(&first)).await, Some(CommitResult::Accepted(_))));
    drop(first);
    assert_eq!((&mut writing).now_or_never().map(drop), None, "a source is left");
    let queued = submission(&second);
    // The source ends while its request is queued.
    let answer = async move { second.submit(queued).await };
    assert!(matches!(answer.await, Some(CommitResult::Accepted(_))));
    tokio::time::timeout(SOON, writing).await.expect("the writer ends").unwrap().unwrap();
    assert_eq!(committed(&store).await, 2);
}
