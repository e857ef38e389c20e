//! The guarantees of a group while members join and leave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline_kafka::{Bounds, Claim, Handled, KafkaError, Pool, Record};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Broker, SOON, next, number};

fn goes_on(partition: i32) -> bool {
    partition % 2 == 1
}

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

    /// Waits until the member has processed this number of records.
    async fn until(&self, member: i64, records: u32) {
        let mut changes = self.0.subscribe();
        let enough = changes.wait_for(|by_member| by_member.get(&member) >= Some(&records));
        drop(tokio::time::timeout(SOON, enough).await.expect("a member that works, soon").unwrap());
    }

    /// How many records the member has worked on.
    fn of(&self, member: i64) -> u32 {
        self.0.borrow().get(&member).copied().unwrap_or(0)
    }

    /// Waits until this number of records was processed in each of the partitions that go on.
    async fn until_each(&self, records: u32) {
        let mut changes = self.0.subscribe();
        let enough = changes.wait_for(|_| {
            let counts = self.1.lock().unwrap();
            let worked = |partition| counts.keys().filter(|(of, _)| *of == partition).count();
            (0..6)
                .filter(|partition| goes_on(*partition))
                .all(|partition| worked(partition) >= records as usize)
        });
        drop(tokio::time::timeout(SOON, enough).await.expect("partitions that go on").unwrap());
    }

    /// Waits until this number of different records was processed.
    async fn until_all(&self, records: u32) {
        let mut changes = self.0.subscribe();
        let all = changes.wait_for(|_| self.1.lock().unwrap().len() >= records as usize);
        drop(tokio::time::timeout(SOON * 2, all).await.expect("all records, soon").unwrap());
    }
}

/// Holds the first record of each partition with an even number until the test opens it.
#[derive(Clone)]
struct Slow {
    started: Arc<watch::Sender<u32>>,
    is_open: Arc<watch::Sender<bool>>,
    is_revoked: Arc<watch::Sender<bool>>,
}

impl Slow {
    fn new() -> Self {
        let is_open = Arc::new(watch::Sender::new(false));
        Self { started: Arc::default(), is_open, is_revoked: Arc::default() }
    }

    /// None is slow.
    fn none() -> Self {
        let none = Self::new();
        none.open();
        none
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }

    async fn pass(&self, claim: &Claim) {
        self.started.send_modify(|started| *started += 1);
        let mut is_open = self.is_open.subscribe();
        tokio::select! {
            open = is_open.wait_for(|is_open| *is_open) => return drop(open.unwrap()),
            () = claim.ended() => drop(self.is_revoked.send_replace(true)),
        }
        is_open.wait_for(|is_open| *is_open).await.unwrap();
    }

    /// Waits until this number of slow records is in progress.
    async fn until_started(&self, records: u32) {
        let mut started = self.started.subscribe();
        let enough = started.wait_for(|started| *started >= records);
        drop(tokio::time::timeout(SOON, enough).await.expect("slow records, soon").unwrap());
    }

    /// Waits until a partition with a slow record is no longer consumed.
    async fn until_revoked(&self) {
        let mut is_revoked = self.is_revoked.subscribe();
        let revoked = is_revoked.wait_for(|is_revoked| *is_revoked);
        drop(tokio::time::timeout(SOON, revoked).await.expect("a slow record that is revoked").unwrap());
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
            let handler = move |record: Record, claim: Claim| {
                let (tally, slow) = (tally.clone(), slow.clone());
                async move {
                    if record.offset == 0 && !goes_on(record.partition) {
                        slow.pass(&claim).await;
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
async fn every_record_is_processed_once_while_members_join_and_leave() {
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
    // If a member is slow to answer, the embedded broker starts over, and accepts no commits until it has finished.
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
async fn partitions_without_slow_records_continue_while_a_member_joins_and_leaves() {
    const FIRST: u32 = 300;
    const RECORDS: u32 = 3_000;
    // The embedded broker does not list the members of a group.
    let Some(broker) = Broker::real_only("slow", 6).await else { return };
    broker.produce(0..FIRST).await;
    let (tally, slow) = (Tally::new(), Slow::new());
    let first = Member::with_slow(&broker, 1, &tally, &slow);
    // Partitions without records in progress would move to the second member at once.
    slow.until_started(3).await;
    let second = Member::with_slow(&broker, 2, &tally, &slow);
    support::until_members(&broker, 2).await;
    // The second one is to have partitions, some of them with a slow record, for which all of them wait. Those without a
    // slow one go on meanwhile, whether they stay or not.
    slow.until_revoked().await;
    broker.produce(FIRST..RECORDS).await;
    tally.until_each(FIRST).await;
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
async fn a_static_member_regains_its_partitions() {
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
async fn a_static_member_that_is_replaced_stops_with_an_error() {
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
