//! Checks whether the parts that the promises depend on make progress, or only look alive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::node::Lease;

/// How long a part may get no answer from a database that answers others: far more than all statement timeouts
/// together.
const STUCK: Duration = Duration::from_mins(5);
/// A part is idle if its last attempt ended longer ago than this.
const AT_WORK: Duration = Duration::from_mins(1);

/// The state of one part's database attempts. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<Mutex<Beat>>);

#[derive(Debug, Default)]
struct Beat {
    /// When the first attempt began that the database has not answered.
    unanswered_since: Option<Instant>,
    under_way: bool,
    ended: Option<Instant>,
}

/// An attempt in progress.
pub(crate) struct Attempt<'a>(&'a Pulse);

impl Pulse {
    /// Begins an attempt to process waiting work.
    pub(crate) fn attempt(&self) -> Attempt<'_> {
        let mut beat = self.beat();
        beat.unanswered_since.get_or_insert_with(Instant::now);
        beat.under_way = true;
        Attempt(self)
    }

    fn is_stuck(&self) -> bool {
        let beat = self.beat();
        let is_at_work = beat.under_way || beat.ended.is_some_and(|ended| ended.elapsed() < AT_WORK);
        is_at_work && beat.unanswered_since.is_some_and(|since| since.elapsed() > STUCK)
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// Records that the database answered, even with an error: a lock of another session is no fault of this process.
    pub(crate) fn answered(&self) {
        self.0.beat().unanswered_since = None;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut beat = self.0.beat();
        beat.under_way = false;
        beat.ended = Some(Instant::now());
    }
}

/// Decides whether the process should continue to run.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    pub(crate) lease: Lease,
    pub(crate) writer: Pulse,
    pub(crate) recorder: Pulse,
}

impl Liveness {
    /// Returns the part that gets no answer although the database renews the lease. While the database is unreachable,
    /// a new process would make no more progress than this one.
    pub(crate) fn stuck(&self) -> Option<&'static str> {
        let parts = [("writer", &self.writer), ("recorder", &self.recorder)];
        let stuck = parts.into_iter().find(|(_, pulse)| pulse.is_stuck())?;
        self.lease.is_valid().then_some(stuck.0)
    }
}

#[cfg(test)]
impl Pulse {
    /// Returns whether the database has answered neither an attempt nor any later one.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.beat().unanswered_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use tokio::time::advance;

    use super::*;
    use crate::node::{self, Moment};

    fn liveness() -> Liveness {
        Liveness { lease: node::tests::lease(), writer: Pulse::default(), recorder: Pulse::default() }
    }

    fn renew(liveness: &Liveness) {
        liveness.lease.extend(Moment::now(), Duration::from_secs(30), DateTime::UNIX_EPOCH);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_without_any_response_is_stuck_while_the_lease_is_renewed() {
        let liveness = liveness();
        let attempt = liveness.writer.attempt();
        advance(STUCK + Duration::from_secs(1)).await;
        assert_eq!(liveness.stuck(), None, "the database is down");
        renew(&liveness);
        assert_eq!(liveness.stuck(), Some("writer"));
        attempt.answered();
        assert_eq!(liveness.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_with_nothing_to_do_is_not_stuck() {
        let liveness = liveness();
        drop(liveness.recorder.attempt());
        advance(STUCK + Duration::from_secs(1)).await;
        renew(&liveness);
        assert_eq!(liveness.stuck(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_whose_attempts_all_time_out_is_stuck() {
        let liveness = liveness();
        for _ in 0..=STUCK.as_secs() / 5 {
            let _attempt = liveness.recorder.attempt();
            advance(Duration::from_secs(5)).await;
        }
        renew(&liveness);
        assert_eq!(liveness.stuck(), Some("recorder"));
    }
}
