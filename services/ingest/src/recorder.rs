//! Turns outcomes into attempts and delivery states, in batches, idempotently.

use std::sync::Arc;
use std::time::Duration;

use throughline_clock::Clock;
use throughline_kafka::{Consumer, KafkaError, Received, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{AttemptReport, Keys, Kind, Malformed};
use throughline_store::{Store, StoreError, outcomes};
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::liveness::Pulse;
use crate::metrics::Metrics;
use crate::publisher::Window;
use crate::refusals::DeadLetters;
use crate::sweeper::Alarm;
use crate::{Broker, CLOSE_DEADLINE};

/// Most outcomes in one transaction.
const BATCH: usize = 512;
/// How long the embedded broker may take to hand over an outcome that it has: librdkafka waits up to
/// 500 ms for a fetch.
const LAST_WORDS: Duration = Duration::from_millis(600);

pub(crate) struct Recorder {
    pub(crate) consumer: Consumer,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) window: Arc<Window>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) metrics: Metrics,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) keys: Keys,
    pub(crate) broker: Broker,
    pub(crate) pulse: Pulse,
    pub(crate) shutdown: Shutdown,
}

impl Recorder {
    /// Runs until told to stop; what it has taken by then is recorded.
    pub(crate) async fn run(mut self) -> Result<(), KafkaError> {
        loop {
            let batch = self.shutdown.soft().run_until_cancelled(self.consumer.recv_batch(BATCH)).await;
            match batch {
                Some(batch) if !batch.is_empty() => self.step(batch).await,
                _ => break,
            }
        }
        // What a broker that forgets still has to say is said now or never.
        while self.broker == Broker::Forgetful
            && let Ok(batch) = timeout(LAST_WORDS, self.consumer.recv_batch(BATCH)).await
            && !batch.is_empty()
        {
            self.step(batch).await;
        }
        self.consumer.close(CLOSE_DEADLINE).await
    }

    /// Records a batch; the offsets follow.
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

    /// The report that a record holds.
    ///
    /// # Errors
    /// In words, if dispatch has not signed the record, or it cannot be read.
    fn read(&self, record: &Record) -> Result<AttemptReport, String> {
        if !self.keys.have_signed(Kind::Outcome, &record.headers, &record.payload) {
            return Err(Malformed::unsigned().to_string());
        }
        serde_json::from_slice(&record.payload).map_err(|error| error.to_string())
    }

    /// False if told to stop before: then the outcomes are read again.
    async fn record_until_done(&self, reports: &[(AttemptReport, Record)]) -> bool {
        let all: Vec<AttemptReport> = reports.iter().map(|(report, _)| report.clone()).collect();
        let mut backoff = Backoff::default();
        loop {
            let attempt = self.pulse.attempt();
            let recorded = self.record(&all).await;
            if recorded.as_ref().err().is_none_or(StoreError::was_answered) {
                attempt.answered();
            }
            drop(attempt);
            match recorded {
                Ok(()) => return true,
                Err(error) if !error.is_about_data() => {
                    if !backoff.pause(self.shutdown.hard(), "outcomes cannot be recorded", &error).await {
                        return false;
                    }
                }
                Err(error) if all.len() > 1 => {
                    tracing::warn!(%error, outcomes = all.len(), "a batch failed, its outcomes are recorded one by one");
                    for report in reports {
                        if !Box::pin(self.record_until_done(std::slice::from_ref(report))).await {
                            return false;
                        }
                    }
                    return true;
                }
                Err(error) => {
                    return match reports.first() {
                        Some((_, record)) => self.dead_letters.put_malformed(record, &error).await,
                        None => true,
                    };
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
            self.alarm.set(earliest, now);
        }
        for request_id in recorded.unknown {
            // Another environment's, on the same topics; or its request was deleted meanwhile.
            tracing::warn!(%request_id, "an outcome of a request that is not in the database");
        }
        for report in reports {
            self.window.heard_of(report.request_id);
        }
        Ok(())
    }
}
