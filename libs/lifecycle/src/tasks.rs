use std::collections::HashMap;
use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use crate::shutdown::Shutdown;

/// How long tasks have to notice that the shutdown is hard, and then that they were aborted. A task that watches the
/// hard token needs microseconds; a longer time would not help a task that does not.
const GRACE: Duration = Duration::from_secs(1);

/// The tasks of a process. Each is expected to run until the shutdown begins.
///
/// Dropped without [`join`](Self::join), it aborts them.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    running: JoinSet<Result<(), End>>,
    names: HashMap<Id, &'static str>,
}

/// Why the process ended early, or did not end in time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskFailed {
    /// The task returned before the shutdown began.
    #[error("the task `{0}` ended before the shutdown")]
    Ended(&'static str),
    /// The task returned an error.
    #[error("the task `{0}` failed")]
    Failed(&'static str, #[source] Box<dyn Error + Send + Sync>),
    /// The task panicked.
    #[error("the task `{0}` panicked")]
    Panicked(&'static str),
    /// The task was still running when the grace period of a hard shutdown ended, and was aborted.
    #[error("the task `{0}` did not end in time")]
    Overran(&'static str),
}

/// Why a supervised task failed.
#[derive(Debug)]
enum End {
    Early,
    Error(Box<dyn Error + Send + Sync>),
}

impl Tasks {
    /// Returns an empty set of tasks, which end with `shutdown`.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, running: JoinSet::new(), names: HashMap::new() }
    }

    /// Spawns a supervised task: when it ends in any way, the shutdown begins.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn spawn<F, E>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let soft = self.shutdown.soft().clone();
        let supervised = async move {
            // The guard begins the shutdown at once, even after a panic, and whether `join` is already called or not.
            let _begins = soft.clone().drop_guard();
            task.await.map_err(|error| End::Error(error.into()))?;
            if soft.is_cancelled() { Ok(()) } else { Err(End::Early) }
        };
        let id = self.running.spawn(supervised).id();
        self.names.insert(id, name);
    }

    /// Waits until all tasks have ended. Aborts the tasks that are still running one second after the shutdown became
    /// hard.
    ///
    /// Each failure is logged as it happens.
    ///
    /// # Errors
    /// The first failure: a task that failed, panicked, ended too early or did not end in time.
    pub async fn join(mut self) -> Result<(), TaskFailed> {
        let hard = self.shutdown.hard().clone();
        let mut deadline = pin!(async move {
            hard.cancelled().await;
            sleep(GRACE).await;
        });
        let mut first = Ok(());
        loop {
            tokio::select! {
                biased;
                ended = self.running.join_next_with_id() => match ended {
                    Some(ended) => first = first.and(self.judge(ended)),
                    None => return first,
                },
                () = &mut deadline => return first.and(self.abort().await),
            }
        }
    }

    /// Aborts the tasks that are still running.
    async fn abort(mut self) -> Result<(), TaskFailed> {
        self.running.abort_all();
        let end_of_grace = Instant::now() + GRACE;
        let mut first = Ok(());
        while let Ok(Some(ended)) = timeout_at(end_of_grace, self.running.join_next_with_id()).await {
            first = first.and(self.judge(ended));
        }
        // A task that blocks its thread cannot be aborted, only reported.
        for name in self.names.into_values() {
            first = first.and(Err(report(TaskFailed::Overran(name))));
        }
        first
    }

    fn judge(&mut self, ended: Result<(Id, Result<(), End>), JoinError>) -> Result<(), TaskFailed> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let name = self.names.remove(&id).unwrap_or("unknown");
        match ended {
            Ok((_, Ok(()))) => Ok(()),
            Ok((_, Err(End::Early))) => Err(report(TaskFailed::Ended(name))),
            Ok((_, Err(End::Error(source)))) => Err(report(TaskFailed::Failed(name, source))),
            Err(error) if error.is_panic() => Err(report(TaskFailed::Panicked(name))),
            Err(_) => Err(report(TaskFailed::Overran(name))),
        }
    }
}

/// Logs a failure, unless it comes from nested [`Tasks`], which have already logged it.
fn report(failure: TaskFailed) -> TaskFailed {
    if !failure.source().is_some_and(<dyn Error>::is::<TaskFailed>) {
        tracing::error!(
            event = "task.failed",
            error = &failure as &dyn Error,
            "a task failed; shutting down"
        );
    }
    failure
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;
    use std::io::Read;
    use std::sync::Mutex;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("broken pipe")]
    struct Broken;

    /// A task that ends when it is asked to.
    async fn obedient(shutdown: Shutdown) -> Result<(), Infallible> {
        shutdown.soft().cancelled().await;
        Ok(())
    }

    /// Joins tasks that are to end without further ado.
    async fn join(tasks: Tasks) -> Result<(), TaskFailed> {
        timeout(Duration::from_mins(1), tasks.join()).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_on_shutdown_are_no_failure() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("one", obedient(shutdown.clone()));
        tasks.spawn("two", obedient(shutdown.clone()));
        shutdown.begin();
        join(tasks).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn joining_no_tasks_returns_immediately() {
        join(Tasks::new(Shutdown::new())).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_early_ends_the_others() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("steady", obedient(shutdown.clone()));
        tasks.spawn("short", async { Ok::<_, Infallible>(()) });
        let failed = join(tasks).await.unwrap_err();
        assert!(matches!(failed, TaskFailed::Ended("short")), "{failed}");
        assert!(shutdown.soft().is_cancelled());
        assert!(!shutdown.hard().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_ends_the_others_and_says_why() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("steady", obedient(shutdown));
        tasks.spawn("publisher", async { Err(Broken) });
        let failed = join(tasks).await.unwrap_err();
        assert_eq!(failed.to_string(), "the task `publisher` failed");
        assert!(failed.source().unwrap().is::<Broken>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_ends_the_others() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("steady", obedient(shutdown));
        tasks.spawn("fragile", async { if true { panic!("on purpose") } else { Ok::<_, Infallible>(()) } });
        let failed = join(tasks).await.unwrap_err();
        assert!(matches!(failed, TaskFailed::Panicked("fragile")), "{failed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_begins_the_shutdown_before_the_tasks_are_joined() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("fragile", async { if true { panic!("on purpose") } else { Ok::<_, Infallible>(()) } });
        timeout(Duration::from_mins(1), shutdown.soft().cancelled()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_several_failures_is_returned() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        let (end, ended) = oneshot::channel::<Infallible>();
        tasks.spawn("second", async move { ended.await.map(drop) });
        tasks.spawn("first", async move {
            drop(end);
            Err(Broken)
        });
        let failed = join(tasks).await.unwrap_err();
        assert!(matches!(failed, TaskFailed::Failed("first", _)), "{failed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_is_aborted_after_the_grace_period() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("deaf", pending::<Result<(), Infallible>>());
        shutdown.begin();
        let mut join = pin!(tasks.join());
        // Without a deadline.
        assert!(timeout(Duration::from_hours(1), &mut join).await.is_err());
        shutdown.force();
        let failed = join.await.unwrap_err();
        assert!(matches!(failed, TaskFailed::Overran("deaf")), "{failed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_has_a_grace_period_after_the_hard_stop() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        let hard = shutdown.hard().clone();
        tasks.spawn("careful", async move {
            hard.cancelled().await;
            sleep(GRACE / 2).await;
            Ok::<_, Infallible>(())
        });
        shutdown.force();
        join(tasks).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_task_that_blocks_its_thread_does_not_keep_the_process_alive() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        let (end, blocked) = std::sync::mpsc::channel::<Infallible>();
        let (tell, started) = oneshot::channel();
        tasks.spawn("stuck", async move {
            tell.send(()).ok();
            // Until the other end is dropped, which is after the join.
            blocked.recv().ok();
            Ok::<_, Infallible>(())
        });
        started.await.unwrap();
        shutdown.force();
        let failed = join(tasks).await.unwrap_err();
        assert!(matches!(failed, TaskFailed::Overran("stuck")), "{failed}");
        drop(end);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_logged_once_by_the_tasks_it_happened_in() {
        let (mut log, writer) = std::io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(writer)).finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let shutdown = Shutdown::new();
        let mut inner = Tasks::new(shutdown.clone());
        inner.spawn("publisher", async { Err(Broken) });
        let mut outer = Tasks::new(shutdown);
        outer.spawn("ingest", inner.join());
        let TaskFailed::Failed("ingest", source) = join(outer).await.unwrap_err() else { panic!("ingest") };
        assert!(matches!(*source.downcast().unwrap(), TaskFailed::Failed("publisher", _)));

        drop(logging);
        let mut lines = String::new();
        log.read_to_string(&mut lines).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(lines.contains("`publisher` failed") && lines.contains("broken pipe"), "{lines}");
    }
}
