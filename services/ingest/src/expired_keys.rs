//! Deletes expired idempotency keys, as fast as they expire.

use std::time::Duration;

use throughline_clock::Clock;
use throughline_store::{Store, StoreError, idempotency};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Warning};

const PURGE_FAILED: Warning =
    Warning { event: "keys.purge_failed", message: "cannot delete expired idempotency keys" };

/// Maximum number of keys in one statement: some 10 ms, for which a claim of one of them waits.
const BATCH: u64 = 1000;
/// The pause after a batch that was not full.
const PAUSE: Duration = Duration::from_secs(10);

pub(crate) struct ExpiredKeys {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
}

impl ExpiredKeys {
    /// Runs until shutdown. While batches are full, it works half of the time, so that only the database limits its
    /// rate.
    ///
    /// # Errors
    /// If the database refuses the data of the statement.
    pub(crate) async fn run(self) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let pause = match idempotency::purge(self.store.connection(), self.clock.now(), BATCH).await {
                Ok(deleted) => {
                    backoff.reset();
                    if deleted < BATCH { PAUSE } else { begun.elapsed() }
                }
                Err(error) if !error.is_about_data() => {
                    if !backoff.pause(&self.stop, PURGE_FAILED, &error).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            if self.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }
}
