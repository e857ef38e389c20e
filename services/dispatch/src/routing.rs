//! Which destinations a route has, and which route a topic belongs to.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry::metrics::Meter;
use throughline_config::Settings;

use crate::destination::Destination;
use crate::error::StartError;
use crate::room::Rooms;

/// The configured routes and destinations.
pub(crate) struct Routing {
    destinations_of: HashMap<String, Vec<String>>,
    route_of: HashMap<String, String>,
    destinations: HashMap<String, Arc<Destination>>,
}

impl Routing {
    /// # Errors
    /// If a destination cannot be made ready: its filter, headers or client.
    pub(crate) fn new(settings: &Settings, rooms: &Rooms, meter: &Meter) -> Result<Self, StartError> {
        let ready = |(name, destination): (&String, &throughline_config::Destination)| {
            let destination = Destination::new(name, destination, rooms, meter)?;
            Ok((name.clone(), Arc::new(destination)))
        };
        let routes = &settings.routes;
        Ok(Self {
            destinations_of: routes.iter().map(|(name, r)| (name.clone(), r.destinations.clone())).collect(),
            route_of: routes.iter().map(|(name, route)| (route.topic.clone(), name.clone())).collect(),
            destinations: settings.destinations.iter().map(ready).collect::<Result<_, StartError>>()?,
        })
    }

    /// The names of a route's destinations; `None` if there is no such route.
    pub(crate) fn destinations_of(&self, route: &str) -> Option<&[String]> {
        self.destinations_of.get(route).map(Vec::as_slice)
    }

    /// The route whose topic this is.
    pub(crate) fn route_of(&self, topic: &str) -> Option<&str> {
        self.route_of.get(topic).map(String::as_str)
    }

    pub(crate) fn destinations(&self) -> Vec<Arc<Destination>> {
        self.destinations.values().cloned().collect()
    }

    pub(crate) fn destination(&self, name: &str) -> Option<Arc<Destination>> {
        self.destinations.get(name).cloned()
    }
}
