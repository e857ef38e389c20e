use std::time::Duration;

use bytesize::ByteSize;

use super::{Case, LEAST, assert_problems, http};
use crate::NodeIds;

#[test]
fn texts_become_the_types_of_their_settings() {
    let settings = Case::file(LEAST)
        .environment(&[
            ("THROUGHLINE_DATABASE__MAX_CONNECTIONS", "7"),
            ("THROUGHLINE_DATABASE__MIGRATE", "true"),
            ("THROUGHLINE_HTTP__BODY_LIMIT", "2097152"),
            ("THROUGHLINE_KAFKA__COMPRESSION", "zstd"),
            ("THROUGHLINE_KAFKA__GROUP_INSTANCE_ID", "12"),
            ("THROUGHLINE_KAFKA__PREFIX", "true"),
            ("THROUGHLINE_INGEST__NODE_IDS", "5"),
            ("THROUGHLINE_SHUTDOWN_DEADLINE", "1m"),
            ("THROUGHLINE_DESTINATIONS__THREE__HEADERS__VERSION", "1.0"),
            ("THROUGHLINE_DESTINATIONS__THREE__RESPONSE_LIMIT", "1KiB"),
        ])
        .loaded()
        .settings;
    assert_eq!(settings.database.max_connections.get(), 7);
    assert!(settings.database.migrate);
    assert_eq!(settings.http.body_limit, ByteSize::mib(2));
    assert_eq!(settings.kafka.group_instance_id.as_deref(), Some("12"));
    assert_eq!(settings.kafka.prefix, "true");
    assert_eq!(settings.ingest.node_ids, NodeIds { first: 5, last: 5 });
    assert_eq!(settings.shutdown_deadline, Duration::from_mins(1));
    assert_eq!(http(&settings.destinations["three"]).headers["version"].expose(), "1.0");
    assert_eq!(http(&settings.destinations["three"]).response_limit, ByteSize::kib(1));
}

#[test]
fn entries_are_found_whatever_their_case_and_punctuation() {
    let case = Case::over(
        "routes: {GitHub-hooks: {path: /g, topic: g, destinations: [three]}}\n\
         kafka: {properties: {socket.timeout.ms: 1}}",
    );
    let settings = case
        .environment(&[
            ("THROUGHLINE_ROUTES__GITHUB_HOOKS__PATH", "/github"),
            ("THROUGHLINE_KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "2"),
            ("THROUGHLINE_KAFKA__PROPERTIES__SSL.CA.LOCATION", "/ca"),
            ("THROUGHLINE_ROUTES__ONE__DESTINATIONS", "three, four"),
            ("THROUGHLINE_DESTINATIONS__FOUR__URL", "http://four"),
            ("THROUGHLINE_ROUTES__FIVE", "{path: /five, topic: five, destinations: [four]}"),
        ])
        .loaded()
        .settings;
    assert_eq!(settings.routes.keys().collect::<Vec<_>>(), ["GitHub-hooks", "five", "one"]);
    assert_eq!(settings.routes["GitHub-hooks"].path.as_deref(), Some("/github"));
    assert_eq!(settings.routes["one"].destinations, ["three", "four"]);
    assert_eq!(settings.kafka.properties["socket.timeout.ms"].expose(), "2");
    assert_eq!(settings.kafka.properties["ssl.ca.location"].expose(), "/ca");
}

#[test]
fn a_list_can_be_written_as_yaml() {
    let case = Case::file(LEAST).environment(&[("THROUGHLINE_ROUTES__ONE__KEEP_HEADERS", "[a, 'b']")]);
    assert_eq!(case.loaded().settings.routes["one"].keep_headers, ["a", "b"]);
}

#[test]
fn a_problem_names_the_variable() {
    assert_problems(
        &Case::file(LEAST).environment(&[
            ("THROUGHLINE_HTTP__ADRESS", "x"),
            ("THROUGHLINE_HTTP__TIMEOUT", "5"),
            ("THROUGHLINE_INGEST__NODE_IDS", "1024"),
            ("THROUGHLINE_DATABASE__MIGRATE", "maybe"),
            ("THROUGHLINE_DISPATCHER__ADDRESS", "x"),
        ]),
        &[
            "http.adress: unknown key; did you mean `address`?  [environment THROUGHLINE_HTTP__ADRESS]",
            "http.timeout: expected a duration above zero, such as `500ms`, `30s` or `1h 30m`; found \"5\"  \
             [environment THROUGHLINE_HTTP__TIMEOUT]",
            "ingest.node_ids: expected node ids from 0 to 1023, such as `0-511`, or a single one; found \"1024\"  \
             [environment THROUGHLINE_INGEST__NODE_IDS]",
            "database.migrate: expected `true` or `false`; found \"maybe\"  \
             [environment THROUGHLINE_DATABASE__MIGRATE]",
            "dispatcher: unknown key; did you mean `dispatch`?  \
             [environment THROUGHLINE_DISPATCHER__ADDRESS]",
        ],
    );
}

#[test]
fn a_missing_underscore_is_reported_and_foreign_variables_are_ignored() {
    let case = Case::over("destinations: {three: {headers: {key: {env: THROUGHLINE_DATABASE_URL}}}}");
    let case = case.environment(&[
        ("THROUGHLINE_HTTP_ADDRESS", "127.0.0.1:1"),
        ("THROUGHLINE_KAFKA_TOPICS_CREATE", "true"),
        ("THROUGHLINE_INGEST_PORT", "tcp://10.0.0.1:8099"),
        ("THROUGHLINE_INGEST_PORT_8099_TCP", "tcp://10.0.0.1:8099"),
        ("THROUGHLINE_TAG", "dev"),
        ("THROUGHLINE_DATABASE_URL", "of another program"),
    ]);
    assert_problems(
        &case,
        &[
            "THROUGHLINE_HTTP_ADDRESS: two underscores separate levels: write \
             THROUGHLINE_HTTP__ADDRESS  [environment]",
            "THROUGHLINE_KAFKA_TOPICS_CREATE: two underscores separate levels: write \
             THROUGHLINE_KAFKA__TOPICS__CREATE  [environment]",
        ],
    );
}

#[test]
fn a_secret_can_be_a_reference() {
    let case = Case::over("database: {url: 'sqlite://x'}")
        .with_file("url", "sqlite://y\n")
        .environment(&[("THROUGHLINE_DATABASE__URL__FILE", "url")]);
    assert_eq!(case.loaded().settings.database.url.expose(), "sqlite://y");
}
