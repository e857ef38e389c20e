//! Finds deliveries that are lost: they were published, and no outcome of them will come.

use std::time::Duration;

use throughline_store::claims::{self, Due};

use super::{Resender, SweepError, unless_stopped};
use crate::backoff::Backoff;
use crate::listener::Listener;

/// Between two looks when nothing was lost: `ingest.patience` is no matter of seconds, and each look at how far others
/// have come costs the broker something.
const PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct Seeker {
    pub(crate) resender: Resender,
    pub(crate) listener: Listener,
}

impl Seeker {
    /// Runs until told to stop.
    pub(crate) async fn run(mut self) -> Result<(), std::convert::Infallible> {
        let mut backoff = Backoff::default();
        let soft = self.resender.shutdown.soft().clone();
        loop {
            let goes_on = match self.step(backoff.is_trying()).await {
                Ok(found) => {
                    backoff.reset();
                    found > 0 || soft.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some()
                }
                Err(SweepError::Stopped) => false,
                Err(error) => backoff.pause(&soft, "lost deliveries cannot be found", &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Publishes a batch of what is lost, if anything is silent at all; says how many that were.
    pub(super) async fn step(&mut self, after_trouble: bool) -> Result<usize, SweepError> {
        let Resender { store, clock, shutdown, .. } = &self.resender;
        let stop = shutdown.soft();
        if after_trouble {
            self.resender.probe().await?;
        }
        let any = claims::is_any_due(store.connection(), Due::Silent, clock.now());
        if !unless_stopped(stop, any).await? {
            self.listener.forget();
            return Ok(0);
        }
        let Some(heard) = unless_stopped(stop, self.listener.heard()).await? else { return Ok(0) };
        let found = self.resender.sweep(Due::Silent, heard).await?;
        if found == 0 {
            self.listener.forget();
        }
        Ok(found)
    }
}
