//! Tells whether a delivery is silent because its record is lost, or because nobody has come to it yet.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_config::Kafka;
use throughline_kafka::{KafkaError, Progress};

/// How long the broker may take to say how far a group has come.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How much the clocks of replicas may differ.
const SKEW: TimeDelta = TimeDelta::seconds(5);

/// Looks how far others have come: dispatch with what was published, and then the recorder with what dispatch says
/// of it. What was due before and is silent still, is lost.
pub(crate) struct Listener {
    /// None where the broker forgets: there, all of them begin anew with this process.
    groups: Option<Groups>,
    patience: TimeDelta,
    clock: Clock,
    /// What dispatch has finished, though not all of it is known to be recorded.
    finished: Option<Finished>,
    /// What was due before this is finished and recorded.
    heard: DateTime<Utc>,
}

/// Whose progress counts.
pub(crate) struct Groups {
    dispatch: Progress,
    recorder: Progress,
    /// What dispatch reads.
    published: Vec<String>,
    /// What the recorder reads.
    outcomes: String,
}

/// As of some time, dispatch had finished everything that was due before.
struct Finished {
    due_before: DateTime<Utc>,
    /// Everything it said of that is older.
    said_before: DateTime<Utc>,
}

impl Groups {
    /// The groups of dispatch and of the recorder.
    ///
    /// # Errors
    /// If the settings are not taken.
    pub(crate) fn new(kafka: &Kafka, published: Vec<String>, outcomes: String) -> Result<Self, KafkaError> {
        let of = |role| Progress::of(kafka, &format!("{}-{role}", kafka.prefix));
        Ok(Self { dispatch: of("dispatch")?, recorder: of("recorder")?, published, outcomes })
    }
}

impl Listener {
    pub(crate) fn new(groups: Option<Groups>, patience: TimeDelta, clock: Clock) -> Self {
        Self { groups, patience, clock, finished: None, heard: DateTime::UNIX_EPOCH }
    }

    /// Until when a delivery must have been due for its silence to mean that it is lost.
    ///
    /// # Errors
    /// If the broker does not say how far the others have come.
    pub(crate) async fn heard(&mut self) -> Result<DateTime<Utc>, KafkaError> {
        let now = self.clock.now();
        let Some(groups) = &self.groups else { return Ok(now) };
        // What is due now was published by then: of what is published later, patience begins anew.
        let published_before = now - self.patience / 2;
        if self.finished.is_none()
            && groups.dispatch.has_passed(&groups.published, published_before, PROBE_DEADLINE).await?
        {
            self.finished = Some(Finished { due_before: now, said_before: self.clock.now() + SKEW });
        }
        if let Some(Finished { due_before, said_before }) = self.finished {
            let outcomes = std::slice::from_ref(&groups.outcomes);
            if groups.recorder.has_passed(outcomes, said_before, PROBE_DEADLINE).await? {
                (self.heard, self.finished) = (due_before, None);
            }
        }
        Ok(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use throughline_kafka::{Consumer, EmbeddedBroker, Outgoing, Producer};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn produce(kafka: &Kafka, topic: &str) {
        let payload = Bytes::from_static(b"{}");
        let record = Outgoing { topic: topic.to_owned(), key: None, headers: Vec::new(), payload };
        Producer::new(kafka).unwrap().send(&record).await.unwrap();
    }

    /// Finishes the one record of a topic.
    async fn finish(kafka: &Kafka, group: &str, topic: &str) {
        let mut consumer = Consumer::subscribe(kafka, group, &[topic], 1).unwrap();
        let received = tokio::time::timeout(DEADLINE, consumer.recv()).await.expect("a record");
        received.expect("a consumer").receipt.done();
        consumer.close(DEADLINE).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_is_silent_is_lost_once_dispatch_and_the_recorder_have_come_that_far() {
        let broker = EmbeddedBroker::start(1).unwrap();
        broker.create_topics(&["one", "outcomes"]).unwrap();
        let kafka = Kafka { bootstrap_servers: broker.bootstrap_servers(), ..Kafka::default() };
        let groups = Groups::new(&kafka, vec!["one".to_owned()], "outcomes".to_owned()).unwrap();
        let clock = Clock::manual(DateTime::from_timestamp(1_767_225_600, 0).unwrap());
        let mut listener = Listener::new(Some(groups), TimeDelta::minutes(15), clock.clone());
        produce(&kafka, "one").await;
        produce(&kafka, "outcomes").await;

        assert_eq!(listener.heard().await.unwrap(), DateTime::UNIX_EPOCH);
        finish(&kafka, "throughline-dispatch", "one").await;
        let dispatched = clock.now();
        assert_eq!(listener.heard().await.unwrap(), DateTime::UNIX_EPOCH, "it may be recorded yet");
        clock.advance(TimeDelta::minutes(1));
        finish(&kafka, "throughline-recorder", "outcomes").await;
        assert_eq!(listener.heard().await.unwrap(), dispatched);
    }
}
