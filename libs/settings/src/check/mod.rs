//! Checks of meaning, for a configuration of valid form.

mod clients;
mod links;
mod production;
mod routes;
mod topics;

use throughline_config::{Context, Findings, Path};

use crate::settings::Settings;

/// Runs all checks.
pub(crate) fn check(settings: &Settings, context: &Context<'_>, findings: &mut Findings) {
    let (routes, destinations) = (context.names("routes"), context.names("destinations"));
    settings.kafka.check(&Path::of(&["kafka"]), findings);
    settings.database.check(&Path::of(&["database"]), findings);
    check_body_limit(settings, findings);
    routes::check(settings, &routes, &destinations, findings);
    for (name, destination) in &settings.destinations {
        destination.check(&Path::of(&["destinations", name]), findings);
    }
    topics::check(settings, findings);
    clients::check(&settings.clients, &routes, findings);
    links::check(&settings.links, findings);
    production::check(settings, context.environment(), findings);
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
