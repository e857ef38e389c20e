//! The guarantees of a consumer, on a broker.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use throughline_kafka::{Bounds, KafkaError, Received};

use crate::support::{self, Broker, SOON, next, number};

/// Takes records until there are `count`.
async fn take(consumer: &mut throughline_kafka::Consumer, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(next(consumer).await);
    }
    all
}

#[tokio::test]
async fn records_finished_in_any_order_are_not_redelivered() {
    let broker = Broker::start("finished", 1).await;
    broker.produce(0..5).await;
    let mut first = broker.consumer(16);
    let mut records = take(&mut first, 5).await;
    records.swap(0, 4);
    records.swap(1, 3);
    for received in records {
        received.receipt.done();
    }
    first.close(SOON).await.unwrap();
    broker.produce(5..6).await;
    assert_eq!(number(&next(&mut broker.consumer(16)).await), 5);
}

#[tokio::test]
async fn only_unfinished_records_are_redelivered() {
    let broker = Broker::start("unfinished", 1).await;
    broker.produce(0..40).await;
    let mut first = broker.consumer(64);
    for received in take(&mut first, 30).await {
        if !matches!(number(&received), 2 | 17..20) {
            received.receipt.done();
        }
    }
    first.close(SOON).await.unwrap();
    let mut second = broker.consumer(64);
    let again: Vec<_> = take(&mut second, 14).await.iter().map(number).collect();
    assert_eq!(again, [2, 17, 18, 19, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39]);
}

#[tokio::test]
async fn offsets_are_committed_while_consuming() {
    let broker = Broker::start("periodic", 1).await;
    broker.produce(0..2).await;
    let mut first = broker.consumer(16);
    let [done, held] = take(&mut first, 2).await.try_into().unwrap();
    done.receipt.done();
    support::until_committed(&broker, 1).await;
    drop((held, first));
}

#[tokio::test]
async fn closing_waits_for_receipts_and_reports_missing_ones() {
    let broker = Broker::start("closing", 1).await;
    broker.produce(0..2).await;
    let mut first = broker.consumer(16);
    let [one, two] = take(&mut first, 2).await.try_into().unwrap();
    let closing = tokio::spawn(first.close(SOON));
    one.receipt.done();
    assert!(!closing.is_finished());
    two.receipt.done();
    closing.await.unwrap().unwrap();

    broker.produce(2..3).await;
    let mut second = broker.consumer(16);
    let held = next(&mut second).await;
    assert_eq!(number(&held), 2);
    let error = second.close(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, KafkaError::Unfinished { records: 1, .. }), "{error:?}");
    held.receipt.done();
}

#[tokio::test]
async fn a_broker_that_is_unreachable_at_the_end_is_no_error_but_may_cause_redelivery() {
    let broker = Broker::embedded("away", 1);
    broker.produce(0..2).await;
    let mut first = broker.consumer(16);
    let received = next(&mut first).await;
    broker.down();
    received.receipt.done();
    first.close(Duration::from_millis(100)).await.unwrap();
    broker.up();
    // The last commit may still have come through.
    assert!(number(&next(&mut broker.consumer(16)).await) <= 1);
}

#[tokio::test]
async fn a_partition_moves_after_its_records_in_progress_are_finished() {
    let broker = Broker::start("handover", 2).await;
    broker.produce(0..40).await;
    let mut first = broker.consumer(64);
    // In work: one record of each partition. The others wait in the buffer.
    let mut in_work = vec![next(&mut first).await];
    let mut seen: Vec<u32> = Vec::new();
    while in_work.len() < 2 {
        let received = next(&mut first).await;
        if received.record.partition == in_work[0].record.partition {
            seen.push(number(&received));
            received.receipt.done();
        } else {
            in_work.push(received);
        }
    }
    let mut second = broker.consumer(64);
    // The second member waits for the first, and gets nothing while records are in work.
    let revoked = tokio::select! {
        revoked = support::until_revoked(&mut in_work) => revoked,
        received = second.recv() => panic!("{received:?} was taken from under the first member"),
    };
    seen.push(number(&revoked));
    revoked.receipt.done();
    for kept in in_work {
        seen.push(number(&kept));
        kept.receipt.done();
    }
    while seen.len() < 40 {
        let received = tokio::time::timeout(SOON, async {
            tokio::select! { r = first.recv() => r, r = second.recv() => r }
        });
        let received = received.await.expect("all records soon").unwrap();
        seen.push(number(&received));
        received.receipt.done();
    }
    assert_eq!(seen.iter().copied().collect::<BTreeSet<_>>().len(), 40, "twice: {seen:?}");
    first.close(SOON).await.unwrap();
    second.close(SOON).await.unwrap();
}

#[tokio::test]
async fn a_stalled_member_hands_partitions_over_and_continues_later() {
    let broker = Broker::start("stalled", 2).await;
    every_record_comes_once_when_a_member_joins(&broker, 1).await;
}

#[tokio::test]
async fn records_that_have_not_started_go_to_the_new_member() {
    let broker = Broker::start("buffered", 2).await;
    every_record_comes_once_when_a_member_joins(&broker, 64).await;
}

/// The first member has a buffer of this size, and takes one record before the second has joined.
async fn every_record_comes_once_when_a_member_joins(broker: &Broker, buffer: usize) {
    broker.produce(0..60).await;
    let mut first = broker.consumer(buffer);
    let mut seen = BTreeSet::new();
    let mut finish = |received: Received| {
        assert!(seen.insert(number(&received)), "{} came twice", number(&received));
        received.receipt.done();
        seen.len()
    };
    finish(next(&mut first).await);
    let mut second = broker.consumer(64);
    finish(next(&mut second).await);
    loop {
        let received = tokio::time::timeout(SOON, async {
            tokio::select! { r = first.recv() => r, r = second.recv() => r }
        });
        if finish(received.await.expect("all records soon").unwrap()) == 60 {
            break;
        }
    }
    first.close(SOON).await.unwrap();
    second.close(SOON).await.unwrap();
}

#[tokio::test]
async fn a_batch_contains_the_available_records_up_to_its_size() {
    let broker = Broker::start("batch", 1).await;
    broker.produce(0..10).await;
    let mut consumer = broker.consumer(16);
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let batch = tokio::time::timeout(SOON, consumer.recv_batch(4)).await.expect("a batch soon");
        assert!((1..=4).contains(&batch.len()));
        seen.extend(batch.iter().map(number));
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_stay_with_the_broker_while_the_buffered_ones_reach_the_byte_limit() {
    const RECORD: usize = 256 << 10;
    let broker = Broker::start("bytes", 2).await;
    let producer = broker.producer();
    for _ in 0..40 {
        producer.send(&broker.record(None, vec![b'x'; RECORD])).await.unwrap();
    }
    // The budget has four records, and one more that takes the rest.
    let mut consumer = broker.consumer(Bounds::records(64).bytes(4 * RECORD + 1));
    let mut in_hand = take(&mut consumer, 5).await;
    let more = tokio::time::timeout(Duration::from_secs(3), consumer.recv()).await;
    assert!(more.is_err(), "the budget has five records");
    for _ in 5..40 {
        in_hand.swap_remove(0).receipt.done();
        in_hand.push(next(&mut consumer).await);
    }
    for received in in_hand {
        received.receipt.done();
    }
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn foreign_metadata_of_an_offset_is_ignored() {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

    let broker = Broker::start("foreign", 1).await;
    broker.produce(0..5).await;
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    config.set("group.id", format!("{}-group", broker.topic));
    let other: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(&broker.topic, 0);
    element.set_offset(Offset::Offset(2)).unwrap();
    element.set_metadata("{\"by\": \"another tool\"}");
    tokio::task::spawn_blocking(move || other.commit(&list, CommitMode::Sync).unwrap()).await.unwrap();
    let mut consumer = broker.consumer(16);
    let all: Vec<_> = take(&mut consumer, 3).await.iter().map(number).collect();
    assert_eq!(all, [2, 3, 4]);
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A fetch is bounded in compressed bytes, and librdkafka decompresses all of it.
#[tokio::test]
async fn a_backlog_of_records_that_compress_well_takes_bounded_memory() {
    const RECORDS: usize = 320;
    const BOUND: usize = 160 << 20;
    let Some(broker) = Broker::real_only("compressed", 1).await else { return };
    let payload = Bytes::from(vec![b'x'; 1_000_000]);
    let producer = broker.producer();
    for _ in 0..RECORDS / 16 {
        let sent: Vec<_> =
            (0..16).map(|_| producer.enqueue(&broker.record(None, payload.clone())).unwrap()).collect();
        for acknowledgement in sent {
            acknowledgement.await.unwrap();
        }
    }
    let before = resident();
    let mut consumer = broker.consumer(Bounds::records(4).bytes(4 << 20));
    let first = next(&mut consumer).await;
    // librdkafka fetches until its queue is full.
    let fetched = async {
        let mut last = before;
        while resident() > last + (1 << 20) {
            last = resident();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(SOON, fetched).await.expect("fetching ends");
    let taken = resident() - before;
    assert!(taken < BOUND, "{} MiB", taken >> 20);
    first.receipt.done();
    for _ in 1..RECORDS {
        next(&mut consumer).await.receipt.done();
    }
}
