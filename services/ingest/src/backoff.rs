//! The pause before a retry of an unreachable dependency.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// How often a failure that lasts is logged again.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The log line for a failure of a retried operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warning {
    pub(crate) event: &'static str,
    pub(crate) message: &'static str,
}

/// Pauses that double from 50 ms to 2 s. Logs the first failure, then one per minute and whenever another operation
/// fails, and the success that ends them.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Option<Failing>);

/// Failures since the last success.
#[derive(Debug)]
struct Failing {
    tries: u32,
    since: Instant,
    /// The event that was logged last, and when.
    event: &'static str,
    logged: Instant,
}

impl Backoff {
    /// Waits before the next try; returns false if `stop` is cancelled first.
    pub(crate) async fn pause(
        &mut self,
        stop: &CancellationToken,
        warning: Warning,
        error: &impl Display,
    ) -> bool {
        let earlier_tries = self.failed(warning, error);
        let pause = FIRST.saturating_mul(1 << earlier_tries.min(10)).min(LONGEST);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
    }

    /// Notes a failure, logs it if that is due, and returns the number of failures before it.
    fn failed(&mut self, Warning { event, message }: Warning, error: &impl Display) -> u32 {
        let now = Instant::now();
        let failing = self.0.get_or_insert(Failing { tries: 0, since: now, event, logged: now });
        let is_due = failing.tries == 0 || failing.event != event || now - failing.logged >= LOG_INTERVAL;
        if is_due {
            warn!(event, %error, failing_for = (now - failing.since).as_secs(), "{message}; retrying");
            (failing.event, failing.logged) = (event, now);
        }
        failing.tries += 1;
        failing.tries - 1
    }

    /// Returns whether the last try failed.
    pub(crate) fn is_trying(&self) -> bool {
        self.0.is_some()
    }

    /// Resets the pauses after a success: the next failure is logged again.
    pub(crate) fn reset(&mut self) {
        if let Some(Failing { since, event, .. }) = self.0.take() {
            let failed_for = since.elapsed().as_secs();
            info!(event = "retries.succeeded", failure = event, failed_for, "works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;

    const READ: Warning = Warning { event: "outbox.read_failed", message: "cannot read the outbox" };
    const PUBLISH: Warning = Warning { event: "requests.publish_failed", message: "cannot publish requests" };

    /// The `event` and `failure` fields of each line that was logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
            struct Text(String);
            impl Visit for Text {
                fn record_str(&mut self, field: &Field, value: &str) {
                    if matches!(field.name(), "event" | "failure") {
                        self.0.push_str(value);
                        self.0.push(' ');
                    }
                }
                fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
            }
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0.trim_end().to_owned());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_logged_at_first_then_each_minute_and_when_they_end() {
        let lines = Lines::default();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        let stop = CancellationToken::new();
        let mut backoff = Backoff::default();
        backoff.reset();
        let start = Instant::now();
        while start.elapsed() < LOG_INTERVAL * 2 {
            assert!(backoff.pause(&stop, READ, &"refused").await);
        }
        assert!(backoff.pause(&stop, PUBLISH, &"timed out").await);
        assert!(backoff.is_trying());
        backoff.reset();
        assert!(!backoff.is_trying());
        backoff.reset();
        let again = Instant::now();
        assert!(backoff.pause(&stop, READ, &"refused").await);
        assert_eq!(again.elapsed(), FIRST, "the pauses start over");
        let lines = lines.0.lock().unwrap();
        let expected = [
            "outbox.read_failed",
            "outbox.read_failed",
            "requests.publish_failed",
            "retries.succeeded requests.publish_failed",
            "outbox.read_failed",
        ];
        assert_eq!(*lines, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_a_pause() {
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(!Backoff::default().pause(&stop, READ, &"refused").await);
    }
}
