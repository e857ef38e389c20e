//! Checks of meaning, for a configuration of valid form.

mod clients;
mod destinations;
mod links;
mod production;
mod resilience;
mod routes;

use std::collections::BTreeSet;

use crate::environment::Environment;
use crate::path::Path;
use crate::problems::Finding;
use crate::settings::{Database, Kafka, Settings};

/// Runs all checks. The names of routes and destinations are passed separately, since entries of invalid form are
/// missing from `settings`. The environment is needed because the database driver reads it too.
pub(crate) fn check(
    settings: &Settings,
    routes: &BTreeSet<&str>,
    destinations: &BTreeSet<&str>,
    environment: &Environment,
) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_kafka(&settings.kafka, &mut findings);
    check_database(&settings.database, &mut findings);
    check_body_limit(settings, &mut findings);
    routes::check(settings, routes, destinations, &mut findings);
    destinations::check(&settings.destinations, &mut findings);
    clients::check(&settings.clients, routes, &mut findings);
    links::check(&settings.links, &mut findings);
    production::check(settings, environment, &mut findings);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, path: Path, message: impl Into<String>) {
        self.0.push(Finding { path, message: message.into() });
    }

    fn expect(&mut self, sound: bool, path: impl FnOnce() -> Path, message: &str) {
        if !sound {
            self.add(path(), message);
        }
    }

    fn expect_key(&mut self, key: &str, path: impl FnOnce() -> Path) {
        self.expect(
            key.len() >= SHORTEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic()),
            path,
            "expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`",
        );
    }
}

/// Random keys of this length cannot be guessed.
const SHORTEST_KEY: usize = 16;

fn check_kafka(kafka: &Kafka, findings: &mut Findings) {
    findings.expect(
        !kafka.bootstrap_servers.trim().is_empty(),
        || Path::of(&["kafka", "bootstrap_servers"]),
        "is missing; expected the addresses of the brokers, such as `kafka-1:9092,kafka-2:9092`",
    );
    findings.expect(
        is_topic(&kafka.prefix) && kafka.prefix.len() <= LONGEST_PREFIX,
        || Path::of(&["kafka", "prefix"]),
        "expected at most 200 letters, digits, `.`, `_` and `-`, because the names of topics begin with it",
    );
    findings.expect(
        kafka.group_instance_id.as_deref().is_none_or(is_topic),
        || Path::of(&["kafka", "group_instance_id"]),
        "expected letters, digits, `.`, `_` and `-`",
    );
    for (name, key) in [("signing_key", &kafka.signing_key), ("accepted_key", &kafka.accepted_key)] {
        if let Some(key) = key {
            findings.expect_key(key.expose(), || Path::of(&["kafka", name]));
        }
    }
}

fn check_database(database: &Database, findings: &mut Findings) {
    let url = database.url.expose();
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    findings.expect(
        url.is_empty() || matches!(scheme, "postgres" | "postgresql" | "sqlite"),
        || Path::of(&["database", "url"]),
        "expected `postgres://user:password@host/name` or `sqlite://path`",
    );
}

/// Without this check, ingest could accept a request that Kafka rejects and that would never be delivered.
fn check_body_limit(settings: &Settings, findings: &mut Findings) {
    let most = settings.kafka.largest_record().saturating_sub(HEADERS);
    if settings.http.body_limit.as_u64() > most {
        let message = format!(
            "exceeds the size of a Kafka record: with its headers, a body may have up to {most} bytes; lower this \
             limit, or raise message.max.bytes in kafka.properties and max.message.bytes of the topics"
        );
        findings.add(Path::of(&["http", "body_limit"]), message);
    }
}

/// Bytes reserved for the headers and the key of a record: more than HTTP servers commonly accept in headers.
const HEADERS: u64 = 64 << 10;

/// The longest prefix, in characters; leaves room for the names of internal topics.
const LONGEST_PREFIX: usize = 200;

/// Whether Kafka accepts a topic of this name.
fn is_topic(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=249).contains(&name.len()) && name.chars().all(legal) && !matches!(name, "." | "..")
}
