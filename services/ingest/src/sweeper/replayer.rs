//! Sends dead letters on their way again, at the rate of their replay.

use std::sync::Arc;

use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_store::{Store, StoreError, replays};
use tokio::time::timeout;

use super::{Alarm, LONGEST_SLEEP, SHORTEST_SLEEP};
use crate::backoff::Backoff;

pub(crate) struct Replayer {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) shutdown: Shutdown,
}

impl Replayer {
    /// Runs until told to stop. A replay goes on where it was when ingest starts again.
    pub(crate) async fn run(self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.shutdown.soft();
        while let Some(step) = soft.run_until_cancelled(self.step()).await {
            match step {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    if !backoff.pause(soft, "dead letters cannot be replayed", &error).await {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes what is to be taken now, and sleeps until the next replay goes on.
    async fn step(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let step = replays::go_on(&self.store, now).await?;
        if step.revived > 0 {
            self.alarm.set(now, now);
        }
        if step.looked_at > 0 {
            return Ok(());
        }
        let next = replays::next(self.store.connection()).await?;
        let left = next.map(|next| (next - self.clock.now()).to_std().unwrap_or_default());
        let sleep = left.unwrap_or(LONGEST_SLEEP).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
        // Whichever comes first.
        let _ = timeout(sleep, self.alarm.replay.notified()).await;
        Ok(())
    }
}
