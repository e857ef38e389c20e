//! Tells whether a delivery is silent because its record is lost, or because nobody has come to it yet.

use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_config::Kafka;
use throughline_kafka::{KafkaError, Mark, Progress};

/// How long the broker may take to say how far a group has come.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Looks how far others have come: dispatch with what was published, and then the recorder with what dispatch says
/// of it. What was due before and is silent still, is lost.
///
/// What is due and not in the outbox lies in Kafka, or did. So, whatever clocks say, it has been dealt with once
/// dispatch has finished all that is there now, and the recorder all that is there then.
pub(crate) struct Listener {
    /// None where the broker forgets: there, all of them begin anew with this process.
    groups: Option<Groups>,
    clock: Clock,
    awaited: Awaited,
    /// What was due before this is finished and recorded.
    heard: Option<DateTime<Utc>>,
    looked_at: DateTime<Utc>,
}

/// What is waited for, to learn of all that was due at some time.
enum Awaited {
    Nothing,
    Dispatch(DateTime<Utc>, Mark),
    Recorder(DateTime<Utc>, Mark),
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

impl Groups {
    /// The groups of dispatch and of the recorder.
    ///
    /// # Errors
    /// If the settings are not taken.
    pub(crate) fn new(kafka: &Kafka, published: Vec<String>, outcomes: String) -> Result<Self, KafkaError> {
        let of = |role| Progress::of(kafka, &format!("{}-{role}", kafka.prefix));
        Ok(Self { dispatch: of("dispatch")?, recorder: of("recorder")?, published, outcomes })
    }

    /// Goes as far as the others have come, and gives what is known at the end of it.
    async fn listen(
        &self,
        awaited: &mut Awaited,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, KafkaError> {
        loop {
            *awaited = match awaited {
                Awaited::Nothing => {
                    Awaited::Dispatch(now, self.dispatch.mark(&self.published, PROBE_DEADLINE).await?)
                }
                Awaited::Dispatch(due_before, mark) => {
                    if !self.dispatch.has_passed(mark, PROBE_DEADLINE).await? {
                        return Ok(None);
                    }
                    let outcomes = std::slice::from_ref(&self.outcomes);
                    Awaited::Recorder(*due_before, self.recorder.mark(outcomes, PROBE_DEADLINE).await?)
                }
                Awaited::Recorder(due_before, mark) => {
                    if !self.recorder.has_passed(mark, PROBE_DEADLINE).await? {
                        return Ok(None);
                    }
                    let due_before = *due_before;
                    *awaited = Awaited::Nothing;
                    return Ok(Some(due_before));
                }
            };
        }
    }
}

impl Listener {
    pub(crate) fn new(groups: Option<Groups>, clock: Clock) -> Self {
        let looked_at = clock.now();
        Self { groups, clock, awaited: Awaited::Nothing, heard: None, looked_at }
    }

    /// Until when a delivery must have been due for its silence to mean that it is lost, once that is known.
    ///
    /// # Errors
    /// If the broker does not say how far the others have come.
    pub(crate) async fn heard(&mut self) -> Result<Option<DateTime<Utc>>, KafkaError> {
        let now = self.clock.now();
        if now < self.looked_at {
            // What is published from now on may be due before what was heard of.
            self.forget();
        }
        self.looked_at = now;
        let Some(groups) = &self.groups else { return Ok(Some(now)) };
        if self.heard.is_none() {
            self.heard = groups.listen(&mut self.awaited, now).await?;
        }
        Ok(self.heard)
    }

    /// Nothing is silent any more: what is later has to be listened for anew.
    pub(crate) fn forget(&mut self) {
        (self.awaited, self.heard) = (Awaited::Nothing, None);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chrono::TimeDelta;
    use throughline_kafka::{Consumer, EmbeddedBroker, Outgoing, Producer};
    use throughline_testkit::unmeasured;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn produce(kafka: &Kafka, topic: &str) {
        let payload = Bytes::from_static(b"{}");
        let record = Outgoing { topic: topic.to_owned(), key: None, headers: Vec::new(), payload };
        Producer::new(kafka, "test", &unmeasured()).unwrap().send(&record).await.unwrap();
    }

    /// Finishes the one record of a topic.
    async fn finish(kafka: &Kafka, group: &str, topic: &str) {
        let mut consumer = Consumer::subscribe(kafka, group, &[topic], 1, &unmeasured()).unwrap();
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
        let mut listener = Listener::new(Some(groups), clock.clone());
        produce(&kafka, "one").await;
        produce(&kafka, "outcomes").await;

        let first_asked = clock.now();
        assert_eq!(listener.heard().await.unwrap(), None);
        clock.advance(TimeDelta::minutes(1));
        finish(&kafka, "throughline-dispatch", "one").await;
        assert_eq!(listener.heard().await.unwrap(), None, "it may be recorded yet");
        finish(&kafka, "throughline-recorder", "outcomes").await;
        assert_eq!(listener.heard().await.unwrap(), Some(first_asked));
        produce(&kafka, "one").await;
        assert_eq!(listener.heard().await.unwrap(), Some(first_asked), "what is published now is not meant");
        clock.advance(TimeDelta::hours(-1));
        assert_eq!(listener.heard().await.unwrap(), None, "what is published now may be due before");
    }
}
