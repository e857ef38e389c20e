use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::signals::{SignalError, Signals};

/// The two steps in which a process ends; clones share them.
#[derive(Clone, Debug)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
    _watch: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Shutdown {
    /// A shutdown that begins only by [`begin`](Self::begin) and has no deadline.
    #[must_use]
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self { soft: hard.child_token(), hard, _watch: None }
    }

    /// A shutdown that SIGTERM and SIGINT begin, and that becomes hard `deadline` after it began, however
    /// that was, or at a second signal.
    ///
    /// From here on the process no longer ends by these signals alone. They are heard for as long as a
    /// clone of the shutdown lives.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
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

    /// Ends all patience, as a second signal does.
    pub fn force(&self) {
        self.hard.cancel();
    }

    /// Cancelled once the shutdown has begun: take nothing new, finish what is there.
    #[must_use]
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Cancelled once patience is over: stop at once.
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

/// Turns signals and time into the two tokens; over when hard is cancelled.
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
                    tracing::warn!(signal, "a second signal: stopping at once");
                    hard.cancel();
                } else {
                    // The first one never forces, even if a failed task had begun the shutdown before:
                    // whoever sent it knew nothing of that.
                    tracing::info!(signal, deadline_ms = deadline.as_millis(), "shutting down");
                    signalled = true;
                    soft.cancel();
                }
            }
            () = soft.cancelled(), if ends_at.is_none() => ends_at = Some(Instant::now() + deadline),
            () = until(ends_at) => {
                tracing::warn!(deadline_ms = deadline.as_millis(), "not done by the deadline: stopping at once");
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

    /// How long it takes until patience is over.
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
    async fn a_second_signal_forces_at_once() {
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
    async fn force_is_heard_by_who_waits_for_the_soft_stop_only() {
        let shutdown = Shutdown::new();
        shutdown.force();
        assert!(shutdown.soft().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_patience_does_not_end() {
        let shutdown = Shutdown::new();
        shutdown.begin();
        assert!(timeout(Duration::from_hours(24), shutdown.hard().cancelled()).await.is_err());
    }
}
