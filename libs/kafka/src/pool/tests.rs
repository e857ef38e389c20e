use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use throughline_testkit::unmeasured;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::consumer::{Budget, Buffered};
use crate::metrics::Consuming;
use crate::offsets::Offsets;
use crate::partition::Partition;

const MINUTE: Duration = Duration::from_mins(1);

/// A pool over records that a test puts in, without a broker.
struct Bench {
    partition: Arc<Partition>,
    budget: Arc<Budget>,
    records: mpsc::UnboundedSender<Buffered>,
    soft: CancellationToken,
    hard: CancellationToken,
    log: Log,
}

/// The work of the handler: record, start, end.
type Log = Arc<Mutex<Vec<(i64, Instant, Option<Instant>)>>>;

type Serving = tokio::task::JoinHandle<Result<(), KafkaError>>;

impl Bench {
    /// Starts a pool. A record's payload is how many milliseconds the work takes, and how it ends.
    fn start(most: usize) -> (Self, Serving) {
        let (records, mut incoming) = mpsc::unbounded_channel();
        let (buffer, buffered) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(next) = incoming.recv().await {
                if buffer.send(next).await.is_err() {
                    break;
                }
            }
        });
        let bench = Self {
            partition: Partition::new(
                Offsets::default(),
                Consuming::new(&unmeasured(), "group").topic("topic"),
                chrono::DateTime::UNIX_EPOCH,
            ),
            budget: Budget::new(usize::MAX),
            records,
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            log: Log::default(),
        };
        let (soft, hard, log) = (bench.soft.clone(), bench.hard.clone(), bench.log.clone());
        let serving = tokio::spawn(async move {
            let mut intake = Intake::new(buffered, std::thread::current());
            let handler = move |record: Record, claim| work(record, claim, log.clone());
            let mut floor = Floor { bounds: Pool::new(most), work: JoinSet::new(), handler };
            let ended = floor.serve(&mut intake, &soft, &hard).await;
            floor.work.shutdown().await;
            ended
        });
        (bench, serving)
    }

    fn put(&self, offset: i64, payload: &str) {
        let record = Record {
            topic: "topic".to_owned(),
            partition: 0,
            offset,
            timestamp: None,
            key: None,
            headers: Vec::new(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        self.partition.read(offset, None);
        let (partition, held) = (self.partition.clone(), self.budget.hold(payload.len()));
        self.records.send(Buffered { record, partition, held }).unwrap();
    }

    /// Which records were begun, in order.
    fn begun(&self) -> Vec<i64> {
        self.log.lock().unwrap().iter().map(|(offset, ..)| *offset).collect()
    }

    /// The offset that may be committed.
    fn prefix(&self) -> Option<i64> {
        self.partition.to_commit().map(|commit| commit.offset)
    }

    /// Lets all tasks run for this number of milliseconds.
    async fn pass(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

async fn work(record: Record, claim: Claim, log: Log) -> Handled {
    let offset = record.offset;
    log.lock().unwrap().push((offset, Instant::now(), None));
    let handled = match record.payload.as_ref() {
        b"late" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if claim.has_ended() { Handled::Abandoned } else { Handled::Done }
        }
        b"waits" => {
            claim.ended().await;
            Handled::Abandoned
        }
        b"panic" => panic!("as the record says"),
        b"abandon" => Handled::Abandoned,
        b"late abandon" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Handled::Abandoned
        }
        millis => {
            let millis = std::str::from_utf8(millis).unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(millis)).await;
            Handled::Done
        }
    };
    let mut log = log.lock().unwrap();
    log.iter_mut().find(|(begun, ..)| *begun == offset).unwrap().2 = Some(Instant::now());
    handled
}

#[tokio::test(start_paused = true)]
async fn records_are_processed_concurrently_up_to_the_limit() {
    let (bench, _serving) = Bench::start(3);
    for offset in 0..5 {
        bench.put(offset, "100");
    }
    bench.pass(50).await;
    assert_eq!(bench.begun(), [0, 1, 2]);
    bench.pass(100).await;
    assert_eq!(bench.begun(), [0, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_finishes_the_records_in_progress_and_starts_no_more() {
    let (bench, serving) = Bench::start(2);
    for offset in 0..4 {
        bench.put(offset, "100");
    }
    bench.pass(50).await;
    bench.soft.cancel();
    tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.begun(), [0, 1]);
    assert_eq!(bench.prefix(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_abandons_the_records_in_progress() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, "10");
    bench.put(1, "600000");
    bench.pass(50).await;
    bench.hard.cancel();
    tokio::time::timeout(Duration::from_millis(1), serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.prefix(), Some(1));
    assert_eq!(bench.partition.in_work(), 0, "a receipt was left behind");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_ends_the_pool_with_an_error() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, "panic");
    let ended = tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Err(KafkaError::HandlerPanicked(_))), "{ended:?}");
    assert_eq!(bench.prefix(), None);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_record_ends_the_pool_with_an_error_unless_it_is_stopping() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, "abandon");
    let ended = tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Err(KafkaError::RecordAbandoned)), "{ended:?}");

    let (bench, serving) = Bench::start(4);
    for (offset, payload) in [(0, "100"), (1, "late abandon"), (2, "100")] {
        bench.put(offset, payload);
    }
    bench.pass(50).await;
    bench.soft.cancel();
    tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.prefix(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn records_that_have_not_started_are_left_to_the_next_owner_of_the_partition() {
    let (bench, serving) = Bench::start(4);
    for (offset, payload) in [(0, "10"), (1, "late"), (2, "10"), (3, "waits")] {
        bench.put(offset, payload);
    }
    bench.pass(50).await;
    bench.partition.revoke();
    bench.pass(500).await;
    assert_eq!(bench.partition.in_work(), 0);
    let commit = bench.partition.to_commit().unwrap();
    assert_eq!((commit.offset, commit.finished.count_from(0)), (1, 1), "the one in between is finished");
    assert!(!serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_ends_waits() {
    let (bench, serving) = Bench::start(4);
    for (offset, payload) in [(0, "waits"), (1, "100"), (2, "late")] {
        bench.put(offset, payload);
    }
    bench.pass(50).await;
    bench.soft.cancel();
    tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap().unwrap();
    let commit = bench.partition.to_commit().unwrap();
    assert_eq!((commit.offset, commit.finished.count_from(0)), (0, 1));
}
