use std::time::Duration;

/// How long a statement waits for a lock. Transactions that hold one take milliseconds; one that stands still holds it
/// for [`IDLE`].
const LOCK: Duration = Duration::from_secs(5);
/// How long a transaction stays open between two statements. A sweeper's claim waits 10 s for Kafka.
const IDLE: Duration = Duration::from_secs(15);
/// How long a client's machine may take nothing of what the server sends, before the server ends the session. Neither
/// of the other bounds ends a statement whose rows nobody reads.
const UNREAD: Duration = Duration::from_secs(45);

/// How long PostgreSQL waits for what it is asked, before it gives up on its own and frees what it has locked: a client
/// that stands still in the middle of a transaction cannot do so.
///
/// A COMMIT that waits for the disk or for a standby is not bounded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    lock: Duration,
    statement: Duration,
}

impl Bounds {
    /// For statements that take `statement` at most.
    pub(crate) fn new(statement: Duration) -> Self {
        // Zero is no bound at all.
        let statement = statement.max(Duration::from_millis(1));
        Self { lock: LOCK.min(statement), statement }
    }

    /// The same, or `statement` if that is less.
    pub(crate) fn within(self, statement: Duration) -> Self {
        Self::new(self.statement.min(statement))
    }

    pub(crate) fn statement(self) -> Duration {
        self.statement
    }

    /// What a session is begun with.
    pub(crate) fn options(self) -> impl Iterator<Item = (&'static str, String)> {
        let unread = ("tcp_user_timeout", UNREAD.as_millis().to_string());
        self.settings().into_iter().chain([unread])
    }

    /// Begins a transaction in one round trip.
    ///
    /// It repeats the bounds, as a pooler may have dropped the session's options, and says the isolation level, as a
    /// role or a database may have another default: under a stricter one a statement that has waited for a lock would
    /// not see what the lock was held for.
    pub(crate) fn begin(self) -> String {
        let settings = self.settings().map(|(name, millis)| format!("; SET LOCAL {name} = {millis}"));
        format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", settings.concat())
    }

    /// In milliseconds.
    fn settings(self) -> [(&'static str, String); 3] {
        [
            ("lock_timeout", self.lock),
            ("statement_timeout", self.statement),
            ("idle_in_transaction_session_timeout", IDLE),
        ]
        .map(|(name, bound)| (name, bound.as_millis().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_says_its_isolation_and_its_bounds() {
        assert_eq!(
            Bounds::new(Duration::from_secs(30)).begin(),
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 5000; \
             SET LOCAL statement_timeout = 30000; SET LOCAL idle_in_transaction_session_timeout = 15000"
        );
    }

    #[test]
    fn a_bound_is_never_longer_than_asked_for_and_never_none() {
        let seconds = Duration::from_secs;
        let bounds = |statement: Duration| (Bounds::new(statement).lock, Bounds::new(statement).statement);
        assert_eq!(bounds(seconds(2)), (seconds(2), seconds(2)));
        assert_eq!(bounds(Duration::ZERO), (Duration::from_millis(1), Duration::from_millis(1)));
        let within = |statement| Bounds::new(seconds(30)).within(statement).statement;
        assert_eq!((within(seconds(3)), within(seconds(40))), (seconds(3), seconds(30)));
    }
}
