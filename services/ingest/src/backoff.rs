//! The pause before a dependency that is away is tried again.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Pauses that double from 50 ms to 2 s. Says once that something is away, not at every try.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Waits before the next try; false if `stop` comes first.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken, what: &str, error: &impl Display) -> bool {
        if self.tries == 0 {
            tracing::warn!(%error, "{what}, trying until it can be done");
        }
        let pause = FIRST.saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries += 1;
        stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
    }

    /// Whether something did not work, and has not worked since.
    pub(crate) fn is_trying(&self) -> bool {
        self.tries > 0
    }

    /// It worked: the next trouble is a new one.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
