//! The configured destinations, and the route of each topic.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use throughline_clock::Clock;
use throughline_destination::Context;
use throughline_settings::Settings;
use throughline_token::Tokens;

use crate::destination::Destination;
use crate::error::StartError;
use crate::fair_share::Budgets;
use crate::pulse::Pulse;

/// The configured destinations, and the routes by their topics.
pub(crate) struct Routing {
    route_of: HashMap<String, String>,
    destinations: HashMap<String, Arc<Destination>>,
}

/// The target of a delivery.
#[derive(Clone)]
pub(crate) enum RouteTarget {
    Destination(Arc<Destination>),
    /// No destination has this name: it was removed from the configuration after the request was accepted, or ingest
    /// already has it in its configuration and this dispatch does not.
    Unknown(String),
}

impl Routing {
    /// Prepares the configured destinations. They share the `budgets`, the `pulse` and the `tokens`.
    ///
    /// # Errors
    /// If a destination cannot be prepared.
    pub(crate) fn new(
        settings: &Settings,
        (budgets, pulse): (&Budgets, &Arc<Pulse>),
        tokens: &Tokens,
        clock: &Clock,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let mut destinations = HashMap::new();
        for (name, destination) in &settings.destinations {
            let context =
                Context { kafka: &settings.kafka, timeout: destination.timeout, tokens, clock, meter };
            let third_party = destination.kind.settings().build(name, &context);
            let third_party = third_party.map_err(|source| StartError::Destination {
                destination: name.clone(),
                source: Box::new(source),
            })?;
            let ready = Destination::new(name, destination, third_party, (budgets, pulse), meter)?;
            destinations.insert(name.clone(), Arc::new(ready));
        }
        let routes = settings.routes.iter();
        let route_of = routes.map(|(name, route)| (route.topic.clone(), name.clone())).collect();
        Ok(Self { route_of, destinations })
    }

    /// Returns the route that has this topic.
    pub(crate) fn route_of(&self, topic: &str) -> Option<&str> {
        self.route_of.get(topic).map(String::as_str)
    }

    pub(crate) fn destinations(&self) -> Vec<Arc<Destination>> {
        self.destinations.values().cloned().collect()
    }

    pub(crate) fn target(&self, destination: &str) -> RouteTarget {
        match self.destinations.get(destination) {
            Some(destination) => RouteTarget::Destination(Arc::clone(destination)),
            None => RouteTarget::Unknown(destination.to_owned()),
        }
    }
}

impl RouteTarget {
    /// Returns the destination's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Destination(destination) => &destination.name,
            Self::Unknown(name) => name,
        }
    }
}
