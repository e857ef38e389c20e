//! Deletes idempotency keys that have expired, as fast as they expire.

use std::time::Duration;

use throughline_clock::Clock;
use throughline_store::{Store, StoreError, idempotency};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;

/// Most keys in one statement: some 10 ms, for which a claim of one of them waits.
const BATCH: u64 = 1000;
/// The pause when fewer have expired than a batch takes.
const PAUSE: Duration = Duration::from_secs(10);

pub(crate) struct ExpiredKeys {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
}

impl ExpiredKeys {
    /// Runs until told to stop. While there are more than one batch takes, it works half of the time, so its rate has
    /// no bound but the database's.
    ///
    /// # Errors
    /// If the database refuses.
    pub(crate) async fn run(self) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let pause = match idempotency::purge(self.store.connection(), self.clock.now(), BATCH).await {
                Ok(deleted) => {
                    backoff.reset();
                    if deleted < BATCH { PAUSE } else { begun.elapsed() }
                }
                Err(error) if error.is_unavailable() => {
                    if !backoff.pause(&self.stop, "expired idempotency keys cannot be deleted", &error).await
                    {
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
