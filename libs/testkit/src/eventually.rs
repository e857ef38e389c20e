use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::{Instant, sleep_until, timeout_at};

/// The pause between two checks: short compared with the awaited event, long compared with a check.
const INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `look` succeeds.
///
/// # Errors
/// If `look` has not succeeded by the deadline: its last error.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let until = Instant::now() + deadline;
    let mut last = anyhow!("nothing: the first look did not end");
    loop {
        match timeout_at(until, look()).await {
            Ok(Ok(seen)) => return Ok(seen),
            Ok(Err(seen)) => last = seen,
            Err(_) => {}
        }
        if Instant::now() + INTERVAL >= until {
            return Err(last).with_context(|| format!("waited {deadline:?} for {what}, and last saw"));
        }
        sleep_until(Instant::now() + INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[tokio::test(start_paused = true)]
    async fn it_looks_until_it_succeeds() {
        let mut looks = 0;
        let seen = eventually("three looks", Duration::from_secs(1), async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(seen.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_result_is_reported_at_the_deadline() {
        let never = eventually("a miracle", Duration::from_secs(1), async || -> anyhow::Result<()> {
            Err(anyhow!("nothing yet"))
        });
        assert_eq!(
            format!("{:#}", never.await.unwrap_err()),
            "waited 1s for a miracle, and last saw: nothing yet"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let hangs = eventually("an answer", Duration::from_secs(1), async || -> anyhow::Result<()> {
            std::future::pending().await
        });
        let error = format!("{:#}", hangs.await.unwrap_err());
        assert!(error.contains("the first look did not end"), "{error}");
    }
}
