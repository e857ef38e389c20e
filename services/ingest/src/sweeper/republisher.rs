//! Finds lost deliveries: they were published, and no outcome will arrive.

use std::time::Duration;

use throughline_store::claims::{self, Due};

use super::{Resender, SweepError, unless_stopped};
use crate::backoff::{Backoff, Warning};
use crate::loss_detector::LossDetector;

const SEARCH_FAILED: Warning =
    Warning { event: "deliveries.search_failed", message: "cannot find lost deliveries" };

/// The pause after a check that found nothing: `ingest.redelivery_timeout` is far longer than seconds, and each check
/// of the consumer groups' progress costs the broker something.
const PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct Republisher {
    pub(crate) resender: Resender,
    pub(crate) loss_detector: LossDetector,
}

impl Republisher {
    /// Runs until shutdown.
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
                Err(error) => backoff.pause(&soft, SEARCH_FAILED, &error).await,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    /// Publishes a batch of lost deliveries, if any delivery is silent at all; returns how many.
    pub(super) async fn step(&mut self, after_failure: bool) -> Result<usize, SweepError> {
        let Resender { store, clock, shutdown, .. } = &self.resender;
        let stop = shutdown.soft();
        if after_failure {
            self.resender.probe().await?;
        }
        let any = claims::is_any_due(store.connection(), Due::Silent, clock.now());
        if !unless_stopped(stop, any).await? {
            self.loss_detector.forget();
            return Ok(0);
        }
        let Some(lost_before) = unless_stopped(stop, self.loss_detector.lost_before()).await? else {
            return Ok(0);
        };
        let found = self.resender.sweep(Due::Silent, lost_before).await?;
        if found == 0 {
            self.loss_detector.forget();
        }
        Ok(found)
    }
}
