//! The partitions that go to other members of the group.
//!
//! Kafka hands all of them over together, so all wait for the slowest record in progress. Those whose records are quick
//! are consumed meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::assignment::{Assignment, Name};
use crate::partition::Partition;

/// How long a record may be in progress, or twice as long at most, before its partition is no longer consumed.
const QUICK: Duration = Duration::from_secs(1);

/// Limits on the time for which partitions are held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    /// For records in progress, once no partition is consumed any more.
    stopped: Duration,
    /// For all of them to be stopped.
    consumed: Duration,
}

impl Drain {
    /// Waits for records in progress for as long as `wanted`, and holds partitions for `longest` in all.
    pub(super) fn new(wanted: Duration, longest: Duration) -> Self {
        let stopped = wanted.min(longest);
        Self { stopped, consumed: stopped.min(longest.saturating_sub(stopped)) }
    }
}

/// Partitions that were revoked together, or before the group had its answer.
#[derive(Debug)]
pub(super) struct Handover {
    drain: Drain,
    began: Instant,
    /// Still consumed, with one after the last record that had started when they were last looked at.
    consumed: Vec<(Name, i64)>,
    looked: Instant,
    stopped: Vec<(Name, Arc<Partition>)>,
    /// When the partitions go with records in progress. Known once all are stopped.
    deadline: Option<Instant>,
}

impl Handover {
    pub(super) fn new(drain: Drain, now: Instant) -> Self {
        Self { drain, began: now, consumed: Vec::new(), looked: now, stopped: Vec::new(), deadline: None }
    }

    /// Adds partitions, if they are assigned.
    pub(super) fn add(&mut self, names: &[Name], assignment: &Assignment) {
        self.consumed.extend(names.iter().filter_map(|name| marked(name, assignment)));
    }

    /// Returns the partitions to stop now, which the caller removes and passes to [`Handover::stop`]: all if nothing has
    /// to be waited for, and otherwise those whose records take long.
    pub(super) fn due_to_stop(&mut self, assignment: &Assignment, now: Instant) -> Vec<Name> {
        let is_busy = |(name, mark): &(Name, i64)| {
            find(name, assignment).is_some_and(|partition| !partition.is_finished_before(*mark))
        };
        let nothing_is_left = self.in_progress() == 0 && !self.consumed.iter().any(is_busy);
        if nothing_is_left || now - self.began >= self.drain.consumed {
            return self.all_to_stop();
        }
        if now - self.looked < QUICK {
            return Vec::new();
        }
        self.looked = now;
        let busy: Vec<_> = self.consumed.extract_if(.., |consumed| is_busy(consumed)).collect();
        self.consumed = self.consumed.iter().filter_map(|(name, _)| marked(name, assignment)).collect();
        busy.into_iter().map(|(name, _)| name).collect()
    }

    /// Returns all partitions that are still consumed, to be stopped now.
    pub(super) fn all_to_stop(&mut self) -> Vec<Name> {
        self.consumed.drain(..).map(|(name, _)| name).collect()
    }

    /// Adds partitions that are no longer consumed.
    pub(super) fn stop(&mut self, partitions: Vec<(Name, Arc<Partition>)>, now: Instant) {
        self.stopped.extend(partitions);
        if self.consumed.is_empty() {
            self.deadline.get_or_insert(now + self.drain.stopped);
        }
    }

    /// The partitions that are no longer consumed.
    pub(super) fn stopped(&self) -> &[(Name, Arc<Partition>)] {
        &self.stopped
    }

    /// Returns how many records of the stopped partitions are in progress.
    pub(super) fn in_progress(&self) -> usize {
        self.stopped.iter().map(|(_, partition)| partition.in_work()).sum()
    }

    /// Returns whether no partition is consumed any more, and no record is in progress.
    pub(super) fn is_finished(&self) -> bool {
        self.consumed.is_empty() && self.in_progress() == 0
    }

    /// Returns whether it is finished, and the broker has everything to commit.
    pub(super) fn is_committed(&self) -> bool {
        self.is_finished() && self.stopped.iter().all(|(_, partition)| partition.is_committed())
    }

    /// Returns how long ago the partitions should have gone; `None` before that.
    pub(super) fn late_by(&self, now: Instant) -> Option<Duration> {
        now.checked_duration_since(self.deadline?)
    }
}

fn find(name: &Name, assignment: &Assignment) -> Option<Arc<Partition>> {
    assignment.find(&name.topic, name.number)
}

fn marked(name: &Name, assignment: &Assignment) -> Option<(Name, i64)> {
    Some((name.clone(), find(name, assignment)?.next_start()))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use throughline_testkit::unmeasured;

    use super::*;
    use crate::metrics::Consuming;
    use crate::offsets::Offsets;

    const DRAIN: Duration = Duration::from_secs(30);
    const LONGEST: Duration = Duration::from_secs(290);
    const NONE: [i32; 0] = [];

    /// A hand-over of some partitions, and the time that has passed.
    struct Scene {
        assignment: Assignment,
        handover: Handover,
        now: Instant,
    }

    impl Scene {
        fn new(partitions: i32, drain: Drain) -> Self {
            let (assignment, now) = (Assignment::default(), Instant::now());
            for number in 0..partitions {
                let metrics = Consuming::new(&unmeasured(), "group").topic("topic");
                let partition = Partition::new(Offsets::default(), metrics, DateTime::UNIX_EPOCH);
                assignment.add(&name(number), partition);
            }
            Self { assignment, handover: Handover::new(drain, now), now }
        }

        fn revoke(&mut self, partitions: i32) {
            let names: Vec<_> = (0..partitions).map(name).collect();
            self.handover.add(&names, &self.assignment);
        }

        fn partition(&self, number: i32) -> Arc<Partition> {
            let stopped = self.handover.stopped().iter().find(|(stopped, _)| *stopped == name(number));
            stopped.map_or_else(
                || self.assignment.find("topic", number).unwrap(),
                |(_, partition)| Arc::clone(partition),
            )
        }

        /// Whether the record was started.
        fn start(&self, number: i32, offset: i64) -> bool {
            let partition = self.partition(number);
            partition.read(offset, None);
            partition.start(offset)
        }

        fn finish(&self, number: i32, offset: i64) {
            self.partition(number).finish(offset, Duration::ZERO);
        }

        /// The partitions that are stopped once this much more time has passed.
        fn after(&mut self, seconds: f64) -> Vec<i32> {
            self.now += Duration::from_secs_f64(seconds);
            let names = self.handover.due_to_stop(&self.assignment, self.now);
            let stopped = names.iter().map(|name| (name.clone(), self.assignment.remove(name).unwrap()));
            self.handover.stop(stopped.collect(), self.now);
            names.iter().map(|name| name.number).collect()
        }
    }

    fn name(number: i32) -> Name {
        Name { topic: "topic".to_owned(), number }
    }

    fn drain() -> Drain {
        Drain::new(DRAIN, LONGEST)
    }

    #[test]
    fn partitions_stop_together_as_soon_as_nothing_is_in_progress() {
        let mut scene = Scene::new(2, drain());
        assert!(scene.start(0, 0) && scene.start(1, 0));
        scene.revoke(2);
        scene.finish(0, 0);
        assert_eq!(scene.after(0.1), NONE);
        // Started after the revocation, so not waited for before they stop.
        assert!(scene.start(0, 1));
        scene.finish(1, 0);
        assert_eq!(scene.after(0.1), [0, 1]);
        assert!(!scene.start(0, 2), "it is no longer consumed");
        assert!(!scene.handover.is_finished());
        scene.finish(0, 1);
        assert!(scene.handover.is_finished());
    }

    #[test]
    fn a_partition_with_a_slow_record_stops_and_the_others_are_consumed_until_it_ends() {
        let mut scene = Scene::new(3, drain());
        assert!(scene.start(0, 0) && scene.start(1, 0));
        scene.revoke(3);
        scene.finish(1, 0);
        assert_eq!(scene.after(1.0), [0]);
        for offset in 1..20 {
            assert!(scene.start(1, offset));
            assert_eq!(scene.after(0.5), NONE);
            scene.finish(1, offset);
        }
        // A record becomes slow while the first one is in progress.
        assert!(scene.start(2, 0));
        assert_eq!(scene.after(1.0), NONE);
        assert_eq!(scene.after(1.0), [2]);
        scene.finish(0, 0);
        assert_eq!(scene.after(0.1), NONE);
        scene.finish(2, 0);
        assert_eq!(scene.after(0.1), [1]);
        assert!(scene.handover.is_finished());
    }

    #[test]
    fn partitions_move_with_records_in_progress_that_take_too_long() {
        let mut scene = Scene::new(2, drain());
        assert!(scene.start(0, 0));
        scene.revoke(2);
        assert_eq!(scene.after(1.0), [0]);
        assert_eq!(scene.after(28.0), NONE);
        assert_eq!(scene.handover.late_by(scene.now), None);
        assert_eq!(scene.after(1.0), [1], "the slow record had all its time");
        assert_eq!(scene.after(29.0), NONE);
        assert_eq!(
            scene.handover.late_by(scene.now),
            None,
            "a record of the other one may have just started"
        );
        scene.after(1.0);
        assert_eq!(scene.handover.late_by(scene.now), Some(Duration::ZERO));
    }

    #[test]
    fn a_handover_ends_within_its_time_limit() {
        let mut scene = Scene::new(2, Drain::new(LONGEST * 2, LONGEST));
        assert!(scene.start(0, 0));
        scene.revoke(2);
        assert_eq!(scene.after(0.0), [0, 1]);
        scene.after(LONGEST.as_secs_f64());
        assert_eq!(scene.handover.late_by(scene.now), Some(Duration::ZERO));
    }

    #[test]
    fn a_handover_does_not_wait_for_unassigned_partitions() {
        let mut scene = Scene::new(0, drain());
        scene.revoke(2);
        assert_eq!(scene.after(0.0), NONE);
        assert!(scene.handover.is_committed());
    }
}
