//! Destinations that produce to topics of our own cluster, which may be those of routes.

use std::collections::BTreeSet;

use throughline_config::{Findings, Path};

use super::routes::check_topic;
use crate::Settings;

pub(super) fn check(settings: &Settings, findings: &mut Findings) {
    for (name, destination) in &settings.destinations {
        let Some(topic) = destination.kind.settings().topic_of_own_cluster() else { continue };
        let path = Path::of(&["destinations", name, "topic"]);
        check_topic(topic, &settings.kafka.prefix, &path, findings);
        if let Some((target, route)) = loops(settings, name, topic) {
            let message = format!(
                "`{topic}` is the topic of route `{target}`, so requests of route `{route}` would come back to it \
                 forever; use another topic"
            );
            findings.add(path, message);
        }
    }
}

/// Returns the route that has the topic, and one whose requests would come back to it through the destination.
fn loops<'s>(settings: &'s Settings, destination: &str, topic: &str) -> Option<(&'s str, &'s str)> {
    let target = route_of(settings, topic)?;
    let mut reached = BTreeSet::new();
    let mut next = vec![target];
    while let Some(route) = next.pop() {
        if !reached.insert(route) {
            continue;
        }
        let destinations = settings.routes.get(route).map(|route| route.destinations.as_slice());
        for name in destinations.unwrap_or_default() {
            if name == destination {
                return Some((target, route));
            }
            let produced = settings.destinations.get(name);
            let produced = produced.and_then(|other| other.kind.settings().topic_of_own_cluster());
            next.extend(produced.and_then(|topic| route_of(settings, topic)));
        }
    }
    None
}

fn route_of<'s>(settings: &'s Settings, topic: &str) -> Option<&'s str> {
    settings.routes.iter().find(|(_, route)| route.topic == topic).map(|(name, _)| name.as_str())
}
