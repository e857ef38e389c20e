//! The guarantees of a producer, on a broker.

use bytes::Bytes;
use throughline_kafka::{KafkaError, Outgoing, SendError};

use crate::support::{self, Broker, SOON, next};

#[tokio::test]
async fn records_arrive_byte_for_byte() {
    let broker = Broker::start("byte-for-byte", 1).await;
    let bytes = |all: &[u8]| Bytes::copy_from_slice(all);
    let sent = [
        Outgoing {
            topic: broker.topic.clone(),
            key: Some(bytes(&[0, 255, 10])),
            headers: vec![
                ("twice".to_owned(), bytes(b"1")),
                ("twice".to_owned(), bytes(&[0xC3, 0x28, 0])),
                ("empty".to_owned(), Bytes::new()),
                (String::new(), bytes(b"nameless")),
            ],
            payload: bytes(&(0..=255).collect::<Vec<u8>>()),
        },
        Outgoing { key: None, ..broker.record(None, "no key") },
        Outgoing { key: Some(Bytes::new()), ..broker.record(None, Bytes::new()) },
    ];
    let producer = broker.producer();
    for record in &sent {
        let position = producer.send(record).await.unwrap();
        assert_eq!(position.partition, 0);
    }
    let mut consumer = broker.consumer(8);
    for (offset, sent) in (0..).zip(&sent) {
        let got = next(&mut consumer).await.record;
        assert_eq!((got.topic, got.partition, got.offset), (sent.topic.clone(), 0, offset));
        assert_eq!((&got.key, &got.headers, &got.payload), (&sent.key, &sent.headers, &sent.payload));
        assert!(got.timestamp.is_some());
    }
}

#[tokio::test]
async fn an_outage_loses_nothing_and_keeps_the_order() {
    let broker = Broker::embedded("outage", 4);
    let producer = broker.producer();
    let mut sent = Vec::new();
    for n in 0..300 {
        match n {
            100 => broker.down(),
            200 => broker.up(),
            _ => {}
        }
        sent.push(producer.enqueue(&broker.record(Some(&(n % 7).to_string()), n.to_string())).unwrap());
    }
    for acknowledgement in sent {
        tokio::time::timeout(SOON, acknowledgement).await.expect("acknowledged soon").unwrap();
    }
    let mut consumer = broker.consumer(16);
    let mut last_of_key = [None; 7];
    for _ in 0..300 {
        let n = support::number(&next(&mut consumer).await) as usize;
        let last = last_of_key[n % 7].replace(n);
        assert_eq!(last.map_or(n % 7, |last| last + 7), n, "out of order, lost or repeated");
    }
}

#[tokio::test]
async fn a_full_queue_is_an_error_that_send_waits_out() {
    let mut broker = Broker::embedded("full-queue", 1);
    broker.settings.properties.insert("queue.buffering.max.messages".to_owned(), support::secret("10"));
    broker.down();
    let producer = broker.producer();
    let waiting: Vec<_> = (0..10).map(|_| producer.enqueue(&broker.record(None, "x")).unwrap()).collect();
    assert!(matches!(producer.enqueue(&broker.record(None, "x")), Err(SendError::QueueFull)));
    let eleventh = tokio::spawn({
        let (producer, record) = (producer.clone(), broker.record(None, "the eleventh"));
        async move { producer.send(&record).await }
    });
    broker.up();
    assert_eq!(tokio::time::timeout(SOON, eleventh).await.unwrap().unwrap().unwrap().offset, 10);
    for acknowledgement in waiting {
        acknowledgement.await.unwrap();
    }
}

#[tokio::test]
async fn a_record_that_is_too_large_is_rejected_and_one_of_7_mib_is_accepted() {
    let broker = Broker::start("too-large", 1).await;
    let producer = broker.producer();
    let error = producer.send(&broker.record(None, vec![b'x'; 9 << 20])).await.unwrap_err();
    assert!(error.is_refusal(), "{error:?}");
    // Random enough that compression does not make it small.
    let noise =
        (0_u32..7 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31).to_le_bytes());
    producer.send(&broker.record(None, noise.collect::<Vec<_>>())).await.unwrap();
}

#[tokio::test]
async fn without_a_broker_probe_and_flush_give_up_at_the_deadline() {
    let broker = Broker::embedded("deadline", 1);
    let producer = broker.producer();
    producer.probe(SOON).await.unwrap();
    broker.down();
    let waiting = producer.enqueue(&broker.record(None, "x")).unwrap();
    let soon = std::time::Duration::from_millis(300);
    assert!(matches!(producer.flush(soon).await, Err(KafkaError::Unflushed { records: 1, .. })));
    assert!(matches!(producer.probe(soon).await, Err(KafkaError::Unreachable { .. })));
    broker.up();
    producer.flush(SOON).await.unwrap();
    waiting.await.unwrap();
}
