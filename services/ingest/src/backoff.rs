//! The pause before a retry of an unreachable dependency.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The log line for a failure of a retried operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warning {
    pub(crate) event: &'static str,
    pub(crate) message: &'static str,
}

/// Pauses that double from 50 ms to 2 s. Logs only the first failure, not every retry.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Waits before the next try; returns false if `stop` is cancelled first.
    pub(crate) async fn pause(
        &mut self,
        stop: &CancellationToken,
        warning: Warning,
        error: &impl Display,
    ) -> bool {
        if self.tries == 0 {
            let Warning { event, message } = warning;
            tracing::warn!(event, %error, "{message}; retrying");
        }
        let pause = FIRST.saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries += 1;
        stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
    }

    /// Returns whether the last try failed.
    pub(crate) fn is_trying(&self) -> bool {
        self.tries > 0
    }

    /// Resets the pauses after a success: the next failure is logged again.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
