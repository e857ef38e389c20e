//! Replays dead letters, at the rate of their replay.

use std::sync::Arc;

use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_store::{Store, StoreError, replays};
use tokio::time::timeout;

use super::{LONGEST_SLEEP, SHORTEST_SLEEP, Wake};
use crate::backoff::{Backoff, Warning};

const REPLAY_FAILED: Warning = Warning { event: "replay.failed", message: "cannot replay dead letters" };

pub(crate) struct Replayer {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) wake: Arc<Wake>,
    pub(crate) shutdown: Shutdown,
}

impl Replayer {
    /// Runs until shutdown. A replay resumes at its last position when ingest starts again.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.shutdown.soft();
        while let Some(step) = soft.run_until_cancelled(self.step()).await {
            match step {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    if !backoff.pause(soft, REPLAY_FAILED, &error).await {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Replays the dead letters that are due now, and sleeps until the next replay continues.
    async fn step(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let step = replays::go_on(&self.store, now).await?;
        if step.revived > 0 {
            self.wake.set(now, now);
        }
        if step.looked_at > 0 {
            return Ok(());
        }
        let next = replays::next(self.store.connection()).await?;
        let left = next.map(|next| (next - self.clock.now()).to_std().unwrap_or_default());
        let sleep = left.unwrap_or(LONGEST_SLEEP).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // Whichever comes first.
        let _ = timeout(sleep, self.wake.replay.notified()).await;
        Ok(())
    }
}
