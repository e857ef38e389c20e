//! The configured destinations, and the route of each topic.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use throughline_config::Settings;

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
    /// Prepares the configured destinations.
    ///
    /// # Errors
    /// If the filter, headers or client of a destination cannot be prepared.
    pub(crate) fn new(
        settings: &Settings,
        budgets: &Budgets,
        pulse: &Arc<Pulse>,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let ready = |(name, destination): (&String, &throughline_config::Destination)| {
            let destination = Destination::new(name, destination, budgets, pulse, meter)?;
            Ok((name.clone(), Arc::new(destination)))
        };
        let destinations = settings.destinations.iter().map(ready).collect::<Result<_, StartError>>()?;
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
