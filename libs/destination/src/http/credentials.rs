//! Tracks whether a destination's token endpoint issues tokens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use throughline_messages::DeferralCause;
use throughline_token::TokenError;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::Deferral;

/// Pause after the endpoint refused the credentials: until an operator has fixed them, asking often is useless.
const REFUSED: Duration = Duration::from_mins(5);
/// Shortest pause during an outage: retry after as long as the outage has lasted so far, clamped to 1 s to 1 min.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest pause during an outage.
const LONGEST: Duration = Duration::from_mins(1);

/// The reason why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoToken {
    /// The token endpoint issued none.
    #[error(transparent)]
    Error(#[from] TokenError),
    /// The token endpoint took all the time of the attempt.
    #[error("no token within {0:?}")]
    Timeout(Duration),
}

impl NoToken {
    fn cause(&self) -> DeferralCause {
        match self {
            Self::Error(error) if !error.is_retryable() => DeferralCause::TokenRefused,
            Self::Error(_) | Self::Timeout(_) => DeferralCause::TokenUnavailable,
        }
    }
}

/// The state of one destination's credentials. Each change is logged once.
pub(super) struct Health {
    destination: String,
    problem: Mutex<Option<Problem>>,
}

#[derive(Clone, Copy)]
struct Problem {
    cause: DeferralCause,
    since: Instant,
}

impl Health {
    pub(super) fn new(destination: &str) -> Self {
        Self { destination: destination.to_owned(), problem: Mutex::new(None) }
    }

    /// Returns whether the endpoint refuses the credentials, so that an operator has to fix them.
    pub(super) fn are_refused(&self) -> bool {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        problem.is_some_and(|problem| problem.cause == DeferralCause::TokenRefused)
    }

    /// Notes that a token was issued.
    pub(super) fn well(&self) {
        if self.change(None).is_some() {
            info!(
                event = "token_endpoint.recovered",
                destination = self.destination,
                "the token endpoint issues tokens again"
            );
        }
    }

    /// Notes that no token was issued, and returns how long to wait.
    pub(super) fn failed(&self, why: &NoToken) -> Deferral {
        let (cause, now) = (why.cause(), Instant::now());
        let before = self.change(Some(Problem { cause, since: now }));
        let since = before.filter(|before| before.cause == cause).map(|before| before.since);
        if since.is_none() {
            self.log(cause, why);
        }
        let wait = match cause {
            DeferralCause::TokenRefused => REFUSED,
            _ => since.map_or(SHORTEST, |since| (now - since).clamp(SHORTEST, LONGEST)),
        };
        Deferral { cause, wait }
    }

    /// Sets the current problem and returns the previous one. A problem with the same cause is the same problem, and
    /// keeps its start.
    fn change(&self, problem: Option<Problem>) -> Option<Problem> {
        // Every change is complete in itself: a panic leaves nothing half done.
        let mut current = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *current;
        if before.map(|before| before.cause) != problem.map(|problem| problem.cause) {
            *current = problem;
        }
        before
    }

    fn log(&self, cause: DeferralCause, why: &NoToken) {
        let destination = &self.destination;
        if cause == DeferralCause::TokenRefused {
            error!(
                event = "token_endpoint.refused_credentials", destination, error = %why,
                "the token endpoint rejected the client credentials; deliveries wait, and no attempt is counted: \
                 correct destinations.{destination}.oauth2 and restart dispatch, or have the permissions of the client \
                 restored"
            );
        } else {
            warn!(
                event = "token_endpoint.failed", destination, error = %why,
                "the token endpoint issued no token; deliveries wait until it issues one"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http::StatusCode;

    use super::*;

    fn refused() -> NoToken {
        let code = Some("invalid_client");
        TokenError::Refused { status: StatusCode::UNAUTHORIZED, code }.into()
    }

    fn down() -> NoToken {
        TokenError::Connect("connection refused".to_owned()).into()
    }

    #[test]
    fn a_refusal_is_distinguished_from_an_outage() {
        use DeferralCause::{TokenRefused, TokenUnavailable};
        let table = [
            (refused(), TokenRefused, "the token endpoint answered 401 Unauthorized (invalid_client)"),
            (
                TokenError::NotBearer.into(),
                TokenRefused,
                "the token endpoint issued a token that is not of type Bearer",
            ),
            (down(), TokenUnavailable, "no connection to the token endpoint: connection refused"),
            (NoToken::Timeout(SHORTEST), TokenUnavailable, "no token within 1s"),
        ];
        for (why, cause, words) in table {
            assert_eq!((why.cause(), why.to_string().as_str()), (cause, words));
        }
    }

    #[tokio::test]
    async fn each_change_is_logged_once_and_a_refusal_is_an_error() {
        let mut log = tempfile::tempfile().unwrap();
        let writer = log.try_clone().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(writer)).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            let health = Health::new("three");
            health.well();
            for why in [down(), down(), refused(), refused(), refused(), down()] {
                health.failed(&why);
            }
            health.well();
            health.well();
        });
        let mut lines = String::new();
        std::io::Seek::rewind(&mut log).unwrap();
        log.read_to_string(&mut lines).unwrap();
        let levels: Vec<_> = lines.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
        assert_eq!(levels, ["WARN", "ERROR", "WARN", "INFO"], "{lines}");
        let error = lines.lines().nth(1).unwrap();
        assert!(error.contains("destinations.three.oauth2") && error.contains("invalid_client"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_wait_for_as_long_as_the_outage_has_lasted() {
        let health = Health::new("three");
        let wait = || health.failed(&down()).wait.as_secs();
        assert_eq!(wait(), 1);
        for (pass, waits) in [(0, 1), (10, 10), (20, 30), (600, 60)] {
            tokio::time::advance(Duration::from_secs(pass)).await;
            assert_eq!(wait(), waits);
        }
        assert_eq!(health.failed(&refused()).wait, REFUSED);
        assert_eq!(wait(), 1, "another outage");
        tokio::time::advance(Duration::from_secs(10)).await;
        health.well();
        assert_eq!(wait(), 1);
    }
}
