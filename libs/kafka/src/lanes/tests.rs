use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::consumer::Buffered;
use crate::partition::Partition;

const MINUTE: Duration = Duration::from_mins(1);

/// Lanes over records that a test puts in, without a broker.
struct Bench {
    partition: Arc<Partition>,
    records: mpsc::UnboundedSender<Buffered>,
    soft: CancellationToken,
    hard: CancellationToken,
    log: Log,
}

/// What the handler did and when: record, start, end.
type Log = Arc<Mutex<Vec<(i64, Instant, Option<Instant>)>>>;

type Serving = tokio::task::JoinHandle<Result<(), KafkaError>>;

impl Bench {
    /// Starts lanes; a record's payload says for how many milliseconds it is worked on, and how it ends.
    fn start(concurrency: usize) -> (Self, Serving) {
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
            partition: Partition::new(),
            records,
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            log: Log::default(),
        };
        let (soft, hard, log) = (bench.soft.clone(), bench.hard.clone(), bench.log.clone());
        let serving = tokio::spawn(async move {
            let mut intake = Intake::new(buffered, std::thread::current());
            let handler = move |record| work(record, log.clone());
            let mut floor = Floor { lanes: HashMap::new(), waiting: 0, work: JoinSet::new(), handler };
            let concurrency = NonZeroUsize::new(concurrency).unwrap();
            let key = |record: &Record| record.key.clone();
            let ended = floor.serve(&mut intake, concurrency, key, &soft, &hard).await;
            floor.clear().await;
            ended
        });
        (bench, serving)
    }

    fn put(&self, offset: i64, key: Option<&str>, payload: &str) {
        let record = Record {
            topic: "topic".to_owned(),
            partition: 0,
            offset,
            timestamp: None,
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            headers: Vec::new(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        self.partition.take(offset);
        self.records.send(Buffered { record, partition: self.partition.clone() }).unwrap();
    }

    /// Which records were begun, in order.
    fn begun(&self) -> Vec<i64> {
        self.log.lock().unwrap().iter().map(|(offset, ..)| *offset).collect()
    }

    /// Lets everything happen that happens within so many milliseconds.
    async fn pass(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

async fn work(record: Record, log: Log) -> Handled {
    let offset = record.offset;
    log.lock().unwrap().push((offset, Instant::now(), None));
    let handled = match record.payload.as_ref() {
        b"panic" => panic!("as the record says"),
        b"abandon" => Handled::Abandoned,
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
async fn records_of_a_key_wait_for_each_other_and_others_do_not() {
    let (bench, _serving) = Bench::start(8);
    for (offset, key) in [(0, Some("a")), (1, Some("a")), (2, Some("b")), (3, None), (4, None)] {
        bench.put(offset, key, "100");
    }
    bench.pass(50).await;
    assert_eq!(bench.begun(), [0, 2, 3, 4]);
    bench.pass(100).await;
    assert_eq!(bench.begun(), [0, 2, 3, 4, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_lane_counts_as_in_work() {
    let (bench, _serving) = Bench::start(2);
    for (offset, key) in [(0, "a"), (1, "a"), (2, "b")] {
        bench.put(offset, Some(key), "100");
    }
    bench.pass(50).await;
    assert_eq!(bench.begun(), [0]);
    bench.pass(100).await;
    assert_eq!(bench.begun().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_soft_stop_finishes_what_was_taken_and_takes_no_more() {
    let (bench, serving) = Bench::start(2);
    for offset in 0..4 {
        bench.put(offset, Some("a"), "100");
    }
    bench.pass(50).await;
    bench.soft.cancel();
    tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.begun(), [0, 1]);
    assert_eq!(bench.partition.prefix(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_hard_stop_abandons_what_is_in_work() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, None, "10");
    bench.put(1, None, "600000");
    bench.pass(50).await;
    bench.hard.cancel();
    tokio::time::timeout(Duration::from_millis(1), serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.partition.prefix(), Some(1));
    assert_eq!(bench.partition.wait_idle(Instant::now()), 0, "a receipt was left behind");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_handler_ends_the_lanes_with_an_error() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, None, "panic");
    let ended = tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Err(KafkaError::HandlerPanicked(_))), "{ended:?}");
    assert_eq!(bench.partition.prefix(), None);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_record_ends_the_lanes_with_an_error_unless_they_are_stopping() {
    let (bench, serving) = Bench::start(2);
    bench.put(0, None, "abandon");
    let ended = tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap();
    assert!(matches!(ended, Err(KafkaError::RecordAbandoned)), "{ended:?}");

    let (bench, serving) = Bench::start(4);
    for (offset, payload) in [(0, "100"), (1, "abandon"), (2, "100")] {
        bench.put(offset, Some("a"), payload);
    }
    bench.pass(50).await;
    bench.soft.cancel();
    tokio::time::timeout(MINUTE, serving).await.unwrap().unwrap().unwrap();
    assert_eq!(bench.begun(), [0, 1], "the order was lost behind an abandoned record");
    assert_eq!(bench.partition.prefix(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_waits_in_its_lane_is_left_to_the_partitions_next_owner() {
    let (bench, _serving) = Bench::start(4);
    bench.put(0, Some("a"), "100");
    bench.put(1, Some("a"), "100");
    bench.pass(50).await;
    bench.partition.revoke();
    bench.pass(500).await;
    assert_eq!(bench.begun(), [0]);
    assert_eq!(bench.partition.wait_idle(Instant::now()), 0);
    assert_eq!(bench.partition.prefix(), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn keys_keep_their_order_and_the_bound_is_kept(
        records in prop::collection::vec((prop::option::of(0_u8..4), 0_u64..30, 0_u64..10), 1..60),
        concurrency in 1_usize..10,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let (bench, serving) = Bench::start(concurrency);
            for (offset, (key, millis, pause)) in (0..).zip(&records) {
                bench.put(offset, key.map(|key| key.to_string()).as_deref(), &millis.to_string());
                bench.pass(*pause).await;
            }
            while bench.log.lock().unwrap().iter().filter(|(.., end)| end.is_some()).count() < records.len() {
                bench.pass(10).await;
            }
            bench.soft.cancel();
            serving.await.unwrap().unwrap();
            let log = bench.log.lock().unwrap().clone();
            for (index, (offset, start, _)) in log.iter().enumerate() {
                let key = records[usize::try_from(*offset).unwrap()].0;
                let busy = log[..index].iter().filter(|(.., end)| end.unwrap() > *start).count();
                assert!(busy < concurrency, "{busy} records in work beside {offset}");
                for (earlier, _, end) in &log[..index] {
                    if key.is_some() && records[usize::try_from(*earlier).unwrap()].0 == key {
                        assert!(earlier < offset && end.unwrap() <= *start, "{offset} overtook {earlier}");
                    }
                }
            }
            assert_eq!(bench.partition.prefix(), Some(i64::try_from(records.len()).unwrap()));
        });
    }
}
