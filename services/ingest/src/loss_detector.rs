//! Decides whether a delivery is silent because its record is lost, or because dispatch has not reached it yet.

use std::time::Duration;

use chrono::{DateTime, Utc};
use throughline_clock::Clock;
use throughline_kafka as kafka;
use throughline_kafka::{KafkaError, Mark, Progress};

/// How long the broker may take to report the progress of a consumer group.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Checks the progress of two consumer groups: first of dispatch through the published records, then of the recorder
/// through the outcomes of dispatch. A delivery that was due before the check and is still silent is lost.
///
/// A due delivery that is not in the outbox is, or was, in Kafka. So, whatever the clocks show, it has been handled
/// once dispatch's committed offsets pass the current end of its topics, and the recorder's then pass the end of the
/// outcomes at that moment.
pub(crate) struct LossDetector {
    /// `None` with a forgetful broker: it and both groups start empty together with this process.
    groups: Option<ConsumerProgress>,
    clock: Clock,
    phase: Phase,
    /// Deliveries that were due before this time are finished, and their outcomes are recorded.
    lost_before: Option<DateTime<Utc>>,
    looked_at: DateTime<Utc>,
}

/// The progress to wait for, to have handled all deliveries that were due at some time.
enum Phase {
    Nothing,
    Dispatch(DateTime<Utc>, Mark),
    Recorder(DateTime<Utc>, Mark),
}

/// The consumer groups to check.
pub(crate) struct ConsumerProgress {
    dispatch: Progress,
    recorder: Progress,
    /// The topics that dispatch reads.
    published: Vec<String>,
    /// The topic that the recorder reads.
    outcomes: String,
}

impl ConsumerProgress {
    /// Creates the progress checks of dispatch and of the recorder.
    ///
    /// # Errors
    /// If the Kafka client rejects the settings.
    pub(crate) fn new(
        kafka: &kafka::Settings,
        published: Vec<String>,
        outcomes: String,
    ) -> Result<Self, KafkaError> {
        let of = |role| Progress::of(kafka, &format!("{}-{role}", kafka.prefix));
        Ok(Self { dispatch: of("dispatch")?, recorder: of("recorder")?, published, outcomes })
    }

    /// Advances as far as the groups have progressed, and returns the result once both have passed their marks.
    async fn advance(
        &self,
        phase: &mut Phase,
        now: DateTime<Utc>,
    ) -> Result<Option<DateTime<Utc>>, KafkaError> {
        loop {
            *phase = match phase {
                Phase::Nothing => {
                    Phase::Dispatch(now, self.dispatch.mark(&self.published, PROBE_DEADLINE).await?)
                }
                Phase::Dispatch(due_before, mark) => {
                    if !self.dispatch.has_passed(mark, PROBE_DEADLINE).await? {
                        return Ok(None);
                    }
                    let outcomes = std::slice::from_ref(&self.outcomes);
                    Phase::Recorder(*due_before, self.recorder.mark(outcomes, PROBE_DEADLINE).await?)
                }
                Phase::Recorder(due_before, mark) => {
                    if !self.recorder.has_passed(mark, PROBE_DEADLINE).await? {
                        return Ok(None);
                    }
                    let due_before = *due_before;
                    *phase = Phase::Nothing;
                    return Ok(Some(due_before));
                }
            };
        }
    }
}

impl LossDetector {
    pub(crate) fn new(groups: Option<ConsumerProgress>, clock: Clock) -> Self {
        let looked_at = clock.now();
        Self { groups, clock, phase: Phase::Nothing, lost_before: None, looked_at }
    }

    /// Returns the time before which a delivery must have been due for its silence to mean that it is lost, once that
    /// time is known.
    ///
    /// # Errors
    /// If the broker does not report the progress of the groups.
    pub(crate) async fn lost_before(&mut self) -> Result<Option<DateTime<Utc>>, KafkaError> {
        let now = self.clock.now();
        if now < self.looked_at {
            // The clock was set back: deliveries published from now on may be due before `lost_before`.
            self.forget();
        }
        self.looked_at = now;
        let Some(groups) = &self.groups else { return Ok(Some(now)) };
        if self.lost_before.is_none() {
            self.lost_before = groups.advance(&mut self.phase, now).await?;
        }
        Ok(self.lost_before)
    }

    /// Discards the result: no delivery is silent any more, and later ones need a new check.
    pub(crate) fn forget(&mut self) {
        (self.phase, self.lost_before) = (Phase::Nothing, None);
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

    async fn produce(kafka: &kafka::Settings, topic: &str) {
        let payload = Bytes::from_static(b"{}");
        let record = Outgoing { topic: topic.to_owned(), key: None, headers: Vec::new(), payload };
        Producer::new(kafka, "test", &unmeasured()).unwrap().send(&record).await.unwrap();
    }

    /// Finishes the one record of a topic.
    async fn finish(kafka: &kafka::Settings, group: &str, topic: &str) {
        let mut consumer = Consumer::subscribe(kafka, group, &[topic], 1, &unmeasured()).unwrap();
        let received = tokio::time::timeout(DEADLINE, consumer.recv()).await.expect("a record");
        received.expect("a consumer").receipt.done();
        consumer.close(DEADLINE).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_silent_delivery_is_lost_once_dispatch_and_the_recorder_have_passed_it() {
        let broker = EmbeddedBroker::start(1).unwrap();
        broker.create_topics(&["one", "outcomes"]).unwrap();
        let kafka =
            kafka::Settings { bootstrap_servers: broker.bootstrap_servers(), ..kafka::Settings::default() };
        let groups = ConsumerProgress::new(&kafka, vec!["one".to_owned()], "outcomes".to_owned()).unwrap();
        let clock = Clock::manual(DateTime::from_timestamp(1_767_225_600, 0).unwrap());
        let mut loss_detector = LossDetector::new(Some(groups), clock.clone());
        produce(&kafka, "one").await;
        produce(&kafka, "outcomes").await;

        let first_asked = clock.now();
        assert_eq!(loss_detector.lost_before().await.unwrap(), None);
        clock.advance(TimeDelta::minutes(1));
        finish(&kafka, "throughline-dispatch", "one").await;
        assert_eq!(
            loss_detector.lost_before().await.unwrap(),
            None,
            "the recorder may still record its outcome"
        );
        finish(&kafka, "throughline-recorder", "outcomes").await;
        assert_eq!(loss_detector.lost_before().await.unwrap(), Some(first_asked));
        produce(&kafka, "one").await;
        assert_eq!(
            loss_detector.lost_before().await.unwrap(),
            Some(first_asked),
            "the result does not cover a later publication"
        );
        clock.advance(TimeDelta::hours(-1));
        assert_eq!(
            loss_detector.lost_before().await.unwrap(),
            None,
            "a later publication may be due before the result"
        );
    }
}
