use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::{Runaway, TransformError};
use crate::filter::{Filter, Variables};
use crate::meter::{Limits, STACK};

/// A filter and the threads that run it. Threads start when needed, and end after 10 s without work.
pub struct Runner {
    filter: Filter,
    /// `None` only while the runner is dropped.
    threads: Option<Runtime>,
    /// One permit per thread. A run that waits for its permit has not started, and uses up none of its limits.
    permits: Arc<Semaphore>,
}

impl Runner {
    /// Prepares the threads for a filter.
    ///
    /// # Errors
    /// If the runtime cannot be created.
    pub fn new(filter: Filter) -> io::Result<Self> {
        // The other half remains free for all other work, even if this filter runs away on every body.
        let threads = thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_stack_size(STACK)
            .thread_name("filter")
            .build()?;
        Ok(Self { filter, threads: Some(runtime), permits: Arc::new(Semaphore::new(threads)) })
    }

    /// Transforms a body.
    ///
    /// # Errors
    /// If the body cannot be read, the filter does not produce exactly one JSON value of acceptable size, or the
    /// filter runs away.
    pub async fn apply(&self, body: Bytes, variables: Variables) -> Result<Vec<u8>, TransformError> {
        let limits = Limits::for_body(body.len());
        self.apply_within(limits, body, variables).await
    }

    pub(crate) async fn apply_within(
        &self,
        limits: Limits,
        body: Bytes,
        variables: Variables,
    ) -> Result<Vec<u8>, TransformError> {
        let broke_off = || TransformError::failed("it ended unexpectedly");
        let threads = self.threads.as_ref().ok_or_else(broke_off)?;
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| broke_off())?;
        let filter = self.filter.clone();
        let run = threads.spawn_blocking(move || {
            // The permit is held until the thread has finished, even if the caller has stopped waiting.
            let _permit = permit;
            filter.apply(&body, &variables, limits)
        });
        match timeout(last_word(limits.time), run).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(broke_off()),
            Err(_) => Err(TransformError::RanAway(Runaway::Time(limits.time))),
        }
    }
}

/// Returns how long to wait for a run: it ends by itself earlier, unless a single step takes this long.
fn last_word(time: Duration) -> Duration {
    2 * time
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            // Waiting for the threads is not allowed on a runtime's worker.
            threads.shutdown_background();
        }
    }
}
