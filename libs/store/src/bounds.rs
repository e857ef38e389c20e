use std::time::Duration;

/// How long a statement waits for a lock. Transactions hold locks for milliseconds; a frozen transaction holds them for
/// [`IDLE`].
const LOCK: Duration = Duration::from_secs(5);
/// How long a transaction may stay open between two statements. No transaction waits for anything but the database, so
/// only a process that gets no CPU time takes this long. With a shorter bound, commits would have to be repeated on a
/// busy machine. This bound ends well before the lease (30 s by default) of a frozen ingest.
const IDLE: Duration = Duration::from_secs(15);
/// How long a client's machine may accept none of the data that the server sends, before the server ends the session.
/// The other limits do not end a statement if no client reads its rows.
const UNREAD: Duration = Duration::from_secs(45);

/// The server-side limits after which PostgreSQL gives up on a statement or a transaction and releases its locks. A
/// client that freezes in the middle of a transaction cannot release them.
///
/// A COMMIT that waits for the disk or for a standby has no limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    lock: Duration,
    statement: Duration,
}

impl Bounds {
    /// Limits each statement to `statement`.
    pub(crate) fn new(statement: Duration) -> Self {
        // PostgreSQL takes zero as no limit.
        let statement = statement.max(Duration::from_millis(1));
        Self { lock: LOCK.min(statement), statement }
    }

    /// Returns these limits, with each statement limited to `statement` if that is less.
    pub(crate) fn within(self, statement: Duration) -> Self {
        Self::new(self.statement.min(statement))
    }

    pub(crate) fn statement(self) -> Duration {
        self.statement
    }

    /// Returns the options that a session starts with.
    pub(crate) fn options(self) -> impl Iterator<Item = (&'static str, String)> {
        let unread = ("tcp_user_timeout", UNREAD.as_millis().to_string());
        self.settings().into_iter().chain([unread])
    }

    /// Returns the SQL that begins a transaction in one round trip.
    ///
    /// It repeats the limits, because a pooler may have dropped the session's options. It names the isolation level,
    /// because a role or a database may have another default: under a stricter level, a statement that has waited for a
    /// lock would not see the changes made under that lock.
    pub(crate) fn begin(self) -> String {
        let settings = self.settings().map(|(name, millis)| format!("; SET LOCAL {name} = {millis}"));
        format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", settings.concat())
    }

    /// The settings and their values in milliseconds.
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
    fn a_transaction_sets_its_isolation_and_its_time_limits() {
        assert_eq!(
            Bounds::new(Duration::from_secs(30)).begin(),
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 5000; \
             SET LOCAL statement_timeout = 30000; SET LOCAL idle_in_transaction_session_timeout = 15000"
        );
    }

    #[test]
    fn a_time_limit_is_never_longer_than_requested_and_never_zero() {
        let seconds = Duration::from_secs;
        let bounds = |statement: Duration| (Bounds::new(statement).lock, Bounds::new(statement).statement);
        assert_eq!(bounds(seconds(2)), (seconds(2), seconds(2)));
        assert_eq!(bounds(Duration::ZERO), (Duration::from_millis(1), Duration::from_millis(1)));
        let within = |statement| Bounds::new(seconds(30)).within(statement).statement;
        assert_eq!((within(seconds(3)), within(seconds(40))), (seconds(3), seconds(30)));
    }
}
