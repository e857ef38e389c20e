//! Which destinations a route has, and which route a topic belongs to.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use throughline_config::Settings;

use crate::destination::Destination;
use crate::error::StartError;
use crate::pulse::Pulse;
use crate::room::Rooms;

/// The configured routes and destinations.
pub(crate) struct Routing {
    targets_of: HashMap<String, Vec<Target>>,
    route_of: HashMap<String, String>,
    destinations: HashMap<String, Arc<Destination>>,
}

/// Where a delivery is to go.
#[derive(Clone)]
pub(crate) enum Target {
    Destination(Arc<Destination>),
    /// No destination has this name: it was taken out of the configuration since the request was accepted, or ingest
    /// knows it already and this dispatch does not.
    Unknown(String),
}

impl Routing {
    /// # Errors
    /// If a destination cannot be made ready: its filter, headers or client.
    pub(crate) fn new(
        settings: &Settings,
        rooms: &Rooms,
        pulse: &Arc<Pulse>,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let ready = |(name, destination): (&String, &throughline_config::Destination)| {
            let destination = Destination::new(name, destination, rooms, pulse, meter)?;
            Ok((name.clone(), Arc::new(destination)))
        };
        let destinations = settings.destinations.iter().map(ready).collect::<Result<_, StartError>>()?;
        let mut routing = Self { targets_of: HashMap::new(), route_of: HashMap::new(), destinations };
        for (name, route) in &settings.routes {
            let targets = route.destinations.iter().map(|name| routing.target(name)).collect();
            routing.targets_of.insert(name.clone(), targets);
            routing.route_of.insert(route.topic.clone(), name.clone());
        }
        Ok(routing)
    }

    /// Where the requests of a route go; `None` if there is no such route.
    pub(crate) fn targets_of(&self, route: &str) -> Option<&[Target]> {
        self.targets_of.get(route).map(Vec::as_slice)
    }

    /// The route whose topic this is.
    pub(crate) fn route_of(&self, topic: &str) -> Option<&str> {
        self.route_of.get(topic).map(String::as_str)
    }

    pub(crate) fn destinations(&self) -> Vec<Arc<Destination>> {
        self.destinations.values().cloned().collect()
    }

    pub(crate) fn target(&self, destination: &str) -> Target {
        match self.destinations.get(destination) {
            Some(destination) => Target::Destination(Arc::clone(destination)),
            None => Target::Unknown(destination.to_owned()),
        }
    }
}

impl Target {
    /// The destination's name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Destination(destination) => &destination.name,
            Self::Unknown(name) => name,
        }
    }
}
