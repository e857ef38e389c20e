//! The writer alone, with a lease that the test plays.

use std::io::Read as _;
use std::sync::Mutex;

use throughline_config::{Database, Secret};
use throughline_testkit::{new_request, unmeasured};

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

#[tokio::test]
async fn without_its_lease_it_refuses_and_says_so_once_and_with_it_it_goes_on() {
    let (mut log, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let url = Secret::from(format!("sqlite://{}", folder.path().join("throughline.db").display()));
    let store = Store::connect(&Database { url, ..Database::default() }, &unmeasured()).await.unwrap();
    store.migrate().await.unwrap();
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
