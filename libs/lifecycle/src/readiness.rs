use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How long a dependency may take to answer a probe.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a report is reused, so that many requests cost the dependencies no more than one.
const FRESH: Duration = Duration::from_millis(500);

/// The readiness of a process: it is not shutting down, and all its dependencies answer.
pub struct Readiness {
    probes: Vec<(&'static str, Need, Probe)>,
    stopping: CancellationToken,
    last: Mutex<Option<(Instant, Report)>>,
}

/// How urgently a process needs a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Now,
    SomeTime,
}

type Probe = Box<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// The answer to a readiness request. In JSON: `{"status": "unready", "broker": "down", "database": "up"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    status: Status,
    #[serde(flatten)]
    dependencies: BTreeMap<&'static str, Dependency>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ready,
    Unready,
    Stopping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Dependency {
    Up,
    Down,
}

impl Report {
    /// Returns whether the process can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status == Status::Ready
    }
}

impl Readiness {
    /// Returns the readiness of a process without dependencies. It ends when `stopping` is cancelled.
    #[must_use]
    pub fn new(stopping: CancellationToken) -> Self {
        Self { probes: Vec::new(), stopping, last: Mutex::default() }
    }

    /// Adds a dependency that the process always needs. `probe` returns whether it answers within the given time; a
    /// later answer counts as a failure.
    #[must_use]
    pub fn depends_on<F, A>(self, name: &'static str, probe: F) -> Self
    where
        F: Fn(Duration) -> A + Send + Sync + 'static,
        A: Future<Output = bool> + Send + 'static,
    {
        self.with(name, Need::Now, probe)
    }

    /// Adds a dependency that the process can do without for some time. It is reported, but does not make the process
    /// unready.
    #[must_use]
    pub fn reports<F, A>(self, name: &'static str, probe: F) -> Self
    where
        F: Fn(Duration) -> A + Send + Sync + 'static,
        A: Future<Output = bool> + Send + 'static,
    {
        self.with(name, Need::SomeTime, probe)
    }

    fn with<F, A>(mut self, name: &'static str, need: Need, probe: F) -> Self
    where
        F: Fn(Duration) -> A + Send + Sync + 'static,
        A: Future<Output = bool> + Send + 'static,
    {
        self.probes.push((name, need, Box::new(move |deadline| Box::pin(probe(deadline)))));
        self
    }

    /// Probes all dependencies at the same time, unless a recent report exists. Callers that wait while a probe is
    /// running get its report.
    pub async fn ask(&self) -> Report {
        if self.stopping.is_cancelled() {
            return Report { status: Status::Stopping, dependencies: BTreeMap::new() };
        }
        let mut last = self.last.lock().await;
        if let Some((at, report)) = &*last
            && at.elapsed() < FRESH
        {
            return report.clone();
        }
        let report = self.probe().await;
        *last = Some((Instant::now(), report.clone()));
        report
    }

    async fn probe(&self) -> Report {
        let asked = self.probes.iter().map(async |(name, need, probe)| {
            let is_up = timeout(DEADLINE, probe(DEADLINE)).await.unwrap_or(false);
            (*name, *need, if is_up { Dependency::Up } else { Dependency::Down })
        });
        let answers = join_all(asked).await;
        let is_unready = answers.iter().any(|(_, need, is)| (*need, *is) == (Need::Now, Dependency::Down));
        Report {
            status: if is_unready { Status::Unready } else { Status::Ready },
            dependencies: answers.into_iter().map(|(name, _, dependency)| (name, dependency)).collect(),
        }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.probes.iter().map(|(name, ..)| name).collect();
        f.debug_struct("Readiness").field("depends_on", &names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use serde_json::{Value, json};
    use tokio::time::{advance, sleep};

    use super::*;

    fn in_json(report: &Report) -> Value {
        serde_json::to_value(report).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_while_all_its_dependencies_respond() {
        let is_up = Arc::new(AtomicBool::new(true));
        let broker = {
            let is_up = Arc::clone(&is_up);
            move |_| ready(is_up.load(Ordering::SeqCst))
        };
        let stopping = CancellationToken::new();
        let readiness = Readiness::new(stopping.clone())
            .depends_on("database", |_| ready(true))
            .depends_on("broker", broker);
        let report = readiness.ask().await;
        assert!(report.is_ready());
        assert_eq!(in_json(&report), json!({ "status": "ready", "database": "up", "broker": "up" }));

        is_up.store(false, Ordering::SeqCst);
        advance(FRESH).await;
        let report = readiness.ask().await;
        assert!(!report.is_ready());
        assert_eq!(in_json(&report), json!({ "status": "unready", "database": "up", "broker": "down" }));

        stopping.cancel();
        let report = readiness.ask().await;
        assert!(!report.is_ready());
        assert_eq!(in_json(&report), json!({ "status": "stopping" }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dependency_that_may_be_missing_is_only_reported() {
        let readiness = Readiness::new(CancellationToken::new())
            .depends_on("database", |_| ready(true))
            .reports("broker", |_| ready(false));
        let report = readiness.ask().await;
        assert!(report.is_ready());
        assert_eq!(in_json(&report), json!({ "status": "ready", "database": "up", "broker": "down" }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dependency_that_does_not_respond_in_time_is_down_and_delays_no_other_probe() {
        let slow = |deadline| async move {
            sleep(deadline / 2).await;
            true
        };
        let readiness = Readiness::new(CancellationToken::new())
            .depends_on("slow", slow)
            .depends_on("silent", |_| pending());
        let began = Instant::now();
        let report = readiness.ask().await;
        assert_eq!(in_json(&report), json!({ "status": "unready", "slow": "up", "silent": "down" }));
        assert!(began.elapsed() < DEADLINE + DEADLINE / 4, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_one_probe_while_its_result_is_fresh() {
        let probes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&probes);
        let readiness = Readiness::new(CancellationToken::new()).depends_on("broker", move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                sleep(Duration::from_millis(10)).await;
                true
            }
        });
        let all = join_all((0..100).map(|_| readiness.ask())).await;
        assert!(all.iter().all(Report::is_ready));
        assert_eq!(probes.load(Ordering::SeqCst), 1);
        advance(FRESH).await;
        readiness.ask().await;
        assert_eq!(probes.load(Ordering::SeqCst), 2);
    }
}
