use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::Settings;
use throughline_config::{Environment, Findings, Path};
use throughline_kafka::{self as kafka, DEVELOPMENT_KEY};
use throughline_store as store;

/// The environment that rejects development defaults.
const PRODUCTION: &str = "production";

/// Well-known passwords: those of docker-compose.yml, and common first guesses.
const KNOWN: [&str; 8] = [
    "throughline",
    "development",
    DEVELOPMENT_KEY,
    "postgres",
    "password",
    "secret",
    "changeme",
    "change-me",
];

/// Rejects defaults that give access to any reader of the documentation.
pub(super) fn check(settings: &Settings, environment: &Environment, findings: &mut Findings) {
    if !settings.environment.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(PRODUCTION)) {
        return;
    }
    findings.expect(
        !settings.clients.is_empty() || settings.insecure,
        || Path::of(&["clients"]),
        "is missing, so every caller that reaches ingest could post requests; `environment: production` requires \
         clients with keys, or `insecure: true`",
    );
    check_database(&settings.database, environment, findings);
    check_kafka(&settings.kafka, findings);
    for (name, client) in &settings.clients {
        refuse(Some(client.key.expose()), || Path::of(&["clients", name, "key"]), findings);
    }
    for (name, destination) in &settings.destinations {
        for (path, password) in destination.passwords(&Path::of(&["destinations", name])) {
            refuse(Some(password), || path, findings);
        }
    }
}

fn check_kafka(kafka: &kafka::Settings, findings: &mut Findings) {
    let path = Path::of(&["kafka"]);
    for (path, password) in kafka::Settings::passwords(&kafka.properties, &path.key("properties")) {
        refuse(Some(password), || path, findings);
    }
    findings.expect(
        kafka.signing_key.is_some(),
        || path.key("signing_key"),
        "is missing, so records would be signed with a publicly known key; `environment: production` requires a key \
         of your own, for example the output of `openssl rand -hex 32`",
    );
    refuse(
        Some(kafka.signing_key()).filter(|_| kafka.signing_key.is_some()),
        || path.key("signing_key"),
        findings,
    );
    refuse(kafka.accepted_key(), || path.key("accepted_key"), findings);
}

/// The driver uses the last `password` among the URL's parameters, else the password before the host, else
/// `PGPASSWORD`.
fn check_database(database: &store::Settings, environment: &Environment, findings: &mut Findings) {
    let Ok(url) = Url::parse(database.url.expose()) else { return };
    let path = || Path::of(&["database", "url"]);
    if let Some(password) = password_in(&url) {
        refuse(Some(&password), path, findings);
    } else if matches!(url.scheme(), "postgres" | "postgresql") {
        findings.expect(
            !environment.text("PGPASSWORD").is_ok_and(is_known),
            path,
            "has no password, and the environment variable PGPASSWORD contains a publicly known one; `environment: \
             production` requires a password of your own",
        );
    }
}

fn password_in(url: &Url) -> Option<Cow<'_, str>> {
    let parameter = url.query_pairs().filter(|(name, _)| name == "password").last();
    let before_host = || url.password().map(|password| percent_decode_str(password).decode_utf8_lossy());
    parameter.map(|(_, password)| password).or_else(before_host)
}

fn refuse(password: Option<&str>, path: impl FnOnce() -> Path, findings: &mut Findings) {
    findings.expect(
        !password.is_some_and(is_known),
        path,
        "contains a publicly known password; `environment: production` requires a password of your own",
    );
}

fn is_known(password: &str) -> bool {
    KNOWN.contains(&password)
}
