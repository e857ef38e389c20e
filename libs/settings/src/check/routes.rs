use std::collections::{BTreeMap, BTreeSet};

use http::HeaderName;
use http::uri::PathAndQuery;

use crate::{Ordering, Route, SchemaSource, Settings};
use throughline_config::{Findings, Path};
use throughline_kafka::is_topic_name;

/// Paths reserved for ingest itself, with all paths below them.
const OWN_PATHS: [&str; 5] = ["/v1", "/healthz", "/readyz", "/openapi.json", "/docs"];

const EXAMPLE: &str = "no route is configured; write for example `routes: {one: {path: /one, topic: \
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
        check_topic(&route.topic, &settings.kafka.prefix, &path.key("topic"), findings);
        check_destinations(&route.destinations, destinations, &path, findings);
        check_details(route, &path, findings);
        for (key, value, taken) in [("path", &route.path, &mut paths), ("topic", &route.topic, &mut topics)] {
            if let Some(other) = taken.insert(value.as_str(), name) {
                findings.add(path.key(key), format!("`{value}` is already the {key} of route `{other}`"));
            }
        }
    }
}

fn check_path(value: &str, route: &Path, findings: &mut Findings) {
    let path = || route.key("path");
    let own =
        |own: &&str| value.strip_prefix(*own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // The router reads these as patterns.
    let is_pattern = value.contains(['{', '}']) || value.contains("/:") || value.contains("/*");
    let is_path =
        value.is_ascii() && value.parse::<PathAndQuery>().is_ok_and(|parsed| parsed.path() == value);
    if !value.starts_with('/') {
        findings.add(path(), format!("a path must begin with `/`: write `/{value}`"));
    } else if is_pattern || !is_path || value.contains('#') {
        findings.add(path(), format!("`{value}` is not a plain path, such as `/one`"));
    } else if let Some(own) = OWN_PATHS.iter().find(|path| own(path)) {
        findings.add(path(), format!("{own} is reserved for ingest itself"));
    }
}

/// Checks the name of a topic that is not ours alone.
pub(super) fn check_topic(topic: &str, prefix: &str, path: &Path, findings: &mut Findings) {
    let path = || path.clone();
    if !is_topic_name(topic) {
        let message = "expected a topic name of at most 249 letters, digits, `.`, `_` and `-`";
        findings.add(path(), message);
    } else if topic.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) {
        findings.add(path(), format!("topics that begin with `{prefix}.` are internal (see kafka.prefix)"));
    } else if topic.starts_with("__") {
        findings.add(path(), "topics that begin with `__` are internal to Kafka");
    }
}

fn check_destinations(named: &[String], known: &BTreeSet<&str>, route: &Path, findings: &mut Findings) {
    let path = route.key("destinations");
    let there_are = if known.is_empty() {
        "no destination is configured".to_owned()
    } else {
        format!("known destinations: {}", known.iter().copied().collect::<Vec<_>>().join(", "))
    };
    if named.is_empty() {
        findings.add(path.clone(), format!("a route needs at least one destination ({there_are})"));
    }
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name.as_str()) {
            findings.add(path.index(index), format!("unknown destination `{name}` ({there_are})"));
        } else if named[..index].contains(name) {
            findings.add(path.index(index), format!("`{name}` is listed twice"));
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
        route.ordering == Ordering::Relaxed || route.ordering_key.is_some(),
        || path.key("ordering"),
        "`strict` keeps requests with the same ordering key in order, and requires an `ordering_key`",
    );
    for (index, name) in route.keep_headers.iter().enumerate() {
        findings.expect(
            HeaderName::try_from(name).is_ok(),
            || path.key("keep_headers").index(index),
            "is not a valid HTTP header name",
        );
    }
}

fn check_schema(schema: &SchemaSource, path: &Path, findings: &mut Findings) {
    // A schema must contain all that it refers to: nothing is fetched.
    if let Err(error) = jsonschema::options().offline().build(schema.document()) {
        let message = format!("the JSON Schema does not compile: {error}");
        findings.add(path.join(error.instance_path(), schema.document()), message);
    }
}

fn is_json_pointer(pointer: &str) -> bool {
    let escapes_are_sound = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (pointer.is_empty() || pointer.starts_with('/')) && escapes_are_sound
}
