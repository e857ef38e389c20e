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

/// A filter and the threads on which it runs. They are started when they are needed, and end after 10 s without work.
pub struct Runner {
    filter: Filter,
    /// Until it is dropped.
    threads: Option<Runtime>,
    /// One for each thread. Who waits for a turn has not begun, and runs out of nothing.
    turns: Arc<Semaphore>,
}

impl Runner {
    /// Makes threads for a filter possible.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new(filter: Filter) -> io::Result<Self> {
        // The other half is for everything else, even if this filter runs away on each body.
        let threads = thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_stack_size(STACK)
            .thread_name("filter")
            .build()?;
        Ok(Self { filter, threads: Some(runtime), turns: Arc::new(Semaphore::new(threads)) })
    }

    /// Makes a new body of one that came in.
    ///
    /// # Errors
    /// If the body cannot be read, or the filter does not produce exactly one JSON value of bearable size, or runs
    /// away.
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
        let broke_off = || TransformError::failed("it broke off");
        let threads = self.threads.as_ref().ok_or_else(broke_off)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| broke_off())?;
        let filter = self.filter.clone();
        let run = threads.spawn_blocking(move || {
            // The turn ends with the thread's work, even if nobody waits for it any more.
            let _turn = turn;
            filter.apply(&body, &variables, limits)
        });
        match timeout(last_word(limits.time), run).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(broke_off()),
            Err(_) => Err(TransformError::RanAway(Runaway::Time(limits.time))),
        }
    }
}

/// How long to wait for a run: it ends itself before, unless a single step takes that long.
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
            // Without waiting: that is not allowed where tasks run.
            threads.shutdown_background();
        }
    }
}
