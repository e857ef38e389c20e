//! The gate before each call to a third party: its breaker and its limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_destination::{Deferral, Settings};
use throughline_messages::DeferralCause;
use throughline_resilience::{Breaker, BreakerState, Permit};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::fair_share::{SharePermit, Shares};
use crate::limits::{LimitPermit, Limits};
use crate::pulse::Pulse;

/// The gate of one destination.
pub(crate) struct CallGate {
    destination: String,
    breaker: Mutex<Breaker>,
    limits: Limits,
}

/// Permission to make one call. Dropping it without [`CallPermit::ended`] releases it unused.
pub(crate) struct CallPermit<'a> {
    gate: &'a CallGate,
    permit: Option<Permit>,
    _limit_permit: LimitPermit<'a>,
}

impl CallGate {
    /// Creates the gate with the destination's shares of the budgets.
    pub(crate) fn new(name: &str, settings: &Settings, shares: Shares, pulse: Arc<Pulse>) -> Self {
        Self {
            destination: name.to_owned(),
            breaker: Mutex::new(Breaker::new(settings.breaker.policy())),
            limits: Limits::new(&settings.limits, shares, pulse),
        }
    }

    /// Checks whether calls may pass now.
    ///
    /// # Errors
    /// If the breaker is open.
    pub(crate) fn is_passable(&self) -> Result<(), Deferral> {
        self.breaker().open_for(now()).map_or(Ok(()), |wait| Err(breaker_open(wait)))
    }

    /// Waits for permission to make a call, for a limited time if many deliveries wait.
    pub(crate) async fn pass(&self) -> Result<CallPermit<'_>, Deferral> {
        // A delivery that the breaker defers does not wait for a permit.
        self.is_passable()?;
        let limit_permit = self.limits.permit().await.map_err(full)?;
        let permit = self.change(Breaker::permit).map_err(breaker_open)?;
        Ok(CallPermit { gate: self, permit: Some(permit), _limit_permit: limit_permit })
    }

    /// Returns the state of the breaker. It counts as half-open also while it awaits a probe, which never comes
    /// without traffic.
    pub(crate) fn state(&self) -> BreakerState {
        let breaker = self.breaker();
        if breaker.awaits_probe(now()) { BreakerState::HalfOpen } else { breaker.state() }
    }

    /// Returns the limits of the destination.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a share of the budget for the bytes of a delivery.
    pub(crate) fn take_bytes(&self, bytes: usize) -> Result<SharePermit, Deferral> {
        self.limits.take_bytes(bytes).map_err(full)
    }

    /// Takes a share of the budget for work on a delivery; waits until it has one left.
    pub(crate) async fn admit(&self) -> Result<SharePermit, Deferral> {
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
            self.log(before, after, breaker.open_for(now).unwrap_or_default());
        }
        changed
    }

    fn log(&self, before: BreakerState, after: BreakerState, open_for: Duration) {
        let destination = &self.destination;
        match (before, after) {
            (BreakerState::HalfOpen, BreakerState::Open) => {
                info!(
                    event = "breaker.reopened",
                    destination,
                    ?open_for,
                    "the third party still fails; the breaker opens again, for longer"
                );
            }
            (_, BreakerState::Open) => {
                warn!(
                    event = "breaker.opened",
                    destination,
                    ?open_for,
                    "the third party fails; the breaker opens and holds calls back"
                );
            }
            (_, BreakerState::HalfOpen) => {
                info!(
                    event = "breaker.half_opened",
                    destination, "the breaker lets a few calls probe the third party"
                );
            }
            (_, BreakerState::Closed) => {
                info!(
                    event = "breaker.closed",
                    destination, "the third party responds again; the breaker closes"
                );
            }
        }
    }
}

impl CallPermit<'_> {
    /// Notes that the call has ended. `well` is whether the third party was healthy: a rejection counts as healthy,
    /// since it is an answer too.
    pub(crate) fn ended(mut self, well: bool) {
        if let Some(permit) = self.permit.take() {
            self.gate.change(|breaker, now| breaker.record(&permit, well, now));
        }
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.gate.change(|breaker, _| breaker.release(&permit));
        }
    }
}

fn full(wait: Duration) -> Deferral {
    Deferral { cause: DeferralCause::Limit, wait }
}

fn breaker_open(wait: Duration) -> Deferral {
    Deferral { cause: DeferralCause::BreakerOpen, wait }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fair_share::tests::budgets;
    use crate::pulse::tests::beating;

    fn gate(settings: &serde_json::Value) -> CallGate {
        let settings = serde_json::from_value(settings.clone()).unwrap();
        CallGate::new("three", &settings, budgets(100).share(), beating())
    }

    async fn fail(gate: &CallGate) {
        gate.pass().await.map_err(|deferral| deferral.cause).unwrap().ended(false);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_gets_its_permit_after_the_breaker_opened_is_deferred() {
        let gate = gate(&json!({
            "url": "http://localhost/", "breaker": {"consecutive": 1}, "limits": {"concurrency": 1},
        }));
        let first = gate.pass().await.ok().unwrap();
        let (second, ()) = tokio::join!(gate.pass(), async { first.ended(false) });
        let expected = Deferral { cause: DeferralCause::BreakerOpen, wait: Duration::from_secs(5) };
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
    async fn an_unused_pass_leaves_its_probe_to_another_call() {
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
