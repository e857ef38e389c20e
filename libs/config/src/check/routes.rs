use std::collections::{BTreeMap, BTreeSet};

use http::HeaderName;
use http::uri::PathAndQuery;

use super::{Findings, is_topic};
use crate::path::Path;
use crate::settings::{AfterFailure, Route, SchemaSource, Settings};

/// Paths that are ingest's own, with all that is below them.
const OWN_PATHS: [&str; 5] = ["/v1", "/healthz", "/readyz", "/openapi.json", "/docs"];

const EXAMPLE: &str = "there is no route; write for example `routes: {one: {path: /one, topic: \
    one-request-local, destinations: [three]}}` and `destinations: {three: {url: \
    \"https://api.example.com/three\"}}`";

pub(super) fn check(
    settings: &Settings,
    routes: &BTreeSet<&str>,
    destinations: &BTreeSet<&str>,
    findings: &mut Findings,
) {
    findings.expect(!routes.is_empty(), || Path::of(&["routes"]), EXAMPLE);
    let (mut paths, mut topics) = (BTreeMap::new(), BTreeMap::new());
    for (name, route) in &settings.routes {
        let path = Path::of(&["routes", name]);
        check_path(&route.path, &path, findings);
        check_topic(&route.topic, &settings.kafka.prefix, &path, findings);
        check_destinations(&route.destinations, destinations, &path, findings);
        check_details(route, &path, findings);
        for (key, value, taken) in [("path", &route.path, &mut paths), ("topic", &route.topic, &mut topics)] {
            if let Some(other) = taken.insert(value.as_str(), name) {
                findings.add(path.key(key), format!("`{value}` is the {key} of route `{other}` already"));
            }
        }
    }
}

fn check_path(value: &str, route: &Path, findings: &mut Findings) {
    let path = || route.key("path");
    let own =
        |own: &&str| value.strip_prefix(*own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // The router takes these for patterns.
    let is_pattern = value.contains(['{', '}']) || value.contains("/:") || value.contains("/*");
    let is_path =
        value.is_ascii() && value.parse::<PathAndQuery>().is_ok_and(|parsed| parsed.path() == value);
    if !value.starts_with('/') {
        findings.add(path(), format!("a path begins with `/`: write `/{value}`"));
    } else if is_pattern || !is_path || value.contains('#') {
        findings.add(path(), format!("`{value}` is no plain path, such as `/one`"));
    } else if let Some(own) = OWN_PATHS.iter().find(|path| own(path)) {
        findings.add(path(), format!("{own} is one of ingest's own paths"));
    }
}

fn check_topic(topic: &str, prefix: &str, route: &Path, findings: &mut Findings) {
    let path = || route.key("topic");
    if !is_topic(topic) {
        let message = "a topic's name is of letters, digits, `.`, `_` and `-`, at most 249";
        findings.add(path(), message);
    } else if topic.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) {
        findings.add(path(), format!("topics that begin with `{prefix}.` are internal (see kafka.prefix)"));
    } else if topic.starts_with("__") {
        findings.add(path(), "topics that begin with `__` are Kafka's own");
    }
}

fn check_destinations(named: &[String], known: &BTreeSet<&str>, route: &Path, findings: &mut Findings) {
    let path = route.key("destinations");
    let there_are = if known.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are: {}", known.iter().copied().collect::<Vec<_>>().join(", "))
    };
    if named.is_empty() {
        findings.add(path.clone(), format!("a route names at least one destination ({there_are})"));
    }
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name.as_str()) {
            findings.add(path.index(index), format!("no destination is called `{name}` ({there_are})"));
        } else if named[..index].contains(name) {
            findings.add(path.index(index), format!("`{name}` is named twice"));
        }
    }
}

fn check_details(route: &Route, path: &Path, findings: &mut Findings) {
    if let Some(schema) = &route.schema {
        check_schema(schema, &path.key("schema"), findings);
    }
    findings.expect(
        route.ordering_key.as_deref().is_none_or(is_json_pointer),
        || path.key("ordering_key"),
        "expected a JSON pointer (RFC 6901), such as `/user_id`",
    );
    findings.expect(
        route.after_failure == AfterFailure::Continue || route.ordering_key.is_some(),
        || path.key("after_failure"),
        "`hold` keeps an order: say with `ordering_key` which requests have one",
    );
    for (index, name) in route.keep_headers.iter().enumerate() {
        findings.expect(
            HeaderName::try_from(name).is_ok(),
            || path.key("keep_headers").index(index),
            "is not the name of an HTTP header",
        );
    }
}

fn check_schema(schema: &SchemaSource, path: &Path, findings: &mut Findings) {
    // What a schema refers to must be in it: nothing is fetched.
    if let Err(error) = jsonschema::options().offline().build(schema.document()) {
        let message = format!("the JSON Schema does not compile: {error}");
        findings.add(path.join(error.instance_path(), schema.document()), message);
    }
}

fn is_json_pointer(pointer: &str) -> bool {
    let escapes_are_sound = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (pointer.is_empty() || pointer.starts_with('/')) && escapes_are_sound
}
