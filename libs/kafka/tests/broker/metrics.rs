//! The metrics of producers and consumers.

use std::collections::BTreeSet;
use std::time::Duration;

use throughline_kafka::{Consumer, Received};
use throughline_testkit::{Measured, Point};

use crate::support::{Broker, SOON, next, secret};

const LAG: &str = "throughline.consumer.lag";
const AGE: &str = "throughline.consumer.lag.age";

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let so = async {
        while !is_so() {
            tick.tick().await;
        }
    };
    tokio::time::timeout(SOON, so).await.unwrap_or_else(|_| panic!("not soon: {what}"));
}

/// A broker whose clients tell of themselves all the time.
async fn broker(name: &str, partitions: u32) -> Broker {
    talkative(Broker::start(name, partitions).await)
}

fn talkative(mut broker: Broker) -> Broker {
    broker.settings.properties.insert("statistics.interval.ms".to_owned(), secret("50"));
    broker
}

fn points(measured: &Measured, name: &str) -> Vec<Point> {
    measured.points(name).unwrap()
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    while all.len() < count {
        all.push(next(consumer).await);
    }
    all
}

#[tokio::test]
async fn produced_records_are_counted_and_timed() {
    let broker = broker("measured-sent", 1).await;
    let producer = broker.producer();
    for _ in 0..2 {
        producer.send(&broker.record(None, "x")).await.unwrap();
    }
    producer.send(&broker.record(None, vec![b'x'; 9 << 20])).await.unwrap_err();
    let sent = [
        ("messaging.system", "kafka"),
        ("messaging.operation.name", "send"),
        ("messaging.destination.name", &broker.topic),
    ];
    let refused = [sent[2], ("error.type", "MessageSizeTooLarge")];
    let measured = &broker.measured;
    assert_eq!(measured.value("messaging.client.sent.messages", &sent).unwrap(), 3);
    assert_eq!(measured.value("messaging.client.sent.messages", &refused).unwrap(), 1);
    assert_eq!(measured.count("messaging.client.operation.duration", &sent).unwrap(), 3);
    assert_eq!(measured.count("messaging.client.operation.duration", &refused).unwrap(), 1);
    assert_eq!(measured.units().unwrap()["messaging.client.operation.duration"], "s");
}

#[tokio::test]
async fn consumed_records_are_counted_and_timed_until_they_are_finished() {
    let broker = broker("measured-consumed", 1).await;
    broker.produce(0..3).await;
    let mut consumer = broker.consumer(8);
    let [first, second, left] = take(&mut consumer, 3).await.try_into().unwrap();
    first.receipt.done();
    second.receipt.done();
    drop(left);
    let group = format!("{}-group", broker.topic);
    let polled = [
        ("messaging.system", "kafka"),
        ("messaging.operation.name", "poll"),
        ("messaging.destination.name", &broker.topic),
        ("messaging.consumer.group.name", &group),
    ];
    let processed = [polled[0], ("messaging.operation.name", "process"), polled[2], polled[3]];
    assert_eq!(broker.measured.value("messaging.client.consumed.messages", &polled).unwrap(), 3);
    assert_eq!(broker.measured.count("messaging.process.duration", &processed).unwrap(), 2);
}

#[tokio::test]
async fn unfinished_records_are_lag_and_age() {
    let broker = broker("measured-lag", 1).await;
    broker.produce(0..5).await;
    let mut consumer = broker.consumer(8);
    let group = format!("{}-group", broker.topic);
    let of =
        [("messaging.destination.name", broker.topic.as_str()), ("messaging.consumer.group.name", &group)];
    let lag = || broker.measured.value(LAG, &[of[0], of[1], ("messaging.destination.partition.id", "0")]);
    let age = || broker.measured.value(AGE, &of).unwrap().0;

    let mut records = take(&mut consumer, 5).await;
    until("the end is known", || lag().is_ok()).await;
    assert_eq!(lag().unwrap(), 5);
    let last = records.pop().unwrap();
    records.swap(0, 3);
    let first = records.pop().unwrap();
    for received in records {
        received.receipt.done();
    }
    assert_eq!(lag().unwrap(), 2, "the first and the last are not finished");
    let before = age();
    assert!(before > 0.0 && before < SOON.as_secs_f64(), "{before}");
    until("it ages", || age() > before).await;
    first.receipt.done();
    assert_eq!(lag().unwrap(), 1);
    last.receipt.done();
    assert_eq!(lag().unwrap(), 0);
    assert_eq!(broker.measured.value(AGE, &of).unwrap(), 0);
}

#[tokio::test]
async fn a_stalled_member_falls_behind() {
    let broker = broker("measured-stalled", 1).await;
    broker.produce(0..50).await;
    let consumer = broker.consumer(1);
    let of = [("messaging.destination.name", broker.topic.as_str())];
    until("it is behind", || broker.measured.value(LAG, &of).is_ok_and(|lag| lag == 50)).await;
    // Longer than it takes until fetching pauses: at 2 s.
    until("it ages", || broker.measured.value(AGE, &of).unwrap().0 > 4.0).await;
    assert_eq!(broker.measured.value(LAG, &of).unwrap(), 50);
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn a_partition_that_moves_is_measured_by_its_new_owner() {
    let broker = broker("measured-handover", 2).await;
    broker.produce(0..20).await;
    let first = broker.consumer(64);
    let partitions = |measured: &Measured| {
        points(measured, LAG)
            .into_iter()
            .map(|mut point| point.attributes.remove("messaging.destination.partition.id").unwrap())
            .collect::<BTreeSet<_>>()
    };
    until("the first has both", || partitions(&broker.measured).len() == 2).await;
    let others = Measured::new();
    let group = format!("{}-group", broker.topic);
    let second =
        Consumer::subscribe(&broker.settings, &group, &[&broker.topic], 64, &others.meter()).unwrap();
    until("each has one", || {
        let (first, second) = (partitions(&broker.measured), partitions(&others));
        first.len() == 1 && second.len() == 1 && first.is_disjoint(&second)
    })
    .await;
    first.close(SOON).await.unwrap();
    assert_eq!(points(&broker.measured, LAG), []);
    assert_eq!(points(&broker.measured, AGE), []);
    second.close(SOON).await.unwrap();
}

#[tokio::test]
async fn librdkafka_reports_its_queue_and_brokers() {
    let broker = talkative(Broker::embedded("measured-statistics", 1));
    let producer = broker.producer();
    producer.send(&broker.record(None, "x")).await.unwrap();
    let client = [("messaging.client.id", "a producer")];
    let of_broker = [client[0], ("messaging.kafka.broker.id", "1")];
    let value = |name, attributes: &[_]| broker.measured.value(name, attributes).map(|value| value.0);
    until("a round trip", || {
        value("throughline.kafka.broker.latency", &of_broker)
            .is_ok_and(|seconds| seconds > 0.0 && seconds < 10.0)
    })
    .await;
    assert_eq!(broker.measured.value("throughline.kafka.broker.errors", &of_broker).unwrap(), 0);
    assert_eq!(points(&broker.measured, "throughline.kafka.broker.errors").len(), 1, "there is one broker");

    broker.down();
    let waiting: Vec<_> = (0..3).map(|_| producer.enqueue(&broker.record(None, "x")).unwrap()).collect();
    until("they wait", || {
        value("throughline.kafka.queue.messages", &client).is_ok_and(|records| records > 2.0)
    })
    .await;
    until("an error", || {
        value("throughline.kafka.broker.errors", &of_broker).is_ok_and(|errors| errors > 0.0)
    })
    .await;
    broker.up();
    for acknowledgement in waiting {
        acknowledgement.await.unwrap();
    }
    until("none waits", || {
        value("throughline.kafka.queue.messages", &client).is_ok_and(|records| records < 1.0)
    })
    .await;

    let consumer = broker.consumer(1);
    let group = format!("{}-group", broker.topic);
    until("the consumer tells as well", || {
        value("throughline.kafka.broker.latency", &[("messaging.client.id", &group)]).is_ok()
    })
    .await;
    assert_eq!(points(&broker.measured, "throughline.kafka.queue.messages").len(), 1, "it has no queue");
    drop(consumer);
}
