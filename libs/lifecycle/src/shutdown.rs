use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::signals::{SignalError, Signals};

/// The two stages of the end of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    _watch: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Shutdown {
    /// Returns a shutdown that begins only by [`begin`](Self::begin) and has no deadline.
    #[must_use]
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self { soft: hard.child_token(), hard, _watch: None }
    }

    /// Returns a shutdown that begins on SIGTERM or SIGINT. It becomes hard at a second signal, or `deadline` after it
    /// began for any reason.
    ///
    /// From then on these signals alone no longer end the process. They are handled for as long as a clone of the
    /// shutdown exists.
    ///
    /// # Errors
    /// If the operating system refuses a signal handler.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_signals(deadline: Duration) -> Result<Self, SignalError> {
        let mut signals = Signals::listen()?;
        let Self { soft, hard, .. } = Self::new();
        let watch = watch(soft.clone(), hard.clone(), deadline, async move || signals.next().await);
        let watch = AbortOnDropHandle::new(tokio::spawn(watch));
        Ok(Self { soft, hard, _watch: Some(Arc::new(watch)) })
    }

    /// Begins the shutdown, as a first signal does.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Makes the shutdown hard at once, as a second signal does.
    pub fn force(&self) {
        self.hard.cancel();
    }

    /// Returns the token that is cancelled when the shutdown begins: take no new work, finish the current work.
    #[must_use]
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Returns the token that is cancelled when the shutdown becomes hard: stop at once.
    #[must_use]
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// Cancels the two tokens on signals and at the deadline. Returns when hard is cancelled.
async fn watch(
    soft: CancellationToken,
    hard: CancellationToken,
    deadline: Duration,
    mut next_signal: impl AsyncFnMut() -> &'static str,
) {
    let mut signalled = false;
    let mut ends_at: Option<Instant> = None;
    while !hard.is_cancelled() {
        tokio::select! {
            signal = next_signal() => {
                if signalled {
                    tracing::warn!(
                        event = "shutdown.forced", signal,
                        "second signal received; stopping immediately"
                    );
                    hard.cancel();
                } else {
                    // The first signal never makes the shutdown hard, even if a failed task had already begun it: the
                    // sender did not know of that.
                    tracing::info!(
                        event = "shutdown.started", signal, deadline_ms = deadline.as_millis(),
                        "shutting down"
                    );
                    signalled = true;
                    soft.cancel();
                }
            }
            () = soft.cancelled(), if ends_at.is_none() => ends_at = Some(Instant::now() + deadline),
            () = until(ends_at) => {
                tracing::warn!(
                    event = "shutdown.timed_out", deadline_ms = deadline.as_millis(),
                    "the deadline of the shutdown has passed; stopping immediately"
                );
                hard.cancel();
            }
            () = hard.cancelled() => {}
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(25);

    /// A shutdown whose signals a test sends.
    fn watched() -> (Shutdown, mpsc::Sender<&'static str>) {
        let (send, mut signals) = mpsc::channel(1);
        let shutdown = Shutdown::new();
        let (soft, hard) = (shutdown.soft().clone(), shutdown.hard().clone());
        tokio::spawn(watch(soft, hard, DEADLINE, async move || match signals.recv().await {
            Some(signal) => signal,
            None => pending().await,
        }));
        (shutdown, send)
    }

    /// Returns how long the grace period lasts.
    async fn until_hard(shutdown: &Shutdown) -> Duration {
        let started = Instant::now();
        timeout(Duration::from_hours(1), shutdown.hard().cancelled()).await.unwrap();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_begins_the_shutdown_and_the_deadline_counts_from_there() {
        let (shutdown, signals) = watched();
        assert!(timeout(Duration::from_hours(1), shutdown.soft().cancelled()).await.is_err());
        signals.send("SIGTERM").await.unwrap();
        shutdown.soft().cancelled().await;
        assert!(!shutdown.hard().is_cancelled());
        assert!((DEADLINE..DEADLINE * 2).contains(&until_hard(&shutdown).await));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_beginning_without_a_signal_too() {
        let (shutdown, _signals) = watched();
        shutdown.begin();
        assert!((DEADLINE..DEADLINE * 2).contains(&until_hard(&shutdown).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_forces_the_stop_immediately() {
        let (shutdown, signals) = watched();
        signals.send("SIGTERM").await.unwrap();
        signals.send("SIGINT").await.unwrap();
        assert_eq!(until_hard(&shutdown).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_does_not_force_a_shutdown_that_had_begun() {
        let (shutdown, signals) = watched();
        shutdown.begin();
        signals.send("SIGTERM").await.unwrap();
        assert!((DEADLINE..DEADLINE * 2).contains(&until_hard(&shutdown).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forced_stop_also_cancels_the_soft_token() {
        let shutdown = Shutdown::new();
        shutdown.force();
        assert!(shutdown.soft().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_the_soft_stop_does_not_end() {
        let shutdown = Shutdown::new();
        shutdown.begin();
        assert!(timeout(Duration::from_hours(24), shutdown.hard().cancelled()).await.is_err());
    }
}
