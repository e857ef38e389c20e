//! What a group promises while members come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use throughline_kafka::{Claim, Handled, KafkaError, Pool, Record};
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

    /// Waits until so many different records were worked on.
    async fn until_all(&self, records: u32) {
        let mut changes = self.0.subscribe();
        let all = changes.wait_for(|_| self.1.lock().unwrap().len() >= records as usize);
        drop(tokio::time::timeout(SOON * 2, all).await.expect("all records, soon").unwrap());
    }
}

struct Member {
    soft: CancellationToken,
    running: JoinHandle<Result<(), KafkaError>>,
}

impl Member {
    fn join(broker: &Broker, id: i64, tally: &Tally) -> Self {
        let consumer = broker.consumer(8);
        let (soft, tally) = (CancellationToken::new(), tally.clone());
        let stop = soft.clone();
        let running = tokio::spawn(async move {
            let handler = move |record: Record, _claim: Claim| {
                let tally = tally.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    tally.count(id, record.partition, record.offset);
                    Handled::Done
                }
            };
            let pool = Pool::new(16, usize::MAX);
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
