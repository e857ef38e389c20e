//! The writer alone, with a lease that the test plays.

use std::io::Read as _;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use throughline_config::{Database, Secret};
use throughline_store::{ConnectionTrait as _, outbox};
use throughline_testkit::{Measured, new_request, unmeasured};

use super::*;
use crate::node::{self, Moment};

pub(super) fn terms() -> Terms {
    Terms {
        batch: 8,
        queue: 8,
        body_limit: 1 << 20,
        deadline: Duration::from_secs(5),
        idempotency_window: TimeDelta::hours(24),
        patience: TimeDelta::minutes(15),
        metrics: Metrics::new(&unmeasured()),
        pulse: Pulse::default(),
    }
}

pub(super) fn submission(queue: &Queue) -> Submission {
    Submission {
        room: queue.reserve(1).unwrap(),
        route: "one".to_owned(),
        destinations: ["three".to_owned()].into(),
        body: "{}".into(),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        ordering_key: None,
        keeps_order: false,
        trace: None,
        client: None,
        origin: None,
        idempotency: None,
    }
}

async fn store(folder: &tempfile::TempDir, meter: &opentelemetry::metrics::Meter) -> Store {
    let url = Secret::from(format!("sqlite://{}", folder.path().join("throughline.db").display()));
    let store = Store::connect(&Database { url, ..Database::default() }, meter).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A lease that lasts longer than any test.
async fn valid_lease(store: &Store) -> Lease {
    let lease = node::tests::lease();
    throughline_testkit::leased(store, lease.node()).await.unwrap();
    lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
    lease
}

/// How many requests were committed, of which nothing is published.
async fn committed(store: &Store) -> usize {
    let node = node::tests::lease().node();
    outbox::pending(store.connection(), node, None, 100, 1 << 20).await.unwrap().len()
}

#[tokio::test]
async fn a_bad_request_is_found_by_halves_and_the_others_are_published_from_memory() {
    const GOOD: u64 = 63;
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = store(&folder, &measured.meter()).await;
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON requests WHEN NEW.content_type = 'poison' \
                  BEGIN SELECT RAISE(ABORT, 'bad'); END";
    store.connection().execute_unprepared(poison).await.unwrap();
    let (handover, mut published) = Handover::read_from_memory().await;
    let terms = Terms { batch: 64, queue: 64, metrics: Metrics::new(&measured.meter()), ..terms() };
    let (queue, writer) =
        Writer::new(store.clone(), valid_lease(&store).await, Clock::system(), terms, handover);
    let submissions = (0..=GOOD).map(|number| Submission {
        content_type: if number == 17 { "poison" } else { "application/json" }.to_owned(),
        ..submission(&queue)
    });
    let answers = join_all(submissions.map(|submission| queue.submit(submission)));
    let closing = CancellationToken::new();
    let writing = writer.run(closing.clone());
    let (verdicts, _) = tokio::join!(
        async {
            let answers = answers.await;
            closing.cancel();
            answers
        },
        writing
    );

    let verdicts: Vec<_> = verdicts.into_iter().map(Option::unwrap).collect();
    let mut accepted = Vec::new();
    for (number, verdict) in verdicts.iter().enumerate() {
        match verdict {
            Verdict::Accepted(id) => accepted.push(*id),
            other => assert_eq!((number, *other), (17, Verdict::Failed)),
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
async fn a_request_whose_client_has_gone_before_its_commit_is_not_committed() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = store(&folder, &unmeasured()).await;
    let terms = Terms { metrics: Metrics::new(&measured.meter()), ..terms() };
    let (queue, writer) =
        Writer::new(store.clone(), valid_lease(&store).await, Clock::system(), terms, Handover::unread());
    for _ in 0..3 {
        assert_eq!(queue.submit(submission(&queue)).now_or_never(), None, "it waits");
    }
    let closing = CancellationToken::new();
    let waits = async {
        let verdict = queue.submit(submission(&queue)).await;
        closing.cancel();
        verdict
    };
    let (verdict, _) = tokio::join!(waits, writer.run(closing.clone()));
    assert!(matches!(verdict, Some(Verdict::Accepted(_))), "{verdict:?}");
    assert_eq!(committed(&store).await, 1);
    assert_eq!(measured.value("throughline.requests.accepted", &[]).unwrap(), 1);
}

#[tokio::test]
async fn a_request_whose_client_goes_during_its_commit_is_counted_as_accepted() {
    let (folder, measured) = (tempfile::tempdir().unwrap(), Measured::new());
    let store = store(&folder, &unmeasured()).await;
    let terms = Terms { metrics: Metrics::new(&measured.meter()), ..terms() };
    let (queue, writer) =
        Writer::new(store.clone(), valid_lease(&store).await, Clock::system(), terms, Handover::unread());
    let held = store.begin().await.unwrap();
    let closing = CancellationToken::new();
    let goes = async {
        let gone = tokio::time::timeout(Duration::from_millis(50), queue.submit(submission(&queue))).await;
        assert!(gone.is_err(), "the commit waits for the database");
        drop(held);
        closing.cancel();
    };
    let ((), _) = tokio::join!(goes, writer.run(closing.clone()));
    assert_eq!(committed(&store).await, 1);
    assert_eq!(measured.value("throughline.requests.accepted", &[]).unwrap(), 1);
}

#[tokio::test]
async fn without_its_lease_it_refuses_and_says_so_once_and_with_it_it_goes_on() {
    let (mut log, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, &unmeasured()).await;
    let lease = node::tests::lease();
    throughline_testkit::leased(&store, lease.node()).await.unwrap();
    let (clock, handover) = (Clock::system(), Handover::unread());
    let (queue, writer) = Writer::new(store.clone(), lease.clone(), clock, terms(), handover);
    let writing = tokio::spawn(writer.run(CancellationToken::new()));
    let submit = async || queue.submit(submission(&queue)).await.unwrap();

    for _ in 0..2 {
        lease.extend(Moment::now(), Duration::from_hours(1), Clock::system().now());
        for _ in 0..2 {
            let Verdict::Accepted(id) = submit().await else { panic!("it has its lease") };
            assert!(requests::find(store.connection(), id).await.unwrap().is_some());
        }
        lease.extend(Moment::now(), Duration::ZERO, Clock::system().now());
        for _ in 0..3 {
            assert_eq!(submit().await, Verdict::Unavailable);
        }
    }

    drop((queue, logging));
    writing.await.unwrap().unwrap();
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    let said: Vec<_> = lines.lines().filter(|line| line.contains("lease")).collect();
    let expected = ["requests are refused", "requests are accepted again", "requests are refused"];
    assert_eq!(said.len(), expected.len(), "{lines}");
    assert!(said.iter().zip(expected).all(|(line, expected)| line.contains(expected)), "{lines}");
}

#[test]
fn what_is_new_is_copied_only_if_something_beside_it_is_not() {
    let id = |number| RequestId::from_i64(number).unwrap();
    let requests = [1, 2].map(|number| new_request(id(number), DateTime::UNIX_EPOCH));
    let of = |verdicts: [Verdict; 2]| new_of(&requests, &verdicts);
    let all = of([1, 2].map(|number| Verdict::Accepted(id(number))));
    assert!(matches!(all, Cow::Borrowed(all) if all == requests));
    for other in [Verdict::Repeated(id(3)), Verdict::KeyReused] {
        assert_eq!(*of([other, Verdict::Accepted(id(2))]), requests[1..]);
    }
}
