use std::time::{Duration, Instant};

/// The longest that somebody is sent away for: when it will be their turn is a guess, and guesses are made anew.
const LONGEST: Duration = Duration::from_mins(5);

/// How much the last call weighs in the average of all, as one of so many.
const WEIGHT: u32 = 16;

/// Those who want to call a destination that is full.
///
/// Whose turn is likely to come while their patience lasts may wait. The others are sent away, each until it
/// should be their turn, so that they do not come again all at once and in vain.
#[derive(Debug)]
pub struct Line {
    /// How many calls are made at once.
    places: u32,
    /// The least time from one call to the next; zero if there is none.
    gap: Duration,
    /// How long anybody waits.
    patience: Duration,
    /// How many do.
    waiting: u32,
    /// How long a call takes on average; zero as long as nobody knows.
    call: Duration,
    /// When a call began or ended.
    moved: Option<Instant>,
    /// When the turn comes of who was sent away last.
    end: Option<Instant>,
}

impl Line {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(places: u32, gap: Duration, patience: Duration) -> Self {
        let call = Duration::ZERO;
        Self { places: places.max(1), gap, patience, waiting: 0, call, moved: None, end: None }
    }

    /// How long a call takes on average; zero as long as nobody knows.
    #[must_use]
    pub fn call(&self) -> Duration {
        self.call
    }

    /// Begins to wait, until [`Line::leave`].
    ///
    /// # Errors
    /// If that would be in vain: how long until its turn, from now.
    pub fn wait(&mut self, now: Instant) -> Result<(), Duration> {
        if self.pace(now).saturating_mul(self.waiting + 1) > self.patience {
            return Err(self.send_away(now));
        }
        self.waiting += 1;
        Ok(())
    }

    /// Ends waiting, for whatever reason.
    pub fn leave(&mut self) {
        self.waiting -= 1;
    }

    /// Sends somebody away whose patience is at its end: how long until its turn, from now.
    pub fn send_away(&mut self, now: Instant) -> Duration {
        let end = self.end.filter(|end| *end > now).unwrap_or(now);
        let turn = (end + self.pace(now)).min(now + LONGEST);
        self.end = Some(turn);
        turn.saturating_duration_since(now)
    }

    /// Notes that a call begins.
    pub fn began(&mut self, now: Instant) {
        self.moved = Some(now);
    }

    /// Notes that a call ended, and how long it took.
    pub fn ended(&mut self, call: Duration, now: Instant) {
        self.call = if self.call.is_zero() { call } else { (self.call * (WEIGHT - 1) + call) / WEIGHT };
        self.moved = Some(now);
    }

    /// How long from one turn to the next. Calls that are all still under way take at least as long as they do by
    /// now: a third party that hangs is noticed before the first time-out.
    fn pace(&self, now: Instant) -> Duration {
        let under_way = self.moved.map_or(Duration::ZERO, |moved| now.saturating_duration_since(moved));
        self.gap.max(self.call.max(under_way) / self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(clippy::disallowed_methods, reason = "all instants of a test are relative to this one")]
    fn start() -> Instant {
        Instant::now()
    }

    /// How many may wait.
    fn room(line: &mut Line, now: Instant) -> usize {
        (0..10_000).take_while(|_| line.wait(now).is_ok()).count()
    }

    #[test]
    fn as_many_wait_as_have_a_turn_within_their_patience() {
        let now = start();
        for (places, gap, call, expected) in [
            (4, Duration::ZERO, SECOND / 10, 40),
            (64, Duration::ZERO, 10 * SECOND, 6),
            (1, Duration::ZERO, 2 * SECOND, 0),
            (64, SECOND / 5, SECOND / 10, 5),
            (64, 2 * SECOND, SECOND / 10, 0),
        ] {
            let mut line = Line::new(places, gap, SECOND);
            line.ended(call, now);
            assert_eq!(room(&mut line, now), expected, "{places} places, {gap:?}, {call:?}");
            (0..expected).for_each(|_| line.leave());
            assert_eq!(room(&mut line, now), expected, "and again");
        }
    }

    #[test]
    fn nobody_waits_for_calls_that_hang() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        line.ended(SECOND / 10, now);
        // After a long time in which nobody came.
        let later = now + 3600 * SECOND;
        line.began(later);
        assert_eq!(room(&mut line, later), 40);
        (0..40).for_each(|_| line.leave());
        assert_eq!(room(&mut line, later + SECOND), 4);
        (0..4).for_each(|_| line.leave());
        assert_eq!(room(&mut line, later + 5 * SECOND), 0);
        line.ended(SECOND / 10, later + 5 * SECOND);
        assert_eq!(room(&mut line, later + 5 * SECOND), 40);
    }

    #[test]
    fn who_is_sent_away_comes_again_one_after_the_other() {
        let (mut line, now) = (Line::new(64, SECOND / 5, SECOND), start());
        let turns: Vec<_> = (0..10).map(|_| line.send_away(now)).collect();
        assert_eq!(turns, (1..=10).map(|turn| turn * SECOND / 5).collect::<Vec<_>>());
        assert_eq!(line.send_away(now + SECOND), SECOND + SECOND / 5);
        assert_eq!(line.send_away(now + 60 * SECOND), SECOND / 5, "by then all are gone");
    }

    #[test]
    fn turns_come_as_fast_as_calls_end() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        assert_eq!(line.send_away(now), Duration::ZERO);
        line.ended(8 * SECOND, now);
        assert_eq!((line.send_away(now), line.send_away(now)), (2 * SECOND, 4 * SECOND));
        for _ in 0..200 {
            line.ended(SECOND, now);
        }
        let turn = line.send_away(now);
        assert!((4 * SECOND + SECOND / 4..4 * SECOND + SECOND / 3).contains(&turn), "{turn:?}");
    }

    #[test]
    fn nobody_is_sent_away_for_longer_than_a_few_minutes() {
        let (mut line, now) = (Line::new(1, 60 * SECOND, SECOND), start());
        assert_eq!((0..100).map(|_| line.send_away(now)).max(), Some(LONGEST));
        assert_eq!(
            line.send_away(now + 90 * SECOND),
            270 * SECOND,
            "the line is not longer than it was told"
        );
    }
}
