//! Turns outcomes into attempts and delivery states, in batches, idempotently.

use std::sync::Arc;
use std::time::Duration;

use throughline_clock::Clock;
use throughline_kafka::{Consumer, KafkaError, Received, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, Keys, Kind, Malformed};
use throughline_store::{Store, StoreError, outcomes};
use tokio::time::timeout;

use crate::backoff::{Backoff, Warning};
use crate::liveness::Pulse;
use crate::metrics::Metrics;
use crate::publisher::InFlightLimit;
use crate::refusals::DeadLetters;
use crate::sweeper::Wake;
use crate::{Broker, CLOSE_DEADLINE};

const RECORD_FAILED: Warning = Warning { event: "outcomes.record_failed", message: "cannot record outcomes" };

/// Maximum number of outcomes in one transaction.
const BATCH: usize = 512;
/// How long the embedded broker may take to deliver an outcome that it has: librdkafka waits up to 500 ms for a fetch.
const LAST_WORDS: Duration = Duration::from_millis(600);

pub(crate) struct Recorder {
    pub(crate) consumer: Consumer,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) in_flight: Arc<InFlightLimit>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) metrics: Metrics,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) broker: Broker,
    pub(crate) pulse: Pulse,
    pub(crate) shutdown: Shutdown,
}

impl Recorder {
    /// Runs until shutdown; outcomes received by then are recorded.
    pub(crate) async fn run(mut self) -> Result<(), KafkaError> {
        loop {
            let batch = self.shutdown.soft().run_until_cancelled(self.consumer.recv_batch(BATCH)).await;
            match batch {
                Some(batch) if !batch.is_empty() => self.step(batch).await,
                _ => break,
            }
        }
        // The outcomes that a forgetful broker still holds are read now or lost.
        while self.broker == Broker::Forgetful
            && let Ok(batch) = timeout(LAST_WORDS, self.consumer.recv_batch(BATCH)).await
            && !batch.is_empty()
        {
            self.step(batch).await;
        }
        self.consumer.close(CLOSE_DEADLINE).await
    }

    /// Records a batch; its offsets are committed afterwards.
    async fn step(&self, batch: Vec<Received>) {
        let mut reports = Vec::with_capacity(batch.len());
        let mut receipts = Vec::with_capacity(batch.len());
        for received in batch {
            match self.read(&received.record) {
                Ok(report) => {
                    reports.push((report, received.record));
                    receipts.push(received.receipt);
                }
                Err(error) => {
                    if self.dead_letters.put_malformed(&received.record, &error).await {
                        received.receipt.done();
                    }
                }
            }
        }
        if self.record_until_done(&reports).await {
            receipts.into_iter().for_each(throughline_kafka::Receipt::done);
        }
    }

    /// Reads the report that a record holds.
    ///
    /// # Errors
    /// A message, if dispatch has not signed the record or if the record cannot be read.
    fn read(&self, record: &Record) -> Result<AttemptReport, String> {
        if !self.keys.have_signed(Kind::Outcome, &record.headers, &record.payload) {
            return Err(Malformed::unsigned().to_string());
        }
        serde_json::from_slice(&record.payload).map_err(|error| error.to_string())
    }

    /// Records outcomes in as few transactions as possible while a bad outcome fails only itself: halves, in order,
    /// batches with data that the database refuses. Returns false if it is stopped first: then the outcomes are read
    /// again.
    async fn record_until_done(&self, reports: &[(AttemptReport, Record)]) -> bool {
        let mut left = vec![reports];
        while let Some(reports) = left.pop() {
            let Some(recorded) = self.record_until_answered(reports).await else { return false };
            let Err(error) = recorded else { continue };
            match reports {
                [] => {}
                [(_, record)] => {
                    if !self.dead_letters.put_malformed(record, &error).await {
                        return false;
                    }
                }
                _ => {
                    tracing::warn!(
                        event = "outcomes.split", %error, outcomes = reports.len(),
                        "cannot record a batch of outcomes; recording its halves"
                    );
                    let (first, second) = reports.split_at(reports.len() / 2);
                    left.extend([second, first]);
                }
            }
        }
        true
    }

    /// Records outcomes, or returns the error in their data; `None` if it is stopped first.
    async fn record_until_answered(
        &self,
        reports: &[(AttemptReport, Record)],
    ) -> Option<Result<(), StoreError>> {
        let reports: Vec<AttemptReport> = reports.iter().map(|(report, _)| report.clone()).collect();
        let mut backoff = Backoff::default();
        loop {
            let attempt = self.pulse.attempt();
            let recorded = self.record(&reports).await;
            if recorded.as_ref().err().is_none_or(StoreError::was_answered) {
                attempt.answered();
            }
            drop(attempt);
            match recorded {
                Err(error) if !error.is_about_data() => {
                    if !backoff.pause(self.shutdown.hard(), RECORD_FAILED, &error).await {
                        return None;
                    }
                }
                recorded => {
                    backoff.reset();
                    return Some(recorded);
                }
            }
        }
    }

    async fn record(&self, reports: &[AttemptReport]) -> Result<(), StoreError> {
        let transaction = self.store.begin().await?;
        let now = self.clock.now();
        let recorded = outcomes::record(&transaction, reports, now).await?;
        transaction.commit().await?;
        self.metrics.ended(&recorded.ended);
        if let Some(earliest) = recorded.earliest {
            self.wake.set(earliest, now);
        }
        for request_id in recorded.unknown {
            // The request belongs to another environment on the same topics, or was deleted meanwhile.
            tracing::warn!(
                event = "outcome.ignored", %request_id,
                "ignoring an outcome: its request is not in the database"
            );
        }
        for report in reports {
            self.in_flight.outcome_recorded(report.request_id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use throughline_kafka as kafka;
    use throughline_kafka::Producer;
    use throughline_messages::Topics;
    use throughline_testkit::{sqlite, unmeasured};

    use super::*;

    /// A recorder without a broker: the test passes the outcomes to record.
    async fn recorder(folder: &tempfile::TempDir) -> Recorder {
        let store = sqlite(folder.path(), &unmeasured()).await.unwrap();
        let kafka =
            kafka::Settings { bootstrap_servers: "127.0.0.1:9".to_owned(), ..kafka::Settings::default() };
        let (topics, shutdown) = (Topics::new("throughline"), Shutdown::new());
        let metrics = Metrics::new(&unmeasured());
        Recorder {
            consumer: Consumer::subscribe(&kafka, "recorder", &[&topics.outcomes], 1, &unmeasured()).unwrap(),
            store,
            clock: Clock::system(),
            in_flight: Arc::new(InFlightLimit::new(1, 1 << 20, Broker::Durable, LAST_WORDS)),
            wake: Arc::default(),
            metrics: metrics.clone(),
            dead_letters: DeadLetters {
                producer: Producer::new(&kafka, "test", &unmeasured()).unwrap(),
                topics,
                metrics,
                hard: shutdown.hard().clone(),
            },
            keys: Keys::new("key", None),
            broker: Broker::Durable,
            pulse: Pulse::default(),
            shutdown,
        }
    }

    #[tokio::test]
    async fn a_batch_is_unanswered_for_liveness_until_the_database_has_recorded_it() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(&folder).await;
        let held = recorder.store.begin().await.unwrap();
        let given_up = timeout(Duration::from_millis(50), recorder.record_until_done(&[])).await;
        assert!(given_up.is_err() && recorder.pulse.is_unanswered());
        drop(held);
        assert!(recorder.record_until_done(&[]).await);
        assert!(!recorder.pulse.is_unanswered());
    }
}
