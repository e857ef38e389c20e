use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use throughline_kafka as kafka;
use throughline_kafka::{Consumer, Outgoing, Position, Producer, Record};
use throughline_messages::Headers;
use tokio::time::{Instant, timeout_at};

use crate::measured::unmeasured;

/// Maximum number of records that the reader buffers.
const BUFFER: usize = 1000;
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Produces a record, as any client of the broker can.
///
/// # Errors
/// If the broker does not accept the record.
pub async fn produce(
    kafka: &kafka::Settings,
    topic: &str,
    headers: Headers,
    payload: impl Into<Bytes>,
) -> anyhow::Result<Position> {
    let record = Outgoing { topic: topic.to_owned(), key: None, headers, payload: payload.into() };
    let producer = Producer::new(kafka, "test", &unmeasured())?;
    producer.send(&record).await.with_context(|| format!("cannot produce onto {topic}"))
}

/// Reads a topic from its beginning.
pub struct Reader {
    topic: String,
    consumer: Consumer,
    seen: usize,
}

impl Reader {
    /// Starts reading, in a consumer group of its own.
    ///
    /// # Errors
    /// If the subscription fails.
    pub fn open(kafka: &kafka::Settings, topic: &str) -> anyhow::Result<Self> {
        let group = format!("reader-of-{topic}");
        let consumer = Consumer::subscribe(kafka, &group, &[topic], BUFFER, &unmeasured())?;
        Ok(Self { topic: topic.to_owned(), consumer, seen: 0 })
    }

    /// Reads on until a record matches.
    ///
    /// # Errors
    /// If no record matches by the deadline.
    pub async fn find(
        &mut self,
        deadline: Duration,
        is_wanted: impl Fn(&Record) -> bool,
    ) -> anyhow::Result<Record> {
        let until = Instant::now() + deadline;
        loop {
            match timeout_at(until, self.consumer.recv()).await {
                Ok(Some(received)) => {
                    self.seen += 1;
                    received.receipt.done();
                    if is_wanted(&received.record) {
                        return Ok(received.record);
                    }
                }
                Ok(None) => bail!("the consumer of {} has closed", self.topic),
                Err(_) => bail!(
                    "waited {deadline:?} for a record on {}; of the {} that came none was it",
                    self.topic,
                    self.seen
                ),
            }
        }
    }

    /// Leaves the group.
    ///
    /// # Errors
    /// If leaving takes too long.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.consumer.close(CLOSE_DEADLINE).await?)
    }
}
