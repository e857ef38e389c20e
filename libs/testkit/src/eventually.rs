use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long to leave alone what is looked at: short against what is waited for, long against a look.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until it sees what it waits for: until `look` succeeds.
///
/// # Errors
/// What `look` saw last, if it has not succeeded by the deadline.
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
    async fn looks_until_it_sees() {
        let mut looks = 0;
        let seen = eventually("three looks", Duration::from_secs(1), async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(seen.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn says_at_the_deadline_what_it_saw_last() {
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
