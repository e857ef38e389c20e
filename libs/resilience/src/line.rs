use std::time::{Duration, Instant};

use crate::moment::{Moment, Spent};

/// The longest that a delivery is sent away for: when its turn comes is an estimate, and estimates get old.
const LONGEST: Duration = Duration::from_mins(5);

/// How much the last call weighs in an average, as one of this many.
const WEIGHT: u32 = 16;

/// The deliveries that wait for a destination that is full.
///
/// A delivery whose turn is likely to come while its patience lasts may wait. Another is sent away, until it should be
/// its turn, so that the deliveries do not all come back at the same time.
///
/// Only what the destination itself takes counts: the time of its calls and the gap that its rate asks for. While this
/// program is the slower of the two, deliveries wait for the program, and none is sent away.
#[derive(Debug)]
pub struct Line {
    /// How many calls are made at once.
    places: u32,
    /// The least time from one call to the next; zero if there is none.
    gap: Duration,
    /// How long a delivery waits.
    patience: Duration,
    /// How many deliveries wait.
    waiting: u32,
    /// How many calls are under way.
    under_way: u32,
    /// How a call's time divides on average; zero before the first has ended.
    call: Spent,
    /// When a call last began or ended.
    moved: Option<Moment>,
    /// When the turn comes of the delivery that was sent away last.
    end: Option<Instant>,
}

impl Line {
    /// An empty one.
    #[must_use]
    pub fn new(places: u32, gap: Duration, patience: Duration) -> Self {
        let places = places.max(1);
        Self {
            places,
            gap,
            patience,
            waiting: 0,
            under_way: 0,
            call: Spent::default(),
            moved: None,
            end: None,
        }
    }

    /// How long a call takes the destination: on average, or, if all that are under way have lasted longer, as long as
    /// they have. A third party that hangs is noticed before the first time-out. Zero before the first call.
    #[must_use]
    pub fn call(&self, now: &Moment) -> Duration {
        let under_way =
            self.moved.as_ref().filter(|_| self.under_way > 0).map(|moved| now.since(moved).theirs);
        self.call.theirs.max(under_way.unwrap_or_default())
    }

    /// Whether deliveries wait for the destination, not for this program, and its backlog takes it `longer` than this.
    #[must_use]
    pub fn is_slow(&self, now: &Moment, longer: Duration) -> bool {
        self.is_the_slower(now) && self.call(now).max(self.until_turn(now)) > longer
    }

    /// Begins to wait, until [`Line::leave`].
    ///
    /// # Errors
    /// If the destination is likely to take longer than patience lasts: how long until its turn, from now.
    pub fn wait(&mut self, now: &Moment) -> Result<(), Duration> {
        if self.is_the_slower(now) && self.until_turn(now) > self.patience {
            return Err(self.send_away(now));
        }
        self.join();
        Ok(())
    }

    /// Begins to wait, however long the line is, until [`Line::leave`].
    pub fn join(&mut self) {
        self.waiting += 1;
    }

    /// Ends waiting, for whatever reason.
    pub fn leave(&mut self) {
        self.waiting -= 1;
    }

    /// Sends a delivery away: how long until its turn, from now.
    pub fn send_away(&mut self, now: &Moment) -> Duration {
        let end = self.end.filter(|end| *end > now.at).unwrap_or(now.at);
        let turn = (end + self.pace(now)).min(now.at + LONGEST);
        self.end = Some(turn);
        turn.saturating_duration_since(now.at)
    }

    /// Notes that a call begins.
    pub fn began(&mut self, now: Moment) {
        self.under_way += 1;
        self.moved = Some(now);
    }

    /// Notes that a call ended, and how its time divides.
    pub fn ended(&mut self, call: Spent, now: Moment) {
        self.under_way = self.under_way.saturating_sub(1);
        self.moved = Some(now);
        let is_first = self.call == Spent::default();
        let average =
            |all: Duration, last| if is_first { last } else { (all * (WEIGHT - 1) + last) / WEIGHT };
        let Spent { theirs, ours } = self.call;
        self.call = Spent { theirs: average(theirs, call.theirs), ours: average(ours, call.ours) };
    }

    /// How long the destination takes from one turn to the next.
    fn pace(&self, now: &Moment) -> Duration {
        self.gap.max(self.call(now) / self.places)
    }

    /// How long the destination takes until the turn of a delivery that begins to wait now.
    fn until_turn(&self, now: &Moment) -> Duration {
        self.pace(now).saturating_mul(self.waiting + 1)
    }

    fn is_the_slower(&self, now: &Moment) -> bool {
        self.pace(now) >= self.call.ours / self.places
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

    fn theirs(theirs: Duration) -> Spent {
        Spent { theirs, ours: Duration::ZERO }
    }

    /// How many may wait.
    fn room(line: &mut Line, now: Instant) -> usize {
        (0..10_000).take_while(|_| line.wait(&now.into()).is_ok()).count()
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
            line.ended(theirs(call), now.into());
            assert_eq!(room(&mut line, now), expected, "{places} places, {gap:?}, {call:?}");
            (0..expected).for_each(|_| line.leave());
            assert_eq!(room(&mut line, now), expected, "and again");
        }
    }

    #[test]
    fn none_waits_for_calls_that_hang() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        line.ended(theirs(SECOND / 10), now.into());
        // After a long time without a delivery.
        let later = now + 3600 * SECOND;
        line.began(later.into());
        assert_eq!(room(&mut line, later), 40);
        (0..40).for_each(|_| line.leave());
        assert_eq!(room(&mut line, later + SECOND), 4);
        (0..4).for_each(|_| line.leave());
        assert_eq!(room(&mut line, later + 5 * SECOND), 0);
        line.ended(theirs(SECOND / 10), (later + 5 * SECOND).into());
        assert_eq!(room(&mut line, later + 5 * SECOND), 40);
    }

    #[test]
    fn none_is_sent_away_while_this_program_is_the_slower() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        line.ended(Spent { theirs: SECOND / 10, ours: SECOND }, now.into());
        assert_eq!(room(&mut line, now), 10_000);
        assert!(!line.is_slow(&now.into(), Duration::ZERO));
        // It is in time again, and the third party hangs.
        line.began(now.into());
        assert!(!line.is_slow(&(now + SECOND / 2).into(), Duration::ZERO));
        assert!(line.is_slow(&(now + SECOND).into(), SECOND));
        assert_eq!(room(&mut line, now + SECOND), 0);
    }

    #[test]
    fn a_rate_makes_wait_however_slow_this_program_is_besides() {
        let (mut line, now) = (Line::new(4, SECOND, SECOND), start());
        line.ended(Spent { theirs: Duration::ZERO, ours: 3 * SECOND }, now.into());
        assert_eq!(room(&mut line, now), 1);
        line.ended(Spent { theirs: Duration::ZERO, ours: 600 * SECOND }, now.into());
        assert_eq!(room(&mut line, now), 10_000);
    }

    #[test]
    fn a_destination_is_slow_if_its_calls_or_its_line_last() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        line.ended(theirs(SECOND / 10), now.into());
        let is_slow = |line: &Line| line.is_slow(&now.into(), SECOND / 4);
        assert!(!is_slow(&line));
        (0..10).for_each(|_| line.join());
        assert!(is_slow(&line));
        (0..10).for_each(|_| line.leave());
        (0..50).for_each(|_| line.ended(theirs(SECOND / 2), now.into()));
        assert!(is_slow(&line));
    }

    #[test]
    fn deliveries_that_are_sent_away_come_back_one_after_the_other() {
        let (mut line, now) = (Line::new(64, SECOND / 5, SECOND), start());
        let turns: Vec<_> = (0..10).map(|_| line.send_away(&now.into())).collect();
        assert_eq!(turns, (1..=10).map(|turn| turn * SECOND / 5).collect::<Vec<_>>());
        assert_eq!(line.send_away(&(now + SECOND).into()), SECOND + SECOND / 5);
        assert_eq!(line.send_away(&(now + 60 * SECOND).into()), SECOND / 5, "by then all are gone");
    }

    #[test]
    fn turns_come_as_fast_as_calls_end() {
        let (mut line, now) = (Line::new(4, Duration::ZERO, SECOND), start());
        let moment = now.into();
        assert_eq!(line.send_away(&moment), Duration::ZERO);
        line.ended(theirs(8 * SECOND), moment);
        assert_eq!((line.send_away(&moment), line.send_away(&moment)), (2 * SECOND, 4 * SECOND));
        for _ in 0..200 {
            line.ended(theirs(SECOND), moment);
        }
        let turn = line.send_away(&moment);
        assert!((4 * SECOND + SECOND / 4..4 * SECOND + SECOND / 3).contains(&turn), "{turn:?}");
    }

    #[test]
    fn none_is_sent_away_for_longer_than_a_few_minutes() {
        let (mut line, now) = (Line::new(1, 60 * SECOND, SECOND), start());
        assert_eq!((0..100).map(|_| line.send_away(&now.into())).max(), Some(LONGEST));
        assert_eq!(
            line.send_away(&(now + 90 * SECOND).into()),
            270 * SECOND,
            "the line is not longer than it was told"
        );
    }
}
