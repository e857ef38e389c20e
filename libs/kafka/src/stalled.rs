//! Detects partitions that are no longer fetched.
//!
//! After brokers were frozen or killed, librdkafka occasionally stops fetching partitions that it keeps through a
//! rebalance, for good and without a log line. Heartbeats continue, so the group leaves these partitions assigned, and
//! their records wait until the process restarts. A member with such a partition replaces its clients.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::assignment::Name;

/// How often to check whether all partitions are fetched.
const CHECK: Duration = Duration::from_secs(15);

/// Checks whether all partitions are fetched.
#[derive(Debug)]
pub(crate) struct Stalled {
    /// The partitions that had records to fetch at the last check, with the offsets that fetching had reached.
    behind: HashMap<Name, i64>,
    checked: Instant,
    is_checking: bool,
    is_so: bool,
}

impl Stalled {
    pub(crate) fn new(now: Instant) -> Self {
        Self { behind: HashMap::new(), checked: now, is_checking: false, is_so: false }
    }

    /// Returns whether to begin a check now, with a request for the ends of the partitions.
    pub(crate) fn begin(&mut self, now: Instant) -> bool {
        let begins = !self.is_checking && now - self.checked >= CHECK;
        self.is_checking |= begins;
        begins
    }

    /// Compares the ends of partitions, as their brokers report them, with the offsets that fetching has reached. Returns
    /// the partitions that had records to fetch at the last check too, and of which none was fetched since.
    pub(crate) fn check(
        &mut self,
        ends: Vec<(Name, i64)>,
        reached: impl Fn(&Name) -> Option<i64>,
        now: Instant,
    ) -> Vec<(Name, i64)> {
        (self.is_checking, self.checked) = (false, now);
        let behind = ends.into_iter().filter_map(|(name, end)| {
            let reached = reached(&name).filter(|reached| *reached < end)?;
            Some((name, reached))
        });
        let behind: HashMap<_, _> = behind.collect();
        let stalled = behind.iter().filter(|(name, reached)| self.behind.get(name) == Some(reached));
        let stalled: Vec<_> = stalled.map(|(name, reached)| (name.clone(), *reached)).collect();
        self.behind = behind;
        self.is_so |= !stalled.is_empty();
        stalled
    }

    /// Forgets the last check, because fetching is paused.
    pub(crate) fn clear(&mut self) {
        self.behind.clear();
    }

    /// Returns whether a partition is no longer fetched.
    pub(crate) fn is_so(&self) -> bool {
        self.is_so
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks partition 0, which ends at 10. Returns whether the check has found it stalled.
    fn check(stalled: &mut Stalled, reached: Option<i64>) -> bool {
        let name = Name { topic: "topic".to_owned(), number: 0 };
        !stalled.check(vec![(name, 10)], |_| reached, Instant::now()).is_empty()
    }

    #[test]
    fn a_partition_without_progress_between_two_checks_is_stalled() {
        let mut stalled = Stalled::new(Instant::now());
        let found = [7, 8, 9, 10, 10].map(|reached| check(&mut stalled, Some(reached)));
        assert_eq!((found, stalled.is_so()), ([false; 5], false));
        assert!(!check(&mut stalled, Some(8)));
        assert!(check(&mut stalled, Some(8)) && stalled.is_so());
    }

    #[test]
    fn a_partition_that_was_paused_or_is_no_longer_assigned_is_not_stalled() {
        let mut stalled = Stalled::new(Instant::now());
        assert!(!check(&mut stalled, Some(7)));
        stalled.clear();
        assert!(!check(&mut stalled, Some(7)));
        assert!(!check(&mut stalled, None));
        assert!(!check(&mut stalled, Some(7)));
        assert!(check(&mut stalled, Some(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn checks_begin_one_at_a_time_at_intervals() {
        let mut stalled = Stalled::new(Instant::now());
        let begins = async |stalled: &mut Stalled, after| {
            tokio::time::advance(after).await;
            stalled.begin(Instant::now())
        };
        assert!(!begins(&mut stalled, CHECK / 2).await);
        assert!(begins(&mut stalled, CHECK / 2).await);
        assert!(!begins(&mut stalled, CHECK).await, "the brokers have not answered");
        check(&mut stalled, Some(7));
        assert!(!begins(&mut stalled, CHECK / 2).await);
        assert!(begins(&mut stalled, CHECK / 2).await);
    }
}
