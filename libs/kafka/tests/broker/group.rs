//! What a group promises while members come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline_kafka::{Bounds, Claim, Handled, KafkaError, Pool, Record};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Broker, SOON, next, number};

/// How often each record was worked on, by all members together.
#[derive(Clone)]
struct Tally(Arc<watch::Sender<HashMap<i64, u32>>>, Arc<Mutex<HashMap<(i32, i64), u32>>>);

impl Tally {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::default()), Arc::default())
    }

    fn count(&self, member: i64, partition: i32, offset: i64) {
        *self.1.lock().unwrap().entry((partition, offset)).or_default() += 1;
        self.0.send_modify(|by_member| *by_member.entry(member).or_default() += 1);
    }

    /// Waits until the member has worked on so many records.
    async fn until(&self, member: i64, records: u32) {
        let mut changes = self.0.subscribe();
        let enough = changes.wait_for(|by_member| by_member.get(&member) >= Some(&records));
        drop(tokio::time::timeout(SOON, enough).await.expect("a member that works, soon").unwrap());
    }

    /// How many records the member has worked on.
    fn of(&self, member: i64) -> u32 {
        self.0.borrow().get(&member).copied().unwrap_or(0)
    }

    /// Waits until so many different records were worked on.
    async fn until_all(&self, records: u32) {
        let mut changes = self.0.subscribe();
        let all = changes.wait_for(|_| self.1.lock().unwrap().len() >= records as usize);
        drop(tokio::time::timeout(SOON * 2, all).await.expect("all records, soon").unwrap());
    }
}

/// Holds the first record of each partition up until the test opens it.
#[derive(Clone)]
struct Slow(Arc<watch::Sender<bool>>);

impl Slow {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// None is slow.
    fn none() -> Self {
        Self(Arc::new(watch::Sender::new(true)))
    }

    fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        self.0.subscribe().wait_for(|is_open| *is_open).await.unwrap();
    }
}

struct Member {
    soft: CancellationToken,
    running: JoinHandle<Result<(), KafkaError>>,
}

impl Member {
    fn join(broker: &Broker, id: i64, tally: &Tally) -> Self {
        Self::with_slow(broker, id, tally, &Slow::none())
    }

    fn with_slow(broker: &Broker, id: i64, tally: &Tally, slow: &Slow) -> Self {
        // Longer than any test waits: what is in progress is never given up.
        let consumer = broker.consumer(Bounds::records(8).drain(SOON * 4));
        let slow = slow.clone();
        let (soft, tally) = (CancellationToken::new(), tally.clone());
        let stop = soft.clone();
        let running = tokio::spawn(async move {
            let handler = move |record: Record, _claim: Claim| {
                let (tally, slow) = (tally.clone(), slow.clone());
                async move {
                    if record.offset == 0 {
                        slow.pass().await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    tally.count(id, record.partition, record.offset);
                    Handled::Done
                }
            };
            let pool = Pool::new(16);
            pool.run(consumer, handler, &stop, &CancellationToken::new()).await
        });
        Self { soft, running }
    }

    async fn leave(self) {
        self.soft.cancel();
        tokio::time::timeout(SOON, self.running).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_every_record_is_worked_on_once() {
    const RECORDS: u32 = 6_000;
    let broker = Broker::start("members", 6).await;
    broker.produce(0..RECORDS).await;
    let tally = Tally::new();
    let first = Member::join(&broker, 1, &tally);
    tally.until(1, 100).await;
    let mut others = vec![Member::join(&broker, 2, &tally)];
    tally.until(2, 100).await;
    // When two members give partitions away at once, the embedded broker refuses the commit of one,
    // which a real one takes.
    if !broker.is_embedded() {
        others.push(Member::join(&broker, 3, &tally));
        tally.until(3, 100).await;
    }
    first.leave().await;
    tally.until_all(RECORDS).await;
    for member in others {
        member.leave().await;
    }
    let counts = tally.1.lock().unwrap();
    assert_eq!(counts.len(), RECORDS as usize);
    // A member that is slow to answer has the embedded broker begin anew, and take no commits until it is done.
    if !broker.is_embedded() {
        let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).map(|(at, _)| *at).collect();
        assert!(
            twice.is_empty(),
            "worked on twice: {}, e.g. {:?}",
            twice.len(),
            &twice[..twice.len().min(5)]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_and_leaves_while_a_record_of_each_partition_is_slow_and_the_others_go_on() {
    const RECORDS: u32 = 3_000;
    // The embedded broker does not tell who is in a group.
    let Some(broker) = Broker::real_only("slow", 6).await else { return };
    broker.produce(0..RECORDS).await;
    let (tally, slow) = (Tally::new(), Slow::new());
    let first = Member::with_slow(&broker, 1, &tally, &slow);
    tally.until(1, 100).await;
    let second = Member::with_slow(&broker, 2, &tally, &slow);
    // The second one is to have partitions, and waits for their first records. Those that stay go on meanwhile.
    support::until_members(&broker, 2).await;
    let by_now = tally.of(1);
    tally.until(1, by_now + 500).await;
    assert_eq!(tally.of(2), 0, "it has got partitions whose records are in progress");
    slow.open();
    tally.until(2, 50).await;
    second.leave().await;
    tally.until_all(RECORDS).await;
    first.leave().await;
    let counts = tally.1.lock().unwrap();
    let twice: Vec<_> = counts.iter().filter(|(_, n)| **n > 1).map(|(at, _)| *at).collect();
    assert_eq!(twice, [], "processed twice");
}

#[tokio::test]
async fn a_static_member_comes_back_to_its_partitions() {
    let mut broker = Broker::start("static", 1).await;
    broker.settings.group_instance_id = Some("replica-1".to_owned());
    broker.produce(0..2).await;
    let mut first = broker.consumer(4);
    let received = next(&mut first).await;
    received.receipt.done();
    first.close(SOON).await.unwrap();
    let mut again = broker.consumer(4);
    assert_eq!(support::number(&next(&mut again).await), 1);
    again.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_static_member_that_is_replaced_stops_and_says_so() {
    // The embedded broker does not fence members.
    let Some(mut broker) = Broker::real_only("fenced", 1).await else { return };
    broker.settings.group_instance_id = Some("replica-1".to_owned());
    broker.produce(0..1).await;
    let mut first = broker.consumer(4);
    assert_eq!(number(&next(&mut first).await), 0);
    let mut second = broker.consumer(4);
    assert_eq!(number(&next(&mut second).await), 0);
    assert!(tokio::time::timeout(SOON, first.recv()).await.expect("an end, soon").is_none());
    let error = first.close(SOON).await.unwrap_err();
    assert!(matches!(error, KafkaError::ConsumerStopped { .. }), "{error:?}");
    second.close(SOON).await.unwrap();
}
