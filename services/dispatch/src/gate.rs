//! What stands before each call to a third party: its breaker and its limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_config as config;
use throughline_messages::DeferralCause;
use throughline_resilience::{Breaker, BreakerState, Permit};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::limits::{Limits, Turn};
use crate::policy;
use crate::pulse::Pulse;
use crate::room::{Shares, Taken};

/// The gate of one destination.
pub(crate) struct Gate {
    destination: String,
    breaker: Mutex<Breaker>,
    limits: Limits,
}

/// Why no call is made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) cause: DeferralCause,
    /// How long it is no use to come again.
    pub(crate) wait: Duration,
}

/// Leave to make one call. Dropped without a word about its end, it was not used.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    permit: Option<Permit>,
    _turn: Turn<'a>,
}

impl Gate {
    /// With the destination's part of the rooms.
    pub(crate) fn new(name: &str, settings: &config::Destination, shares: Shares, pulse: Arc<Pulse>) -> Self {
        Self {
            destination: name.to_owned(),
            breaker: Mutex::new(Breaker::new(policy::breaker(&settings.breaker))),
            limits: Limits::new(&settings.limits, shares, pulse),
        }
    }

    /// Whether anybody may be let through now.
    ///
    /// # Errors
    /// If the breaker is open.
    pub(crate) fn is_passable(&self) -> Result<(), Hold> {
        self.breaker().hold(now()).map_or(Ok(()), |wait| Err(held(wait)))
    }

    /// Asks for leave to make a call, and waits for it a little if there are many.
    pub(crate) async fn pass(&self) -> Result<Pass<'_>, Hold> {
        // Who is held back anyway does not wait for a turn.
        self.is_passable()?;
        let turn = self.limits.turn().await.map_err(full)?;
        let permit = self.change(Breaker::permit).map_err(held)?;
        Ok(Pass { gate: self, permit: Some(permit), _turn: turn })
    }

    /// Which state its breaker is in; half-open also while it awaits a probe, which without traffic never comes.
    pub(crate) fn state(&self) -> BreakerState {
        let breaker = self.breaker();
        if breaker.awaits_probe(now()) { BreakerState::HalfOpen } else { breaker.state() }
    }

    /// Its limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes room for the bytes of a delivery.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Taken, Hold> {
        self.limits.hold(bytes).map_err(full)
    }

    /// Takes room for a delivery to be worked on, and waits for it.
    pub(crate) async fn admit(&self) -> Result<Taken, Hold> {
        self.limits.admit().await.map_err(full)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Every change is complete in itself: a panic leaves nothing half done.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Breaker, std::time::Instant) -> T) -> T {
        let now = now();
        let mut breaker = self.breaker();
        let before = breaker.state();
        let changed = change(&mut breaker, now);
        let after = breaker.state();
        if before != after {
            self.log(before, after, breaker.hold(now).unwrap_or_default());
        }
        changed
    }

    fn log(&self, before: BreakerState, after: BreakerState, hold: Duration) {
        let destination = &self.destination;
        match (before, after) {
            (BreakerState::HalfOpen, BreakerState::Open) => {
                info!(destination, ?hold, "the third party still fails; calls are held back for longer");
            }
            (_, BreakerState::Open) => {
                warn!(destination, ?hold, "the third party fails: the breaker opens, calls are held back");
            }
            (_, BreakerState::HalfOpen) => info!(destination, "a few calls probe the third party"),
            (_, BreakerState::Closed) => info!(destination, "the third party is back: the breaker closes"),
        }
    }
}

impl Pass<'_> {
    /// The call has ended. Whether the third party was well, is what counts here: a rejection is an answer too.
    pub(crate) fn ended(mut self, well: bool) {
        if let Some(permit) = self.permit.take() {
            self.gate.change(|breaker, now| breaker.record(&permit, well, now));
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.gate.change(|breaker, _| breaker.release(&permit));
        }
    }
}

fn full(wait: Duration) -> Hold {
    Hold { cause: DeferralCause::Limit, wait }
}

fn held(wait: Duration) -> Hold {
    Hold { cause: DeferralCause::BreakerOpen, wait }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pulse::tests::beating;
    use crate::room::tests::rooms;

    fn gate(settings: &serde_json::Value) -> Gate {
        let settings = serde_json::from_value(settings.clone()).unwrap();
        Gate::new("three", &settings, rooms(100).share(), beating())
    }

    async fn fail(gate: &Gate) {
        gate.pass().await.map_err(|hold| hold.cause).unwrap().ended(false);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_a_turn_while_the_breaker_opened_is_held_back() {
        let gate = gate(&json!({
            "url": "http://localhost/", "breaker": {"consecutive": 1}, "limits": {"concurrency": 1},
        }));
        let first = gate.pass().await.ok().unwrap();
        let (second, ()) = tokio::join!(gate.pass(), async { first.ended(false) });
        let expected = Hold { cause: DeferralCause::BreakerOpen, wait: Duration::from_secs(5) };
        assert_eq!(second.err(), Some(expected));
        assert_eq!(gate.pass().await.err(), Some(expected));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_without_traffic_is_half_open_after_its_pause() {
        let gate = gate(&json!({"url": "http://localhost/", "breaker": {"consecutive": 1}}));
        fail(&gate).await;
        assert_eq!(gate.state(), BreakerState::Open);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(gate.state(), BreakerState::HalfOpen);
        fail(&gate).await;
        assert_eq!(gate.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_that_was_not_used_leaves_its_probe_to_another() {
        let gate = gate(&json!({
            "url": "http://localhost/", "breaker": {"consecutive": 1, "probes": 1},
        }));
        fail(&gate).await;
        tokio::time::advance(Duration::from_secs(5)).await;
        let unused = gate.pass().await.ok().unwrap();
        assert!(gate.pass().await.is_err());
        drop(unused);
        gate.pass().await.ok().unwrap().ended(true);
        assert_eq!(gate.breaker().state(), BreakerState::Closed);
    }
}
