//! A producer on the embedded broker, from inside.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use throughline_testkit::{Measured, unmeasured};
use tokio::time::timeout;

use super::*;
use crate::{Consumer, EmbeddedBroker};

const SOON: Duration = Duration::from_secs(30);

fn record() -> Outgoing {
    Outgoing { topic: "topic".to_owned(), key: None, headers: Vec::new(), payload: Bytes::from_static(b"x") }
}

#[tokio::test]
async fn a_broken_client_is_replaced() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let settings = Settings { bootstrap_servers: broker.bootstrap_servers(), ..Settings::default() };
    let measured = Measured::new();
    let producer = Producer::new(&settings, "test", &measured.meter()).unwrap();
    producer.send(&record()).await.unwrap();
    let fatal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
    broker.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &fatal);
    let error = producer.send(&record()).await.unwrap_err();
    assert!(matches!(error, SendError::Failed { .. }), "{error:?}");
    assert!(producer.client().client().fatal_error().is_some());
    producer.send(&record()).await.unwrap();
    let sent = |with: &[_]| measured.value("messaging.client.sent.messages", with).unwrap();
    assert_eq!(sent(&[]), 3);
    assert_eq!(sent(&[("error.type", "OutOfOrderSequenceNumber")]), 1);
}

#[tokio::test]
async fn a_record_is_sent_until_it_is_accepted_or_rejected() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let settings = Settings { bootstrap_servers: broker.bootstrap_servers(), ..Settings::default() };
    let producer = Producer::new(&settings, "test", &unmeasured()).unwrap();
    producer.send(&record()).await.unwrap();
    let fatal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
    broker.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &fatal);
    producer.send_until_taken(&record()).await.unwrap();
    let too_large = Outgoing { payload: vec![b'x'; 9 << 20].into(), ..record() };
    assert!(producer.send_until_taken(&too_large).await.unwrap_err().is_refusal());
}

/// A topic of one partition that a producer fills in order, as the publisher does: after a failure it waits until
/// all it has handed over is settled, and goes on with the first record that was not acknowledged.
struct InOrder {
    producer: Producer,
    unsettled: VecDeque<(usize, Acknowledgement)>,
    acknowledged: Vec<usize>,
}

impl InOrder {
    fn enqueue(&mut self, number: usize) -> Result<(), SendError> {
        let payload = number.to_string().into();
        let acknowledgement = self.producer.enqueue(&Outgoing { payload, ..record() })?;
        self.unsettled.push_back((number, acknowledgement));
        Ok(())
    }

    /// The first failure, if any.
    async fn settle_all(&mut self) -> Vec<SendError> {
        let mut failures = Vec::new();
        for (number, acknowledgement) in std::mem::take(&mut self.unsettled) {
            match acknowledgement.await {
                Ok(_) => self.acknowledged.push(number),
                Err(error) => failures.push(error),
            }
        }
        failures
    }

    /// Hands records over until all are acknowledged.
    async fn publish(&mut self, numbers: Range<usize>) {
        while !numbers.clone().all(|number| self.acknowledged.contains(&number)) {
            let rest = numbers.clone().filter(|number| !self.acknowledged.contains(number));
            for number in rest.collect::<Vec<_>>() {
                if self.enqueue(number).is_err() {
                    break;
                }
            }
            self.settle_all().await;
        }
    }
}

/// The final contents of a topic; each record counts where it comes first.
async fn first_seen(settings: &Settings, producer: &Producer) -> Vec<String> {
    producer.send(&Outgoing { payload: "last".into(), ..record() }).await.unwrap();
    let mut consumer = Consumer::subscribe(settings, "order", &["topic"], 64, &unmeasured()).unwrap();
    let mut seen: Vec<String> = Vec::new();
    loop {
        let received = consumer.recv().await.unwrap().record;
        let payload = String::from_utf8(received.payload.to_vec()).unwrap();
        if payload == "last" {
            return seen;
        }
        if !seen.contains(&payload) {
            seen.push(payload);
        }
    }
}

fn in_order(numbers: Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

async fn fill(replace: impl AsyncFnOnce(&EmbeddedBroker, &mut InOrder)) {
    let broker = EmbeddedBroker::start(1).unwrap();
    broker.create_topics(&["topic"]).unwrap();
    let settings = Settings { bootstrap_servers: broker.bootstrap_servers(), ..Settings::default() };
    let producer = Producer::new(&settings, "test", &unmeasured()).unwrap();
    let mut publisher = InOrder { producer, unsettled: VecDeque::new(), acknowledged: Vec::new() };
    publisher.publish(0..3).await;
    replace(&broker, &mut publisher).await;
    // Between its failure and the moment at which the caller sees that, a record must not be overtaken.
    let refused = publisher.enqueue(6).unwrap_err();
    assert!(matches!(refused, SendError::Replaced), "{refused:?}");
    assert_eq!(publisher.settle_all().await.len(), 3);
    // Only now, because the replaced client could still deliver them.
    broker.up().unwrap();
    publisher.publish(3..9).await;
    assert_eq!(first_seen(&settings, &publisher.producer).await, in_order(0..9));
}

#[tokio::test]
async fn records_in_flight_when_the_client_breaks_are_not_overtaken() {
    fill(async |broker, publisher| {
        let fatal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER];
        broker.cluster().unwrap().request_errors(RDKafkaApiKey::Produce, &fatal);
        for number in 3..6 {
            publisher.enqueue(number).unwrap();
        }
        let producer = publisher.producer.clone();
        let breaks = async {
            while producer.client().client().fatal_error().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, breaks).await.expect("the client breaks");
    })
    .await;
}

#[tokio::test]
async fn records_in_flight_when_the_client_loses_its_brokers_are_not_overtaken() {
    fill(async |broker, publisher| {
        broker.down().unwrap();
        for number in 3..6 {
            publisher.enqueue(number).unwrap();
        }
        let lost = publisher.producer.client();
        for _ in 0..2 {
            lost.context().lost.note(&Statistics::default());
        }
        drop(lost);
        publisher.producer.renew().unwrap();
    })
    .await;
}

#[tokio::test]
async fn only_the_invalid_record_is_rejected() {
    let refused = |code| SendError::new(Native::MessageProduction(code)).is_refusal();
    assert!(refused(Code::InvalidRecord) && refused(Code::MessageSizeTooLarge));
    assert!(!refused(Code::InvalidDifferentRecord) && !refused(Code::MessageTimedOut));
    assert!(!refused(Code::InvalidTimestamp) && !refused(Code::PolicyViolation));
    assert!(!refused(Code::TopicAuthorizationFailed) && !refused(Code::UnknownTopic));
}

#[tokio::test]
async fn its_queue_has_the_configured_size() {
    let queue = |properties: &[(&str, &str)]| {
        let properties = properties.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        let settings =
            Settings { bootstrap_servers: "localhost:1".to_owned(), properties, ..Settings::default() };
        Producer::new(&settings, "test", &unmeasured()).unwrap().queue()
    };
    assert_eq!(queue(&[]), QueueLimits { records: 100_000, bytes: 128 << 20 });
    let unbounded_in_number = queue(&[(QUEUE_RECORDS, "0"), (QUEUE_KBYTES, "2048")]);
    assert_eq!(unbounded_in_number, QueueLimits { records: usize::MAX, bytes: 2 << 20 });
}
