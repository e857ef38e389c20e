use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use throughline_config::Kafka;
use throughline_kafka::{Consumer, Outgoing, Position, Producer, Record};
use throughline_messages::Headers;
use tokio::time::{Instant, timeout_at};

use crate::measured::unmeasured;

/// Records that the reader holds until somebody asks for them.
const BUFFER: usize = 1000;
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Produces a record, as anybody may who knows the broker.
///
/// # Errors
/// If the broker does not take it.
pub async fn produce(
    kafka: &Kafka,
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
    /// Begins to read, in a consumer group of its own.
    ///
    /// # Errors
    /// If it cannot subscribe.
    pub fn open(kafka: &Kafka, topic: &str) -> anyhow::Result<Self> {
        let group = format!("reader-of-{topic}");
        let consumer = Consumer::subscribe(kafka, &group, &[topic], BUFFER, &unmeasured())?;
        Ok(Self { topic: topic.to_owned(), consumer, seen: 0 })
    }

    /// Reads on until there is a record such as is wanted.
    ///
    /// # Errors
    /// If none has come by the deadline.
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
    /// If that takes too long.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.consumer.close(CLOSE_DEADLINE).await?)
    }
}
