use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};
use ferroid::generator::{AtomicSnowflakeGenerator, Poll};
use ferroid::time::TimeSource;
use throughline_clock::Clock;

use crate::id::RequestId;
use crate::layout::{self, Layout};
use crate::node::NodeId;

/// Generates the ids of one node. Each id is greater than the previous one, whatever the clock does. Never waits.
///
/// If the clock is frozen or steps back, or if more than 4096 ids are requested in a millisecond, ids run ahead of the
/// clock: by as much as it stepped back, plus one millisecond for each further 4096 ids. If threads share a generator,
/// each may add one more millisecond. The ids follow the clock again as soon as it is ahead.
pub struct Generator {
    ids: AtomicSnowflakeGenerator<Layout, Timeline>,
    timeline: Timeline,
}

/// The clock in milliseconds of an id, but never before `floor`.
#[derive(Clone)]
struct Timeline {
    clock: Clock,
    floor: Arc<AtomicU64>,
}

impl TimeSource<u64> for Timeline {
    fn current_millis(&self) -> u64 {
        layout::timestamp(self.clock.now()).max(self.floor.load(Ordering::Relaxed))
    }
}

impl Generator {
    /// Returns a generator for a node. Its ids are later than `not_before`, the time at which a former holder of the
    /// node id had to stop.
    #[must_use]
    pub fn new(node: NodeId, clock: Clock, not_before: DateTime<Utc>) -> Self {
        let floor = match layout::timestamp(not_before) {
            0 => 0,
            last => last + 1,
        };
        let timeline = Timeline { clock, floor: Arc::new(AtomicU64::new(floor)) };
        Self { ids: AtomicSnowflakeGenerator::new(u64::from(node.as_u16()), timeline.clone()), timeline }
    }

    /// Returns the earliest time of the next id. The id is later if ids run ahead of the clock.
    #[must_use]
    pub fn next_at(&self) -> DateTime<Utc> {
        layout::instant(self.timeline.current_millis())
    }

    /// Returns the next id.
    #[must_use]
    pub fn generate(&self) -> RequestId {
        loop {
            match self.ids.poll_id() {
                Poll::Ready { id } => return RequestId::from_layout(id),
                // The sequence is exhausted, or the clock is behind: raise the floor to the time at which a wait would
                // end.
                Poll::Pending { yield_for } => {
                    self.timeline
                        .floor
                        .fetch_max(self.timeline.current_millis() + yield_for, Ordering::Relaxed);
                }
            }
        }
    }
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn start() -> DateTime<Utc> {
        DateTime::from_timestamp(1_767_225_600, 0).unwrap()
    }

    fn generator(node: u16, clock: &Clock, not_before: DateTime<Utc>) -> Generator {
        Generator::new(node.try_into().unwrap(), clock.clone(), not_before)
    }

    #[test]
    fn ids_carry_the_clock_and_the_node() {
        let id = generator(1023, &Clock::manual(start()), DateTime::UNIX_EPOCH).generate();
        assert_eq!((id.created_at(), id.node().as_u16()), (start(), 1023));
    }

    #[test]
    fn more_ids_than_a_millisecond_holds_run_ahead_of_a_frozen_clock() {
        let ids = generator(1, &Clock::manual(start()), DateTime::UNIX_EPOCH);
        let made: Vec<_> = (0..10_000).map(|_| ids.generate()).collect();
        assert!(made.is_sorted_by(|a, b| a < b));
        assert_eq!(made[9_999].created_at(), start() + TimeDelta::milliseconds(2));
    }

    #[test]
    fn a_new_holder_of_a_node_id_starts_after_the_previous_one() {
        let not_before = start() + TimeDelta::seconds(30);
        let id = generator(1, &Clock::manual(start()), not_before).generate();
        assert!(id.created_at() > not_before);
    }

    #[test]
    fn the_first_id_of_a_time_is_below_all_that_are_made_then_and_above_all_that_were_made_before() {
        let clock = Clock::manual(start());
        let ids = [0, 1023].map(|node| generator(node, &clock, DateTime::UNIX_EPOCH));
        let earlier = ids.each_ref().map(Generator::generate);
        clock.advance(TimeDelta::milliseconds(1));
        let first = RequestId::first_at(ids[0].next_at());
        assert!(earlier.iter().all(|id| *id < first));
        assert!(ids.iter().all(|ids| ids.generate() >= first));
    }

    #[test]
    fn ids_follow_the_clock_once_it_is_ahead() {
        let clock = Clock::manual(start());
        let ids = generator(1, &clock, DateTime::UNIX_EPOCH);
        let before = ids.generate();
        clock.advance(TimeDelta::hours(-1));
        assert_eq!(ids.generate().created_at(), before.created_at());
        clock.advance(TimeDelta::hours(2));
        assert_eq!(ids.generate().created_at(), clock.now());
    }

    proptest! {
        #[test]
        fn ids_rise_strictly_whatever_the_clock_does(
            moves in prop::collection::vec((-100_000_i64..100_000, 1_usize..200), 1..50),
        ) {
            let clock = Clock::manual(start());
            let ids = generator(3, &clock, DateTime::UNIX_EPOCH);
            let mut last = None;
            for (millis, count) in moves {
                clock.advance(TimeDelta::milliseconds(millis));
                for _ in 0..count {
                    let id = Some(ids.generate());
                    prop_assert!(id > last);
                    last = id;
                }
            }
        }

        #[test]
        fn two_nodes_never_make_the_same_id(a in 0_u16..1024, b in 0_u16..1024, count in 1_usize..5_000) {
            prop_assume!(a != b);
            let clock = Clock::manual(start());
            let (one, other) = (generator(a, &clock, DateTime::UNIX_EPOCH), generator(b, &clock, DateTime::UNIX_EPOCH));
            let made: HashSet<_> = (0..count).flat_map(|_| [one.generate(), other.generate()]).collect();
            prop_assert_eq!(made.len(), 2 * count);
        }
    }
}
