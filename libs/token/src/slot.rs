use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::access_token::AccessToken;
use crate::answer::Grant;
use crate::error::TokenError;

/// How long before its expiry a token is no longer used, so that it does not expire in transit: clocks differ, and
/// calls take time.
const SKEW: Duration = Duration::from_secs(30);

/// The minimum time before a failed renewal is retried.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the first failure is remembered: meanwhile callers get it immediately, without a request to the endpoint.
/// Each further failure is remembered for twice as long.
const FIRST_MEMORY: Duration = Duration::from_secs(1);

/// The longest time that a failure is remembered, and so the longest time until a recovered endpoint is noticed.
const LONGEST_MEMORY: Duration = Duration::from_secs(30);

/// Why a token is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A caller waits for it.
    Need,
    /// The token in use expires soon.
    Renewal,
}

/// The token of one identity, and the request for the next one.
#[derive(Default)]
pub(crate) struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    held: Option<Held>,
    fetch: Option<Fetch>,
    /// The last failure since the last token was received.
    failure: Option<Failure>,
}

/// A remembered failure.
struct Failure {
    error: TokenError,
    memory: Duration,
    until: Instant,
}

impl Failure {
    fn new(error: &TokenError, before: Option<&Self>, now: Instant) -> Self {
        let memory = before.map_or(FIRST_MEMORY, |before| (before.memory * 2).min(LONGEST_MEMORY));
        Self { error: error.clone(), memory, until: now + memory }
    }
}

struct Held {
    token: AccessToken,
    expires_at: Instant,
    renew_at: Instant,
}

impl Held {
    fn new(grant: &Grant, asked_at: Instant) -> Self {
        let lifetime = grant.lifetime;
        Self {
            token: grant.token.clone(),
            expires_at: asked_at + lifetime.saturating_sub(SKEW.min(lifetime / 10)),
            renew_at: asked_at + lifetime / 5 * 4,
        }
    }

    /// Postpones the next renewal by a quarter of the remaining time, so that attempts become more frequent towards
    /// the expiry.
    fn postpone_renewal(&mut self, now: Instant) {
        self.renew_at = now + (self.expires_at.saturating_duration_since(now) / 4).max(SHORTEST_PAUSE);
    }
}

type Outcome = Result<AccessToken, TokenError>;

/// A request in a task of its own, so that a caller that stops waiting does not cancel it for the others. It ends
/// with its timeout or with the slot.
struct Fetch {
    outcome: watch::Receiver<Option<Outcome>>,
    _task: AbortOnDropHandle<()>,
}

impl Fetch {
    fn is_over(&self) -> bool {
        // If the task panicked, the sender was dropped without an outcome.
        self.outcome.borrow().is_some() || self.outcome.has_changed().is_err()
    }
}

impl Slot {
    /// Whether there is a token that is not about to expire.
    pub(crate) fn holds(&self) -> bool {
        let now = Instant::now();
        self.lock().held.as_ref().is_some_and(|held| now < held.expires_at)
    }

    /// Returns the held token, or waits for the requested one. Calls `fetch` to start a request, at most one at a
    /// time. After a failure, only the caller that starts the request waits for it.
    pub(crate) async fn token<F>(self: &Arc<Self>, fetch: impl FnOnce(Purpose) -> F) -> Outcome
    where
        F: Future<Output = Result<Grant, TokenError>> + Send + 'static,
    {
        let mut outcome = {
            let mut state = self.lock();
            let under_way = state.fetch.as_ref().filter(|fetch| !fetch.is_over());
            let under_way = under_way.map(|fetch| fetch.outcome.clone());
            let now = Instant::now();
            if let Some(held) = state.held.as_ref().filter(|held| now < held.expires_at) {
                let (token, due) = (held.token.clone(), now >= held.renew_at);
                if due && under_way.is_none() {
                    state.fetch = Some(self.start(now, fetch(Purpose::Renewal)));
                }
                return Ok(token);
            }
            let would_fail_again = |failure: &&Failure| under_way.is_some() || now < failure.until;
            if let Some(failure) = state.failure.as_ref().filter(would_fail_again) {
                return Err(failure.error.clone());
            }
            match under_way {
                Some(outcome) => outcome,
                None => state.fetch.insert(self.start(now, fetch(Purpose::Need))).outcome.clone(),
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await.map_err(|_| TokenError::Interrupted)?;
        outcome.clone().unwrap_or(Err(TokenError::Interrupted))
    }

    /// Removes `token` if it is still the held one.
    pub(crate) fn discard(&self, token: &AccessToken) {
        let mut state = self.lock();
        if state.held.as_ref().is_some_and(|held| held.token == *token) {
            state.held = None;
        }
    }

    fn start(
        self: &Arc<Self>,
        asked_at: Instant,
        fetch: impl Future<Output = Result<Grant, TokenError>> + Send + 'static,
    ) -> Fetch {
        let (sender, outcome) = watch::channel(None);
        // A strong reference would keep the slot alive, which owns the task.
        let slot = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let granted = fetch.await;
            if let Some(slot) = slot.upgrade() {
                slot.settle(asked_at, &granted);
            }
            sender.send_replace(Some(granted.map(|grant| grant.token)));
        });
        Fetch { outcome, _task: AbortOnDropHandle::new(task) }
    }

    fn settle(&self, asked_at: Instant, granted: &Result<Grant, TokenError>) {
        let mut state = self.lock();
        let now = Instant::now();
        match granted {
            Ok(grant) => {
                state.held = Some(Held::new(grant, asked_at));
                state.failure = None;
            }
            Err(error) => {
                state.failure = Some(Failure::new(error, state.failure.as_ref(), now));
                // Without a valid token a caller waits, and gets the error.
                if let Some(held) = state.held.as_mut().filter(|held| now < held.expires_at) {
                    held.postpone_renewal(now);
                    warn!(
                        event = "token.renewal_failed", %error,
                        "cannot renew a token; using the current one until it expires"
                    );
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete in itself, so a panic leaves no inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(token: &str) -> Grant {
        Grant { token: AccessToken::bearer(token).unwrap(), lifetime: Duration::from_mins(1) }
    }

    #[tokio::test]
    async fn a_request_that_panics_is_an_error_and_not_the_end() {
        let slot = Arc::<Slot>::default();
        let got = slot.token(|_| async { panic!("on purpose") }).await;
        assert_eq!(got, Err(TokenError::Interrupted));
        assert!(slot.token(|_| async { Ok(grant("t")) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_request_ends_with_its_slot() {
        let slot = Arc::<Slot>::default();
        let (alive, mut gone) = watch::channel(());
        let endless = async move {
            let _alive = alive;
            std::future::pending().await
        };
        let got = tokio::time::timeout(Duration::ZERO, slot.token(|_| endless)).await;
        assert!(got.is_err());
        drop(slot);
        let ended = tokio::time::timeout(Duration::from_secs(30), gone.changed()).await;
        assert!(ended.expect("the task goes on").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lifetime_begins_when_the_token_is_asked_for() {
        let slot = Arc::<Slot>::default();
        let answer = |name| async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            Ok(grant(name))
        };
        assert_eq!(slot.token(|_| answer("one")).await, Ok(grant("one").token));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(slot.token(|_| answer("two")).await, Ok(grant("two").token));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_one_at_a_time() {
        let slot = Arc::<Slot>::default();
        let held = slot.token(|_| async { Ok(grant("one")) }).await;
        tokio::time::advance(Duration::from_secs(49)).await;
        let mut purposes = Vec::new();
        for _ in 0..3 {
            let got = slot.token(|purpose| {
                purposes.push(purpose);
                std::future::pending()
            });
            assert_eq!(got.await, held);
        }
        assert_eq!(purposes, [Purpose::Renewal]);
    }

    /// Gets a token while every request fails, and returns whether a request was made.
    async fn failing(slot: &Arc<Slot>) -> (Outcome, bool) {
        let mut asked = false;
        let got = slot.token(|_| {
            asked = true;
            std::future::ready(Err(TokenError::NotBearer))
        });
        let got = got.await;
        // Lets the request's task come to its end.
        tokio::task::yield_now().await;
        (got, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_keeps_the_token_and_is_retried_later() {
        let slot = Arc::<Slot>::default();
        let held = slot.token(|_| async { Ok(grant("one")) }).await;
        // To be renewed after 48 s, of no more use after 54 s.
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!(failing(&slot).await, (held.clone(), true));
        assert_eq!(failing(&slot).await, (held.clone(), false), "a quarter of 4 s is not yet over");
        tokio::time::advance(Duration::from_millis(1100)).await;
        assert_eq!(failing(&slot).await, (held.clone(), true));
        tokio::time::advance(Duration::from_millis(900)).await;
        assert_eq!(failing(&slot).await, (held.clone(), false), "not sooner than after a second");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(slot.token(|_| async { Ok(grant("two")) }).await, held);
        tokio::task::yield_now().await;
        assert_eq!(failing(&slot).await, (Ok(grant("two").token), false));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unrenewed_token_is_not_used_after_it_expires() {
        let slot = Arc::<Slot>::default();
        let held = slot.token(|_| async { Ok(grant("one")) }).await;
        tokio::time::advance(Duration::from_millis(53_900)).await;
        assert_eq!(failing(&slot).await, (held, true));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(failing(&slot).await, (Err(TokenError::NotBearer), false), "it was asked a moment ago");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(failing(&slot).await, (Err(TokenError::NotBearer), true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_down_is_asked_less_often_and_callers_fail_immediately() {
        let slot = Arc::<Slot>::default();
        let mut asked_after = Vec::new();
        for tenths in 0..1500 {
            let (got, asked) = failing(&slot).await;
            assert_eq!(got, Err(TokenError::NotBearer));
            asked_after.extend(asked.then_some(tenths / 10));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(asked_after, [0, 1, 3, 7, 15, 31, 61, 91, 121]);

        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(slot.token(|_| async { Ok(grant("one")) }).await.is_ok());
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(failing(&slot).await.1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(failing(&slot).await.1, "what came before the last token is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_caller_waits_for_the_probe_of_an_endpoint_that_was_down() {
        let slot = Arc::<Slot>::default();
        assert!(failing(&slot).await.1);
        tokio::time::advance(Duration::from_secs(1)).await;
        let probe = slot.token(|_| async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(grant("one"))
        });
        let (probed, others) = tokio::join!(biased; probe, failing(&slot));
        assert_eq!(others, (Err(TokenError::NotBearer), false));
        assert_eq!(probed, Ok(grant("one").token));
        assert_eq!(failing(&slot).await, (Ok(grant("one").token), false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_without_a_valid_token_waits_for_the_renewal_in_progress() {
        let slot = Arc::<Slot>::default();
        let held = slot.token(|_| async { Ok(grant("one")) }).await;
        tokio::time::advance(Duration::from_secs(50)).await;
        let renewal = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(grant("two"))
        };
        assert_eq!(slot.token(|_| renewal).await, held);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(failing(&slot).await, (Ok(grant("two").token), false));
    }
}
