//! Measures how late this program's own tasks run, to tell a slow third party from a dispatch that is short of
//! processor time.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_resilience::{Moment, Spent};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Interval of the beats: short enough to notice delays in calls that take tens of milliseconds, and cheap compared
/// with them.
const BEAT: Duration = Duration::from_millis(10);

/// Lateness to ignore: a timer may be this late in a program that has all the processor time it wants, since timers
/// count whole milliseconds.
const GRAIN: Duration = Duration::from_millis(2);

/// A beat that a task of the runtime makes while deliveries are in work. The task waits to be polled as the tasks of
/// calls do, so its beats are as late as those tasks.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: Mutex<Beats>,
    begun: Notify,
}

#[derive(Debug, Default)]
struct Beats {
    /// The number of time spans that are being measured.
    watches: usize,
    /// When the next beat is due; none while nothing is measured.
    due: Option<Instant>,
    /// The lateness of the beats so far, integrated over time, in seconds squared.
    lateness: f64,
}

/// A time span that is being measured. The pulse beats until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    pulse: Arc<Pulse>,
    since: Moment,
}

impl Pulse {
    /// Beats while anything is measured; never returns.
    pub(crate) async fn beat(&self) -> Infallible {
        loop {
            let due = self.beats().due;
            match due {
                Some(due) => {
                    sleep_until(due).await;
                    self.beats().beat(Instant::now());
                }
                None => self.begun.notified().await,
            }
        }
    }

    /// Starts a measurement.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let now = Instant::now();
        let mut beats = self.beats();
        beats.watches += 1;
        if beats.due.is_none() {
            beats.due = Some(now + BEAT);
            self.begun.notify_one();
        }
        let since = beats.moment(now);
        drop(beats);
        Watch { pulse: Arc::clone(self), since }
    }

    pub(crate) fn now(&self) -> Moment {
        self.beats().moment(Instant::now())
    }

    fn beats(&self) -> MutexGuard<'_, Beats> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beats {
    fn beat(&mut self, now: Instant) {
        self.lateness = self.moment(now).lateness;
        self.due = (self.watches > 0).then_some(now + BEAT);
    }

    /// Returns the moment `now`, including the lateness of an overdue beat.
    fn moment(&self, now: Instant) -> Moment {
        let late = self.due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        // The lateness applies to the whole wait for the beat: its interval and its delay.
        let lateness = late.saturating_sub(GRAIN).as_secs_f64() * (BEAT + late).as_secs_f64();
        Moment { at: now.into_std(), lateness: self.lateness + lateness }
    }
}

impl Watch {
    /// Returns the time since the start, divided between the third party and this program.
    pub(crate) fn spent(&self) -> Spent {
        self.pulse.now().since(&self.since)
    }

    /// Returns the moment of the start.
    pub(crate) fn since(&self) -> Moment {
        self.since
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.pulse.beats().watches -= 1;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::task::{AbortHandle, yield_now};
    use tokio::time::{advance, sleep};

    use super::*;

    /// A pulse that beats.
    pub(crate) fn beating() -> Arc<Pulse> {
        let pulse = Arc::<Pulse>::default();
        tokio::spawn({
            let pulse = Arc::clone(&pulse);
            async move { pulse.beat().await }
        });
        pulse
    }

    /// Takes `each` of processor time whenever all other tasks have been polled once, until it is aborted.
    pub(crate) fn starve(each: Duration) -> AbortHandle {
        let starving = async move {
            loop {
                advance(each).await;
                yield_now().await;
            }
        };
        tokio::spawn(starving).abort_handle()
    }

    #[tokio::test(start_paused = true)]
    async fn all_time_counts_for_the_third_party_while_beats_are_in_time() {
        let pulse = beating();
        for _ in 0..2 {
            let watch = pulse.watch();
            sleep(Duration::from_secs(3)).await;
            assert_eq!(watch.spent(), Spent { theirs: Duration::from_secs(3), ours: Duration::ZERO });
            drop(watch);
            // Nothing is measured: nothing is late.
            advance(Duration::from_mins(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_program_blames_no_third_party() {
        let pulse = beating();
        let watch = pulse.watch();
        sleep(Duration::from_millis(50)).await;
        advance(Duration::from_mins(1)).await;
        assert_eq!(watch.spent().theirs, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_delay_of_a_starved_program_is_its_own() {
        let pulse = beating();
        let starving = starve(Duration::from_millis(30));
        let fast = pulse.watch();
        for _ in 0..4 {
            yield_now().await;
        }
        let fast = fast.spent();
        assert!(fast.theirs < fast.ours, "{fast:?}");
        let slow = pulse.watch();
        sleep(Duration::from_secs(20)).await;
        let slow = slow.spent();
        assert!(slow.theirs > Duration::from_secs(19), "{slow:?}");
        starving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn it_pauses_while_nothing_is_measured() {
        let pulse = beating();
        drop(pulse.watch());
        sleep(2 * BEAT).await;
        assert_eq!(pulse.beats().due, None);
    }
}
