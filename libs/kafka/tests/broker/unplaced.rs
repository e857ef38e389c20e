//! A group without committed offsets begins at the first record, and warns where that record is old.

use std::io::Write;
use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use throughline_clock::Clock;

use crate::support::{Broker, SOON, next};

/// The log of all tests of this program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// How often the group of a broker's test has warned.
    fn warnings(&self, broker: &Broker) -> usize {
        let group = format!("group=\"{}-group\"", broker.topic);
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("offsets.missing") && line.contains(&group)).count()
    }
}

/// Produces a record to each of the partitions, so long ago.
fn produce(broker: &Broker, partitions: std::ops::Range<i32>, ago: TimeDelta) {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    let producer: BaseProducer = config.create().unwrap();
    let time = (Clock::system().now() - ago).timestamp_millis();
    for partition in partitions {
        let record = BaseRecord::<(), _>::to(&broker.topic).payload("x").partition(partition);
        producer.send(record.timestamp(time)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(SOON).unwrap();
}

#[tokio::test]
async fn a_group_without_offsets_warns_once_of_old_records_and_never_of_new_ones() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    // Of the whole program: a consumer has a thread of its own.
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let (old, new) = (Broker::embedded("old-records", 2), Broker::embedded("new-records", 2));
    for (broker, ago, warnings) in [(&old, 61, 1), (&new, 59, 0)] {
        let ago = TimeDelta::minutes(ago);
        produce(broker, 0..2, ago);
        let mut consumer = broker.consumer(8);
        for _ in 0..2 {
            next(&mut consumer).await.receipt.done();
        }
        consumer.close(SOON).await.unwrap();
        assert_eq!(log.warnings(broker), warnings, "{ago:?}");
        // The group has offsets now.
        produce(broker, 0..2, ago);
        let mut consumer = broker.consumer(8);
        next(&mut consumer).await.receipt.done();
        assert_eq!(log.warnings(broker), warnings, "{ago:?}, with offsets");
    }
}
