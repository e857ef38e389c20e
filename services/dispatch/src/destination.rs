//! A configured destination: how it is called, and all that dispatch applies to its calls.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use opentelemetry::metrics::Meter;
use throughline_destination::{self as destination, Body};
use throughline_resilience::RetryPolicy;
use throughline_transform::{Filter, Runner, TransformError, Variables};

use crate::error::StartError;
use crate::fair_share::Budgets;
use crate::gate::CallGate;
use crate::key_queues::{KeyQueues, OrderingKey, QueueTicket};
use crate::metrics::InFlight;
use crate::pulse::Pulse;

/// A third party, with everything that applies to the calls of any kind of destination.
pub(crate) struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) gate: CallGate,
    pub(crate) in_flight: InFlight,
    pub(crate) third_party: Box<dyn destination::Destination>,
    key_queues: Arc<KeyQueues>,
    filter: Option<Runner>,
}

impl Destination {
    /// Prepares a destination. All destinations share the `budgets` and the `pulse`.
    pub(crate) fn new(
        name: &str,
        settings: &destination::Settings,
        third_party: Box<dyn destination::Destination>,
        (budgets, pulse): (&Budgets, &Arc<Pulse>),
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let shares = budgets.share();
        Ok(Self {
            name: name.into(),
            timeout: settings.timeout,
            retry: settings.retry.policy(),
            key_queues: KeyQueues::new(Arc::clone(&shares.waiting), Arc::clone(pulse)),
            gate: CallGate::new(name, settings, shares, Arc::clone(pulse)),
            in_flight: InFlight::new(meter, name),
            third_party,
            filter: settings.filter.as_deref().map(|filter| runner(name, filter)).transpose()?,
        })
    }

    /// Joins the queue of the delivery's ordering key.
    ///
    /// # Errors
    /// If the queue is too long; the error is how long to defer the delivery.
    pub(crate) fn enqueue(&self, key: OrderingKey) -> Result<QueueTicket, Duration> {
        self.key_queues.enter(key, || self.gate.limits().call())
    }

    /// Returns the body for this destination: the filter's output, or the original body byte for byte.
    pub(crate) async fn body(
        &self,
        came: Body,
        variables: impl FnOnce() -> Variables,
    ) -> Result<Body, TransformError> {
        let Some(filter) = &self.filter else { return Ok(came) };
        Ok(Body {
            content: filter.apply(came.content, variables()).await?.into(),
            content_type: HeaderValue::from_static("application/json"),
        })
    }
}

fn runner(destination: &str, filter: &str) -> Result<Runner, StartError> {
    let own = || destination.to_owned();
    let filter =
        Filter::compile(filter).map_err(|source| StartError::Filter { destination: own(), source })?;
    Runner::new(filter).map_err(|source| StartError::Threads { destination: own(), source })
}
